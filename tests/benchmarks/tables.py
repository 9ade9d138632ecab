"""The report as text."""

from __future__ import annotations

from collections.abc import Iterator

from tests.benchmarks.goals import GOALS
from tests.benchmarks.report import Report, Row
from tests.benchmarks.table import KEPT_MEMORY, LABEL_WRITES, PLANNING

HEAD = (
    "contender",
    "cores",
    "s (range; rounds)",
    "Mvoxel/s",
    "useful GFLOP/s",
    "of peak",
    "operations / one pass",
    "peak MiB",
    "MB read",
    "MB written",
    "time / pipeline's [95 %]",
    "labels equal",
)


def lines_of(report: Report) -> Iterator[str]:
    """Markdown, case by case, then the goals."""
    peaks = ", ".join(f"{rate:.0f} ({name})" for name, rate in report["peaks"].items())
    yield f"convolution peak, GFLOP/s: {peaks or 'not measured'}"
    for case in report["cases"]:
        yield f"\n## {case['case']}: {case['network']} {case['arguments']}, image {tuple(case['shape'])}\n"
        yield f"| {' | '.join(HEAD)} |"
        yield "|---" * len(HEAD) + "|"
        yield from (_row(row) for row in case["rows"])
        yield from _beside(case)
        yield "\nsettings:"
        yield from (f"- {row['contender']}: {_settings(row)}" for row in case["rows"])
    kept = ", ".join(f"{name}={value}" for name, value in KEPT_MEMORY.items())
    yield f"\nWhat keeps freed memory has this in its environment: {kept}"
    yield "\n## Goals\n"
    yield "| goal | reached |"
    yield "|---|---|"
    yield from (goal.line(report) for goal in GOALS)


def _row(row: Row) -> str:
    if row["failed"]:
        return f"| {row['contender']} | {row['cores']} | not measured: {row['failed']} |" + " |" * (len(HEAD) - 3)
    ratio = row["ratio"]
    cells = (
        row["contender"],
        row["cores"],
        f"{row['seconds']:.2f} ({row['fastest']:.2f} to {row['slowest']:.2f}; {row['rounds']})",
        f"{row['voxels_per_second'] / 1e6:.3f}",
        f"{row['useful_gflops']:.1f}",
        f"{100 * row['of_peak']:.0f} %" if row["of_peak"] else "",
        f"{row['redundancy']:.2f}",
        f"{row['peak_bytes'] / 2**20:.0f}",
        f"{row['read_bytes'] / 1e6:.1f}",
        f"{row['written_bytes'] / 1e6:.1f}",
        f"{ratio[0]:.2f} [{ratio[1]:.2f}, {ratio[2]:.2f}]" if ratio else "",
        "padded form" if row["labels_equal"] is None else f"{row['labels_equal']:.5f}",
    )
    return f"| {' | '.join(map(str, cells))} |"


def _beside(case: Report) -> Iterator[str]:
    """What is measured beside the rows: phases of the pipeline, start of workers, planning, label writes."""
    for row in case["rows"]:
        if row.get("phases"):
            phases = ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in row["phases"].items())
            share = f"; all but the network {100 * row['outside']:.1f} % of the wall time" if row["outside"] is not None else ""
            start = f"; workers started in {row['start_seconds']:.1f} s before" if "start_seconds" in row else ""
            yield f"\n{row['contender']}, seconds by phase: {phases}{share}{start}"
    if case["probes"].get(PLANNING):
        yield f"\nplanning: {case['probes'][PLANNING]['planning_seconds']:.2f} s"
    if case["probes"].get(LABEL_WRITES):
        own, other = (case["probes"][LABEL_WRITES][f"{name}_bytes_per_second"] / 1e6 for name in ("own", "zarr"))
        yield f"\nlabel writes, 1 core: {own:.0f} MB/s, zarr-python {other:.0f} MB/s ({own / other:.2f} times)"


def _settings(row: Row) -> str:
    stated = {key: value for key, value in row["settings"].items() if key != "environment"}
    stated |= {key: row[key] for key in ("block_shape", "strip") if row.get(key)}
    words = [f"{key} {value}" for key, value in stated.items()]
    return ", ".join([*words, *(["keeps freed memory"] if row["settings"]["environment"] else [])]) or "none"

"""From measurements to rows: medians, and ratios against the pipeline on as many cores. Knows no contender's code."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from tests.benchmarks.cases import CASES
from tests.benchmarks.log import Entry, Log
from tests.benchmarks.ratios import ratio_of_medians
from tests.benchmarks.table import CONTENDERS, LABEL_WRITES, PEAK, PLANNING, REFERENCE, contenders_of, key_of

Row = dict[str, Any]
Report = dict[str, Any]


def make_report(log: Log, cases: Iterable[str], full: bool) -> Report:
    """All figures of some cases, as JSON holds them.

    Args:
        log: of measurements; those made with other settings than the table's do not count.
        cases: names.
        full: whether rows of ``make bench-full`` alone are wanted.
    """
    peaks = _peaks(log)
    found: Report = {
        "peaks": {f"{precision}, {cores} core{'s' if cores > 1 else ''}": rate for (cores, precision), rate in peaks.items()},
        "cases": [],
    }
    for name in cases:
        names = [entry for entry in contenders_of(CASES[name], full) if not CONTENDERS[entry].is_probe]
        rounds = {entry: log.find(key_of(name, entry)) for entry in names}
        rows = [row_of(entry, rounds, peaks, CASES[name].voxels) for entry in names if rounds[entry]]
        probes = {entry: _median_notes(log, name, entry) for entry in (PLANNING, LABEL_WRITES)}
        found["cases"].append({"case": name, **CASES[name].facts(), "rows": rows, "probes": probes})
    return found


def _peaks(log: Log) -> dict[tuple[int, str], float]:
    """The most GFLOP/s of one convolution, by cores and precision, over all rounds."""
    peaks: dict[tuple[int, str], float] = {}
    for entry in log.entries:
        if entry["contender"].startswith(PEAK) and not entry["failed"]:
            key = entry["cores"], entry["settings"].get("precision", "float32")
            peaks[key] = max(peaks.get(key, 0.0), entry["gflops"])
    return peaks


def _median_notes(log: Log, case: str, probe: str) -> dict[str, float]:
    found = log.find(key_of(case, probe) | {"failed": None})
    keys = [key for key in (found[0] if found else {}) if key.endswith(("_per_second", "planning_seconds"))]
    return {key: statistics.median(entry[key] for entry in found) for key in keys}


def against(name: str) -> str | None:
    """The pipeline's row that a contender is divided by: of as many cores and the same precision."""
    entry = CONTENDERS[name]
    if name == REFERENCE:
        return None
    if name.startswith("pipeline"):
        return REFERENCE
    if entry.precision == "bfloat16":
        return "pipeline, bfloat16"
    return "pipeline, 2 workers" if entry.cores == 2 else REFERENCE


def row_of(name: str, rounds: dict[str, list[Entry]], peaks: dict[tuple[int, str], float], voxels: int) -> Row:
    """One contender of one case.

    Args:
        name: of the contender.
        rounds: measurements of the case, by contender.
        peaks: GFLOP/s by cores and precision.
        voxels: of the image.
    """
    entry = CONTENDERS[name]
    done = [found for found in rounds[name] if not found["failed"]]
    row: Row = {"contender": name, "cores": entry.cores, "precision": entry.precision, "settings": rounds[name][-1]["settings"]}
    if not done:
        return row | {"failed": rounds[name][-1]["failed"]}
    seconds = [found["seconds"] for found in done]
    middle, useful = statistics.median(seconds), done[0]["useful_operations"]
    peak = peaks.get((entry.cores, entry.precision))
    other = against(name)
    theirs = [found["seconds"] for found in rounds.get(other, []) if not found["failed"]] if other else []
    ratio = ratio_of_medians(seconds, theirs) if theirs else None
    row |= {
        "failed": None,
        "rounds": len(done),
        "seconds": middle,
        "fastest": min(seconds),
        "slowest": max(seconds),
        "voxels_per_second": voxels / middle,
        "useful_gflops": useful / middle / 1e9,
        "of_peak": useful / middle / 1e9 / peak if peak else None,
        "redundancy": done[0]["operations"] / useful,
        "labels_equal": None if entry.padded else done[-1]["labels_equal"],
        "against": other if ratio else None,
        "ratio": [ratio.value, ratio.low, ratio.high] if ratio else None,
    }
    for key in ("peak_bytes", "read_bytes", "written_bytes"):
        row[key] = int(statistics.median(found[key] for found in done))
    for key in ("block_shape", "strip"):
        row[key] = done[0].get(key)
    if "start_seconds" in done[0]:
        row["start_seconds"] = statistics.median(found["start_seconds"] for found in done)
    if "phases" in done[0]:
        row["phases"] = _phases(done)
        # On several workers phases add up to more than the wall time, and say nothing of it.
        row["outside"] = statistics.median(1 - found["phases"]["predict"] / found["seconds"] for found in done)
        row["outside"] = row["outside"] if entry.cores == 1 else None
    return row


def _phases(done: list[Entry]) -> dict[str, float]:
    return {phase: statistics.median(found["phases"].get(phase, 0.0) for found in done) for phase in done[0]["phases"]}

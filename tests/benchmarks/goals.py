"""What the project wants to reach, beside what it reached. Knows rows, not how they were measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.benchmarks.report import Report, Row
from tests.benchmarks.table import LABEL_WRITES, REFERENCE

Values = Iterator[tuple[str, float]]


@dataclass(frozen=True)
class Goal:
    """One figure and its bound.

    Args:
        text: what it is.
        bound: that is to be reached.
        values: of a report: case and figure.
        at_least: False for figures that are to stay below.
        percent: how it is written.
    """

    text: str
    bound: float
    values: Callable[[Report], Values]
    at_least: bool = True
    percent: bool = False

    def line(self, report: Report) -> str:
        """A row of the table ``goal | reached``."""
        show = (lambda value: f"{100 * value:.0f} %") if self.percent else (lambda value: f"{value:.2f}")
        found = [f"{show(value)} ({case}{'' if self.is_met(value) else ', missed'})" for case, value in self.values(report)]
        sign = ">=" if self.at_least else "<="
        return f"| {self.text} {sign} {show(self.bound)} | {'; '.join(found) or 'not measured in this run'} |"

    def is_met(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


def _rows(report: Report, start: str, dims: int | None = None) -> Iterator[tuple[str, Row]]:
    """Measured rows whose name starts so, of the cases with so many axes."""
    for case in report["cases"]:
        for row in case["rows"]:
            if row["contender"].startswith(start) and not row["failed"] and dims in (None, len(case["shape"])):
                yield case["case"], row


def _times(name: str, dims: int | None = None) -> Callable[[Report], Values]:
    """Wall time of a contender over that of the pipeline."""

    def values(report: Report) -> Values:
        for case, row in _rows(report, name, dims):
            if row["ratio"] and row["contender"] in (name, f"{name}, 2 threads"):
                yield f"{case}, {_cores(row)}", row["ratio"][0]

    return values


def _cores(row: Row) -> str:
    return f"{row['cores']} core{'s' if row['cores'] > 1 else ''}"


def _best_loop(report: Report) -> Values:
    for case, row in _rows(report, "tile loop, tuned"):
        if row["ratio"]:
            yield f"{case}, {row['precision']}, {_cores(row)}", row["ratio"][0]


def _bfloat16(report: Report) -> Values:
    for case, row in _rows(report, "pipeline, bfloat16"):
        if row["ratio"]:
            yield case, 1 / row["ratio"][0]


def _outside(report: Report) -> Values:
    return ((case, row["outside"]) for case, row in _rows(report, REFERENCE) if row.get("outside") is not None)


def _of_peak(base: int) -> Callable[[Report], Values]:
    def values(report: Report) -> Values:
        widths = {case["case"]: case["arguments"]["base"] for case in report["cases"] if case["network"] == "unet"}
        return ((case, row["of_peak"]) for case, row in _rows(report, REFERENCE, 2) if widths[case] == base and row["of_peak"])

    return values


def _redundancy(dims: int) -> Callable[[Report], Values]:
    return lambda report: ((case, row["redundancy"]) for case, row in _rows(report, REFERENCE, dims))


def _label_writes(report: Report) -> Values:
    for case in report["cases"]:
        probe = case["probes"].get(LABEL_WRITES)
        if probe:
            yield case["case"], probe["own_bytes_per_second"] / probe["zarr_bytes_per_second"]


def _growth(key: str) -> Callable[[Report], Values]:
    """A figure at 16 times the image area over that at one."""

    def values(report: Report) -> Values:
        found = {(case, row["contender"]): row for case, row in _rows(report, "pipeline")}
        for (case, name), row in found.items():
            small = found.get(("area 1x", name))
            if case == "area 16x" and small:
                yield name, row[key] / small[key]

    return values


def _cost_growth(report: Report) -> Values:
    return ((name, 1 / value) for name, value in _growth("voxels_per_second")(report))


GOALS: tuple[Goal, ...] = (
    Goal("MONAI, overlap 0.5, 2D: time over the pipeline's", 5, _times("MONAI, overlap 0.5", 2)),
    Goal("MONAI, overlap 0.5, 3D: time over the pipeline's", 12, _times("MONAI, overlap 0.5", 3)),
    Goal("nnU-Net without mirroring, 2D: time over the pipeline's", 4.5, _times("nnU-Net, without mirroring", 2)),
    Goal("map_overlap as written: time over the pipeline's", 2.5, _times("map_overlap, as written")),
    Goal("map_overlap tuned: time over the pipeline's", 1.4, _times("map_overlap, tuned")),
    Goal("best hand-tuned loop, same precision: time over the pipeline's", 1.4, _best_loop),
    Goal("bfloat16 against float32: speed", 1.8, _bfloat16),
    Goal("everything but the network, of the wall time", 0.05, _outside, at_least=False, percent=True),
    Goal("useful GFLOP/s of the convolution peak, base 16", 0.55, _of_peak(16), percent=True),
    Goal("useful GFLOP/s of the convolution peak, base 32", 0.65, _of_peak(32), percent=True),
    Goal("useful GFLOP/s of the convolution peak, base 64", 0.75, _of_peak(64), percent=True),
    Goal("label writes over zarr-python's: speed", 3, _label_writes),
    Goal("operations over one pass, 2D", 1.05, _redundancy(2), at_least=False),
    Goal("operations over one pass, 3D", 1.25, _redundancy(3), at_least=False),
    Goal("peak memory at 16 times the image over that at one", 1.1, _growth("peak_bytes"), at_least=False),
    Goal("cost of a voxel at 16 times the image over that at one", 1.05, _cost_growth, at_least=False),
)

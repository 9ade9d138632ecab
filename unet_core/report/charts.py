"""Where the bars, points and ticks of small charts lie; templates draw them as SVG. Knows numbers only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

from unet_core.report import numbers
from unet_core.report.objects import Histogram

WIDTH, HEIGHT = 520, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 36


@dataclass(frozen=True)
class Tick:
    """A mark of an axis: where it is, and what it says."""

    place: float
    text: str


@dataclass(frozen=True)
class Bar:
    """A rectangle of a chart; ``text`` is told when one points at it."""

    left: float
    top: float
    width: float
    height: float
    text: str


@dataclass(frozen=True)
class BarChart:
    """A histogram with a logarithmic axis of sizes, in pixels of ``WIDTH`` times ``HEIGHT``."""

    bars: tuple[Bar, ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    unit: str
    median: float
    color: str
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM


def size_chart(histogram: Histogram, median: float, voxel_um: float | None, ndim: int, color: str) -> BarChart:
    """Sizes of objects.

    Args:
        histogram: of voxels.
        median: likewise.
        voxel_um: area or volume of a voxel; None if unknown.
        ndim: 2 or 3.
        color: of the bars, ``#rrggbb``.
    """
    unit = numbers.VOXELS if voxel_um is None else numbers.size_unit([median * voxel_um], ndim)
    factor = 1.0 if voxel_um is None else voxel_um / unit.um
    edges, most = [edge * factor for edge in histogram.edges], max(histogram.counts)
    low, high = log10(edges[0]), log10(edges[-1])

    def across(value: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * (log10(value) - low) / max(high - low, 1e-9)

    def height(count: float) -> float:
        return (HEIGHT - _TOP - _BOTTOM) * count / most

    bars = tuple(
        Bar(
            across(first),
            HEIGHT - _BOTTOM - height(count),
            max(0.5, across(last) - across(first) - 1),
            height(count),
            f"{count:,} of {numbers.brief(first)} to {numbers.brief(last)} {unit.sign}",
        )
        for first, last, count in zip(edges, edges[1:], histogram.counts, strict=False)
    )
    ticks = tuple(Tick(across(value), numbers.brief(value)) for value in _round_values(edges[0], edges[-1]))
    rows = tuple(Tick(HEIGHT - _BOTTOM - height(value), f"{value:,}") for value in count_ticks(most))
    return BarChart(bars, ticks, rows, unit.sign, across(median * factor), color)


def _round_values(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between two values; the powers alone where that is too many."""
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    for factors in ((1, 2, 5), (1,)):
        values = [factor * 10.0**power for power in powers for factor in factors]
        inside = [float(f"{value:.6g}") for value in values if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(inside) <= 8:
            break
    return inside


def count_ticks(most: int) -> list[int]:
    """Whole round numbers from 0 on, three to five of them where there are as many."""
    step = max(1, int(numbers.round_down(max(1.0, most / 2.5))))
    return list(range(0, most + 1, step))


@dataclass(frozen=True)
class Dots:
    """One score of many images: a dot each, on a line from ``low`` to ``high``, and the interval of the mean; in percent of the width."""

    dots: tuple[Tick, ...]
    interval: tuple[float, float] | None
    mean: float | None
    low: str
    high: str


def score_dots(names: Sequence[str], values: Sequence[float], interval: tuple[float, float] | None, mean: float) -> Dots:
    """Scores as dots; those between 0 and 1 on the whole range, others from 0 to the largest."""
    kept = [(name, value) for name, value in zip(names, values, strict=True) if value == value]
    highest = max(1.0, *(value for _, value in kept)) if kept else 1.0

    def place(value: float) -> float:
        return 100 * value / highest

    dots = tuple(Tick(place(value), f"{name}: {value:.4f}") for name, value in kept)
    ends = None if interval is None else (place(interval[0]), place(interval[1]))
    return Dots(dots, ends, place(mean) if mean == mean else None, "0", numbers.digits(highest))

"""Numbers as people read them: thousands, three significant digits, units that fit. Knows no page."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import floor, isfinite, log10


@dataclass(frozen=True)
class Unit:
    """A unit: its sign, and how many um (um^2, um^3) it is."""

    sign: str
    um: float


LENGTHS = (Unit("nm", 1e-3), Unit("µm", 1.0), Unit("mm", 1e3))
_SIZES = {
    2: (Unit("nm²", 1e-6), Unit("µm²", 1.0), Unit("mm²", 1e6)),
    3: (Unit("nm³", 1e-9), Unit("µm³", 1.0), Unit("mm³", 1e9)),
}
_BYTES = ("bytes", "kB", "MB", "GB", "TB", "PB")
VOXELS = Unit("voxels", 1.0)
_SMALLEST_SHOWN = 0.1  # of a unit
_FEWEST_SHOWN = 0.01  # objects in one um^3; fewer are told in one mm^3


def size_unit(values_um: Iterable[float], ndim: int) -> Unit:
    """The unit of area (2) or volume (3) in which the largest of some values is readable."""
    largest = max(values_um, default=0.0)
    fitting = [unit for unit in _SIZES[ndim] if largest / unit.um >= _SMALLEST_SHOWN]
    return fitting[-1] if fitting else _SIZES[ndim][1]


def length_unit(value_um: float) -> Unit:
    fitting = [unit for unit in LENGTHS if value_um / unit.um >= 1]
    return fitting[-1] if fitting else LENGTHS[0]


def density_unit(per_um: float, ndim: int) -> Unit:
    """The unit of area or volume that holds a readable number of objects."""
    return _SIZES[3][1] if ndim == 3 and per_um >= _FEWEST_SHOWN else _SIZES[ndim][-1]


def count(number: int) -> str:
    return f"{number:,}"


def digits(value: float) -> str:
    """Three significant digits, or all before the point: 0.117, 12.3, 1,234."""
    if not isfinite(value):
        return "–"
    if value == 0:
        return "0"
    value = float(f"{value:.3g}") if abs(value) < 1000 else value  # 0.9999 is 1.00
    power = floor(log10(abs(value)))
    if power < -4:
        return f"{value:.2e}"
    return f"{value:,.{max(0, 2 - power)}f}"


def brief(value: float) -> str:
    """The same without zeros at the end: 0.5, 20, 1,000."""
    text = digits(value)
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def score(value: float | None) -> str:
    """Four digits after the point; a dash where there is none."""
    if value is None or not isfinite(value):
        return "–"
    return f"{value:.4f}" if abs(value) >= 0.001 or value == 0 else f"{value:.2e}"


def percent(share: float) -> str:
    if 0 < share < 0.0001:
        return "< 0.01 %"
    return f"{digits(100 * share)} %"


def duration(seconds: float) -> str:
    """12.3 s, 4 min 5 s, or 3 h 12 min."""
    if seconds < 60:
        return f"{digits(seconds)} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def size_bytes(number: int) -> str:
    value, power = float(number), 0
    while value >= 1000 and power < len(_BYTES) - 1:
        value, power = value / 1000, power + 1
    return f"{digits(value)} {_BYTES[power]}" if power else f"{number} bytes"


def round_down(value: float) -> float:
    """The largest of 1, 2 or 5 times a power of ten that is not above a value."""
    power = 10.0 ** floor(log10(value))
    return next(factor * power for factor in (5, 2, 1) if factor * power <= value * (1 + 1e-9))

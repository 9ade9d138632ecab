"""Columns of the table of objects: which, where and how large they are, and what is in them. Exact up to the last division.

The sums of a block are integers, and so are those of an object; they are rounded once. So a column does not depend on how the image was
cut into blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.measuring.exact import quotient
from unet_core.measuring.rows import Rows


@dataclass(frozen=True)
class Measured:
    """What is measured of the objects of one output.

    Args:
        axes: of the image, e.g. ``zyx``.
        voxel_size_um: along these; None if it is not known.
        classes: value and name of those that an object may have.
        own_class: value that all objects have; None if it is that of most of their voxels.
        channels: their numbers in the image.
        full_probability: the stored number that stands for 1; None if probabilities are not kept.
    """

    axes: str
    voxel_size_um: tuple[float, ...] | None
    classes: tuple[tuple[int, str], ...]
    own_class: int | None
    channels: tuple[int, ...]
    full_probability: int | None

    @property
    def size_name(self) -> tuple[str, str]:
        """Column of area or volume, and its unit."""
        return ("volume_um3", "um^3") if len(self.axes) == 3 else ("area_um2", "um^2")


@dataclass(frozen=True)
class Column:
    """One column of the table.

    Args:
        values: one an object; NaN where there is none. Of a column of words, indices into ``names``.
        unit: e.g. ``um``; "" for plain numbers.
        meaning: in one sentence.
        names: of the values of a column of words.
    """

    values: NDArray[Any]
    unit: str
    meaning: str
    names: tuple[str, ...] | None = None


def columns_of(measured: Measured, rows: Rows) -> dict[str, Column]:
    """All columns but those of shape, by name, in the order of the table."""
    own = _class_index(measured, rows)
    values = np.array([value for value, _ in measured.classes], dtype=np.uint8)
    names = tuple(name for _, name in measured.classes)
    size, unit = measured.size_name
    one = float(np.prod(measured.voxel_size_um)) if measured.voxel_size_um else np.nan
    where = "the smallest box around the object along"
    centroid = quotient(rows.positions, rows.voxels[:, None])
    return {
        "label": Column(rows.labels, "", "Id of the object, as in labels/instances."),
        "class": Column(own, "", "Name of the object's class, that of most of its voxels.", names),
        "class_value": Column(values[own], "", "Label value of the object's class."),
        "voxels": Column(rows.voxels, "voxels", "How many voxels the object has."),
        size: Column(rows.voxels * one, unit, "Voxels times the size of one."),
        **_by_axis("bbox_min", measured.axes, rows.start, f"First voxel of {where}"),
        **_by_axis("bbox_max", measured.axes, rows.stop, f"One past the last voxel of {where}"),
        **_by_axis("centroid", measured.axes, centroid, "Mean position of the object's voxels, counted from 0, along"),
        "class_probability": Column(
            _probability(measured, rows, own), "", "Mean probability of the object's class over its voxels."
        ),
        **dict(_fractions(measured, rows)),
        **dict(_intensities(measured, rows)),
    }


def _by_axis(name: str, axes: str, values: NDArray[Any], meaning: str) -> dict[str, Column]:
    return {f"{name}_{axis}": Column(values[:, number], "voxels", f"{meaning} {axis}.") for number, axis in enumerate(axes)}


def _class_index(measured: Measured, rows: Rows) -> NDArray[np.int64]:
    """Of each object's class among those of the output."""
    if measured.own_class is None:
        return np.asarray(rows.total(rows.sums["classes"]).argmax(axis=1))  # the first among equals
    number = [value for value, _ in measured.classes].index(measured.own_class)
    return np.full(len(rows.firsts), number, dtype=np.int64)


def _probability(measured: Measured, rows: Rows, own: NDArray[np.int64]) -> NDArray[np.float64]:
    if measured.full_probability is None:
        return np.full(len(own), np.nan)
    sums, exponent = rows.exact("probability")
    return quotient(sums[np.arange(len(own)), own], rows.voxels * measured.full_probability, exponent)


def _fractions(measured: Measured, rows: Rows) -> Iterator[tuple[str, Column]]:
    counts = rows.total(rows.sums["classes"])
    names = [name for _, name in measured.classes]
    for number, (value, name) in enumerate(measured.classes):
        column = f"fraction_{name}" if names.count(name) == 1 else f"fraction_{name}_{value}"
        yield column, Column(counts[:, number] / rows.voxels, "", f"Fraction of the object's voxels that are {name}.")


def _intensities(measured: Measured, rows: Rows) -> Iterator[tuple[str, Column]]:
    (sums, exponent), (squares, power) = rows.exact("intensity"), rows.exact("square")
    voxels = rows.voxels[:, None]
    mean = quotient(sums, voxels, exponent)
    # The variance, times the square of the number of voxels, as an integer times a power of two that both terms share.
    shared = min(power, 2 * exponent)
    spread = voxels.astype(object) * squares * (1 << power - shared) - sums * sums * (1 << 2 * exponent - shared)
    variance = quotient(spread, voxels.astype(object) ** 2, shared)
    std = np.sqrt(np.maximum(variance, 0.0))  # below 0 where squares of float64 pass what the smallest one can hold
    found = {
        "mean": (mean, "Mean"),
        "min": (rows.least(rows.sums["intensity_min"]).astype(np.float64), "Smallest"),
        "max": (rows.most(rows.sums["intensity_max"]).astype(np.float64), "Largest"),
        "std": (std, "Standard deviation (over all voxels, not a sample) of the"),
    }
    for number, channel in enumerate(measured.channels):
        for name, (values, word) in found.items():
            yield (
                f"intensity_{name}_{channel}",
                Column(values[:, number], "", f"{word} intensity in channel {channel} of the image."),
            )

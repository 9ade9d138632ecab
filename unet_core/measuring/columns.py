"""Columns of the table of objects, from the sums of all blocks that hold a part of them. Exact up to the last division.

The sums of a block are integers, and so are those of an object; they are added as Python's integers, which have no largest one, and
rounded once. So a column does not depend on how the image was cut into blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.measuring.sums import Sums

Exact = NDArray[np.object_]  # of Python's integers


@dataclass(frozen=True)
class Measured:
    """What is measured of the objects of one output.

    Args:
        axes: of the image, e.g. ``zyx``.
        voxel_size_um: along these; None if it is not known.
        classes: value and name of those that an object may have.
        own_class: value that all objects have; None if it is that of most of their voxels.
    """

    axes: str
    voxel_size_um: tuple[float, ...] | None
    classes: tuple[tuple[int, str], ...]
    own_class: int | None


@dataclass(frozen=True)
class Column:
    """One column of the table.

    Args:
        values: one an object; NaN where there is none. Of ``class`` the indices into ``names``.
        unit: e.g. ``um``; "" for plain numbers.
        meaning: in one sentence.
        names: of the values of a column of words.
    """

    values: NDArray[Any]
    unit: str
    meaning: str
    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Rows:
    """Sums of several blocks, sorted by label.

    Args:
        sums: rows of all blocks.
        origins: (rows, axes): the voxel of the image that the positions of a row count from.
        firsts: first row of each object.
    """

    sums: Sums
    origins: NDArray[np.int64]
    firsts: NDArray[np.int64]

    @property
    def labels(self) -> NDArray[np.uint64]:
        return self.sums["label"][self.firsts]

    def total(self, name: str) -> NDArray[np.int64]:
        """Of what cannot pass the largest int64: numbers of voxels."""
        return self._over(np.add, self.sums[name])

    def exact(self, values: NDArray[Any]) -> Exact:
        """Sums of any size, of integers by row."""
        return self._over(np.add, values.astype(object))

    def least(self, values: NDArray[Any]) -> NDArray[Any]:
        return self._over(np.minimum, values)

    def most(self, values: NDArray[Any]) -> NDArray[Any]:
        return self._over(np.maximum, values)

    def _over(self, reduction: np.ufunc, values: NDArray[Any]) -> NDArray[Any]:
        return reduction.reduceat(values, self.firsts, axis=0) if len(self.firsts) else values[:0]


def rows_of(blocks: Sequence[tuple[tuple[int, ...], Sums]]) -> Rows:
    """Put the sums of blocks one below the other.

    Args:
        blocks: at least one: the first voxel of each, and its sums.
    """
    labels = np.concatenate([sums["label"] for _, sums in blocks])
    order = np.argsort(labels, kind="stable")
    sums = {name: np.concatenate([sums[name] for _, sums in blocks])[order] for name in blocks[0][1]}
    origins = np.concatenate([np.tile(np.array(first, dtype=np.int64), (len(sums["label"]), 1)) for first, sums in blocks])[order]
    changes = labels[order][1:] != labels[order][:-1]
    return Rows(sums, origins, np.flatnonzero(np.concatenate((np.ones(min(1, len(labels)), dtype=bool), changes))))


def columns_of(measured: Measured, rows: Rows) -> dict[str, Column]:
    """Every column, by name, in the order of the table."""
    voxels = rows.total("voxels")
    columns = {"label": Column(rows.labels, "", "Id of the object, as in labels/instances.")}
    columns |= _class(measured, rows)
    columns["voxels"] = Column(voxels, "voxels", "How many voxels the object has.")
    name, unit = ("volume_um3", "um^3") if len(measured.axes) == 3 else ("area_um2", "um^2")
    size = np.prod(measured.voxel_size_um) if measured.voxel_size_um else np.nan
    columns[name] = Column(voxels * size, unit, "Voxels times the size of one.")
    start, stop = rows.least(rows.sums["start"] + rows.origins), rows.most(rows.sums["stop"] + rows.origins)
    for end, corner, meaning in (("min", start, "First voxel of"), ("max", stop, "One past the last voxel of")):
        columns |= _by_axis(f"bbox_{end}", measured.axes, corner, "voxels", f"{meaning} the smallest box around the object along")
    count = rows.sums["voxels"].astype(object)[:, None]
    sums = rows.exact(rows.sums["positions"].astype(object) + count * rows.origins.astype(object))
    centroid = quotient(sums, voxels[:, None])
    columns |= _by_axis(
        "centroid", measured.axes, centroid, "voxels", "Mean position of the object's voxels, counted from 0, along"
    )
    return columns


def quotient(numerator: Exact, denominator: NDArray[Any]) -> NDArray[np.float64]:
    """Of integers, rounded once."""
    return np.asarray(numerator / denominator.astype(object), dtype=np.float64)


def _class(measured: Measured, rows: Rows) -> dict[str, Column]:
    values = np.array([value for value, _ in measured.classes], dtype=np.uint8)
    names = tuple(name for _, name in measured.classes)
    if measured.own_class is None:
        index = rows.total("classes").argmax(axis=1)  # among equals the smallest value
    else:
        index = np.full(len(rows.firsts), values.tolist().index(measured.own_class))
    return {
        "class": Column(index, "", "Name of the object's class, that of most of its voxels.", names),
        "class_value": Column(values[index], "", "Label value of the object's class."),
    }


def _by_axis(name: str, axes: str, values: NDArray[Any], unit: str, meaning: str) -> dict[str, Column]:
    return {f"{name}_{axis}": Column(values[:, number], unit, f"{meaning} {axis}.") for number, axis in enumerate(axes)}

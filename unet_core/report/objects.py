"""Objects of a result in numbers: how many of each class, how dense, how large. Knows no page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.instances import read_joined
from unet_core.report.opened import Opened

BINS = 32


@dataclass(frozen=True)
class Spread:
    """How numbers are spread; quartiles lie between two of them where none is in the middle, as in ``numpy.quantile``."""

    smallest: float
    lower_quartile: float
    median: float
    mean: float
    upper_quartile: float
    largest: float

    @classmethod
    def of(cls, sizes: NDArray[Any], unit: float = 1.0) -> Spread:
        """Of at least one number, each times ``unit``."""
        low, middle, high = np.quantile(sizes, (0.25, 0.5, 0.75))
        values = (sizes.min(), low, middle, sizes.mean(), high, sizes.max())
        return cls(*(float(value) * unit for value in values))


@dataclass(frozen=True)
class Histogram:
    """How many objects have a size in each bin; all but the last bin are half-open.

    Args:
        edges: in voxels, whole ones, in about equal ratios.
        counts: one fewer.
    """

    edges: tuple[int, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, sizes: NDArray[Any]) -> Histogram:
        smallest, largest = int(sizes.min()), int(sizes.max())
        edges = np.unique(np.rint(np.geomspace(smallest, largest + 1, BINS + 1)).astype(np.int64))
        counts, _ = np.histogram(sizes, edges)
        return cls(tuple(edges.tolist()), tuple(counts.tolist()))


@dataclass(frozen=True)
class ObjectFacts:
    """The objects of one class.

    Args:
        name: of the class.
        color: of it.
        count: of objects.
        per_um: density: objects for each um^2 or um^3 that was computed; None where the voxel size is unknown.
        voxels: of an object; None if there are none, here and below.
        size_um: likewise in um^2 or um^3; None also where the voxel size is unknown.
        histogram: of their sizes.
        probability: of their class, mean over the voxels of each; None where probabilities were not kept or objects not measured.
        at_edge: objects that touch an end of the image, which may cut them; None where objects were not measured.
    """

    name: str
    color: str
    count: int
    per_um: float | None
    voxels: Spread | None
    size_um: Spread | None
    histogram: Histogram | None
    probability: Spread | None
    at_edge: int | None


def object_facts(opened: Opened) -> tuple[ObjectFacts, ...] | None:
    """One entry for each class that can have objects; None where objects have no ids, or not yet."""
    if not opened.is_joined:
        return None
    voxel_um = voxel_size_um(opened)
    computed = opened.segmented.voxels
    found, table = [], _measured(opened)
    for entry, sizes in _sizes(opened):
        some = bool(sizes.size)
        found.append(
            ObjectFacts(
                entry.name,
                entry.color,
                int(sizes.size),
                None if voxel_um is None or not computed else sizes.size / (computed * voxel_um),
                Spread.of(sizes) if some else None,
                Spread.of(sizes, voxel_um) if some and voxel_um is not None else None,
                Histogram.of(sizes) if some else None,
                _probability(table, entry.value),
                _at_edge(opened, table, entry.value),
            )
        )
    return tuple(found)


def object_centres(opened: Opened) -> NDArray[np.float64] | None:
    """(objects, axes), in voxels; None where objects were not measured."""
    axes = opened.plan.spatial_axes
    columns = _columns(opened, [f"centroid_{axis}" for axis in axes])
    return None if columns is None else np.stack([columns[f"centroid_{axis}"] for axis in axes], axis=1)


def _measured(opened: Opened) -> dict[str, NDArray[Any]] | None:
    """Columns of the table that the facts need."""
    boxes = [f"bbox_{end}_{axis}" for end in ("min", "max") for axis in opened.plan.spatial_axes]
    return _columns(opened, ["class_value", "class_probability", *boxes])


def _probability(table: dict[str, NDArray[Any]] | None, value: int) -> Spread | None:
    if table is None:
        return None
    own = table["class_probability"][table["class_value"] == value].astype(np.float64)
    known = own[np.isfinite(own)]
    return Spread.of(known) if known.size else None


def _at_edge(opened: Opened, table: dict[str, NDArray[Any]] | None, value: int) -> int | None:
    """How many objects of a class touch an end of the image."""
    if table is None:
        return None
    touching = np.zeros(len(table["class_value"]), dtype=bool)
    for axis, size in zip(opened.plan.spatial_axes, opened.plan.levels[0].shape, strict=True):
        if size > 1:
            touching |= (table[f"bbox_min_{axis}"] == 0) | (table[f"bbox_max_{axis}"] == size)
    return int(np.count_nonzero(touching & (table["class_value"] == value)))


def _columns(opened: Opened, names: list[str]) -> dict[str, NDArray[Any]] | None:
    if not opened.has_table:
        return None
    from unet_core.tables import read_objects_table

    table = read_objects_table(opened.result.url, names)
    return {name: table.column(name).to_numpy() for name in names}


def voxel_size_um(opened: Opened) -> float | None:
    """Area of a voxel in um^2, or its volume in um^3; None if it is unknown."""
    plan = opened.plan
    size = prod(plan.scale)
    return size if plan.unit == "micrometer" and 0 < size < float("inf") else None


def _sizes(opened: Opened) -> Iterator[tuple[Any, NDArray[np.int64]]]:
    """Each class that objects are made of, with the voxels of each of its objects."""
    plan = opened.plan
    assert plan.instances is not None
    joined = read_joined(opened.store, plan, opened.request)
    region = next(image.label_value for image in plan.images if image.path == plan.instances.labels)
    for entry in plan.model.classes:
        if entry.value and region in (None, entry.value):
            yield entry, joined.sizes[joined.values == entry.value].astype(np.int64)

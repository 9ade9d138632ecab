"""What units of the stages that measure instances compute, from what is committed before them. Knows the ledger, no network.

ids and labels of a block ---> its sums ---\\
ids and labels of a block ---> its sums -----> the table of all objects
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from math import isfinite, prod
from typing import Any

import numpy as np
from numcodecs import Zstd
from numpy.typing import NDArray

from unet_core import ledger
from unet_core.array_file import read_arrays, write_arrays
from unet_core.committed import read_objects, read_voxels
from unet_core.geometry import Box
from unet_core.ledger import Request
from unet_core.measuring.columns import Column, Measured, columns_of
from unet_core.measuring.perimeter import border_turns
from unet_core.measuring.rows import rows_of
from unet_core.measuring.shape import shape_columns
from unet_core.measuring.sums import BoxOfVoxels, Sums, sums_of_box
from unet_core.plan import Plan
from unet_core.resume import wanted_units
from unet_core.stages import INSTANCES_STAGE, MEASURE_STAGE, SEGMENT_STAGE, measure_ring
from unet_core.store import Store

TABLE_KEY = "tables/objects.parquet"
ROW_GROUP = 1 << 15  # objects that are put together at a time; part of the bytes of the table

_FOLDER = f"{ledger.FOLDER}/measure"
_READERS = 8
_LEVEL = 3  # of zstd; numpy's own deflate took half the time of measuring many small objects


def measured_of(plan: Plan) -> Measured:
    """What the table of an output holds."""
    assert plan.instances is not None
    own = next(image.label_value for image in plan.images if image.path == plan.instances.labels)
    kept = next((image for image in plan.images if image.kind == "probabilities"), None)
    count = plan.input.shape[0] if "c" in plan.input.axes else 1
    return Measured(
        axes=plan.spatial_axes,
        voxel_size_um=plan.scale if plan.unit == "micrometer" and isfinite(prod(plan.scale)) else None,
        classes=tuple((entry.value, entry.name) for entry in plan.model.classes if entry.value),
        own_class=own,
        channels=plan.input.channels or tuple(range(count)),
        full_probability=None if kept is None else 255 if kept.dtype == "uint8" else 1,
    )


def measured_objects(store: Store, plan: Plan, request: Request, index: int, image: NDArray[Any]) -> dict[str, bytes]:
    """The object of a unit of stage ``measure``: sums over the voxels of each object in one block.

    Args:
        image: intensities of the block, (C, *block).
    """
    own = plan.stage(MEASURE_STAGE).grid.block(index)
    images = tuple(entry for entry in plan.images if entry.kind in ("labels", "probabilities"))
    read = read_voxels(store, plan, request, plan.stage(SEGMENT_STAGE), images, own)
    by_value = {entry.label_value: array for entry, array in zip(images, read, strict=True) if entry.kind == "labels"}
    kept = next((array for entry, array in zip(images, read, strict=True) if entry.kind == "probabilities"), ())
    around = _ids_around(store, plan, request, own)
    inside = Box.from_shape(own.shape, measure_ring(own.ndim))
    box = BoxOfVoxels(
        ids=around[inside.slices()],
        classes=[by_value[value if value in by_value else None] == value for value, _ in measured_of(plan).classes],
        image=image,
        probabilities=[values for values, entry in zip(kept, plan.model.classes, strict=False) if entry.value],
        turns=border_turns(around) if own.ndim == 2 else None,
    )
    return {_sums_key(index): _packed(sums_of_box(box))}


def _ids_around(store: Store, plan: Plan, request: Request, own: Box) -> NDArray[np.uint64]:
    """Ids of a block and a ring of voxels; 0 where the image has ended."""
    assert plan.instance_image is not None
    ring = measure_ring(own.ndim)
    wanted = own.grow(ring, ring)
    inside = wanted.intersect(Box.from_shape(plan.levels[0].shape))
    ids = np.zeros(wanted.shape, dtype=np.uint64)
    (found,) = read_voxels(store, plan, request, plan.stage(INSTANCES_STAGE), (plan.instance_image,), inside)
    ids[inside.shift(tuple(-first for first in wanted.start)).slices()] = found
    return ids


def table_objects(store: Store, plan: Plan, request: Request) -> dict[str, bytes]:
    """The object of the one unit of stage ``table``: a row for each instance, sorted by label."""
    from unet_core.tables import encode_table  # pyarrow takes a fifth of a second, in every worker

    return {TABLE_KEY: encode_table(_row_groups(store, plan, request))}


def _row_groups(store: Store, plan: Plan, request: Request) -> Iterator[dict[str, Column]]:
    """Columns of the first objects, then of the next as many; a block is read again for each group that it has objects of."""
    grid, measured = plan.stage(MEASURE_STAGE).grid, measured_of(plan)
    wanted = list(wanted_units(plan, request, plan.stage(MEASURE_STAGE)))
    with ThreadPoolExecutor(_READERS) as readers:

        def read(indices: list[int], first: int, stop: int) -> list[Sums]:
            return list(readers.map(lambda index: _read_sums(store, plan, request, index, first, stop), indices))

        ends = list(readers.map(lambda index: _label_range(store, plan, request, index), wanted))
        for first in range(0, max(last for _, last in ends) + 1, ROW_GROUP):
            stop = first + ROW_GROUP
            indices = [index for index, (least, most) in zip(wanted, ends, strict=True) if least < stop and most >= first]
            if not indices:
                if first:
                    continue
                indices = wanted[:1]  # for the columns of an empty table
            sums = read(indices, first, stop)
            starts = (grid.block(index).start for index in indices)
            rows = rows_of(list(zip(starts, sums, strict=True)))
            yield columns_of(measured, rows) | shape_columns(measured, rows)


def _label_range(store: Store, plan: Plan, request: Request, index: int) -> tuple[int, int]:
    """Smallest and largest label of a block; (0, 0) if it has none."""
    labels = _read_arrays(store, plan, request, index, ("label",))["label"]
    return (int(labels[0]), int(labels[-1])) if len(labels) else (0, 0)


def _read_sums(store: Store, plan: Plan, request: Request, index: int, first: int, stop: int) -> Sums:
    """Of the objects of a block whose label is at least ``first`` and below ``stop``."""
    sums = _read_arrays(store, plan, request, index)
    low, high = np.searchsorted(sums["label"], np.array([first, stop], dtype=np.uint64))
    return {name: values[low:high].copy() for name, values in sums.items()}  # else all of the block would stay in memory


def _read_arrays(store: Store, plan: Plan, request: Request, index: int, names: tuple[str, ...] = ()) -> Sums:
    """Sums of a block: those of these names, or all."""
    objects = read_objects(store, plan, request, plan.stage(MEASURE_STAGE), index)
    return read_arrays(Zstd().decode(objects[_sums_key(index)]), names)


def _sums_key(index: int) -> str:
    return f"{_FOLDER}/{index:08d}.npz.zst"


def _packed(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Arrays as one object; the same bytes for the same arrays."""
    return bytes(Zstd(level=_LEVEL).encode(write_arrays(arrays, compressed=False)))

"""What units of the stages that measure instances compute, from what is committed before them. Knows the ledger, no network.

ids and labels of a block ---> its sums ---\\
ids and labels of a block ---> its sums -----> the table of all objects
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from math import isfinite, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core import ledger
from unet_core.committed import read_objects, read_voxels
from unet_core.ledger import Request
from unet_core.measuring.columns import Column, Measured, columns_of, rows_of
from unet_core.measuring.sums import Sums, sums_of_box
from unet_core.plan import Plan
from unet_core.resume import wanted_units
from unet_core.stages import INSTANCES_STAGE, MEASURE_STAGE, SEGMENT_STAGE
from unet_core.store import Store

TABLE_KEY = "tables/objects.parquet"
ROW_GROUP = 1 << 16  # objects that are put together at a time; part of the bytes of the table

_FOLDER = f"{ledger.FOLDER}/measure"
_READERS = 8


def measured_of(plan: Plan) -> Measured:
    """What the table of an output holds."""
    assert plan.instances is not None
    own = next(image.label_value for image in plan.images if image.path == plan.instances.labels)
    return Measured(
        axes=plan.spatial_axes,
        voxel_size_um=plan.scale if plan.unit == "micrometer" and isfinite(prod(plan.scale)) else None,
        classes=tuple((entry.value, entry.name) for entry in plan.model.classes if entry.value),
        own_class=own,
    )


def measured_objects(store: Store, plan: Plan, request: Request, index: int) -> dict[str, bytes]:
    """The object of a unit of stage ``measure``: sums over the voxels of each object in one block."""
    own = plan.stage(MEASURE_STAGE).grid.block(index)
    assert plan.instance_image is not None
    (ids,) = read_voxels(store, plan, request, plan.stage(INSTANCES_STAGE), (plan.instance_image,), own)
    images = tuple(image for image in plan.images if image.kind == "labels")
    labels = read_voxels(store, plan, request, plan.stage(SEGMENT_STAGE), images, own)
    by_value = {image.label_value: array for image, array in zip(images, labels, strict=True)}
    classes = [by_value.get(value, labels[0]) == value for value, _ in measured_of(plan).classes]
    return {_sums_key(index): _packed(sums_of_box(ids, classes))}


def table_objects(store: Store, plan: Plan, request: Request) -> dict[str, bytes]:
    """The object of the one unit of stage ``table``: a row for each instance, sorted by label."""
    from unet_core.tables import encode_table  # pyarrow takes a fifth of a second, in every worker

    return {TABLE_KEY: encode_table(_row_groups(store, plan, request))}


def _row_groups(store: Store, plan: Plan, request: Request) -> Iterator[dict[str, Column]]:
    """Columns of the objects 1 to 65,536, then of the next as many; a block is read again for each group that it has objects of."""
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
            yield columns_of(measured, rows_of(list(zip(starts, sums, strict=True))))


def _label_range(store: Store, plan: Plan, request: Request, index: int) -> tuple[int, int]:
    """Smallest and largest label of a block; (0, 0) if it has none."""
    labels = _read_arrays(store, plan, request, index)["label"]
    return (int(labels[0]), int(labels[-1])) if len(labels) else (0, 0)


def _read_sums(store: Store, plan: Plan, request: Request, index: int, first: int, stop: int) -> Sums:
    """Of the objects of a block whose label is at least ``first`` and below ``stop``."""
    sums = _read_arrays(store, plan, request, index)
    low, high = np.searchsorted(sums["label"], np.array([first, stop], dtype=np.uint64))
    return {name: values[low:high] for name, values in sums.items()}


def _read_arrays(store: Store, plan: Plan, request: Request, index: int) -> Sums:
    objects = read_objects(store, plan, request, plan.stage(MEASURE_STAGE), index)
    with np.load(io.BytesIO(objects[_sums_key(index)]), allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def _sums_key(index: int) -> str:
    return f"{_FOLDER}/{index:08d}.npz"


def _packed(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Arrays as one object; the same bytes for the same arrays."""
    target = io.BytesIO()
    np.savez_compressed(target, allow_pickle=False, **arrays)
    return target.getvalue()

"""What units of the stages that make instances compute, from what is committed before them. Knows the ledger, no network.

labels (and heights) of a block ---> its parts ---\\
labels (and heights) of a block ---> its parts -----> join: the id of every part ---> ids of a block
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core import ledger
from unet_core.committed import read_voxels
from unet_core.errors import LedgerError
from unet_core.geometry import Box, Shape
from unet_core.instance_objects import (
    packed_joined,
    packed_parts,
    read_ids,
    read_joined,
    read_parts,
    read_runs,
)
from unet_core.instances_plan import InstancesPlan
from unet_core.ledger import Request
from unet_core.plan import Plan
from unet_core.postprocess.block_parts import BlockParts, Runs, describe_parts, mark_of, seen_box
from unet_core.postprocess.blockwise import label_parts
from unet_core.postprocess.blockwise_mutex import describe_fragments, tiles_box
from unet_core.postprocess.blockwise_watershed import describe_hills, land_box
from unet_core.postprocess.distance import distance_within
from unet_core.postprocess.joining import Joiner
from unet_core.resume import wanted_units
from unet_core.stages import JOIN_STAGE, PARTS_STAGE, SEGMENT_STAGE
from unet_core.store import Store

__all__ = ["instance_values", "joined_objects", "parts_objects", "read_joined"]


def parts_objects(store: Store, plan: Plan, request: Request, index: int) -> dict[str, bytes]:
    """The objects of a unit of stage ``parts``: the part of each voxel of one block, and what joining needs of it."""
    own, shape, options = plan.stage(PARTS_STAGE).grid.block(index), plan.levels[0].shape, _options(plan)
    if options.tile is not None:
        return packed_parts(index, *_described_fragments(store, plan, request, own, options.tile))
    if options.depth is None or options.ahead is None:
        labels = _labels(store, plan, request, seen_box(own, shape))
        return packed_parts(index, *describe_parts(labels, label_parts(labels, options.connectivity), own, shape))
    labels, heights = _landscape(store, plan, request, land_box(own, shape, options.ahead))
    described = describe_hills(
        labels, heights, own, shape, depth=options.depth, connectivity=options.connectivity, ahead=options.ahead
    )
    return packed_parts(index, *described)


def joined_objects(store: Store, plan: Plan, request: Request) -> dict[str, bytes]:
    """The objects of the one unit of stage ``join``: the id of every part of every block, and label and size of every instance."""
    stage, options = plan.stage(PARTS_STAGE), _options(plan)
    joiner = Joiner(stage.grid, options.depth)
    for index, parts in read_parts(store, plan, request, wanted_units(plan, request, stage)):
        joiner.add(index, parts)
    return packed_joined(joiner.join(options.min_voxels))


def instance_values(store: Store, plan: Plan, request: Request, index: int) -> NDArray[Any]:
    """Ids of one block, 0 on background, in as few bytes as they need.

    Raises:
        LedgerError: if its parts are no longer those that were joined.
    """
    own = plan.stage(PARTS_STAGE).grid.block(index)
    ids, mark = read_ids(store, plan, request, index)
    runs = read_runs(store, plan, request, index)
    if runs.parts.max(initial=0) > len(ids) or mark_of(*runs.own_voxels(len(ids), own, plan.levels[0].shape)) != mark:
        raise LedgerError(
            f"The parts of block {index} are not those that were joined: another version of what makes them numbers them otherwise. "
            f"Delete {ledger.FOLDER}/ledger/{JOIN_STAGE} in {store.url} and run the same command again."
        )
    table = np.concatenate((np.zeros(1, dtype=np.uint64), ids))
    return runs.replaced(table.astype(np.uint32) if table.max() < 2**32 else table, own.shape)


def _described_fragments(store: Store, plan: Plan, request: Request, own: Box, tile: Shape) -> tuple[Runs, BlockParts]:
    """The fragments of a block, from affinities."""
    image, shape = plan.height_image, plan.levels[0].shape
    assert image is not None
    assert image.head is not None
    assert image.head.offsets is not None
    land = tiles_box(own, shape, tile, image.head.offsets)
    labels = _labels(store, plan, request, land)
    (affinities,) = read_voxels(store, plan, request, plan.stage(SEGMENT_STAGE), (image,), land)
    return describe_fragments(labels, affinities, own, shape, offsets=image.head.offsets, tile=tile)


def _landscape(store: Store, plan: Plan, request: Request, land: Box) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Labels and heights of a box."""
    options, image = _options(plan), plan.height_image
    if options.reach is not None and options.ahead is not None and options.halo is not None:
        further = tuple(more - options.ahead for more in options.halo)
        around = land.grow(further, further).intersect(Box.from_shape(plan.levels[0].shape))
        labels = _labels(store, plan, request, around)
        inside = land.shift(tuple(-first for first in around.start)).slices()
        heights = distance_within(labels, options.reach, plan.scale)
        return np.ascontiguousarray(labels[inside]), np.ascontiguousarray(heights[inside])
    assert image is not None
    labels = _labels(store, plan, request, land)
    (values,) = read_voxels(store, plan, request, plan.stage(SEGMENT_STAGE), (image,), land)
    if image.kind == "head":
        return labels, values[0]
    heights = np.zeros(land.shape, dtype=np.float32)
    for entry, probabilities in zip(plan.model.classes, values, strict=True):
        if entry.value:
            np.copyto(heights, probabilities, where=labels == entry.value)
    if image.dtype == "uint8":
        heights /= np.float32(255)
    return labels, heights


def _labels(store: Store, plan: Plan, request: Request, box: Box) -> NDArray[np.uint8]:
    images = tuple(image for image in plan.images if image.path == _options(plan).labels)
    (labels,) = read_voxels(store, plan, request, plan.stage(SEGMENT_STAGE), images, box)
    return labels


def _options(plan: Plan) -> InstancesPlan:
    assert plan.instances is not None
    return plan.instances

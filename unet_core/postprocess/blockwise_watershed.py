"""The hills of a watershed that one block sees, as far as they are certain from there; joined with other blocks, those of the whole.

A block looks further than itself, so that most slopes reach their top and most low hills can join the next at once:

    own     |<---- block ---->|
    seen    |<---------------->|           one voxel more, as in ``block_parts``
    land  |<-- ahead --|------------------|-- ahead -->|

Exact however little that is: what is not certain here stays apart, with its passes, until all blocks are known (``merging``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.geometry import Box, Shape
from unet_core.postprocess.ascent import Cut, VoxelPasses, climb, pass_ranks, rank_parts
from unet_core.postprocess.block_parts import BlockParts, Runs, Slopes, describe_parts, scan_positions, seen_box
from unet_core.postprocess.merging import merge_low
from unet_core.postprocess.neighbours import both_ends, steps_forward

AHEAD = {2: 16, 3: 8}  # voxels that a block looks further than it sees, for fewer pieces


def land_box(own: Box, shape: Shape, ahead: int) -> Box:
    """Where labels and heights are needed for a block of a volume of ``shape``."""
    return seen_box(own, shape).grow((ahead,) * own.ndim, (ahead,) * own.ndim).intersect(Box.from_shape(shape))


def describe_hills(
    labels: NDArray[np.uint8],
    heights: NDArray[np.float32],
    own: Box,
    shape: Shape,
    *,
    depth: float,
    connectivity: int,
    ahead: int,
) -> tuple[Runs, BlockParts]:
    """The hill of each voxel of a block, and what joining needs to know of the block.

    Args:
        labels: of ``land_box``.
        heights: of the same box.
        own: the block.
        shape: of the volume.
        depth: that a hill must rise above its highest pass.
        connectivity: how many axes a step to a neighbour may change.
        ahead: as in ``land_box``, at least 1.
    """
    land, seen = land_box(own, shape, ahead), seen_box(own, shape)
    hills = climb(labels, heights, connectivity, _cut(land, shape))
    inside = seen.shift(tuple(-start for start in land.start)).slices()
    is_seen = _marked(hills.of[inside], len(hills.tops))
    passes = VoxelPasses(labels, heights, hills.of, connectivity)
    owner, tops = merge_low(passes, hills.tops, depth, hills.is_open, is_seen)
    del passes
    merged = owner[hills.of[inside]]
    is_seen = _marked(merged, len(owner))
    numbers = np.cumsum(is_seen, dtype=np.uint32) * is_seen
    parts = numbers[merged]
    labels, heights = labels[inside], heights[inside]
    runs, described = describe_parts(labels, parts, own, shape)
    slopes = Slopes(tops[is_seen], *_passes(labels, heights, parts, seen, shape, connectivity))
    return runs, replace(described, slopes=slopes)


def _marked(numbers: NDArray[Any], count: int) -> NDArray[np.bool_]:
    """Which of 1, 2, .. are among the numbers."""
    marked = np.zeros(count, dtype=bool)
    marked[numbers] = True
    marked[0] = False
    return marked


def _cut(land: Box, shape: Shape) -> Cut:
    return Cut(
        tuple(int(start > 0) for start in land.start),
        tuple(int(stop < size) for stop, size in zip(land.stop, shape, strict=True)),
    )


def _passes(
    labels: NDArray[np.uint8], heights: NDArray[np.float32], parts: NDArray[np.uint32], seen: Box, shape: Shape, connectivity: int
) -> tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.float32], NDArray[np.uint64]]:
    """The highest pass between every two hills that touch in the seen box: both hills, height, and tie as position in the volume."""
    steps = steps_forward(parts.ndim, connectivity)
    places = np.arange(parts.size, dtype=np.int32).reshape(parts.shape)
    pairs, ranks = [np.zeros(0, dtype=np.uint64)], [np.zeros(0, dtype=np.uint64)]
    for number, step in enumerate(steps):
        here, there = both_ends(parts.shape, step)
        apart = (parts[here] != parts[there]) & (labels[here] == labels[there])
        one, other = parts[here][apart].astype(np.uint64), parts[there][apart].astype(np.uint64)
        pair = (np.minimum(one, other) << np.uint64(32)) | np.maximum(one, other)
        rank = pass_ranks(heights[here][apart], heights[there][apart], places[here][apart], number, len(steps))
        pair, rank = _highest_of_each(pair, rank)
        pairs.append(pair)
        ranks.append(rank)
    pair, rank = _highest_of_each(np.concatenate(pairs), np.concatenate(ranks))
    pass_heights, begins, numbers = rank_parts(rank, len(steps))
    ties = scan_positions(begins, seen, shape) * np.uint64(len(steps)) + numbers.astype(np.uint64)
    return (pair >> np.uint64(32)).astype(np.uint32), pair.astype(np.uint32), pass_heights, ties


def _highest_of_each(pairs: NDArray[np.uint64], ranks: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    if not pairs.size:
        return pairs, ranks
    order = np.argsort(pairs)
    pairs = pairs[order]
    begins = np.flatnonzero(np.concatenate(([True], pairs[1:] != pairs[:-1])))
    return pairs[begins], np.maximum.reduceat(ranks[order], begins)

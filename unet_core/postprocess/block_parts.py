"""What is known of the parts of one block, for all blocks to be joined: sizes, first voxels, and what it shares with its neighbours.

A block is looked at with one more voxel where other blocks follow it. Every two neighbouring voxels then lie in one such box,
those across edges and corners too, and blocks are joined by the voxels that both have seen:

    own    |<---- block A ---->|<---- block B ---->|
    seen A |<------------------->|
                                ^ shared: A and B have each a number for what lies here
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.geometry import Box, Shape

NOWHERE = np.iinfo(np.uint64).max


@dataclass(frozen=True)
class Slopes:
    """Of parts that are hills: how high they are, and the highest pass between every two that touch in what a block sees.

    Args:
        tops: height that each part reaches at least.
        one: of each pass, the part on one side.
        other: on the other side.
        heights: of the passes.
        ties: of passes; of equally high ones the least comes first.
    """

    tops: NDArray[np.float32]
    one: NDArray[np.uint32]
    other: NDArray[np.uint32]
    heights: NDArray[np.float32]
    ties: NDArray[np.uint64]


@dataclass(frozen=True)
class BlockParts:
    """The parts of what a block sees, numbered from 1; arrays have one entry a part, unless told otherwise.

    Args:
        first: of its own voxels, the first in a scan of the whole volume (last axis fastest), as position in this scan.
        size: own voxels; 0 for a part that lies beyond the block.
        value: label of its voxels; 0 for a part that lies beyond the block.
        before: part of each voxel that it shares with blocks before it, region after region; rows of (how many, part), 0 is none.
        after: with blocks after it.
        slopes: of parts that are hills.
    """

    first: NDArray[np.uint64]
    size: NDArray[np.int64]
    value: NDArray[np.uint8]
    before: NDArray[np.uint32]
    after: NDArray[np.uint32]
    slopes: Slopes | None = None


def seen_box(own: Box, shape: Shape) -> Box:
    """What is looked at for a block of a volume of ``shape``."""
    return own.grow((0,) * own.ndim, (1,) * own.ndim).intersect(Box.from_shape(shape))


def own_part(seen: NDArray[Any], own: Box) -> NDArray[Any]:
    """Of what a block sees, itself."""
    return seen[Box.from_shape(own.shape).slices()]


def own_voxels(own_parts: NDArray[np.uint32], count: int, own: Box, shape: Shape) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """``first`` and ``size`` of parts 1, 2, .. ``count``.

    Args:
        own_parts: of the voxels of the block ``own`` in a volume of ``shape``.
    """
    begins, numbers = _runs(own_parts)
    places = np.full(count + 1, -1)
    places[numbers[::-1]] = begins[::-1]  # going backwards, what stays is the first of the scan
    found = np.flatnonzero(places[1:] >= 0)
    first = np.full(count, NOWHERE, dtype=np.uint64)
    first[found] = scan_positions(places[1:][found], own, shape)
    lengths = np.diff(begins, append=own_parts.size)
    return first, np.bincount(numbers, weights=lengths, minlength=count + 1)[1:].astype(np.int64)  # exact below 2**53


def mark_of(first: NDArray[np.uint64], size: NDArray[np.int64]) -> bytes:
    """Which parts these are, and how they are numbered: 32 bytes, the same for the same."""
    return hashlib.sha256(first.astype("<u8").tobytes() + size.astype("<i8").tobytes()).digest()


def describe_parts(labels: NDArray[np.uint8], parts: NDArray[np.uint32], own: Box, shape: Shape) -> BlockParts:
    """What joining needs to know of a block.

    Args:
        labels: of ``seen_box(own, shape)``.
        parts: of the same box, from 1.
        own: the block.
        shape: of the volume.
    """
    count = int(parts.max(initial=0))
    first, size = own_voxels(own_part(parts, own), count, own, shape)
    places = tuple(
        (place - start).astype(np.int64) for place, start in zip(_coordinates(first[size > 0], shape), own.start, strict=True)
    )
    value = np.zeros(count, dtype=np.uint8)
    value[size > 0] = labels[places]
    return BlockParts(
        first=first,
        size=size,
        value=value,
        before=_shared(parts, own, shape, after=False),
        after=_shared(parts, own, shape, after=True),
    )


def _coordinates(positions: NDArray[np.uint64], shape: Shape) -> list[NDArray[np.uint64]]:
    """Along each axis of a volume, of positions in its scan."""
    found = []
    for size in reversed(shape):
        positions, along = np.divmod(positions, np.uint64(size))
        found.append(along)
    return found[::-1]


def scan_positions(places: NDArray[Any], box: Box, shape: Shape) -> NDArray[np.uint64]:
    """Positions in a scan of a volume of ``shape``, from those in a scan of the box."""
    result = np.zeros(places.shape, dtype=np.uint64)
    for axis, place in enumerate(np.unravel_index(places, box.shape)):
        result = result * np.uint64(shape[axis]) + (place + box.start[axis]).astype(np.uint64)
    return result


def shared_regions(own: Box, shape: Shape, after: bool) -> Iterator[tuple[Shape, Box]]:
    """What a block shares with each block after it (its face, edge or corner), or before it; and by how many blocks that is away."""
    for chosen in product((0, 1), repeat=own.ndim):
        exists = all(
            not one or (stop < size if after else start > 0)
            for one, start, stop, size in zip(chosen, own.start, own.stop, shape, strict=True)
        )
        if not any(chosen) or not exists:
            continue
        first = tuple(
            (stop if after else start) if one else start for one, start, stop in zip(chosen, own.start, own.stop, strict=True)
        )
        last = tuple(start + 1 if one else stop for one, start, stop in zip(chosen, first, own.stop, strict=True))
        yield chosen if after else tuple(-one for one in chosen), Box(first, last)


def _shared(parts: NDArray[np.uint32], own: Box, shape: Shape, after: bool) -> NDArray[np.uint32]:
    """Parts in the shared regions, one after the other, as rows of (how many, part)."""
    rows = [np.zeros((0, 2), dtype=np.uint32)]
    for _, region in shared_regions(own, shape, after):
        values = parts[region.shift(tuple(-start for start in own.start)).slices()]
        begins, numbers = _runs(values)
        rows.append(np.stack([np.diff(begins, append=values.size).astype(np.uint32), numbers], axis=1))
    return np.concatenate(rows)


def shared_parts(rows: NDArray[np.uint32], own: Box, shape: Shape, after: bool) -> Iterator[tuple[Shape, NDArray[np.uint32]]]:
    """For each block that something is shared with, how far it is and the parts of the shared voxels."""
    parts, begin = np.repeat(rows[:, 1], rows[:, 0]), 0
    for step, region in shared_regions(own, shape, after):
        yield step, parts[begin : begin + region.voxel_count]
        begin += region.voxel_count


def _runs(parts: NDArray[np.uint32]) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """Where runs of one part begin in a scan, and the part of each."""
    flat = parts.ravel()
    if not flat.size:
        return np.zeros(0, dtype=np.int64), flat
    changes = np.empty(flat.size, dtype=bool)
    changes[0] = True
    np.not_equal(flat[1:], flat[:-1], out=changes[1:])
    begins = np.flatnonzero(changes)
    return begins, flat[begins]

"""What is known of the parts of one block, for all blocks to be joined: sizes, first voxels, and what it shares with its neighbours.

A block is looked at with one more voxel where other blocks follow it. Every two neighbouring voxels then lie in one such box,
those across edges and corners too, and blocks are joined by the voxels that both have seen:

    own    |<---- block A ---->|<---- block B ---->|
    seen A |<------------------->|
                                ^ shared: A and B have each a number for what lies here
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.geometry import Box, Shape

NOWHERE = np.iinfo(np.uint64).max
_AT_ONCE = 1 << 17  # voxels


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
class Bonds:
    """Of parts that are fragments of tiles: what tells them from all others, and what the edges say that one block counts between two.

    An edge lies between two voxels, see ``mutex``; every edge between two fragments is counted by one block.

    Args:
        keys: of each part, the first voxel of its whole fragment, as position in a scan of the volume.
        one: of each bond, the part on one side.
        other: on the other side.
        count: how many edges there are.
        touching: how many of them are between direct neighbours.
        total: sum of all their affinities, in whole numbers.
    """

    keys: NDArray[np.uint64]
    one: NDArray[np.uint32]
    other: NDArray[np.uint32]
    count: NDArray[np.uint32]
    touching: NDArray[np.uint32]
    total: NDArray[np.uint64]


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
        bonds: of parts that are fragments; they are known by their keys, and no voxels are shared.
    """

    first: NDArray[np.uint64]
    size: NDArray[np.int64]
    value: NDArray[np.uint8]
    before: NDArray[np.uint32]
    after: NDArray[np.uint32]
    slopes: Slopes | None = None
    bonds: Bonds | None = None


def seen_box(own: Box, shape: Shape) -> Box:
    """What is looked at for a block of a volume of ``shape``."""
    return own.grow((0,) * own.ndim, (1,) * own.ndim).intersect(Box.from_shape(shape))


def own_part(seen: NDArray[Any], own: Box) -> NDArray[Any]:
    """Of what a block sees, itself."""
    return seen[Box.from_shape(own.shape).slices()]


@dataclass(frozen=True)
class Runs:
    """The part of each voxel of a block, in a scan: so many voxels of one part, so many of the next; 0 is none."""

    lengths: NDArray[np.uint32]
    parts: NDArray[np.uint32]

    @classmethod
    def of(cls, parts: NDArray[np.uint32]) -> Runs:
        """The runs of an array."""
        begins, kept, done, last = [], [], 0, None
        step = max(1, _AT_ONCE * len(parts) // max(1, parts.size))
        for row in range(0, len(parts), step):  # so little that it stays in the processor's cache
            flat = parts[row : row + step].ravel()
            changes = np.empty(flat.size, dtype=bool)
            np.not_equal(flat[1:], flat[:-1], out=changes[1:])
            changes[:1] = last is None or flat[0] != last
            places = np.flatnonzero(changes)
            begins.append(places + done)
            kept.append(flat[places])
            done, last = done + flat.size, flat[-1]
        return cls(np.diff(np.concatenate(begins), append=done).astype(np.uint32), np.concatenate(kept))

    def replaced(self, table: NDArray[Any], shape: Shape) -> NDArray[Any]:
        """The array of ``shape`` that holds ``table[part]`` for each voxel."""
        return np.repeat(table[self.parts], self.lengths).reshape(shape)

    def own_voxels(self, count: int, own: Box, shape: Shape) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """``first`` and ``size`` of parts 1, 2, .. ``count`` of the block ``own`` in a volume of ``shape``, as in ``BlockParts``."""
        begins = np.cumsum(self.lengths, dtype=np.int64) - self.lengths
        places = np.full(count + 1, -1)
        places[self.parts[::-1]] = begins[::-1]  # going backwards, what stays is the first of the scan
        found = np.flatnonzero(places[1:] >= 0)
        first = np.full(count, NOWHERE, dtype=np.uint64)
        first[found] = scan_positions(places[1:][found], own, shape)
        size = np.bincount(self.parts, weights=self.lengths, minlength=count + 1)[1:]
        return first, size.astype(np.int64)  # exact below 2**53


def mark_of(first: NDArray[np.uint64], size: NDArray[np.int64]) -> bytes:
    """Which parts these are, and how they are numbered: 32 bytes, the same for the same."""
    return hashlib.sha256(first.astype("<u8").tobytes() + size.astype("<i8").tobytes()).digest()


def describe_parts(labels: NDArray[np.uint8], parts: NDArray[np.uint32], own: Box, shape: Shape) -> tuple[Runs, BlockParts]:
    """The part of each voxel of a block, and what joining needs to know of the block.

    Args:
        labels: of ``seen_box(own, shape)``.
        parts: of the same box, from 1.
        own: the block.
        shape: of the volume.
    """
    count = int(parts.max(initial=0))
    runs, first, size, value = own_parts(own_part(labels, own), own_part(parts, own), count, own, shape)
    before, after = (_shared(parts, own, shape, after) for after in (False, True))
    return runs, BlockParts(first, size, value, before, after)


def own_parts(
    labels: NDArray[np.uint8], parts: NDArray[np.uint32], count: int, own: Box, shape: Shape
) -> tuple[Runs, NDArray[np.uint64], NDArray[np.int64], NDArray[np.uint8]]:
    """The part of each voxel of a block, and ``first``, ``size`` and ``value`` of its parts 1, 2, .. ``count`` as in ``BlockParts``.

    Args:
        labels: of the block.
        parts: of the block.
        count: of all parts, also those that lie beyond it.
        own: the block.
        shape: of the volume.
    """
    runs = Runs.of(parts)
    first, size = runs.own_voxels(count, own, shape)
    found = _coordinates(first[size > 0], shape)
    value = np.zeros(count, dtype=np.uint8)
    value[size > 0] = labels[
        tuple((place - np.uint64(start)).astype(np.int64) for place, start in zip(found, own.start, strict=True))
    ]
    return runs, first, size, value


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


def shared_regions(own: Box, shape: Shape, after: bool) -> list[tuple[Shape, Box]]:
    """What a block shares with each block after it (its face, edge or corner), or before it; and by how many blocks that is away."""
    found = []
    for step, _ in _shared_steps(own.shape, _neighboured(own, shape, after)):
        ends = own.stop if after else own.start
        first = tuple(end if one else start for one, start, end in zip(step, own.start, ends, strict=True))
        last = tuple(start + 1 if one else stop for one, start, stop in zip(step, first, own.stop, strict=True))
        found.append((step, Box(first, last)))
    return found


def shared_rows(rows: NDArray[np.uint32], own: Box, shape: Shape, after: bool) -> list[tuple[Shape, NDArray[np.uint32]]]:
    """``before`` or ``after`` of ``BlockParts`` as rows for each block that something is shared with, and by how many blocks that is away."""
    steps = _shared_steps(own.shape, _neighboured(own, shape, after))
    if not steps:
        return []
    ends = np.cumsum([voxels for _, voxels in steps])
    cuts = np.searchsorted(np.cumsum(rows[:, 0], dtype=np.int64), ends) + 1  # no run goes on from one region to the next
    return [(step, part) for (step, _), part in zip(steps, np.split(rows, cuts[:-1]), strict=True)]


def _neighboured(own: Box, shape: Shape, after: bool) -> tuple[bool, ...]:
    """Along which axes a block has one after it, or before it."""
    if after:
        return tuple(stop < size for stop, size in zip(own.stop, shape, strict=True))
    return tuple(start > 0 for start in own.start)


@lru_cache(maxsize=1024)
def _shared_steps(own_shape: Shape, neighboured: tuple[bool, ...]) -> tuple[tuple[Shape, int], ...]:
    """Steps to all blocks that something is shared with, and how many voxels that are."""
    steps = product(*((0, 1) if has else (0,) for has in neighboured))
    return tuple((step, prod(size for one, size in zip(step, own_shape, strict=True) if not one)) for step in steps if any(step))


def _shared(parts: NDArray[np.uint32], own: Box, shape: Shape, after: bool) -> NDArray[np.uint32]:
    """Parts in the shared regions, one after the other, as rows of (how many, part)."""
    rows = [np.zeros((0, 2), dtype=np.uint32)]
    for _, region in shared_regions(own, shape, after):
        runs = Runs.of(parts[region.shift(tuple(-start for start in own.start)).slices()])
        rows.append(np.stack([runs.lengths, runs.parts], axis=1))
    return np.concatenate(rows)

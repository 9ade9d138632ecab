"""Connected components of a volume in blocks: each block by itself, then which of its parts belong together. Arrays only, no storage.

A block is looked at with one more voxel where other blocks follow it. Every two neighbouring voxels then lie in one such box,
those across edges and corners too, and blocks are joined by the voxels that both have seen:

    own    |<---- block A ---->|<---- block B ---->|
    seen A |<------------------->|
                                ^ shared: A and B have each a number for what lies here
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from unet_core.geometry import Box, Shape

_NEIGHBOURS: tuple[Literal[6, 18, 26], ...] = (
    6,
    18,
    26,
)  # by how many axes a step to a neighbour may change; in 2D, of one section, 4, 8 and 8
_NOWHERE = np.iinfo(np.uint64).max


@dataclass(frozen=True)
class BlockParts:
    """The connected parts of what a block sees, numbered from 1; arrays have one entry a part, unless told otherwise.

    Args:
        first: of its own voxels, the first in a scan of the whole volume (last axis fastest), as position in this scan.
        size: own voxels; 0 for a part that lies beyond the block.
        value: label of its voxels.
        before: what it shares with blocks before it: rows of (axes, position, part), see ``_shared``.
        after: with blocks after it.
    """

    first: NDArray[np.uint64]
    size: NDArray[np.int64]
    value: NDArray[np.uint8]
    before: NDArray[np.uint64]
    after: NDArray[np.uint64]


@dataclass(frozen=True)
class Joined:
    """Which instance each part of each block belongs to.

    Args:
        ids: for every block, by its number, the id of each of its parts; 0 for those that are too small.
        marks: for every block, by its number, that of its parts.
        values: label of instance 1, 2, ..
        sizes: their voxels.
    """

    ids: Mapping[int, NDArray[np.uint64]]
    marks: Mapping[int, bytes]
    values: NDArray[np.uint8]
    sizes: NDArray[np.int64]


def seen_box(own: Box, shape: Shape) -> Box:
    """What is looked at for a block of a volume of ``shape``."""
    return own.grow((0,) * own.ndim, (1,) * own.ndim).intersect(Box.from_shape(shape))


def label_parts(labels: NDArray[np.unsignedinteger], connectivity: int) -> NDArray[np.uint32]:
    """Number the parts of equal value 1, 2, ..; 0 where the value is.

    Args:
        labels: of 2 or 3 dimensions.
        connectivity: how many axes a step to a neighbour may change.
    """
    volume = np.ascontiguousarray(labels if labels.ndim == 3 else labels[None])
    found: Any = cc3d.connected_components(volume, connectivity=_NEIGHBOURS[connectivity - 1], out_dtype=np.uint32)
    parts: NDArray[np.uint32] = found.reshape(labels.shape)
    return parts


def own_part(seen: NDArray[np.uint32], own: Box) -> NDArray[np.uint32]:
    """Of what a block sees, itself."""
    return seen[Box.from_shape(own.shape).slices()]


def own_voxels(parts: NDArray[np.uint32], own: Box, shape: Shape) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """``first`` and ``size`` of the parts of what a block sees."""
    count = int(parts.max(initial=0))
    flat = own_part(parts, own).ravel()
    first = np.full(count + 1, _NOWHERE, dtype=np.uint64)
    # Only where a run begins can a part be met first; going backwards, the assignment that stays is the first of the scan.
    starts = np.flatnonzero(np.concatenate(([True], flat[1:] != flat[:-1])))[::-1]
    first[flat[starts]] = _positions(starts, own, shape)
    return first[1:], np.bincount(flat, minlength=count + 1)[1:].astype(np.int64)


def mark_of(first: NDArray[np.uint64], size: NDArray[np.int64]) -> bytes:
    """Which parts these are, and how they are numbered: 32 bytes, the same for the same."""
    return hashlib.sha256(first.astype("<u8").tobytes() + size.astype("<i8").tobytes()).digest()


def describe_parts(labels: NDArray[np.uint8], parts: NDArray[np.uint32], own: Box, shape: Shape) -> BlockParts:
    """What joining needs to know of a block.

    Args:
        labels: of ``seen_box(own, shape)``.
        parts: of the same box, from ``label_parts``.
        own: the block.
        shape: of the volume.
    """
    first, size = own_voxels(parts, own, shape)
    value = np.zeros(len(size) + 1, dtype=np.uint8)
    value[parts] = labels
    return BlockParts(
        first=first,
        size=size,
        value=value[1:],
        before=_shared(parts, own, shape, after=False),
        after=_shared(parts, own, shape, after=True),
    )


def _positions(flat: NDArray[np.int64], box: Box, shape: Shape) -> NDArray[np.uint64]:
    """Positions in a scan of the whole volume, from those in a scan of the box."""
    places = np.unravel_index(flat, box.shape)
    result = np.zeros(flat.shape, dtype=np.uint64)
    for axis, place in enumerate(places):
        result = result * np.uint64(shape[axis]) + (place + box.start[axis]).astype(np.uint64)
    return result


def _shared(parts: NDArray[np.uint32], own: Box, shape: Shape, after: bool) -> NDArray[np.uint64]:
    """Rows of (axes, position, part): what lies at the first voxel of each connected piece of a shared region.

    A region is shared with the block that is one further along some axes (a number with one bit each): its face, edge or corner.
    Both blocks find the same pieces in it, so that rows of equal axes and position belong together.
    """
    rows = []
    for axes, region in _regions(own, shape, after):
        values = parts[region.shift(tuple(-first for first in own.start)).slices()]
        pieces = label_parts(values, connectivity=1)  # by faces alone, within the region, so that both sides find the same
        found, firsts = np.unique(pieces.ravel(), return_index=True)
        firsts = firsts[found > 0]
        positions = _positions(firsts, region, shape)
        rows.append(
            np.stack([np.full(len(firsts), axes, np.uint64), positions, values.ravel()[firsts].astype(np.uint64)], axis=1)
        )
    return np.concatenate(rows) if rows else np.zeros((0, 3), dtype=np.uint64)


def _regions(own: Box, shape: Shape, after: bool) -> Iterator[tuple[int, Box]]:
    for chosen in product((False, True), repeat=own.ndim):
        if not any(chosen):
            continue
        start, stop = list(own.start), list(own.stop)
        for axis, is_chosen in enumerate(chosen):
            if is_chosen:
                start[axis] = own.stop[axis] if after else own.start[axis]
                stop[axis] = start[axis] + 1
        exists = all(
            (own.stop[axis] < shape[axis]) if after else own.start[axis] > 0 for axis, is_chosen in enumerate(chosen) if is_chosen
        )
        if exists:
            yield sum(1 << axis for axis, is_chosen in enumerate(chosen) if is_chosen), Box(tuple(start), tuple(stop))


def join_blocks(blocks: Sequence[tuple[int, BlockParts]], min_voxels: int = 0) -> Joined:
    """Put the parts of all blocks together.

    Instances are numbered in the order in which a scan of the whole volume (last axis fastest) meets them, which is that of
    ``skimage.measure.label`` and does not depend on the blocks.

    Args:
        blocks: number of each, and its parts.
        min_voxels: smaller instances are left out.
    """
    counts = [len(parts.size) for _, parts in blocks]
    offsets = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    total = int(offsets[-1])
    instance = _components(blocks, offsets, total)
    count = int(instance.max(initial=-1)) + 1
    size, first = np.zeros(count, dtype=np.int64), np.full(count, _NOWHERE, dtype=np.uint64)
    value = np.zeros(count, dtype=np.uint8)
    for (_, parts), begin in zip(blocks, offsets, strict=False):
        own = instance[begin : begin + len(parts.size)]
        np.add.at(size, own, parts.size)
        np.minimum.at(first, own, parts.first)
        value[own] = parts.value
    kept = np.flatnonzero(size >= max(1, min_voxels))
    kept = kept[np.argsort(first[kept], kind="stable")]
    ids = np.zeros(count, dtype=np.uint64)
    ids[kept] = np.arange(1, len(kept) + 1, dtype=np.uint64)
    each = ids[instance]
    return Joined(
        ids={number: each[begin : begin + size_] for (number, _), begin, size_ in zip(blocks, offsets, counts, strict=False)},
        marks={number: mark_of(parts.first, parts.size) for number, parts in blocks},
        values=value[kept],
        sizes=size[kept],
    )


def _components(blocks: Sequence[tuple[int, BlockParts]], offsets: NDArray[np.int64], total: int) -> NDArray[np.int32]:
    """For each part of each block the number of what it belongs to."""
    before, after = (_rows(blocks, offsets, name) for name in ("before", "after"))
    edges = [np.zeros((2, 0), dtype=np.int64)]
    for axes in np.unique(after[:, 0]):
        mine, theirs = after[after[:, 0] == axes], before[before[:, 0] == axes]
        _, first, second = np.intersect1d(mine[:, 1], theirs[:, 1], assume_unique=True, return_indices=True)
        edges.append(np.stack([mine[first, 2], theirs[second, 2]]).astype(np.int64))
    pairs = np.concatenate(edges, axis=1)
    graph = coo_matrix((np.ones(pairs.shape[1], dtype=bool), tuple(pairs)), shape=(total, total))
    _, found = connected_components(graph, directed=False)
    return np.asarray(found)


def _rows(blocks: Sequence[tuple[int, BlockParts]], offsets: NDArray[np.int64], name: str) -> NDArray[np.uint64]:
    """Rows of all blocks, whose parts are numbered through from 0."""
    rows = []
    for (_, parts), begin in zip(blocks, offsets, strict=False):
        own = getattr(parts, name).copy()
        own[:, 2] = own[:, 2] - np.uint64(1) + np.uint64(begin)
        rows.append(own)
    return np.concatenate(rows) if rows else np.zeros((0, 3), dtype=np.uint64)

"""Parts of all blocks put together to instances, one block after the other. Arrays only, no storage.

shared voxels ----> parts that are one ----> hills that join the next (of a watershed) ----> size, class and id of each instance
keys and bonds of fragments ----> one mutex watershed of their graph (of affinities) ----> likewise
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import add
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from unet_core.geometry import BlockGrid, Shape
from unet_core.postprocess.block_parts import NOWHERE, BlockParts, mark_of, shared_rows
from unet_core.postprocess.bonding import bound
from unet_core.postprocess.merging import ListedPasses, merge_low

_NOTHING = np.zeros((0, 2), dtype=np.uint32)


@dataclass(frozen=True)
class Joined:
    """Which instance each part of each block belongs to.

    Args:
        blocks: their numbers, ascending.
        marks: of the parts of each, 32 bytes a block.
        offsets: where the parts of each begin in ``ids``, and where the last ones end.
        ids: id of each part, from 1; 0 for those that are too small.
        values: label of instance 1, 2, ..
        sizes: their voxels.
    """

    blocks: NDArray[np.int64]
    marks: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    ids: NDArray[np.uint64]
    values: NDArray[np.uint8]
    sizes: NDArray[np.int64]

    def ids_of(self, block: int) -> NDArray[np.uint64]:
        """Id of each part of a block, which is one of ``blocks``."""
        place = int(np.searchsorted(self.blocks, block))
        return self.ids[self.offsets[place] : self.offsets[place + 1]]


class Joiner:
    """Takes in blocks in any order, then numbers their instances; what blocks share is kept until both have come.

    Blocks that never come hold no instances.

    Args:
        grid: of the blocks.
        depth: of hills that stay by themselves; None where parts are no hills.
    """

    def __init__(self, grid: BlockGrid, depth: float | None = None) -> None:
        self._grid, self._depth = grid, depth
        self._blocks: list[int] = []
        self._marks: list[bytes] = []
        self._parts: list[BlockParts] = []  # without what they share
        self._total = 0
        self._pairs: list[NDArray[np.int64]] = []
        self._waiting: dict[tuple[int, Shape], tuple[int, NDArray[np.uint32]]] = {}

    def add(self, block: int, parts: BlockParts) -> None:
        """Take in the parts of a block."""
        own, shape, place = self._grid.block(block), self._grid.shape, self._grid.coordinates(block)
        for after, rows in ((False, parts.before), (True, parts.after)) if parts.bonds is None else ():
            for step, shared in shared_rows(rows, own, shape, after):
                # A region belongs to the block that is after the other: that and the way to it tell which region it is.
                key = (self._grid.index(tuple(map(add, place, step))) if after else block, step)
                waiting = self._waiting.pop(key, None)
                if waiting is None:
                    self._waiting[key] = (self._total, shared)
                else:
                    self._pairs.append(_pairs(*waiting, self._total, shared))
        self._blocks.append(block)
        self._marks.append(mark_of(parts.first, parts.size))
        self._parts.append(replace(parts, before=_NOTHING, after=_NOTHING))
        self._total += len(parts.size)

    def join(self, min_voxels: int = 1) -> Joined:
        """Number the instances of all blocks that were taken in.

        The first voxel of an instance in a scan of the whole volume (last axis fastest) tells its place, so that ids do not depend
        on the blocks; those of connected components are the ones of ``skimage.measure.label``.

        Args:
            min_voxels: smaller instances are left out.
        """
        bonds = [parts.bonds for parts in self._parts if parts.bonds is not None]
        instance = bound(bonds) if bonds else self._merged(_connected(self._pairs, self._total))
        self._pairs = []
        count = int(instance.max(initial=-1)) + 1
        size, first = np.zeros(count, dtype=np.int64), np.full(count, NOWHERE, dtype=np.uint64)
        value = np.zeros(count, dtype=np.uint8)
        np.add.at(size, instance, _joined([parts.size for parts in self._parts], "i8"))
        np.minimum.at(first, instance, _joined([parts.first for parts in self._parts], "u8"))
        np.maximum.at(value, instance, _joined([parts.value for parts in self._parts], "u1"))
        kept = np.flatnonzero(size >= max(1, min_voxels))
        kept = kept[np.argsort(first[kept], kind="stable")]
        ids = np.zeros(count, dtype=np.uint64)
        ids[kept] = np.arange(1, len(kept) + 1, dtype=np.uint64)
        return self._in_order_of_blocks(ids[instance], value[kept], size[kept])

    def _merged(self, instance: NDArray[Any]) -> NDArray[Any]:
        """Instances after hills that rise too little have joined the next."""
        if self._depth is None:
            return instance
        slopes = [parts.slopes for parts in self._parts if parts.slopes is not None]
        count = int(instance.max(initial=-1)) + 1
        tops = np.full(count, -np.inf, dtype=np.float32)
        np.maximum.at(tops, instance, _joined([part.tops for part in slopes], "f4"))
        begins = np.repeat(self._begins(), [len(part.ties) for part in slopes])
        one = instance[_joined([part.one for part in slopes], "i8") - 1 + begins]
        other = instance[_joined([part.other for part in slopes], "i8") - 1 + begins]
        heights, ties = _joined([part.heights for part in slopes], "f4"), _joined([part.ties for part in slopes], "u8")
        nowhere = np.zeros(count, dtype=bool)
        owner, _ = merge_low(ListedPasses(one, other, heights, ties), tops, self._depth, is_open=nowhere, is_seen=nowhere)
        return owner[instance]

    def _begins(self) -> NDArray[np.int64]:
        counts = [len(parts.size) for parts in self._parts]
        return np.cumsum([0, *counts], dtype=np.int64)[:-1]

    def _in_order_of_blocks(self, each: NDArray[np.uint64], values: NDArray[np.uint8], sizes: NDArray[np.int64]) -> Joined:
        begins, counts = self._begins(), np.array([len(parts.size) for parts in self._parts], dtype=np.int64)
        blocks = np.array(self._blocks, dtype=np.int64)
        order = np.argsort(blocks)
        if not np.array_equal(order, np.arange(len(order))):
            each = np.concatenate([each[begins[place] : begins[place] + counts[place]] for place in order])
        marks = np.frombuffer(b"".join(self._marks), dtype=np.uint8).reshape(len(order), 32)
        return Joined(blocks[order], marks[order], np.cumsum([0, *counts[order]], dtype=np.int64), each, values, sizes)


def _joined(arrays: list[NDArray[Any]], dtype: str) -> NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype=dtype), *arrays]).astype(dtype, copy=False)


def _pairs(first_begin: int, first: NDArray[np.uint32], second_begin: int, second: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Parts of two blocks that have a voxel in common, each pair once; of shape (2, pairs), numbered through all blocks from 0.

    Args:
        first_begin: number of the first part of one block.
        first: what it sees of the shared voxels, as rows of (how many, part).
        second_begin: of the other block.
        second: likewise.
    """
    ends, other_ends = (np.cumsum(rows[:, 0], dtype=np.int64) for rows in (first, second))
    every = np.concatenate((ends, other_ends))
    parts, other_parts = first[np.searchsorted(ends, every), 1], second[np.searchsorted(other_ends, every), 1]
    both = (parts > 0) & (other_parts > 0)
    packed = np.unique((parts[both].astype(np.uint64) << np.uint64(32)) | other_parts[both])
    one = (packed >> np.uint64(32)).astype(np.int64) - 1 + first_begin
    other = (packed & np.uint64(0xFFFFFFFF)).astype(np.int64) - 1 + second_begin
    return np.stack([one, other])


def _connected(pairs: list[NDArray[np.int64]], total: int) -> NDArray[Any]:
    """For each part the number of what it belongs to, from pairs that belong together."""
    edges = np.concatenate([np.zeros((2, 0), dtype=np.int64), *pairs], axis=1)
    graph = coo_matrix((np.ones(edges.shape[1], dtype=bool), tuple(edges)), shape=(total, total))
    _, found = connected_components(graph, directed=False)
    return np.asarray(found)

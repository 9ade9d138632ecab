"""Cells of labels that have no ids: connected components of the foreground of any size, found block by block. Knows no network.

|..1111|1111..|      a component cut by a block's face has two numbers, which a table makes one: wherever a box is cut,
|.....2|2..3..|      the ids are those of the whole
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.sparse import csgraph

from unet_core.geometry import Box, Shape
from unet_core.training.stored_array import StoredArray


class Components:
    """Ids of connected components, by faces (4 neighbours in 2D, 6 in 3D), of a foreground that need not fit in memory.

    Building it reads every block once and stores it, numbered by itself; then the faces between blocks.

    Args:
        read_foreground: int8 of a box inside ``bounds``: 1 foreground, 0 background, -1 ignored.
        bounds: the whole.
        url: a folder of its own, emptied first.
        block_shape: of what is labelled at once.
    """

    def __init__(
        self, read_foreground: Callable[[Box], NDArray[np.int8]], bounds: Box, url: str, block_shape: Shape | None = None
    ) -> None:
        self._numbers = StoredArray(url, bounds, "int64", block_shape)
        self._numbers.create()
        count = 0
        for block_index in range(self._numbers.grid.block_count):
            foreground = read_foreground(self._numbers.box(block_index))
            labelled, found = ndimage.label(foreground > 0)
            numbers = np.where(labelled > 0, labelled.astype(np.int64) + count, 0)
            self._numbers.write(block_index, np.where(foreground < 0, -1, numbers))
            count += found
        self.count, self._table = _joined(self._pairs(), count)

    def read(self, box: Box) -> NDArray[np.int64]:
        """Ids 1, 2, .. of the components in a box inside the bounds; 0 background, -1 ignored."""
        numbers = self._numbers.read(box)
        return np.where(numbers < 0, -1, self._table[np.maximum(numbers, 0)])

    def remove(self) -> None:
        """Delete what was stored; nothing can be read any more."""
        self._numbers.remove()

    def _pairs(self) -> NDArray[np.int64]:
        """Numbers on both sides of a face between two blocks, of shape (pairs, 2)."""
        pairs = [np.empty((0, 2), dtype=np.int64)]
        for block_index in range(self._numbers.grid.block_count):
            box = self._numbers.box(block_index)
            for axis in range(box.ndim):
                if box.start[axis] == self._numbers.bounds.start[axis]:
                    continue
                start, stop = list(box.start), list(box.stop)
                start[axis], stop[axis] = box.start[axis] - 1, box.start[axis] + 1
                both = np.moveaxis(self._numbers.read(Box(tuple(start), tuple(stop))), axis, -1).reshape(-1, 2)
                pairs.append(np.unique(both[(both > 0).all(axis=1)], axis=0))
        return np.concatenate(pairs)


def _joined(pairs: NDArray[np.int64], count: int) -> tuple[int, NDArray[np.int64]]:
    """How many components there are, and the id of each of the numbers 0..count; 0 stays 0."""
    ones = np.ones(len(pairs), dtype=bool)
    graph = sparse.coo_array((ones, (pairs[:, 0], pairs[:, 1])), shape=(count + 1, count + 1))
    found, ids = csgraph.connected_components(graph, directed=False)
    return int(found) - 1, ids.astype(np.int64)  # number 0 is joined with none, and comes first

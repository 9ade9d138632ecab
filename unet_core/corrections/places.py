"""Boxes of one size in an image, the sums of a score over each of them, and the best that do not overlap. Integers only.

    cuts     0    s    2s   3s   4s   5s   6s            L      between two cuts lies a cell; a box is a row of whole cells
    boxes    |<------ size ----->|                              begin at every quarter of their size,
                                            |<-- size -->|      and at the end of the image

Sums of whole numbers do not depend on the order in which blocks are added. Knows no images and no results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import pairwise
from math import prod

import numpy as np
from numpy.typing import NDArray

from unet_core.geometry import Box, Shape

Starts = tuple[NDArray[np.int64], ...]  # of boxes, along each axis
Score = Callable[[Starts], NDArray[np.int64]]  # of every box, of the shape of the axes' counts

_MOST_BOXES = 1 << 22  # that are compared at once
_PARTS = (4, 2, 1)  # of a box's side, at which boxes begin


class Places:
    """Where boxes may lie, and sums of a score over cells.

    Args:
        shape: of the image, in voxels.
        size: of the boxes; no larger than the image.
    """

    def __init__(self, shape: Shape, size: Shape) -> None:
        self.shape, self.size = shape, size
        self.ladder = _ladder(shape, size)
        every = [np.concatenate([starts[axis] for starts in self.ladder]) for axis in range(len(shape))]
        self._cuts = [
            np.unique(np.concatenate([starts, starts + side, [0, extent]]))
            for starts, side, extent in zip(every, size, shape, strict=True)
        ]
        self.sums = np.zeros(tuple(len(cuts) - 1 for cuts in self._cuts), dtype=np.int64)

    def add(self, box: Box, values: NDArray[np.integer]) -> None:
        """Add the scores of the voxels of a box; each voxel once.

        Args:
            box: of the image.
            values: whole numbers, of shape ``box.shape``.
        """
        totals = values
        where = []
        for axis, (cuts, first, last) in enumerate(zip(self._cuts, box.start, box.stop, strict=True)):
            cell = int(np.searchsorted(cuts, first, side="right")) - 1
            inner = cuts[(cuts > first) & (cuts < last)] - first
            totals = np.add.reduceat(totals, np.concatenate([[0], inner]), axis=axis, dtype=np.int64)
            where.append(slice(cell, cell + 1 + len(inner)))
        self.sums[tuple(where)] += totals

    def totals(self, starts: Starts) -> NDArray[np.int64]:
        """The sum over every box that begins at one of ``starts`` along each axis."""
        cells = [
            (np.searchsorted(cuts, first), np.searchsorted(cuts, first + side))
            for cuts, first, side in zip(self._cuts, starts, self.size, strict=True)
        ]
        return sums_between(self.sums, cells)

    def choose(self, count: int, score: Score, allowed: Callable[[Starts], NDArray[np.bool_]], taken: Sequence[Box]) -> list[Box]:
        """The boxes with the highest scores that do not overlap, the best first; of equal ones the first in the order of a scan.

        Boxes at quarters of their size find the best places and may leave gaps between them: where fewer than ``count`` fit, those at
        halves are tried, then those side by side.

        Args:
            count: of boxes.
            score: of each box.
            allowed: whether each may be taken.
            taken: boxes that none may overlap.

        Returns:
            As many as fit, at most ``count``.
        """
        best: list[Box] = []
        for starts in self.ladder:
            found = self._best(count, score(starts), allowed(starts), starts, taken)
            best = found if len(found) > len(best) else best
            if len(best) == count:
                break
        return best

    def _best(
        self, count: int, scores: NDArray[np.int64], allowed: NDArray[np.bool_], starts: Starts, taken: Sequence[Box]
    ) -> list[Box]:
        free = allowed.copy()
        for box in taken:
            self._withdraw(free, starts, box)
        chosen: list[Box] = []
        lowest = np.iinfo(np.int64).min
        left = np.where(free, scores, lowest)
        while len(chosen) < count and free.any():
            place = np.unravel_index(int(left.argmax()), left.shape)
            box = Box.from_shape(self.size, tuple(int(along[number]) for along, number in zip(starts, place, strict=True)))
            chosen.append(box)
            self._withdraw(free, starts, box)
            left[~free] = lowest
        return chosen

    def _withdraw(self, free: NDArray[np.bool_], starts: Starts, box: Box) -> None:
        """Let no box be taken that overlaps ``box``."""
        overlap = [
            np.flatnonzero((along < last) & (along + side > first))
            for along, side, first, last in zip(starts, self.size, box.start, box.stop, strict=True)
        ]
        free[np.ix_(*overlap)] = False


def sums_between(
    values: NDArray[np.int64], ranges: Sequence[tuple[NDArray[np.integer], NDArray[np.integer]]]
) -> NDArray[np.int64]:
    """Sums of an array over every box of ranges.

    Args:
        values: to add up.
        ranges: first positions and ends, along each axis.

    Returns:
        Array with one axis for each range.
    """

    def along(
        sums: NDArray[np.int64], numbered: tuple[int, tuple[NDArray[np.integer], NDArray[np.integer]]]
    ) -> NDArray[np.int64]:
        axis, (first, last) = numbered
        lead = np.zeros((*sums.shape[:axis], 1, *sums.shape[axis + 1 :]), dtype=np.int64)
        running = np.concatenate([lead, sums.cumsum(axis=axis)], axis=axis)
        result: NDArray[np.int64] = running.take(last, axis=axis) - running.take(first, axis=axis)
        return result

    return reduce(along, enumerate(ranges), values)


def _ladder(shape: Shape, size: Shape) -> tuple[Starts, ...]:
    """Starts of boxes along each axis, the finest first: at quarters, halves and wholes with one at the image's end, and side by side."""
    rungs: list[Starts] = []
    for parts in _PARTS:
        starts = tuple(
            np.unique([*range(0, extent - side + 1, max(1, side // parts)), extent - side])
            for extent, side in zip(shape, size, strict=True)
        )
        if prod(map(len, starts)) <= _MOST_BOXES or parts == 1:
            rungs.append(starts)
    rungs.append(tuple(np.arange(0, extent - side + 1, side) for extent, side in zip(shape, size, strict=True)))
    kept = [rungs[0]]
    kept += [later for earlier, later in pairwise(rungs) if not all(map(np.array_equal, earlier, later))]
    return tuple(kept)

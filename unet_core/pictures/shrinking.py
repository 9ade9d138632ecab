"""A plane of an image, made smaller while it is read tile by tile: means of cells of voxels. Knows no labels and no plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.geometry import Box

TILE_VOXELS = 1 << 22  # that are read at once

Read = Callable[[Box], NDArray[Any]]
Cells = tuple[NDArray[np.int64], NDArray[np.int64]]  # of one axis: first voxel of each cell, and one past its last


def cells_along(first: int, count: int, step: int, size: int, own_size: int) -> Cells:
    """The voxels of one level that lie under cells of another.

    Args:
        first: number of the first cell.
        count: of cells.
        step: voxels a cell, of the level that has ``size`` of them.
        size: of that level along the axis.
        own_size: of the level that is read; may be smaller, if that is coarser, and no whole part of it.
    """
    edges = np.minimum((first + np.arange(count + 1, dtype=np.int64)) * step, size) * own_size // size
    starts = np.minimum(edges[:-1], own_size - 1)
    return starts, np.maximum(edges[1:], starts + 1)


def read_means(read: Read, channels: int, cells: Sequence[Cells]) -> NDArray[np.float32]:
    """The mean of every cell, of shape (channels, cells along each axis).

    Args:
        read: gives voxels of a box, of shape (channels, *box.shape).
        channels: that it gives.
        cells: along each axis.
    """
    shape = tuple(len(starts) for starts, _ in cells)
    result = np.empty((channels, *shape), dtype=np.float32)
    for tile in _tiles(cells):
        parts = [(starts[first:last], stops[first:last]) for (starts, stops), (first, last) in zip(cells, tile, strict=True)]
        box = Box(tuple(int(starts[0]) for starts, _ in parts), tuple(int(stops[-1]) for _, stops in parts))
        inside = tuple(slice(first, last) for first, last in tile)
        result[(slice(None), *inside)] = _means(read(box), box, parts)
    return result


def _means(values: NDArray[Any], box: Box, parts: Sequence[Cells]) -> NDArray[np.float32]:
    means = values.astype(np.float32)
    for axis, (starts, stops) in enumerate(parts):
        if (stops - starts > 1).any():
            sums = np.add.reduceat(means, starts - box.start[axis], axis=axis + 1)
            counts = (stops - starts).reshape(-1, *(1,) * (len(parts) - axis - 1))
            means = (sums / counts).astype(np.float32)
        else:
            means = means.take(starts - box.start[axis], axis=axis + 1)
    return means


def _tiles(cells: Sequence[Cells]) -> Iterator[tuple[tuple[int, int], ...]]:
    """Ranges of cells along each axis, whose voxels together are not too many."""
    counts = [len(starts) for starts, _ in cells]
    steps = [max(1, int((stops - starts).max())) for starts, stops in cells]
    side = max(1, int((TILE_VOXELS / prod(steps)) ** (1 / max(1, sum(count > 1 for count in counts)))))
    ranges = [[(first, min(first + side, count)) for first in range(0, count, side)] for count in counts]
    yield from product(*ranges)


def voxels_of(cells: Sequence[Cells]) -> int:
    """How many voxels reading them takes."""
    return prod(int(stops[-1] - starts[0]) for starts, stops in cells)

"""Distances to the nearest and the second nearest cell, exact within a reach, without a transform of the image for each cell."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

DENSE = 4  # times longer that a transform takes for each voxel where cells of all sides are near than in the window of one cell

Distances = NDArray[np.float32]
_Window = tuple[slice, ...]


def two_nearest(instances: NDArray[np.integer], farthest: float, spacing: tuple[float, ...]) -> tuple[Distances, Distances]:
    """Distances d1 and d2 from each voxel to the nearest and the second nearest cell, wherever d1 + d2 is at most ``farthest``.

    Elsewhere their sum is above ``farthest`` too, infinite perhaps. Of two ways, equal in result, the cheaper one is taken:

    - A window around each cell, as far as it counts, with two running minima: many cells that are small against the image.
    - Cells get consecutive numbers. Whichever cell is second differs from the nearest one in some binary digit of its number, so d2 is
      the least of the distances to the cells that differ in digit 0, in digit 1, ...; two transforms of the whole for each digit,
      one for each value of it: cells that wind through everything, as neurites do.

    Args:
        instances: ids of shape ([Z,] Y, X); above 0 cells.
        farthest: in the unit of ``spacing``.
        spacing: distance of neighbours along each axis.
    """
    numbers, count = consecutive(instances)
    windows = _windows(numbers, farthest, spacing)
    voxels = sum(math.prod(part.stop - part.start for part in window) for window in windows)
    if voxels <= DENSE * (1 + 2 * count.bit_length()) * numbers.size:
        return _by_windows(numbers, windows, spacing)
    return _by_digits(numbers, count, spacing)


def _by_windows(numbers: NDArray[np.int32], windows: list[_Window], spacing: tuple[float, ...]) -> tuple[Distances, Distances]:
    """A cell that has no other one in its window is left out: by the triangle inequality d1 + d2 is at least their distance."""
    first = np.full(numbers.shape, np.inf, dtype=np.float32)
    second = first.copy()
    for number, window in enumerate(windows, start=1):
        inside = numbers[window]
        own = inside == number
        if np.count_nonzero(own) == np.count_nonzero(inside):
            continue
        distance = ndimage.distance_transform_edt(~own, sampling=spacing).astype(np.float32)
        nearest, next_nearest = first[window], second[window]
        np.minimum(next_nearest, np.maximum(nearest, distance), out=next_nearest)
        np.minimum(nearest, distance, out=nearest)
    return first, second


def _by_digits(numbers: NDArray[np.int32], count: int, spacing: tuple[float, ...]) -> tuple[Distances, Distances]:
    is_cell = numbers > 0
    distance, positions = ndimage.distance_transform_edt(~is_cell, sampling=spacing, return_indices=True)
    first, nearest = distance.astype(np.float32), numbers[tuple(positions)]
    second = np.full(numbers.shape, np.inf, dtype=np.float32)
    for digit in range(count.bit_length()):
        for value in (0, 1):
            chosen = is_cell & ((numbers >> digit) & 1 == value)
            if chosen.any():
                distance = ndimage.distance_transform_edt(~chosen, sampling=spacing).astype(np.float32)
                np.minimum(second, distance, out=second, where=(nearest >> digit) & 1 != value)
    return first, second


def _windows(numbers: NDArray[np.int32], farthest: float, spacing: tuple[float, ...]) -> list[_Window]:
    """Around each cell, in order of their numbers, everything within ``farthest``."""
    more = [math.ceil(farthest / step) for step in spacing]
    return [
        tuple(
            slice(max(0, part.start - extra), min(size, part.stop + extra))
            for part, extra, size in zip(found, more, numbers.shape, strict=True)
        )
        for found in ndimage.find_objects(numbers)
    ]


def consecutive(instances: NDArray[np.integer]) -> tuple[NDArray[np.int32], int]:
    """Cells numbered 1, 2, .. in the order of their ids, 0 elsewhere; and how many there are."""
    cells = np.maximum(instances, 0)
    largest = int(cells.max(initial=0))
    if largest > max(4096, cells.size // 4):  # ids of a large volume may need 64 bits
        ids, numbers = np.unique(cells, return_inverse=True)
        return (numbers.reshape(cells.shape) + (ids[0] > 0)).astype(np.int32), int(np.count_nonzero(ids))
    present = np.zeros(largest + 1, dtype=bool)
    present[cells.ravel()] = True
    present[0] = False
    return np.cumsum(present, dtype=np.int32)[cells], int(present.sum())

"""One level coarser: the mean or the most frequent value of each cell of voxels. Knows arrays only."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.geometry import Shape

_BAND_BYTES = 1 << 18  # of values at a time, so that what is made of them stays in the processor's cache
_FEW = 16  # labels are counted one value after the other up to here; beyond, a table of all is faster


def downsample(values: NDArray[Any], factor: Shape, kind: str) -> NDArray[Any]:
    """The mean of each cell of ``factor`` voxels for intensities, the most frequent value for labels, the first id for instances.

    Cells at the end of the array hold what is there. Among equally frequent labels the smallest wins. Works in bands of
    256 KiB, so that its memory does not grow with the array.

    Args:
        values: of shape (*lead, *spatial); ``factor`` names the last axes.
        factor: voxels a cell, one integer a spatial axis.
        kind: ``labels`` for the mode, ``instances`` for the first voxel, anything else for the mean: summed in float64 for floats,
            rounded half up for integers.

    Returns:
        Array of shape (*lead, *ceil(spatial / factor)) and of the dtype of ``values``.
    """
    if kind == "instances":
        first: tuple[Any, ...] = (Ellipsis, *(slice(None, None, step) for step in factor))
        return np.ascontiguousarray(values[first])
    steps = (1,) * (values.ndim - len(factor)) + factor
    result = np.empty(tuple(-(-size // step) for size, step in zip(values.shape, steps, strict=True)), dtype=values.dtype)
    of_cells = _mode if kind == "labels" else _mean
    for fine, coarse, cell in _bands(values, steps, values.ndim - len(factor)):
        result[coarse] = of_cells(values[fine], cell)
    return result


def _bands(values: NDArray[Any], steps: Shape, cut: int) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...], Shape]]:
    """Parts of an array that are whole numbers of equal cells: where in the array, where in the result, shape of a cell.

    The axes before ``cut`` are cut at every voxel, ``cut`` itself so that a band has some 256 KiB, the later ones only where
    cells are cut by the end of the array.
    """
    row_bytes = values.itemsize * int(np.prod(values.shape[cut + 1 :])) * steps[cut]
    most = [1] * cut + [max(1, _BAND_BYTES // max(1, row_bytes))] + [max(values.shape)] * (values.ndim - cut - 1)
    for spans in product(*(_spans(*axis) for axis in zip(values.shape, steps, most, strict=True))):
        fine, coarse, cell = zip(*spans, strict=True)
        yield fine, coarse, cell


def _spans(size: int, step: int, most: int) -> list[tuple[slice, slice, int]]:
    """Along one axis: voxels, cells, and the voxels of a cell; fewer than ``step`` in the last cell if it is cut."""
    whole = size // step
    ends = [(first, min(first + most, whole)) for first in range(0, whole, most)]
    spans = [(slice(first * step, last * step), slice(first, last), step) for first, last in ends]
    if size % step:
        spans.append((slice(whole * step, size), slice(whole, whole + 1), size % step))
    return spans


def _mode(values: NDArray[Any], cell: Shape) -> NDArray[Any]:
    """The most frequent value of each cell, the smallest of several: the voxels of all cells are sorted side by side."""
    smallest = values.min()
    if smallest == values.max():
        return np.asarray(smallest)
    voxels = [
        np.ascontiguousarray(values[tuple(slice(first, None, step) for first, step in zip(offset, cell, strict=True))])
        for offset in np.ndindex(*cell)
    ]
    for end in range(len(voxels) - 1, 0, -1):
        for lower in range(end):
            pair = voxels[lower], voxels[lower + 1]
            voxels[lower], voxels[lower + 1] = np.minimum(*pair), np.maximum(*pair)
    result = voxels[0]
    # Length of the run of equal values that ends here, and the longest so far.
    run = np.ones(result.shape, dtype=np.min_scalar_type(len(voxels)))
    longest = run.copy()
    for before, voxel in pairwise(voxels):
        run = run * (voxel == before) + run.dtype.type(1)
        result = np.where(run > longest, voxel, result)
        longest = np.maximum(longest, run)
    return result


def _mean(values: NDArray[Any], cell: Shape) -> NDArray[Any]:
    count = int(np.prod(cell))
    if count == 1:
        return values
    if values.dtype.kind == "f":
        return (_cell_sums(values, cell, np.dtype(np.float64)) / count).astype(values.dtype)
    # Wide enough for the sum of a cell and what rounds it: uint16 for uint8.
    most = (count + 1) * int(np.iinfo(values.dtype).max)
    sums = _cell_sums(values, cell, np.result_type(np.min_scalar_type(most), values.dtype))
    return ((sums + sums.dtype.type(count // 2)) // sums.dtype.type(count)).astype(values.dtype)


def _cell_sums(values: NDArray[Any], cell: Shape, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Sums along one axis after the other, the first first, where whole rows are added."""
    for axis, step in enumerate(cell):
        if step > 1:
            lead = (slice(None),) * axis
            total = values[(*lead, slice(0, None, step))].astype(dtype)
            for first in range(1, step):
                total += values[(*lead, slice(first, None, step))]
            values = total
    return values


def label_counts(labels: NDArray[Any]) -> dict[int, int]:
    """How many voxels have each label, the smallest label first; labels are unsigned integers of at most 16 bits."""
    totals: dict[int, int] = {}
    flat = labels.reshape(-1)
    for first in range(0, flat.size, _BAND_BYTES):
        band = flat[first : first + _BAND_BYTES]
        smallest, largest = int(band.min()), int(band.max())
        if largest - smallest < _FEW:
            counts = [int(np.count_nonzero(band == value)) for value in range(smallest, largest + 1)]
        else:
            counts = np.bincount(band)[smallest:].tolist()
        for value, count in enumerate(counts, start=smallest):
            if count:
                totals[value] = totals.get(value, 0) + count
    return dict(sorted(totals.items()))

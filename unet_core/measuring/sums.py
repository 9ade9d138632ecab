"""Sums over the voxels of each object in one box: counts, extents, positions. Arrays of integers only, no storage.

A box is scanned in runs, the voxels of one row that follow each other and have one id: what is summed over runs first is summed
by one pass over memory, and few rows are left to be sorted by id. Bands of rows bound the memory.

    row     0 0 7 7 7 7 0 3 3          runs   (7, column 2, length 4), (3, column 7, length 2)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
from numpy.typing import NDArray

Sums = dict[str, NDArray[Any]]  # by name, each of shape (objects, ..); "label" holds the ids, ascending

_BAND_VOXELS = 1 << 20
_LEAST, _MOST = ("start",), ("stop",)  # what is no sum


@dataclass(frozen=True)
class Runs:
    """The runs of a band of rows, background included.

    Args:
        starts: position of each in the band, row after row.
        labels: id of each; 0 is background.
        lengths: in voxels.
    """

    starts: NDArray[np.int64]
    labels: NDArray[np.uint64]
    lengths: NDArray[np.int64]

    def sums(self, values: NDArray[Any]) -> NDArray[np.int64]:
        """Of whole numbers, over each run; ``values`` of the band, (*lead, rows, width), give (runs, *lead)."""
        found = np.add.reduceat(values.reshape(*values.shape[:-2], -1), self.starts, axis=-1, dtype=np.int64)
        return np.moveaxis(found, -1, 0)


def sums_of_box(ids: NDArray[np.uint64], classes: Sequence[NDArray[np.bool_]] = ()) -> Sums:
    """What is summed of each object in a box; positions count from the box's own first voxel.

    Args:
        ids: of shape (y, x) or (z, y, x); 0 is background.
        classes: of the same shape each; where voxels are of a class.

    Returns:
        ``label``; ``voxels``; ``start`` and ``stop``, (n, axes), of the smallest box; ``positions``, (n, axes), sums of positions;
        ``products``, (n, pairs of axes), sums of products of two positions; ``classes``, (n, classes), voxels of each.
    """
    width = ids.shape[-1]
    rows = ids.reshape(-1, width)
    planes = [plane.reshape(-1, width) for plane in classes]
    bands = []
    for band in _bands(rows):
        runs = _runs(rows[band])
        found = _places(runs, band.start, ids.shape)
        counts = [runs.sums(plane[band]) for plane in planes]
        found["classes"] = np.stack(counts, axis=1) if counts else np.zeros((len(runs.labels), 0), dtype=np.int64)
        inside = runs.labels > 0
        bands.append(by_label({name: values[inside] for name, values in found.items()}))
    return by_label({name: np.concatenate([band[name] for band in bands]) for name in bands[0]})


def by_label(rows: Mapping[str, NDArray[Any]]) -> Sums:
    """Put the rows of each label together; rows may be in any order."""
    order = np.argsort(rows["label"], kind="stable")
    labels = rows["label"][order]
    firsts = np.flatnonzero(np.concatenate((np.ones(min(1, len(labels)), dtype=bool), labels[1:] != labels[:-1])))
    return {"label": labels[firsts]} | {
        name: _reduction(name).reduceat(values[order], firsts, axis=0) if len(firsts) else values[:0]
        for name, values in rows.items()
        if name != "label"
    }


def _reduction(name: str) -> np.ufunc:
    return np.minimum if name in _LEAST else np.maximum if name in _MOST else np.add


def axis_pairs(dims: int) -> tuple[tuple[int, int], ...]:
    """The pairs of axes in the order of ``products``."""
    return tuple(combinations_with_replacement(range(dims), 2))


def _bands(rows: NDArray[Any]) -> Iterator[slice]:
    step = max(1, _BAND_VOXELS // rows.shape[1])
    return (slice(first, min(first + step, len(rows))) for first in range(0, len(rows), step))


def _runs(band: NDArray[np.uint64]) -> Runs:
    flat = band.ravel()
    begins = np.ones(flat.shape, dtype=bool)
    np.not_equal(flat[1:], flat[:-1], out=begins[1:])
    begins[:: band.shape[1]] = True
    starts = np.flatnonzero(begins)
    return Runs(starts, flat[starts], np.diff(starts, append=flat.size))


def _places(runs: Runs, first_row: int, shape: tuple[int, ...]) -> Sums:
    """Voxels, extents and sums of positions of each run."""
    row, column = np.divmod(runs.starts, shape[-1])
    lead = np.unravel_index(row + first_row, shape[:-1])  # what does not change along a run
    count = runs.lengths
    steps = count * (count - 1) // 2  # 0 + 1 + .. + (count - 1)
    squares = steps * (2 * count - 1) // 3
    along = count * column + steps
    along_squared = count * column**2 + 2 * column * steps + squares
    positions = [place * count for place in lead] + [along]
    products = [
        along_squared if first == len(lead) else lead[first] * (along if second == len(lead) else lead[second] * count)
        for first, second in axis_pairs(len(shape))
    ]
    return {
        "label": runs.labels,
        "voxels": count,
        "start": np.stack([*lead, column], axis=1),
        "stop": np.stack([*(place + 1 for place in lead), column + count], axis=1),
        "positions": np.stack(positions, axis=1),
        "products": np.stack(products, axis=1),
    }

"""Sums over the voxels of each object in one box: counts, extents, positions, intensities. Arrays only, no storage.

A box is scanned in runs, the voxels of one row that follow each other and have one id: what is summed over runs first is summed
by one pass over memory, and few rows are left to be sorted by id. Bands of rows bound the memory.

    row     0 0 7 7 7 7 0 3 3          runs   (7, column 2, length 4), (3, column 7, length 2)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations_with_replacement
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.measuring.exact import as_numbers, pieces, squared
from unet_core.measuring.perimeter import WEIGHTS

Sums = dict[str, NDArray[Any]]  # by name, each of shape (objects, ..); "label" holds the ids, ascending

_BAND_VOXELS = 1 << 19  # of all channels
_REDUCTIONS = {
    "start": np.minimum,
    "stop": np.maximum,
    "intensity_min": np.minimum,
    "intensity_max": np.maximum,
}  # all others add


@dataclass(frozen=True)
class BoxOfVoxels:
    """What is known of a box, in arrays of one spatial shape, (y, x) or (z, y, x).

    Args:
        ids: of objects; 0 is background.
        classes: for each class, which voxels have it.
        image: intensities, (C, *shape).
        probabilities: of the same classes; none if they are not kept.
        turns: of borders, see ``perimeter``; None in 3D.
    """

    ids: NDArray[np.uint64]
    classes: Sequence[NDArray[np.bool_]]
    image: NDArray[Any]
    probabilities: Sequence[NDArray[Any]] = ()
    turns: NDArray[np.uint8] | None = None


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

    def over(self, reduction: np.ufunc, values: NDArray[Any], dtype: Any = None) -> NDArray[Any]:
        """Of values of the band, (*lead, rows, width), for each run: (runs, *lead)."""
        found = reduction.reduceat(values.reshape(*values.shape[:-2], -1), self.starts, axis=-1, dtype=dtype)
        return np.moveaxis(found, -1, 0)

    def sums(self, values: NDArray[Any]) -> NDArray[np.int64]:
        return self.over(np.add, values, np.int64)

    def exact_sums(self, name: str, terms: Sequence[NDArray[Any]], inside: NDArray[np.bool_]) -> Sums:
        """Sums of the pieces of numbers, each power in a column of its own; a number may be the sum of several terms."""
        found: Sums = {}
        for power, piece in chain.from_iterable(pieces(term, inside) for term in terms):
            column = f"{name}{POWER}{power}"
            found[column] = self.sums(piece) + found.get(column, 0)
        return found


POWER = "@"  # between the name of a sum and the power of 2^32 of its pieces


def sums_of_box(box: BoxOfVoxels) -> Sums:
    """What is summed of each object in a box; positions count from the box's own first voxel.

    Returns:
        ``label``; ``voxels``; ``start`` and ``stop``, (n, axes), of the smallest box; ``positions``, (n, axes), sums of positions;
        ``products``, (n, pairs of axes), sums of products of two positions; ``classes``, (n, classes), voxels of each; ``turns``, (n, 3);
        ``intensity_min`` and ``intensity_max``, (n, C); sums of ``intensity`` and ``square``, (n, C), and ``probability``, (n, classes), in
        pieces, see ``exact``.
    """
    width = box.ids.shape[-1]
    rows = box.ids.reshape(-1, width)
    channels = box.image.reshape(len(box.image), -1, width)
    classes = [voxels.reshape(-1, width) for voxels in box.classes]
    turns = None if box.turns is None else box.turns.reshape(-1, width)
    probabilities = [values.reshape(-1, width) for values in box.probabilities]
    bands = []
    for band in _bands(rows, len(channels)):
        runs, inside = _runs(rows[band]), rows[band] > 0
        found = _places(runs, band.start, box.ids.shape)
        found["classes"] = _counts(runs, [voxels[band] for voxels in classes])
        if turns is not None:
            found["turns"] = _counts(runs, [turns[band] == turn for turn in range(1, len(WEIGHTS) + 1)])
        image = as_numbers(channels[:, band])
        found |= {"intensity_min": runs.over(np.minimum, image), "intensity_max": runs.over(np.maximum, image)}
        found |= runs.exact_sums("intensity", [image], inside) | runs.exact_sums("square", squared(image), inside)
        if probabilities:
            found |= runs.exact_sums("probability", [as_numbers(np.stack([values[band] for values in probabilities]))], inside)
        kept = runs.labels > 0
        bands.append(by_label({name: values[kept] for name, values in found.items()}))
    return by_label(below_each_other(bands))


def counts_of_box(ids: NDArray[np.uint64], chosen: Sequence[NDArray[np.bool_]]) -> Sums:
    """``label`` of each object in a box, and ``counts``, (n, choices): how many of its voxels are chosen."""
    width = ids.shape[-1]
    rows, planes = ids.reshape(-1, width), [voxels.reshape(-1, width) for voxels in chosen]
    bands = []
    for band in _bands(rows, 1):
        runs = _runs(rows[band])
        kept, counts = runs.labels > 0, _counts(runs, [voxels[band] for voxels in planes])
        bands.append(by_label({"label": runs.labels[kept], "counts": counts[kept]}))
    return by_label(below_each_other(bands))


def below_each_other(parts: Sequence[Sums]) -> Sums:
    """The rows of all parts; pieces that do not occur in one are 0 there."""
    names = sorted({name for part in parts for name in part})
    shapes = {name: (values.shape[1:], values.dtype) for part in parts for name, values in part.items()}

    def column(part: Sums, name: str) -> NDArray[Any]:
        shape, dtype = shapes[name]
        return part[name] if name in part else np.zeros((len(part["label"]), *shape), dtype=dtype)

    return {name: np.concatenate([column(part, name) for part in parts]) for name in names}


def by_label(rows: Sums) -> Sums:
    """Put the rows of each label together; rows may be in any order."""
    order, firsts = sorted_by_label(rows["label"])
    return {"label": rows["label"][order][firsts]} | {
        name: _REDUCTIONS.get(name, np.add).reduceat(values[order], firsts, axis=0) if len(firsts) else values[:0]
        for name, values in rows.items()
        if name != "label"
    }


def sorted_by_label(labels: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The order that sorts labels, and where each of them begins then."""
    order = np.argsort(labels, kind="stable")
    ascending = labels[order]
    begins = np.ones(labels.shape, dtype=bool)
    np.not_equal(ascending[1:], ascending[:-1], out=begins[1:])
    return order, np.flatnonzero(begins)


def axis_pairs(dims: int) -> tuple[tuple[int, int], ...]:
    """The pairs of axes in the order of ``products``."""
    return tuple(combinations_with_replacement(range(dims), 2))


def _bands(rows: NDArray[Any], channels: int) -> Iterator[slice]:
    step = max(1, _BAND_VOXELS // (rows.shape[1] * channels))
    return (slice(first, min(first + step, len(rows))) for first in range(0, len(rows), step))


def _runs(band: NDArray[np.uint64]) -> Runs:
    flat = band.ravel()
    begins = np.ones(flat.shape, dtype=bool)
    np.not_equal(flat[1:], flat[:-1], out=begins[1:])
    begins[:: band.shape[1]] = True
    starts = np.flatnonzero(begins)
    return Runs(starts, flat[starts], np.diff(starts, append=flat.size))


def _counts(runs: Runs, chosen: Sequence[NDArray[np.bool_]]) -> NDArray[np.int64]:
    """How many voxels of each run are chosen, a column for each choice."""
    return np.stack([runs.sums(voxels) for voxels in chosen], axis=1) if chosen else np.zeros((len(runs.labels), 0), np.int64)


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

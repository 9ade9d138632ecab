"""Where which classes are: counts of each cell of the parts, from one pass over their labels; and voxels drawn by them.

    part's box   |--cell--|--cell--|--cell--|-ce|      counts of classes, of ignored voxels and of border voxels in each

A draw picks a voxel of all that qualify, each as likely as any other, and reads the labels of one cell. Knows no images.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import InputError, ResumeError
from unet_core.geometry import BlockGrid, Box, Shape
from unet_core.store import Store
from unet_core.training.options import IGNORE
from unet_core.training.parts import Part
from unet_core.wording import counted

CELL_SIDE = {2: 64, 3: 32}
_BLOCK_CELLS = {2: 16, 3: 4}  # cells along each axis of what is read at once

Kind = Literal["uniform", "class", "border"]


class Census:
    """Counts of every cell.

    Args:
        parts: that were counted.
        counts: (cells, K) voxels of each class; cells of one part follow those of the one before, in C order.
        ignored: (cells,) voxels that are neither learnt nor scored.
        border: (cells,) voxels that have a face neighbour of another class or instance.
    """

    def __init__(
        self, parts: Sequence[Part], counts: NDArray[np.int32], ignored: NDArray[np.int32], border: NDArray[np.int32]
    ) -> None:
        self.parts = tuple(parts)
        self.counts, self.ignored, self.border = counts, ignored, border
        self.grids = tuple(cell_grid(part) for part in self.parts)
        self._first = np.cumsum([0, *(grid.block_count for grid in self.grids)])
        # Voxels that qualify in the cells up to each one, so that a number below the last of them is a voxel.
        self._sums = {"uniform": counts.sum(axis=1, dtype=np.int64).cumsum(), "border": border.cumsum(dtype=np.int64)}
        self.border_count = int(self._sums["border"][-1]) if len(border) else 0
        self._class_sums = counts.cumsum(axis=0, dtype=np.int64)

    @property
    def class_counts(self) -> NDArray[np.int64]:
        """Voxels of each class, over all parts; shape (K,)."""
        return self.counts.sum(axis=0, dtype=np.int64)

    @property
    def ignored_count(self) -> int:
        return int(self.ignored.sum(dtype=np.int64))

    def annotated(self, part_number: int) -> NDArray[np.bool_]:
        """Of each cell of a part, in the shape of its grid: whether a voxel has a class."""
        first, last = self._first[part_number : part_number + 2]
        has: NDArray[np.bool_] = self.counts[first:last].any(axis=1).reshape(self.grids[part_number].counts)
        return has

    def draw(self, rng: np.random.Generator, kind: Kind) -> tuple[int, Shape]:
        """A voxel, as the number of its part and its position in the part's image.

        Args:
            rng: drawn from.
            kind: any annotated voxel; one of a class, each class that is present being as likely; or one of a border.

        Raises:
            InputError: if no voxel qualifies, or the labels have changed since they were counted.
        """
        chosen = None
        if kind == "class":
            present = np.flatnonzero(self.class_counts)
            chosen = int(present[rng.integers(len(present))]) if len(present) else 0
        sums = self._class_sums[:, chosen] if chosen is not None else self._sums[kind]
        if not len(sums) or sums[-1] == 0:
            raise InputError(
                f"No voxel to draw around: the labels of {counted(len(self.parts), 'part')} have none for '{kind}'; draw uniformly."
            )
        number = int(rng.integers(sums[-1]))
        cell = int(np.searchsorted(sums, number, side="right"))
        number -= int(sums[cell - 1]) if cell else 0
        part_number = int(np.searchsorted(self._first, cell, side="right")) - 1
        part = self.parts[part_number]
        box = self.grids[part_number].block(cell - int(self._first[part_number])).shift(part.box.start)
        if kind == "border":
            mask = _read(part, box)[1]
        else:
            classes = part.read_classes(box)
            mask = classes == chosen if chosen is not None else classes != IGNORE
        found = np.flatnonzero(mask)
        if number >= len(found):
            raise InputError(f"Labels of {part.name} have changed since they were counted; start the training again.")
        local = np.unravel_index(int(found[number]), box.shape)
        return part_number, tuple(int(step) + first for step, first in zip(local, box.start, strict=True))

    def save(self, store: Store, key: str) -> None:
        """Write the counts, and what they are of."""
        file = io.BytesIO()
        about = np.array(json.dumps(_about(self.parts)))
        np.savez_compressed(file, about=about, counts=self.counts, ignored=self.ignored, border=self.border)
        store.put(key, file.getvalue())

    @classmethod
    def load(cls, store: Store, key: str, parts: Sequence[Part]) -> Census:
        """Read the counts of ``parts``.

        Raises:
            ResumeError: if they are of other parts, or the file is damaged.
        """
        try:
            with np.load(io.BytesIO(store.get(key)), allow_pickle=False) as stored:
                about, counts, ignored, border = (stored[name] for name in ("about", "counts", "ignored", "border"))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise ResumeError(
                f"Counts of labels {key} in {store.url} cannot be read ({error}); start the training again."
            ) from error
        if str(about) != json.dumps(_about(parts)):
            raise ResumeError(
                f"Counts of labels {key} in {store.url} are of other parts of the data set; start the training again."
            )
        return cls(parts, counts, ignored, border)


def take_census(parts: Sequence[Part], least_classes: int = 2) -> Census:
    """Count the labels of parts, block by block; every label is looked at.

    Args:
        parts: of one data set.
        least_classes: how many classes must be present.

    Raises:
        InputError: if a label is not in the class map (with its position), or fewer classes are present.
    """
    class_count = len(parts[0].class_names)
    counted = [_part_counts(part, class_count) for part in parts]
    counts, ignored, border = (np.concatenate([entry[index] for entry in counted]) for index in range(3))
    census = Census(parts, counts, ignored, border)
    present = [name for name, count in zip(parts[0].class_names, census.class_counts, strict=True) if count]
    if len(present) < least_classes:
        names = ", ".join(part.name for part in parts[:3]) + (f" and {len(parts) - 3} more" if len(parts) > 3 else "")
        only = f"only '{present[0]}' is" if present else "no class is"
        raise InputError(
            f"Of the {class_count} classes {only} present in what is for {parts[0].purpose} ({names}); there is nothing to tell apart: "
            "correct the labels, the class map or the boxes."
        )
    return census


def cell_grid(part: Part) -> BlockGrid:
    """The cells of a part, from the start of its box."""
    return BlockGrid(part.box.shape, (CELL_SIDE[part.box.ndim],) * part.box.ndim)


def _part_counts(part: Part, class_count: int) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    grid = cell_grid(part)
    counts = np.zeros((*grid.counts, class_count + 1), dtype=np.int32)
    border = np.zeros(grid.counts, dtype=np.int32)
    for cells, box in _blocks(part, grid):
        classes, on_border = _read(part, box)
        cell_of = _cell_numbers(box.shape, grid.block_shape)
        shape, cell_count = cells.shape, cells.voxel_count
        number = np.minimum(classes, class_count)  # IGNORE comes after the classes
        both = np.bincount((cell_of * (class_count + 1) + number).ravel(), minlength=cell_count * (class_count + 1))
        counts[cells.slices()] = both.reshape(*shape, class_count + 1)
        border[cells.slices()] = np.bincount(cell_of[on_border], minlength=cell_count).reshape(shape)
    flat = counts.reshape(-1, class_count + 1)
    return np.ascontiguousarray(flat[:, :-1]), np.ascontiguousarray(flat[:, -1]), border.ravel()


def _blocks(part: Part, grid: BlockGrid) -> Iterator[tuple[Box, Box]]:
    """What is read at once: its cells, and its voxels in the part's image."""
    whole = Box.from_shape(part.box.shape)
    for cells in BlockGrid(grid.counts, (_BLOCK_CELLS[part.box.ndim],) * part.box.ndim).blocks():
        yield cells, cells.scale_up(grid.block_shape).intersect(whole).shift(part.box.start)


def _cell_numbers(shape: Shape, cell_shape: Shape) -> NDArray[np.int64]:
    """Number of the cell of each voxel of a block of ``shape``."""
    along = [np.arange(size) // side for size, side in zip(shape, cell_shape, strict=True)]
    counts = [int(axis[-1]) + 1 for axis in along]
    return reduce(lambda before, axis: before[..., None] * counts[before.ndim] + axis, along[1:], along[0])


def _read(part: Part, box: Box) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Class numbers of a box, and which of its voxels lie on a border: annotated, with an annotated face neighbour of another class or
    instance, inside the part."""
    ones = (1,) * box.ndim
    around = box.grow(ones, ones).intersect(part.box)
    classes, instances = part.read_labels(around)
    ids = classes if instances is None else instances
    annotated = classes != IGNORE
    border = np.zeros(classes.shape, dtype=bool)
    for axis in range(box.ndim):
        after, before = (_cut(axis, box.ndim, part) for part in (slice(1, None), slice(None, -1)))
        change = (ids[after] != ids[before]) & annotated[after] & annotated[before]
        border[after] |= change
        border[before] |= change
    inner = box.shift(tuple(-first for first in around.start)).slices()
    return classes[inner], border[inner]


def _cut(axis: int, dims: int, part: slice) -> tuple[slice, ...]:
    return tuple(part if other == axis else slice(None) for other in range(dims))


def _about(parts: Sequence[Part]) -> list[list[str]]:
    return [[part.name, str(part.box), *part.class_names] for part in parts]

"""Sections of a volume of labels, tile by tile, each read once; where labels lie. Knows volumes, no format.

A tile brings the row above and the column before it, kept from the tiles that were read earlier, and rows of 0 where the image
ends: each crossing of the image's grid is an inner one of exactly one tile.

    0 0 0 0 0 0        a a a b b 0
    0 a a a|b b        a a a|b b 0
    0 a a a|b b        ------+----
    0 a a a|b b        0 0 0 0 0 0
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.geometry import BlockGrid, Box
from unet_core.volumes import Volume

_SIDE = 2048  # voxels, about
_TILE_BYTES = 64 << 20


@dataclass(frozen=True)
class Tile:
    """A part of one section.

    Args:
        z: section; 0 in 2D.
        index: of the tile in the section's grid.
        is_last: of its section.
        labels: (Y, X) with what is around it above and before.
        top: first row that is the tile's own.
        left: first column that is.
    """

    z: int
    index: int
    is_last: bool
    labels: NDArray[Any]
    top: int
    left: int


@dataclass(frozen=True)
class Walk:
    """How a volume is read.

    Args:
        volume: of labels, without channels.
        grid: of tiles over y and x.
        depth: sections that are read at once.
    """

    volume: Volume
    grid: BlockGrid
    depth: int

    @property
    def slabs(self) -> Iterator[tuple[int, int]]:
        count = _sections(self.volume)
        return ((first, min(first + self.depth, count)) for first in range(0, count, self.depth))

    def tiles(self) -> Iterator[Tile]:
        """Every tile of every section; the sections of a slab by turns."""
        width = self.volume.spatial_shape[-1]
        for first, stop in self.slabs:
            above = np.zeros((stop - first, width + 1), self.volume.dtype)  # rows over the next tiles, one column further right
            before, corner = above[:, :0], above[:, 0].copy()  # of the tile to the left
            for index, box, values in self._read(first, stop):
                (top, left), (bottom, right) = box.start, box.stop
                at_end = bottom == self.grid.shape[0], right == self.grid.shape[1]
                labels = np.zeros((stop - first, bottom - top + 1 + at_end[0], right - left + 1 + at_end[1]), values.dtype)
                own = labels[:, 1 : bottom - top + 1, 1 : right - left + 1]
                own[...] = values
                labels[:, 0, : right - left + 1] = above[:, left : right + 1]
                if left:
                    labels[:, 1 : bottom - top + 1, 0] = before
                    labels[:, 0, 0] = corner
                corner = above[:, right].copy()
                before = own[:, :, -1].copy()
                above[:, left + 1 : right + 1] = own[:, -1]
                for number, section in enumerate(labels):
                    yield Tile(first + number, index, index == self.grid.block_count - 1, section, top, left)

    def boxes(self) -> Iterator[tuple[int, Box, NDArray[Any]]]:
        """First section, box over y and x, and voxels (Z, Y, X) of every tile of every slab."""
        for first, stop in self.slabs:
            for _, box, values in self._read(first, stop):
                yield first, box, values

    def _read(self, first: int, stop: int) -> Iterator[tuple[int, Box, NDArray[Any]]]:
        """Tiles of a slab, (Z, Y, X); the next one is read meanwhile."""
        section = ((first,), (stop,)) if "z" in self.volume.spatial_axes else ((), ())

        def read(index: int) -> tuple[int, Box, NDArray[Any]]:
            box = self.grid.block(index)
            values = self.volume.read(Box(section[0] + box.start, section[1] + box.stop))[0]
            return index, box, values.reshape(stop - first, *box.shape)

        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(read, 0)
            for index in range(self.grid.block_count):
                found = ahead.result()
                if index + 1 < self.grid.block_count:
                    ahead = reader.submit(read, index + 1)
                yield found


def walk(volume: Volume) -> Walk:
    """Tiles of whole chunks, of about 2048 x 2048 voxels, less where a chunk is deep."""
    shape, chunk = volume.spatial_shape[-2:], volume.chunk_shape
    depth = min(chunk[0], _sections(volume)) if len(chunk) == 3 else 1
    side = min(_SIDE, int((_TILE_BYTES / depth / volume.dtype.itemsize) ** 0.5))
    tile = tuple(min(-(-size // step) * step, max(1, side // step) * step) for size, step in zip(shape, chunk[-2:], strict=True))
    return Walk(volume, BlockGrid(shape, tile), depth)


def _sections(volume: Volume) -> int:
    return prod(volume.spatial_shape[:-2])


@dataclass(frozen=True)
class Extents:
    """Where labels lie in y and x, over all sections.

    Args:
        label: (n,) ascending.
        start: (n, 2) first row and column.
        stop: (n, 2) after the last ones.
    """

    label: NDArray[np.generic]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]


def extents_of(walk: Walk) -> Extents:
    """Where each label but 0 lies, found by reading the whole volume once."""
    parts = [_extents_of_tile(box, values) for _, box, values in walk.boxes()]
    return _merged(*(np.concatenate(fields) for fields in zip(*parts, strict=True)))


def _extents_of_tile(box: Box, values: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Of the runs of equal voxels along x, which are few."""
    lines = values.reshape(-1, values.shape[-1])
    begins = np.ones(lines.shape, dtype=np.bool_)
    np.not_equal(lines[:, 1:], lines[:, :-1], out=begins[:, 1:])
    places = np.flatnonzero(begins)
    label = lines.ravel()[places]
    line, first = np.divmod(places, lines.shape[1])
    last = np.append(places[1:], lines.size) - 1 - line * lines.shape[1]
    row = box.start[0] + line % box.shape[0]
    inside = label != 0
    start = np.stack((row, box.start[1] + first), axis=1)[inside]
    stop = np.stack((row + 1, box.start[1] + last + 1), axis=1)[inside]
    found = _merged(label[inside], start, stop)
    return found.label, found.start, found.stop


def _merged(label: NDArray[Any], start: NDArray[np.int64], stop: NDArray[np.int64]) -> Extents:
    if not label.size:
        return Extents(label, start, stop)
    order = np.argsort(label, kind="stable")
    label, start, stop = label[order], start[order], stop[order]
    firsts = np.flatnonzero(np.append(True, label[1:] != label[:-1]))
    return Extents(label[firsts], np.minimum.reduceat(start, firsts), np.maximum.reduceat(stop, firsts))

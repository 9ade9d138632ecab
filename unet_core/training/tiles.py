"""Which boxes of the validation part are scored: as blocks of a segmentation lie, with truth in them, spread over all. Knows no network."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from unet_core.geometry import BlockGrid, Box, Shape
from unet_core.training.census import Census
from unet_core.training.options import IGNORE
from unet_core.training.parts import Part


@dataclass(frozen=True)
class Tile:
    """A box of a part that is predicted at once; it may hang over the part."""

    part: int
    box: Box


def choose_tiles(census: Census, target_shape: Shape, stride: Shape, most: int) -> tuple[Tile, ...]:
    """Tiles to score.

    They begin at multiples of the stride, as blocks of a segmentation do: elsewhere poolings see other voxels together. All of them
    are taken if they are at most ``most``; else one, with truth in it, of each of ``most`` runs of equal length of those in whose
    cells something is annotated. Of a slide with a few outlines these are the outlines.

    Args:
        census: of the parts.
        target_shape: of a crop's target.
        stride: of the network.
        most: tiles, at least one.
    """
    shape = tuple(max(size // step, 1) * step for size, step in zip(target_shape, stride, strict=True))
    tiles: list[Tile] = []
    for number, part in enumerate(census.parts):
        known = census.annotated(number)
        first = tuple(start // step * step for start, step in zip(part.box.start, stride, strict=True))
        extent = tuple(stop - start for start, stop in zip(first, part.box.stop, strict=True))
        boxes = (Box.from_shape(shape, block.shift(first).start) for block in BlockGrid(extent, shape).blocks())
        tiles += [Tile(number, box) for box in boxes if _touches(known, census.grids[number], part, box)]
    if len(tiles) <= most:
        return tuple(tiles)
    ends = [position * len(tiles) // most for position in range(most + 1)]
    runs = (tiles[first:last] for first, last in pairwise(ends))
    found = (next((tile for tile in run if _has_truth(census.parts[tile.part], tile.box)), None) for run in runs)
    return tuple(tile for tile in found if tile is not None)


def _touches(known: NDArray[np.bool_], cells: BlockGrid, part: Part, box: Box) -> bool:
    """Whether a cell that the box meets has truth in it; ``known`` is that of each cell."""
    inside = box.intersect(part.box)
    lines = zip(inside.start, inside.stop, part.box.start, cells.block_shape, strict=True)
    return bool(
        known[tuple(slice((low - first) // side, (high - 1 - first) // side + 1) for low, high, first, side in lines)].any()
    )


def _has_truth(part: Part, box: Box) -> bool:
    return bool((part.read_classes(box.intersect(part.box)) != IGNORE).any())

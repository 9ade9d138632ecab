"""Outlines of all objects or regions of a volume of labels, from one pass over its tiles. Knows no format.

What lies inside one tile is outlined at once. Of what goes on in other tiles only the corners are kept, until the last of its tiles
is read: nothing is cut where tiles meet, no voxel is read twice, and a giant needs memory for its outline alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import LedgerError
from unet_core.exports.outlines import Corners, Ring, corners_of, polygons_of
from unet_core.exports.tiles import Extents, Walk
from unet_core.geometry import BlockGrid
from unet_core.postprocess.blockwise import label_parts

Polygons = list[list[Ring]]


def object_outlines(walk: Walk, extents: Extents) -> Iterator[tuple[int, int, Polygons]]:
    """Section, row in ``extents``, and polygons of every label in every section that it is in.

    Args:
        walk: over the volume.
        extents: of all of its labels.

    Raises:
        LedgerError: for a label that ``extents`` does not have.
    """
    first, last = _tile_numbers(walk.grid, extents.start), _tile_numbers(walk.grid, extents.stop)
    waiting: dict[tuple[int, int], list[Corners]] = defaultdict(list)  # by section and last tile
    for tile in walk.tiles():
        corners = corners_of(tile.labels, tile.top, tile.left)
        row = _rows(extents, corners)
        corners = replace(corners, label=row)
        inside = first[row] == last[row]
        for end, part in _split(corners.select(~inside), last[row[~inside]]):
            waiting[tile.z, end].append(part)
        ended = waiting.pop((tile.z, tile.index), [])
        for number, polygons in polygons_of(Corners.join([corners.select(inside), *ended])):
            yield tile.z, number, polygons
    assert not waiting, "a label lies outside its extent"


def region_outlines(walk: Walk) -> Iterator[tuple[int, int, list[Ring]]]:
    """Section, label value and polygon of every set of voxels of one label that are connected by edges."""
    waiting: dict[int, list[Corners]] = defaultdict(list)
    for tile in walk.tiles():
        parts = label_parts(tile.labels, 1)
        value = np.zeros(int(parts.max()) + 1, dtype=tile.labels.dtype)
        value[parts] = tile.labels
        goes_on = _at_rim(parts)
        corners = corners_of(parts, tile.top, tile.left)
        is_open = goes_on[corners.label]
        for part, polygons in polygons_of(corners.select(~is_open)):
            yield tile.z, int(value[part]), polygons[0]
        still_open = corners.select(is_open)
        waiting[tile.z].append(replace(still_open, label=value[still_open.label]))
        if tile.is_last:
            for label, polygons in polygons_of(Corners.join(waiting.pop(tile.z))):
                for polygon in polygons:
                    yield tile.z, label, polygon


def _tile_numbers(grid: BlockGrid, crossings: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers of the tiles whose inner crossings these are."""
    position = np.minimum(crossings // np.array(grid.block_shape), np.array(grid.counts) - 1)
    return np.asarray(position[:, 0] * grid.counts[1] + position[:, 1])


def _rows(extents: Extents, corners: Corners) -> NDArray[np.int64]:
    if not len(corners):
        return np.zeros(0, dtype=np.int64)
    if not len(extents.label):
        raise LedgerError(f"Label {corners.label[0]} is in the image and not in the table of objects.")
    row = np.minimum(np.searchsorted(extents.label, corners.label), len(extents.label) - 1)
    unknown = np.flatnonzero(extents.label[row] != corners.label)
    if unknown.size:
        raise LedgerError(f"Label {corners.label[unknown[0]]} is in the image and not in the table of objects.")
    return row


def _split(corners: Corners, by: NDArray[np.int64]) -> Iterator[tuple[int, Corners]]:
    order = np.argsort(by, kind="stable")
    values, starts = np.unique(by[order], return_index=True)
    for value, which in zip(values.tolist(), np.split(order, starts[1:]), strict=False):
        yield value, corners.select(which)


def _at_rim(parts: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Which parts reach the rim of a tile; beyond the image's end the rim is 0, which is no part."""
    found = np.zeros(int(parts.max()) + 1, dtype=np.bool_)
    for line in (parts[0], parts[-1], parts[:, 0], parts[:, -1]):
        found[line] = True
    found[0] = False
    return found

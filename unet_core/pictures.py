"""Pictures of a result: the image with outlines of its labels, overview and close-up. Knows no network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from skimage.measure import label, regionprops_table
from skimage.segmentation import find_boundaries

from unet_core.geometry import BlockGrid, Box
from unet_core.plan import LabelName
from unet_core.volumes import Volume

_OVERVIEW_VOXELS = 900
_CLOSE_UP_VOXELS = 300
_GAP = 12


def draw_outlines(image: Volume, labels: Volume, classes: tuple[LabelName, ...], path: Path) -> Box:
    """Write a PNG: the whole image with labels outlined, and beside it, at full resolution, the place with
    the most compact objects, without and with.

    Args:
        image: two-dimensional, of one or three channels.
        labels: of the same shape.
        classes: for the colours; value 0 is not drawn.
        path: of the PNG.

    Returns:
        The box of the close-up.
    """
    height, width = labels.spatial_shape
    step = max(1, -(-max(height, width) // _OVERVIEW_VOXELS))
    rows, columns = -(-height // step), -(-width // step)
    overview = np.zeros((rows, columns, 3), dtype=np.uint8)
    density = np.zeros((rows, columns), dtype=np.float32)
    grid = BlockGrid((height, width), (512 * step, 512 * step))
    top = _brightest(image)
    for block in grid.blocks():
        values, drawn = _colours(image.read(block), top), labels.read(block)[0]
        shrunk = _shrink(values, step)
        for entry in classes:
            if entry.value:
                share = _shrink((drawn == entry.value)[..., None].astype(np.float32), step)[..., 0]
                _count_compact(drawn == entry.value, block, step, density)
                shrunk = _paint(shrunk, find_boundaries(share > 0.5, mode="inner"), entry.color)
        overview[_target(block, step, shrunk.shape[:2])] = shrunk.astype(np.uint8)
    close = _densest(density, step, (height, width))
    plain = _colours(image.read(close), top)
    outlined = plain.copy()
    found = labels.read(close)[0]
    for entry in classes:
        if entry.value:
            outlined = _paint(outlined, find_boundaries(found == entry.value, mode="inner"), entry.color)
    _save(overview, plain, outlined, close, step, path)
    return close


def _count_compact(where: NDArray[np.bool_], block: Box, step: int, density: NDArray[np.float32]) -> None:
    """Add one to ``density``, on the overview's grid, at the centre of each object without deep bays."""
    found = regionprops_table(label(where), properties=("centroid", "solidity", "area"))
    keep = (found["solidity"] > 0.9) & (found["area"] > 20)
    rows = (found["centroid-0"][keep] + block.start[0]).astype(int) // step
    columns = (found["centroid-1"][keep] + block.start[1]).astype(int) // step
    np.add.at(density, (rows, columns), 1.0)


def _brightest(image: Volume) -> float:
    if image.dtype == np.uint8:
        return 255.0
    size = tuple(min(1024, extent) for extent in image.spatial_shape)
    start = tuple((extent - part) // 2 for extent, part in zip(image.spatial_shape, size, strict=True))
    return float(np.percentile(image.read(Box.from_shape(size, start)), 99.8)) or 1.0


def _colours(values: NDArray[np.generic], top: float) -> NDArray[np.float32]:
    """(Y, X, 3) in 0..255 of an image (C, Y, X)."""
    chosen = values[:3] if len(values) >= 3 else np.repeat(values[:1], 3, axis=0)
    return np.moveaxis(np.clip(chosen.astype(np.float32) * (255 / top), 0, 255), 0, -1)


def _shrink(values: NDArray[np.float32], step: int) -> NDArray[np.float32]:
    if step == 1:
        return values
    rows, columns = (np.arange(0, size, step) for size in values.shape[:2])
    sums = np.add.reduceat(np.add.reduceat(values, rows, axis=0), columns, axis=1)
    counts = np.outer(np.diff([*rows, values.shape[0]]), np.diff([*columns, values.shape[1]]))
    shrunk: NDArray[np.float32] = (sums / counts[..., None]).astype(np.float32)
    return shrunk


def _target(block: Box, step: int, shape: tuple[int, ...]) -> tuple[slice, ...]:
    return Box.from_shape(shape, tuple(first // step for first in block.start)).slices()


def _paint(values: NDArray[np.float32], where: NDArray[np.bool_], color: str) -> NDArray[np.float32]:
    values = values.copy()
    values[where] = list(bytes.fromhex(color[1:]))
    return values


def _densest(density: NDArray[np.float32], step: int, shape: tuple[int, int]) -> Box:
    side = max(1, _CLOSE_UP_VOXELS // step)
    sums = np.pad(density.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    tall, wide = min(side, density.shape[0]), min(side, density.shape[1])
    totals = sums[tall:, wide:] - sums[:-tall, wide:] - sums[tall:, :-wide] + sums[:-tall, :-wide]
    row, column = (int(position) for position in np.unravel_index(int(totals.argmax()), totals.shape))
    size = (min(_CLOSE_UP_VOXELS, shape[0]), min(_CLOSE_UP_VOXELS, shape[1]))
    start = (min(row * step, shape[0] - size[0]), min(column * step, shape[1] - size[1]))
    return Box.from_shape(size, start)


def _save(
    overview: NDArray[np.uint8], plain: NDArray[np.float32], outlined: NDArray[np.float32], close: Box, step: int, path: Path
) -> None:
    side = max(_CLOSE_UP_VOXELS, (overview.shape[0] - _GAP) // 2)
    whole = Image.fromarray(overview)
    corners = [(close.start[1] // step, close.start[0] // step), (close.stop[1] // step, close.stop[0] // step)]
    ImageDraw.Draw(whole).rectangle(corners, outline=(0, 0, 0), width=3)
    pieces = [
        Image.fromarray(values.astype(np.uint8)).resize((side, side), Image.Resampling.LANCZOS) for values in (plain, outlined)
    ]
    sheet = Image.new("RGB", (overview.shape[1] + _GAP + side, max(overview.shape[0], 2 * side + _GAP)), "white")
    sheet.paste(whole, (0, 0))
    sheet.paste(pieces[0], (overview.shape[1] + _GAP, 0))
    sheet.paste(pieces[1], (overview.shape[1] + _GAP, side + _GAP))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)

"""Tissue on a bright-field slide, found at a low resolution: what is darker or more coloured than the glass around it.

slide -> mean of each cell of 8 um -> darkness of its darkest colour -> smoothed -> threshold -> gaps closed -> specks left out
"""

from __future__ import annotations

import hashlib
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu

from unet_core.downsampling import downsample
from unet_core.errors import VolumeError
from unet_core.geometry import BlockGrid, Box
from unet_core.volumes import Volume

CELL_UM = 8.0
CELL_VOXELS = 16  # of the segmented level, where its voxel size is not known
SMOOTHED = 1.0  # cells, standard deviation
WHITE = 99.0  # percentile of each colour that is taken for glass
DARKEST_WHITE = 128  # of 255; a slide whose glass is darker is no bright-field image
BLACK = 10  # of 255; cells of which no colour is brighter were not scanned
# Otsu's threshold parts the darkest two kinds of tissue where there is hardly any glass, and two kinds of glass where there is no tissue.
THRESHOLDS = (0.06, 0.12)
CLOSED = 3  # cells
SMALLEST = 64  # cells, 0.004 mm^2
MOST_VOXELS = 1 << 33  # that are read to find it
_TILE = 2048


class Tissue:
    """Foreground where a slide shows tissue.

    Args:
        volume: the slide at the resolution that is read, of 3 colours of 8 bits.
        step: voxels of the segmented level that one voxel of ``volume`` covers, along y and x.
        cell: voxels of ``volume`` along a side of a cell.

    Raises:
        VolumeError: if it is no bright-field slide, or too large to look at.
    """

    kind = "tissue"

    def __init__(self, volume: Volume, step: tuple[float, ...], cell: int) -> None:
        check_bright_field(volume)
        self.source = volume.url
        self.scale = tuple(cell * size for size in step)
        self.cells, self.threshold = find_tissue(mean_of_cells(volume, cell))
        self.sha256 = hashlib.sha256(np.packbits(self.cells).tobytes()).hexdigest()
        self.facts: dict[str, Any] = {
            "level": volume.level,
            "cell": [round(size, 3) for size in self.scale],
            "threshold": round(self.threshold, 4),
            "smoothed": SMOOTHED,
            "closed": CLOSED,
            "smallest": SMALLEST,
            "share": round(float(self.cells.mean()), 4),
        }

    def touches(self, box: Box) -> bool:
        inside = tuple(
            slice(max(0, int(first // size)), max(0, ceil(last / size)))
            for first, last, size in zip(box.start, box.stop, self.scale, strict=True)
        )
        return bool(self.cells[inside].any())


def find_tissue(cells: NDArray[np.uint8]) -> tuple[NDArray[np.bool_], float]:
    """Where there is tissue, and the darkness above which there is.

    Args:
        cells: of shape (3, Y, X), red, green and blue.

    Raises:
        VolumeError: if the brightest of it is no glass.
    """
    scanned = cells.max(0) > BLACK
    white = np.percentile(cells[:, scanned], WHITE, axis=1) if scanned.any() else np.zeros(3)
    if white.mean() < DARKEST_WHITE:
        raise VolumeError(
            f"The brightest of the slide has an intensity of {white.mean():.0f} of 255, where a bright-field slide has glass of {DARKEST_WHITE} "
            "or more; leave out --tissue, and say what is wanted with --mask."
        )
    darkness = np.where(scanned, 1 - (cells / white[:, None, None]).min(0), 0).clip(0, 1)
    darkness = ndimage.gaussian_filter(darkness, SMOOTHED, mode="nearest")
    threshold = float(np.clip(threshold_otsu(darkness) if darkness.min() < darkness.max() else 1, *THRESHOLDS))
    dark = np.pad((darkness > threshold) & scanned, CLOSED, mode="edge")
    y, x = np.ogrid[-CLOSED : CLOSED + 1, -CLOSED : CLOSED + 1]
    closed = ndimage.binary_closing(dark, x * x + y * y <= CLOSED * CLOSED, border_value=0) | dark
    pieces, _ = ndimage.label(closed[CLOSED:-CLOSED, CLOSED:-CLOSED])
    return (np.bincount(pieces.ravel()) >= SMALLEST)[pieces] & (pieces > 0), threshold


def mean_of_cells(volume: Volume, cell: int) -> NDArray[np.uint8]:
    """The mean of each ``cell`` x ``cell`` voxels of a plane, of shape (C, Y, X); read in tiles."""
    shape = volume.spatial_shape[-2:]
    lead = len(volume.spatial_shape) - 2
    result = np.empty((volume.channel_count, *(-(-size // cell) for size in shape)), dtype=np.uint8)
    side = max(1, _TILE // cell) * cell
    for tile in BlockGrid(shape, (side, side)).blocks():
        values = volume.read(Box((0,) * lead + tile.start, (1,) * lead + tile.stop))
        place = tile.scale_down((cell, cell)).slices()
        result[(slice(None), *place)] = downsample(values.reshape(len(values), *tile.shape), (cell, cell), "map")
    return result


def check_bright_field(volume: Volume) -> None:
    """Refuse what cannot be a slide seen in bright field, or is too large to look at.

    Raises:
        VolumeError: with both values.
    """
    sizes, channels = volume.spatial_shape, volume.channel_count
    if channels != 3 or volume.dtype != np.uint8 or any(size != 1 for size in sizes[:-2]):
        raise VolumeError(
            f"--tissue is for bright-field slides of 3 colours of uint8, {volume.url} has {channels} of {volume.dtype} and {sizes} voxels; "
            "leave it out, or say what is wanted with --mask."
        )
    if np.prod(sizes) > MOST_VOXELS:
        raise VolumeError(
            f"{volume.url} has no resolution coarser than {sizes} voxels, at most {MOST_VOXELS:,} are read to find the tissue; "
            "say where it is with --mask."
        )

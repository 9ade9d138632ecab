"""What planning reads of an image: percentiles for normalisation, and a sample of its chunks to see that they decode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import VolumeError
from unet_core.geometry import BlockGrid, Box, Shape
from unet_core.inputs import Source
from unet_core.volumes.reflect import folded

PERCENTILE_VOXELS = 1 << 27  # of each channel, at most
CHECKED_BYTES = 128 << 20  # decoded while planning, at most; an image below it is checked whole
CHECKED_CHUNKS = 512
_REGION_SIDE = {2: 2048, 3: 160}


def percentiles(source: Source, low: float, high: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Percentiles of each channel over the whole image, or over regions strewn over an image of more than 2**27 voxels.

    The regions follow from the shape alone, so that planning again gives the same numbers; they are drawn, since every n-th
    region may be one column of the image. NaN and infinite voxels do
    not count; a block that reads one fails with its coordinates.

    Raises:
        VolumeError: if no voxel of the sample is finite.
    """
    shape = source.spatial_shape
    grid = BlockGrid(shape, tuple(min(_REGION_SIDE[len(shape)], size) for size in shape))
    count = max(1, grid.block_count * PERCENTILE_VOXELS // max(prod(shape), PERCENTILE_VOXELS))
    chosen = np.sort(np.random.default_rng(0).permutation(grid.block_count)[:count])
    parts = [source.read(grid.block(int(index))).reshape(source.channel_count, -1) for index in chosen]
    found = []
    for channel in np.concatenate(parts, axis=1):
        finite = channel[np.isfinite(channel)] if channel.dtype.kind == "f" else channel
        if not finite.size:
            raise VolumeError(f"{source.volume.url} holds no finite voxel; its intensities cannot be normalised.")
        found.append(np.percentile(finite.astype(np.float32) if finite.dtype.kind == "f" else finite, [low, high]))
    lows, highs = np.asarray(found, dtype=np.float64).T
    return lows, highs


def check_chunks(source: Source, regions: Sequence[Box]) -> None:
    """Decode chunks that ``regions`` meet, all of them or evenly spread ones, so that a damaged image is refused before any work.

    Args:
        source: the image.
        regions: boxes that will be read; may hang over the image.

    Raises:
        ChunkError: naming the first chunk that is missing or does not decode.
    """
    whole = Box.from_shape(source.spatial_shape)
    chunk = source.volume.chunk_shape[-len(source.axes) :]
    decoded = prod(chunk) * source.channel_count * source.volume.dtype.itemsize
    allowed = min(CHECKED_CHUNKS, max(1, CHECKED_BYTES // decoded)) // len(regions)
    for region in regions:
        for box in _spread(folded(region, source.spatial_shape), chunk, max(1, allowed)):
            source.read(box.intersect(whole))


def _spread(region: Box, chunk: Shape, limit: int) -> Iterator[Box]:
    """At most ``limit`` of the chunks that ``region`` meets, evenly spread, the first and the last among them."""
    cover = region.scale_down(chunk)
    grid = BlockGrid(cover.shape, (1,) * cover.ndim)
    for number in np.unique(np.linspace(0, grid.block_count - 1, min(limit, grid.block_count)).astype(int)):
        yield grid.block(int(number)).shift(cover.start).scale_up(chunk)

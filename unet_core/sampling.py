"""What planning reads of an image: statistics for normalisation, and a sample of its chunks to see that they decode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import VolumeError
from unet_core.geometry import BlockGrid, Box, Shape
from unet_core.inputs import Source
from unet_core.model_description import FixedNormalisation, ImageNormalisation, MomentsNormalisation, NoNormalisation
from unet_core.normalisation import Normalisation, from_moments, from_percentiles
from unet_core.volumes.reflect import folded

SAMPLED_VOXELS = 1 << 27  # of each channel, at most
CHECKED_BYTES = 128 << 20  # decoded while planning, at most; an image below it is checked whole
CHECKED_CHUNKS = 512
LARGEST_OFFSET = 1e30  # and scale, as of a model package; 1e30 and 1e-30 lie far inside float32
_REGION_SIDE = {2: 2048, 3: 160}

PerChannel = tuple[NDArray[np.float64], NDArray[np.float64]]
Stated = FixedNormalisation | ImageNormalisation | MomentsNormalisation | NoNormalisation


def resolve_normalisation(stated: Stated, source: Source) -> Normalisation:
    """The numbers by which the image is normalised: those that the model states, or those of the whole image.

    Raises:
        VolumeError: if those of the image are none that float32 can compute with.
    """
    if isinstance(stated, FixedNormalisation):
        return Normalisation(offset=stated.offset, scale=stated.scale)
    if isinstance(stated, NoNormalisation):
        return Normalisation(offset=(0.0,) * source.channel_count, scale=(1.0,) * source.channel_count)
    with np.errstate(over="ignore", invalid="ignore"):  # numbers out of range are refused below
        if isinstance(stated, ImageNormalisation):
            found = from_percentiles(*percentiles(source, stated.low, stated.high, stated.joint), stated.eps)
        else:
            found = from_moments(*moments(source, stated.joint), stated.eps)
    for channel, (offset, scale) in enumerate(zip(found.offset, found.scale, strict=True)):
        # Also false for NaN.
        if not (abs(offset) <= LARGEST_OFFSET and 1 / LARGEST_OFFSET <= scale <= LARGEST_OFFSET):
            raise VolumeError(
                f"Channel {channel} of {source.volume.url} would be normalised by (value - {offset:.3g}) / {scale:.3g}, offset up to "
                f"{LARGEST_OFFSET:.0e} and scale from {1 / LARGEST_OFFSET:.0e} to {LARGEST_OFFSET:.0e} fit float32; rescale the image's "
                "intensities."
            )
    return found


def percentiles(source: Source, low: float, high: float, joint: bool = False) -> PerChannel:
    """Percentiles of each channel over the whole image, or over regions strewn over an image of more than 2**27 voxels.

    NaN and infinite voxels do not count; a block that reads one fails with its coordinates.

    Args:
        source: the image.
        low: from 0 to 100.
        high: likewise.
        joint: over the voxels of all channels together.

    Raises:
        VolumeError: if no voxel of the sample is finite.
    """
    parts = [source.read(region).reshape(source.channel_count, -1) for region in sampled_regions(source)]
    channels = np.concatenate(parts, axis=1)
    found = []
    for channel in channels.reshape(1, -1) if joint else channels:
        finite = _finite(source, channel)
        found.append(np.percentile(finite.astype(np.float32) if finite.dtype.kind == "f" else finite, [low, high]))
    lows, highs = np.asarray(found * (source.channel_count if joint else 1), dtype=np.float64).T
    return lows, highs


def moments(source: Source, joint: bool = False) -> PerChannel:
    """Mean and standard deviation of each channel, over the voxels that ``percentiles`` looks at, one region in memory at a time.

    Sums are in float64 and regions follow from the shape alone, so that storage and chunks change no bit. Parts are merged as by
    Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".

    Args:
        source: the image.
        joint: over the voxels of all channels together.

    Raises:
        VolumeError: if no voxel of the sample is finite.
    """
    merged = [_Moments(0, 0.0, 0.0)] * source.channel_count
    for region in sampled_regions(source):
        values = source.read(region).reshape(source.channel_count, -1)
        merged = [before.merge(_moments_of(channel)) for before, channel in zip(merged, values, strict=True)]
    if joint:
        merged = [reduce(_Moments.merge, merged)] * source.channel_count
    if any(part.count == 0 for part in merged):
        raise _nothing_finite(source)
    return np.array([part.mean for part in merged]), np.array([sqrt(part.squares / part.count) for part in merged])


@dataclass(frozen=True)
class _Moments:
    """Count, mean, and sum of squared distances from the mean."""

    count: int
    mean: float
    squares: float

    def merge(self, other: _Moments) -> _Moments:
        count = self.count + other.count
        if not other.count or not self.count:
            return self if self.count else other
        apart = other.mean - self.mean
        mean = self.mean + apart * other.count / count
        return _Moments(count, mean, self.squares + other.squares + apart * apart * self.count * other.count / count)


def _moments_of(values: NDArray[Any]) -> _Moments:
    numbers = values[np.isfinite(values)].astype(np.float64) if values.dtype.kind == "f" else values.astype(np.float64)
    if not numbers.size:
        return _Moments(0, 0.0, 0.0)
    mean = float(numbers.mean())
    numbers -= mean
    return _Moments(numbers.size, mean, float(np.square(numbers).sum()))


def sampled_regions(source: Source) -> Iterator[Box]:
    """Regions that cover the image, or at most 2**27 voxels of it, in a fixed order.

    They follow from the shape alone, so that planning again gives the same numbers; they are drawn, since every n-th
    region may be one column of the image.
    """
    shape = source.spatial_shape
    grid = BlockGrid(shape, tuple(min(_REGION_SIDE[len(shape)], size) for size in shape))
    count = max(1, grid.block_count * SAMPLED_VOXELS // max(prod(shape), SAMPLED_VOXELS))
    for index in np.sort(np.random.default_rng(0).permutation(grid.block_count)[:count]):
        yield grid.block(int(index))


def _finite(source: Source, values: NDArray[Any]) -> NDArray[Any]:
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if not finite.size:
        raise _nothing_finite(source)
    return finite


def _nothing_finite(source: Source) -> VolumeError:
    return VolumeError(f"{source.volume.url} holds no finite voxel; its intensities cannot be normalised.")


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
    allowed = min(CHECKED_CHUNKS, max(1, CHECKED_BYTES // decoded))
    chosen = [regions[number] for number in np.unique(np.linspace(0, len(regions) - 1, min(allowed, len(regions))).astype(int))]
    for region in chosen:
        for box in _spread(folded(region, source.spatial_shape), chunk, max(1, allowed // len(chosen))):
            source.read(box.intersect(whole))


def _spread(region: Box, chunk: Shape, limit: int) -> Iterator[Box]:
    """At most ``limit`` of the chunks that ``region`` meets, evenly spread, the first and the last among them."""
    cover = region.scale_down(chunk)
    grid = BlockGrid(cover.shape, (1,) * cover.ndim)
    for number in np.unique(np.linspace(0, grid.block_count - 1, min(limit, grid.block_count)).astype(int)):
        yield grid.block(int(number)).shift(cover.start).scale_up(chunk)

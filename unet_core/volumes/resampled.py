"""A volume at another voxel size, resampled while it is read; every voxel is a function of its position alone.

    source   |  0  |  1  |  2  |  3  |  4  |  5  |     corners of both grids lie on each other: voxel j covers ratio voxels of the source,
    here     |     0     |     1     |     2     |     its centre lies at (j + 1/2) * ratio - 1/2 of them
    weights     /\\         of voxel 1: a triangle around its centre, as wide on each side as ``ratio`` voxels, and at least one

Along one axis after the other, the first first: the mean of the source's voxels with the weights of a triangle, those outside the
image left out. Downwards it is linear interpolation after a filter against aliasing, upwards linear interpolation (what
torch calls ``interpolate(mode="bilinear", antialias=True)`` and Pillow ``resize(BILINEAR)``). Ratios are fractions and weights
whole numbers before they are divided by their sum, so that nothing depends on where a box begins.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from math import ceil, floor, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.geometry import Box, Shape
from unet_core.volumes.protocol import LaidOut, Volume, check_inside

SLAB_BYTES = 32 << 20  # of the source, that is read and resampled at a time
_MOST_DENOMINATOR = 1_000_000  # a millionth of a voxel over a million voxels; positions stay below 2**63
_HALF = Fraction(1, 2)


@dataclass(frozen=True)
class AxisSteps:
    """One axis: how many voxels of the source one voxel is, and how many there are.

    Args:
        ratio: above 1 where the result is coarser.
        source_size: of the axis.
    """

    ratio: Fraction
    source_size: int

    @property
    def size(self) -> int:
        """As many voxels as cover the axis, the last one cut or hanging over by at most half."""
        return max(1, floor(self.source_size / self.ratio + _HALF))

    def reach(self, first: int, stop: int) -> tuple[int, int]:
        """The source's voxels, half-open, of which voxels ``first`` to ``stop - 1`` are means."""
        return self._taps(first)[0], self._taps(stop - 1)[1]

    def _taps(self, position: int) -> tuple[int, int]:
        centre, width = (position + _HALF) * self.ratio - _HALF, max(Fraction(1), self.ratio)
        return max(0, floor(centre - width) + 1), min(self.source_size, ceil(centre + width))

    def weights(self, first: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Positions in the source and weights of each voxel's mean, both of shape (stop - first, taps)."""
        above, below = self.ratio.numerator, self.ratio.denominator
        centres = (2 * np.arange(first, stop, dtype=np.int64) + 1) * above - below  # in units of 1 / (2 * below) voxels
        width = 2 * max(above, below)
        starts = np.maximum((centres - width) // (2 * below) + 1, 0)
        stops = np.minimum(-((-centres - width) // (2 * below)), self.source_size)
        taps = starts[:, None] + np.arange(ceil(Fraction(width, below)) + 1)
        whole = np.where(taps < stops[:, None], width - np.abs(2 * below * taps - centres[:, None]), 0)
        # Where there are fewer, the last one is repeated without weight: what is not a number stays where it is.
        return np.minimum(taps, stops[:, None] - 1), whole / whole.sum(axis=1, keepdims=True)


class ResampledVolume(LaidOut):
    """A volume with voxels of another size.

    Args:
        source: what is read; one of its levels.
        ratios: of its voxels in one voxel here, along its spatial axes.
    """

    def __init__(self, source: Volume, ratios: tuple[Fraction, ...]) -> None:
        self.source, self.ratios = source, ratios
        self.steps = tuple(AxisSteps(ratio, size) for ratio, size in zip(ratios, source.spatial_shape, strict=True))
        before = source.layout
        floats = tuple(float(ratio) for ratio in ratios)
        shape = tuple(axis.size for axis in self.steps)
        self.layout = replace(
            before,
            shape=before.shape[: -len(shape)] + shape,
            voxel_size=before.voxel_size and _each(before.voxel_size, floats),
            scale=_each(before.scale, floats),
            translation=tuple(
                origin + (ratio - 1) / 2 * step
                for origin, ratio, step in zip(before.translation, floats, before.scale, strict=True)
            ),
            chunk_shape=tuple(max(1, ceil(size / ratio)) for size, ratio in zip(before.chunk_shape, ratios, strict=True)),
            is_mapped=False,
        )

    @cached_property
    def _sums_dtype(self) -> np.dtype[Any]:
        exact = self.dtype.itemsize <= 2 or self.dtype == np.float32
        return np.dtype(np.float32 if exact else np.float64)

    def over(self, source: Volume) -> ResampledVolume:
        """The same of another volume with the same voxels, such as a cached one."""
        return ResampledVolume(source, self.ratios)

    def read(self, box: Box) -> NDArray[Any]:
        check_inside(self, box)
        out = np.empty((self.channel_count, *box.shape), dtype=self.dtype)
        step = self._slab_depth(box.shape)
        for first in range(box.start[0], box.stop[0], step):
            slab = Box((first, *box.start[1:]), (min(first + step, box.stop[0]), *box.stop[1:]))
            needed = self.source_box(slab)
            values = self.source.read(needed)
            place = out[:, first - box.start[0] : slab.stop[0] - box.start[0]]
            for channel, part in enumerate(values):
                place[channel] = self._resampled(part, needed, slab)
        return out

    def _resampled(self, values: NDArray[Any], needed: Box, box: Box) -> NDArray[Any]:
        for axis, steps in enumerate(self.steps):
            if steps.ratio == 1:
                continue
            taps, weights = steps.weights(box.start[axis], box.stop[axis])
            taps, weights = taps - needed.start[axis], weights.astype(self._sums_dtype)
            across = (slice(None),) + (None,) * (values.ndim - axis - 1)
            total = np.zeros((*values.shape[:axis], len(taps), *values.shape[axis + 1 :]), dtype=self._sums_dtype)
            for tap in range(taps.shape[1]):  # always in this order, so that sums have the same bits in any box
                total += values.take(taps[:, tap], axis=axis) * weights[:, tap][across]
            values = total
        if self.dtype.kind in "biu":
            values = np.rint(values)
        return values.astype(self.dtype)

    def source_box(self, box: Box) -> Box:
        """What of the source a box is made of."""
        ends = [axis.reach(first, stop) for axis, first, stop in zip(self.steps, box.start, box.stop, strict=True)]
        return Box(tuple(first for first, _ in ends), tuple(stop for _, stop in ends))

    def source_shape(self, shape: Shape) -> Shape:
        """The most that a box of ``shape`` (over the last spatial axes) is made of."""
        sizes = zip(self.steps[-len(shape) :], shape, strict=True)
        return tuple(min(axis.source_size, ceil(size * axis.ratio + 2 * max(Fraction(1), axis.ratio))) for axis, size in sizes)

    def slab_shape(self, shape: Shape) -> Shape:
        """The most that is read of the source at a time for a box of ``shape`` (over the last spatial axes)."""
        whole = (1,) * (len(self.steps) - len(shape)) + shape
        return self.source_shape((min(self._slab_depth(whole), whole[0]), *whole[1:]))

    def working_bytes(self, shape: Shape) -> int:
        """Bytes that resampling such a slab needs beside it: sums along one axis, products, and what was summed before."""
        slab = self.slab_shape(shape)
        return 3 * prod(slab) * self._sums_dtype.itemsize

    def _slab_depth(self, shape: Shape) -> int:
        """Planes (rows in 2D) that are made at a time."""
        plane = prod(self.source_shape(shape)[1:]) * self.channel_count * self.dtype.itemsize
        return max(1, floor(SLAB_BYTES / plane / self.ratios[0]))

    def fingerprint(self) -> dict[str, str]:
        return self.source.fingerprint()

    def missing_chunks(self, box: Box | None = None) -> tuple[str, ...]:
        return self.source.missing_chunks(None if box is None else self.source_box(box))


def ratio_of(size: float, source_size: float) -> Fraction:
    """How many voxels of one size make one of another: exactly what the decimal numbers say, to a millionth of a voxel.

    >>> ratio_of(0.5, 0.25), ratio_of(0.5, 0.499)
    (Fraction(2, 1), Fraction(500, 499))
    """
    return (Fraction(repr(size)) / Fraction(repr(source_size))).limit_denominator(_MOST_DENOMINATOR)


def _each(first: tuple[float, ...], second: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(a * b for a, b in zip(first, second, strict=True))

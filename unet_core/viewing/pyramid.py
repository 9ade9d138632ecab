"""An image at any whole reduction: the stored level that is nearest, reduced by what is left. Knows volumes, no viewer.

Only what a box needs is read, in parts of bounded size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import prod
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.downsampling import downsample
from unet_core.geometry import Box, Shape
from unet_core.inputs import Source

_VOXELS = 1 << 24  # that are read at a time
_ALIKE = 0.02  # by how much reductions may differ to be taken for the same


class Pyramid:
    """An image with the levels that are there.

    Args:
        open_level: opens one.
        levels: their numbers, the finest first.
        is_labels: whether voxels are labels, of which one is chosen; intensities are averaged.
        reopen_seconds: after which levels are opened anew, for images that are being written; None for never.
    """

    def __init__(
        self,
        open_level: Callable[[int], Source],
        levels: Sequence[int],
        is_labels: bool,
        reopen_seconds: float | None = None,
    ) -> None:
        self._open_level, self._levels, self._is_labels, self._seconds = open_level, tuple(levels), is_labels, reopen_seconds
        self._opened: dict[int, tuple[float, Source]] = {}
        self._lock = Lock()
        self.finest = self._level(self._levels[0])
        self.factors = tuple(self._factor(self._level(level)) for level in self._levels)

    @property
    def sources(self) -> tuple[Source, ...]:
        """Every level, the finest first."""
        return tuple(map(self._level, self._levels))

    def read(self, box: Box, factor: Shape) -> NDArray[Any]:
        """Voxels of an image reduced by ``factor``, of shape (C, *box.shape).

        Args:
            box: inside the reduced image, whose size is rounded up.
            factor: one whole number for each spatial axis.
        """
        place = max(number for number, own in enumerate(self.factors) if _reaches(own, factor))
        source = self._level(self._levels[place])
        left = tuple(max(1.0, whole / part) for whole, part in zip(factor, self.factors[place], strict=True))
        return self._read(source, box, left)

    def _read(self, source: Source, box: Box, left: tuple[float, ...]) -> NDArray[Any]:
        if prod(box.shape) * prod(left) > _VOXELS and max(box.shape) > 1:
            axis = int(np.argmax(box.shape))
            middle = box.start[axis] + box.shape[axis] // 2
            stop, start = list(box.stop), list(box.start)
            stop[axis] = start[axis] = middle
            halves = (Box(box.start, tuple(stop)), Box(tuple(start), box.stop))
            return np.concatenate([self._read(source, half, left) for half in halves], axis=axis + 1)
        steps = tuple(round(step) for step in left)
        whole = all(abs(step / near - 1) < _ALIKE for step, near in zip(left, steps, strict=True))
        if not whole:
            return _nearest(source, box, left)
        wanted = box.scale_up(steps).intersect(Box.from_shape(source.spatial_shape))
        if wanted.is_empty:  # sizes of levels are rounded
            return _nearest(source, box, left)
        found = downsample(source.read(wanted), steps, "instances" if self._is_labels else "mean")
        lack = [(0, 0), *((0, size - own) for size, own in zip(box.shape, found.shape[1:], strict=True))]
        return np.pad(found, lack, mode="edge")

    def _level(self, level: int) -> Source:
        with self._lock:
            opened = self._opened.get(level)
            if opened is None or (self._seconds is not None and time.monotonic() - opened[0] > self._seconds):
                opened = self._opened[level] = time.monotonic(), self._open_level(level)
            return opened[1]

    def _factor(self, source: Source) -> tuple[float, ...]:
        return tuple(_ratio(fine, own) for fine, own in zip(self.finest.spatial_shape, source.spatial_shape, strict=True))


def _ratio(fine: int, own: int) -> float:
    """How much coarser a level is: a whole number, if one gives its size when it is rounded up or down."""
    near = round(fine / own)
    return next((step for step in (near, near + 1, near - 1) if step > 0 and own in (fine // step, -(-fine // step))), fine / own)


def _reaches(own: tuple[float, ...], factor: Shape) -> bool:
    """Whether a level is not coarser than wanted."""
    return all(part <= whole * (1 + _ALIKE) for part, whole in zip(own, factor, strict=True))


def _nearest(source: Source, box: Box, left: tuple[float, ...]) -> NDArray[Any]:
    """The voxel in the middle of each of the wanted ones."""
    places = [
        np.minimum(((np.arange(first, stop) + 0.5) * step).astype(np.int64), size - 1)
        for first, stop, step, size in zip(box.start, box.stop, left, source.spatial_shape, strict=True)
    ]
    around = Box(tuple(int(place[0]) for place in places), tuple(int(place[-1]) + 1 for place in places))
    inside = np.ix_(*(place - first for place, first in zip(places, around.start, strict=True)))
    values = source.read(around)
    return np.stack([channel[inside] for channel in values])

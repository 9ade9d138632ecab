"""A result in one small picture that fills in while it is made: each committed unit of one coarse level is read once. Knows no ledger.

+----+----+----+
| xx | x  |    |     a unit of the level is drawn when it is committed,
+----+----+----+     over the image; what is not there yet is dark
| x  |    |    |
+----+----+----+
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.geometry import Box, Shape
from unet_core.pictures.rgb import Rgb, components, contrast_of, dimmed, to_rgb
from unet_core.pictures.scene import Plane, Readable, ShownClass
from unet_core.pictures.shrinking import cells_along, read_means, voxels_of
from unet_core.stages import Stage

PIXELS = 720  # along the longer side, at most
FEWEST_UNITS = 40  # that the plane shows, so that it fills in by and by; of small images as many as there are
MOST_READ = 1 << 23  # voxels of the image that are read for the ground; where it would take more, it stays gray
_GROUND = 150
_STRENGTH = 0.7  # of a class's colour where it covers a pixel


class Mosaic:
    """The middle plane of a result.

    Args:
        stages: of the plan; the segmentation and the coarser levels are looked at.
        classes: that are drawn.
        open_labels: gives a label image by its path and level; absent voxels read as 0.
        sources: levels of the image, the finest first; none if only labels are drawn.
        dtype: of the image.
        pixels: along the longer side, at most.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        classes: Sequence[ShownClass],
        open_labels: Callable[[str, int], Readable],
        sources: Sequence[Readable] = (),
        dtype: np.dtype[Any] | None = None,
        pixels: int = PIXELS,
    ) -> None:
        images = [stage for stage in stages if stage.kind in ("segment", "level")]
        factors = [images[0].factor]
        for stage in images[1:]:
            factors.append(tuple(before * step for before, step in zip(factors[-1], stage.factor, strict=True)))
        self._classes, self._open, self._sources, self._dtype = tuple(classes), open_labels, tuple(sources), dtype
        self._finest = images[0].shape
        rows = len(self._finest) - 2
        self._seen = (rows, rows + 1)
        self._middle = tuple(size // 2 for size in self._finest[:rows])
        number = max((n for n in range(len(images)) if self._units_in(images[n], factors[n]) >= FEWEST_UNITS), default=0)
        self.stage, self._factor = images[number], factors[number]
        self.units = frozenset(self.stage.grid.touching(self._plane_box(self.stage, self._factor)))
        # Voxels of the chosen level for each pixel, along both axes.
        self._step = max(1, -(-max(self.stage.shape[axis] for axis in self._seen) // pixels))
        self._shape = tuple(-(-self.stage.shape[axis] // self._step) for axis in self._seen)
        self._sums = np.zeros((len(self._classes), *self._shape), dtype=np.float32)
        self._counts = np.zeros(self._shape, dtype=np.float32)
        self._ground: Rgb | None = None
        self._drawn: set[int] = set()

    def _plane_box(self, stage: Stage, factor: Shape) -> Box:
        """The plane in voxels of a level."""
        start = tuple(min(place // step, size - 1) for place, step, size in zip(self._middle, factor, stage.shape, strict=False))
        flat = Box(start, tuple(place + 1 for place in start))
        return Box((*flat.start, 0, 0), flat.stop + stage.shape[-2:])

    def _units_in(self, stage: Stage, factor: Shape) -> int:
        return sum(1 for _ in stage.grid.touching(self._plane_box(stage, factor)))

    def add(self, indices: Iterable[int]) -> int:
        """Read units of ``stage`` that are committed; how many of them the plane shows and lacked."""
        found = {index for index in indices if index in self.units} - self._drawn
        self._drawn |= found
        plane = self._plane_box(self.stage, self._factor)
        for index in sorted(found):
            box = self.stage.grid.block(index).intersect(plane)
            rows, columns = (np.arange(box.start[axis], box.stop[axis]) // self._step for axis in self._seen)
            top, left = int(rows[0]), int(columns[0])
            place = (slice(top, int(rows[-1]) + 1), slice(left, int(columns[-1]) + 1))
            cuts = [np.searchsorted(line, np.arange(line[0], line[-1] + 1)) for line in (rows, columns)]
            values: dict[str, NDArray[Any]] = {}
            for number, entry in enumerate(self._classes):
                if entry.path not in values:
                    values[entry.path] = self._open(entry.path, self.stage.level).read(box)[0].reshape(box.shape[-2:])
                inside = (values[entry.path] == entry.value).astype(np.float32)
                self._sums[(number, *place)] += _sums(inside, cuts)
            self._counts[place] += _sums(np.ones(box.shape[-2:], dtype=np.float32), cuts)
        return len(found)

    def draw(self) -> Rgb:
        """The picture as it is now, of shape (Y, X, 3)."""
        if self._ground is None:
            self._ground = self._read_ground()
        rgb = self._ground.astype(np.float32)
        for sums, entry in zip(self._sums, self._classes, strict=True):
            strength = (_STRENGTH * sums / np.maximum(self._counts, 1))[..., None]
            rgb = rgb * (1 - strength) + np.array(components(entry.color), dtype=np.float32) * strength
        return dimmed(np.rint(rgb).astype(np.uint8), self._counts == 0)

    def _read_ground(self) -> Rgb:
        """The image under it, read once from the coarsest level that is fine enough; gray where that is too much to read."""
        step = tuple(factor * self._step if axis in self._seen else 1 for axis, factor in enumerate(self._factor))
        box = Box((*self._middle, 0, 0), (*(place + 1 for place in self._middle), *self._finest[-2:]))
        plane = Plane(box, step, *self._seen)
        for source in reversed(self._sources):
            factor = [size / (own + 1) for size, own in zip(self._finest, source.spatial_shape, strict=True)]
            if source is not self._sources[0] and not plane.is_fine_enough(factor):
                continue
            counts = (*(1 for _ in self._middle), *self._shape)
            lines = zip(box.start, counts, step, self._finest, source.spatial_shape, strict=True)
            cells = [cells_along(first // by, count, by, size, own) for first, count, by, size, own in lines]
            if voxels_of(cells) > MOST_READ or self._dtype is None:
                break
            means = plane.flat(read_means(source.read, source.channel_count, cells))
            return to_rgb(means, contrast_of(means, self._dtype))
        return np.full((*self._shape, 3), _GROUND, dtype=np.uint8)

    @property
    def share(self) -> float:
        """How much of the plane is there."""
        return float((self._counts > 0).sum() / prod(self._shape))


def _sums(values: NDArray[np.float32], cuts: Sequence[NDArray[np.intp]]) -> NDArray[np.float32]:
    return np.add.reduceat(np.add.reduceat(values, cuts[0], axis=0), cuts[1], axis=1)

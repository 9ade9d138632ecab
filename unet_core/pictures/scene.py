"""An image and its labels on disk as pictures of planes: coarse ones from coarse levels, fine ones from the finest. Knows no report.

No plane is held whole at a finer resolution than it is drawn; what has no coarse level is read tile by tile and averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unet_core.geometry import BlockGrid, Box, Shape
from unet_core.pictures.rgb import Contrast, Drawing, Rgb, components, contrast_of, dimmed, edges_of, to_rgb
from unet_core.pictures.shrinking import Cells, Read, cells_along, read_means, voxels_of

OVERVIEW_PIXELS = 1600  # along the longer side, at most
MOST_READ = 1 << 33  # voxels of an image without coarse levels that are read for one picture
_PAPER = 255


class Readable(Protocol):
    """What is read of an image; a ``Volume`` is one."""

    @property
    def spatial_shape(self) -> Shape: ...
    @property
    def channel_count(self) -> int: ...

    def read(self, box: Box) -> NDArray[Any]:
        """Voxels of ``box``, of shape (C, *box.shape)."""


@dataclass(frozen=True)
class ShownClass:
    """A class that is outlined: its value in the label image of that path, and its colour ``#rrggbb``."""

    name: str
    value: int
    color: str
    path: str


@dataclass(frozen=True)
class Plane:
    """What of an image is drawn, and how.

    Args:
        box: in voxels of the finest level; one thick along all but the two axes that are seen.
        step: voxels a pixel along each axis; 1 along those that are not seen.
        rows: axis that runs down.
        columns: axis that runs to the right.
    """

    box: Box
    step: Shape
    rows: int
    columns: int

    @property
    def seen(self) -> tuple[int, int]:
        return self.rows, self.columns

    def flat(self, values: NDArray[Any]) -> NDArray[Any]:
        """(.., rows, columns) of an array whose last axes are all spatial ones."""
        ndim = self.box.ndim
        hidden = tuple(axis - ndim for axis in range(ndim) if axis not in self.seen)
        plane = np.squeeze(values, axis=hidden)
        return plane if self.rows < self.columns else plane.swapaxes(-1, -2)

    def is_fine_enough(self, factor: Sequence[float]) -> bool:
        """Whether a level of that factor has no fewer voxels than there are pixels."""
        return all(factor[axis] <= self.step[axis] for axis in self.seen)


@dataclass(frozen=True)
class View:
    """A plane, drawn; ``contrast`` is None where the image is not shown, but its labels alone."""

    plane: Plane
    drawing: Drawing
    contrast: Contrast | None


@dataclass(frozen=True)
class Scene:
    """What can be drawn.

    Args:
        axes: spatial, ``yx`` or ``zyx``.
        shape: of the finest level.
        spacing: of voxels along the axes, in any one unit.
        classes: that are outlined.
        factors: how coarse each readable level of the labels is, against the finest; the finest first.
        open_labels: gives a label image by its path and level.
        ids_path: of objects' ids, if there are any.
        ids_of: path of the label image that the ids are made of.
        sources: levels of the image, the finest first; none if only labels are drawn.
        dtype: of the image.
        done: which blocks were computed, of shape ``grid.counts``; the others are drawn dark.
        grid: of blocks.
        most_read: voxels of the image that are read for one picture; where it would take more, labels are drawn alone.
    """

    axes: str
    shape: Shape
    spacing: tuple[float, ...]
    classes: tuple[ShownClass, ...]
    factors: tuple[Shape, ...]
    open_labels: Callable[[str, int], Readable]
    ids_path: str | None
    ids_of: str | None
    sources: tuple[Readable, ...]
    dtype: np.dtype[Any]
    done: NDArray[np.bool_]
    grid: BlockGrid
    most_read: int = MOST_READ
    _opened: dict[tuple[str, int], Readable] = field(default_factory=dict, repr=False)

    def overview(
        self,
        centre: Shape | None = None,
        seen: tuple[int, int] | None = None,
        pixels: int = OVERVIEW_PIXELS,
        contrast: Contrast | None = None,
    ) -> View:
        """The whole plane of two axes (rows, columns), the last two unless told, through ``centre``, the middle unless told."""
        seen = seen or self._last_two
        centre = centre or tuple(size // 2 for size in self.shape)
        start = tuple(0 if axis in seen else place for axis, place in enumerate(centre))
        stop = tuple(size if axis in seen else start[axis] + 1 for axis, size in enumerate(self.shape))
        factor = self._factor_for(seen, pixels)
        step = tuple(factor[axis] if axis in seen else 1 for axis in range(len(self.shape)))
        return self._draw(Plane(Box(start, stop), step, *seen), contrast)

    def close_up(self, box: Box, contrast: Contrast | None = None) -> View:
        """A box at full resolution, one voxel thick along all but the last two axes; its own contrast unless told."""
        return self._draw(Plane(box, (1,) * len(self.shape), *self._last_two), contrast)

    def labels(self, path: str, level: int = 0) -> Readable:
        """A label image, opened once."""
        if (path, level) not in self._opened:
            self._opened[path, level] = self.open_labels(path, level)
        return self._opened[path, level]

    @property
    def _last_two(self) -> tuple[int, int]:
        return len(self.shape) - 2, len(self.shape) - 1

    def _factor_for(self, seen: tuple[int, int], pixels: int) -> Shape:
        """The finest factor of the pyramid, doubled on where that ends too early, that makes a plane no larger than ``pixels``."""

        def fits(factor: Shape) -> bool:
            return max(-(-self.shape[axis] // factor[axis]) for axis in seen) <= pixels

        factor = next((factor for factor in self.factors if fits(factor)), self.factors[-1])
        while not fits(factor):
            factor = tuple(2 * step for step in factor)
        return factor

    def _draw(self, plane: Plane, contrast: Contrast | None) -> View:
        masks = self._masks(plane)
        means = self._means(plane)
        if means is None:
            rgb, contrast = self._paper(masks), None
        else:
            contrast = contrast or contrast_of(means, self.dtype)
            rgb = to_rgb(means, contrast)
        marks = list(zip(self._edges(plane, masks), (entry.color for entry in self.classes), strict=True))
        return View(plane, Drawing.of(self._dark(rgb, plane), marks), contrast)

    def _masks(self, plane: Plane) -> list[NDArray[np.bool_]]:
        """Where each class covers more than half of a pixel."""
        level = max(
            (number for number, factor in enumerate(self.factors) if plane.is_fine_enough(factor)),
            key=lambda number: prod(self.factors[number][axis] for axis in plane.seen),
        )
        masks: dict[ShownClass, NDArray[np.bool_]] = {}
        for path in dict.fromkeys(entry.path for entry in self.classes):
            classes = [entry for entry in self.classes if entry.path == path]
            volume = self.labels(path, level)
            cells = self._cells(plane, volume.spatial_shape)
            shares = read_means(_shares(volume, [entry.value for entry in classes]), len(classes), cells)
            masks |= dict(zip(classes, plane.flat(shares) > 0.5, strict=True))
        return [masks[entry] for entry in self.classes]

    def _edges(self, plane: Plane, masks: Sequence[NDArray[np.bool_]]) -> list[NDArray[np.bool_]]:
        """The outlines of each class: around every object where ids are known and drawn at full resolution."""
        if self.ids_path is None or prod(plane.step) > 1:
            return [edges_of(mask) for mask in masks]
        around = edges_of(plane.flat(self.labels(self.ids_path).read(plane.box)[0]))
        return [
            mask & around if entry.path == self.ids_of else edges_of(mask)
            for entry, mask in zip(self.classes, masks, strict=True)
        ]

    def _means(self, plane: Plane) -> NDArray[np.float32] | None:
        """The image, (C, rows, columns); None if there is none, or too much to be read."""
        for source in reversed(self.sources):
            factor = [size / (own + 1) for size, own in zip(self.shape, source.spatial_shape, strict=True)]
            if source is self.sources[0] or plane.is_fine_enough(factor):
                cells = self._cells(plane, source.spatial_shape)
                return (
                    plane.flat(read_means(source.read, source.channel_count, cells))
                    if voxels_of(cells) <= self.most_read
                    else None
                )
        return None

    def _cells(self, plane: Plane, own_shape: Shape) -> list[Cells]:
        """Voxels of a level under each pixel."""
        spans = zip(plane.box.start, plane.box.stop, plane.step, self.shape, own_shape, strict=True)
        return [cells_along(first // step, -(-(last - first) // step), step, size, own) for first, last, step, size, own in spans]

    def _paper(self, masks: Sequence[NDArray[np.bool_]]) -> Rgb:
        """White, with classes in a pale shade of their colour."""
        rgb = np.full((*masks[0].shape, 3), _PAPER, dtype=np.uint8)
        for mask, entry in zip(masks, self.classes, strict=True):
            rgb[mask] = [round(0.6 * _PAPER + 0.4 * value) for value in components(entry.color)]
        return rgb

    def _dark(self, rgb: Rgb, plane: Plane) -> Rgb:
        """The picture with what was not computed drawn dark."""
        if self.done.all():
            return rgb
        blocks = []
        for axis, (first, last, step) in enumerate(zip(plane.box.start, plane.box.stop, plane.step, strict=True)):
            centres = np.arange(first, last, step) + step // 2
            blocks.append(np.minimum(centres, self.shape[axis] - 1) // self.grid.block_shape[axis])
        return dimmed(rgb, ~plane.flat(self.done[np.ix_(*blocks)]))


def _shares(volume: Readable, values: Sequence[int]) -> Read:
    def read(box: Box) -> NDArray[Any]:
        labels = volume.read(box)[0]
        return np.stack([labels == value for value in values])

    return read

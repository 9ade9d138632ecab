"""The symmetries of the square, in the last two axes (y, x): boxes and arrays turned and turned back. Knows no networks.

    as it is    swapped     flipped in y of the swapped image
    a b         a c         b d
    c d         b d         a c           (quarter turn to the left)

Ronneberger et al. 2015 (arXiv:1505.04597, section 4, table 1) averaged 7 rotated versions of the EM image; these are all 8 that
move every voxel onto a voxel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from unet_core.geometry import Box, Shape

if TYPE_CHECKING:
    from torch import Tensor

SymmetrySet = Literal["none", "flips", "all"]


@dataclass(frozen=True)
class Symmetry:
    """One symmetry of the square: the last two axes are swapped, or not, and then flipped, or not.

    An image of ``shape`` becomes one of ``turned_shape(shape)``, whose origin is another corner of the image: position p of a flipped
    axis of size n becomes n - 1 - p. Boxes may hang over the image.

    Args:
        swaps: y and x.
        flips: of y and x of the swapped image.
    """

    swaps: bool = False
    flips: tuple[bool, bool] = (False, False)

    @property
    def is_identity(self) -> bool:
        return not self.swaps and not any(self.flips)

    @property
    def name(self) -> str:
        flipped = " and ".join(axis for axis, flip in zip("yx", self.flips, strict=True) if flip)
        parts = (["y and x swapped"] if self.swaps else []) + ([f"flipped in {flipped}"] if flipped else [])
        return ", then ".join(parts) or "as it is"

    def turned_shape(self, shape: Shape) -> Shape:
        return (*shape[:-2], shape[-1], shape[-2]) if self.swaps else shape

    def turned_box(self, box: Box, image_shape: Shape) -> Box:
        """Where a box of the image lies in the turned image."""
        swapped = Box(self.turned_shape(box.start), self.turned_shape(box.stop))
        return self._flipped(swapped, self.turned_shape(image_shape))

    def box_before(self, turned: Box, image_shape: Shape) -> Box:
        """The box of the image that became ``turned``; ``image_shape`` is that of the image before."""
        swapped = self._flipped(turned, self.turned_shape(image_shape))
        return Box(self.turned_shape(swapped.start), self.turned_shape(swapped.stop))

    def turn(self, values: NDArray[Any]) -> NDArray[Any]:
        """A view of an array (*lead, y, x), turned."""
        swapped = values.swapaxes(-1, -2) if self.swaps else values
        turned: NDArray[Any] = np.flip(swapped, self._flipped_axes) if self._flipped_axes else swapped
        return turned

    def turn_back(self, values: Tensor) -> Tensor:
        """A turned tensor (*lead, y, x) as it was before; itself if nothing was turned."""
        swapped = values.flip(self._flipped_axes) if self._flipped_axes else values
        return swapped.swapaxes(-1, -2) if self.swaps else swapped

    @property
    def _flipped_axes(self) -> tuple[int, ...]:
        return tuple(axis for axis, flip in zip((-2, -1), self.flips, strict=True) if flip)

    def _flipped(self, box: Box, shape: Shape) -> Box:
        start, stop = list(box.start), list(box.stop)
        for axis in self._flipped_axes:
            start[axis], stop[axis] = shape[axis] - box.stop[axis], shape[axis] - box.start[axis]
        return Box(tuple(start), tuple(stop))


_FLIPS = tuple(Symmetry(False, (y, x)) for y in (False, True) for x in (False, True))
SYMMETRIES: dict[SymmetrySet, tuple[Symmetry, ...]] = {
    "none": _FLIPS[:1],
    "flips": _FLIPS,
    "all": _FLIPS + tuple(Symmetry(True, symmetry.flips) for symmetry in _FLIPS),
}

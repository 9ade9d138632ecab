"""From voxels of an output to pixels of level 0 of the image that it was made of. Reads metadata only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import InputError, JobError
from unet_core.ledger import Request
from unet_core.plan import Plan
from unet_core.volumes import open_volume

_DECIMALS = 3


@dataclass(frozen=True)
class Placing:
    """Where crossings of the output's grid lie in the image: ``offset + factor * crossing`` along z (if there is one), y and x.

    The corner of the first voxel is at 0 in both.
    """

    factor: tuple[float, ...]
    offset: tuple[float, ...]

    def points(self, xy: NDArray[np.int64]) -> NDArray[Any]:
        """Points (n, 2) with x and y in pixels of level 0: whole numbers where all can be."""
        if self.factor[-2:] == (1.0, 1.0) and self.offset[-2:] == (0.0, 0.0):
            return xy
        factor, offset = (np.array(values[-1:-3:-1]) for values in (self.factor, self.offset))
        placed = np.round(xy * factor + offset, _DECIMALS)
        whole = placed.astype(np.int64)
        return whole if (whole == placed).all() else placed

    def section(self, z: int) -> int:
        """The section of level 0 in which the middle of a section lies."""
        return int(np.floor(self.offset[0] + self.factor[0] * (z + 0.5))) if len(self.factor) == 3 else z


def place(plan: Plan, request: Request, image: str | None = None) -> Placing:
    """How an output lies in level 0 of its image; the image is opened only if another level was segmented.

    Args:
        plan: of the output.
        request: of the output; says where the image lay.
        image: where it lies now, if elsewhere.

    Raises:
        JobError: if the image is needed and cannot be opened.
    """
    dims = len(plan.spatial_axes)
    of_level = _place_level(plan, request, image, dims)
    if plan.resample is None:
        return of_level
    # Corners of the resampled grid lie on those of the level.
    ratios = (above / below for above, below in plan.resample[-dims:])
    return Placing(tuple(step * ratio for step, ratio in zip(of_level.factor, ratios, strict=True)), of_level.offset)


def _place_level(plan: Plan, request: Request, image: str | None, dims: int) -> Placing:
    """How voxels of the level that was segmented lie in level 0."""
    if plan.input.level == 0:
        return Placing((1.0,) * dims, (0.0,) * dims)
    url = image or request.image
    try:
        finest, used = (
            open_volume(url, level, series=plan.input.series, time=plan.input.time) for level in (0, plan.input.level)
        )
    except InputError as error:
        raise JobError(
            f"Level {plan.input.level} of the image was segmented, and {url} is needed to know where its pixels lie in level 0: {error}"
        ) from error
    if finest.scale == used.scale and finest.spatial_shape != used.spatial_shape:  # the file states no lengths
        sizes = zip(finest.spatial_shape[-dims:], used.spatial_shape[-dims:], strict=True)
        return Placing(tuple(whole / part for whole, part in sizes), (0.0,) * dims)
    factor = tuple(coarse / fine for coarse, fine in zip(used.scale[-dims:], finest.scale[-dims:], strict=True))
    moved = zip(used.translation[-dims:], finest.translation[-dims:], finest.scale[-dims:], factor, strict=True)
    # Translations are of centres, half a voxel from the corner.
    offset = tuple((there - here) / step + 0.5 - 0.5 * ratio for there, here, step, ratio in moved)
    return Placing(factor, tuple(round(value, 9) for value in offset))

"""Where the voxels of a crop come from: rotation, flips, shift, scale and elastic deformation as one map. Knows no image.

crop voxel v  ->  centre + linear (v - middle) + displacement(v)        D axes: (Z,) Y, X
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import ceil, floor, prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unet_core.geometry import Box, Shape
from unet_core.training.options import Augmentation

_KEPT_BYTES = 8 << 20  # of one sample's positions; those of a crop of 572 x 572 take 5 MiB


@dataclass(frozen=True, eq=False)
class Warp:
    """One sample's map from voxels of its crop to positions in its image; small, picklable, the same on every device.

    Args:
        centre: position in the image, in voxels, of the crop's voxel ``size // 2``.
        linear: (D, D), from steps in the crop to steps in the image, both in voxels.
        displacements: (D, points, ..., points), in voxels of the image along each axis; the grid spans the crop, its first and last
            points lie on the crop's first and last voxels.
        order: of the interpolation that ``source_box`` leaves room for: 1 linear, 3 bicubic.
    """

    centre: tuple[float, ...]
    linear: NDArray[np.float64]
    displacements: NDArray[np.float64]
    order: int
    _boxes: dict[tuple[Shape, Box], Box] = field(default_factory=dict, init=False, repr=False)  # asked before
    _kept: dict[tuple[Shape, torch.device], list[Tensor]] = field(default_factory=dict, init=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": {}}

    def source_box(self, shape: Shape, part: Box | None = None) -> Box:
        """The voxels of the image that sampling a crop touches, the rim of the interpolation included; no voxel more.

        Args:
            shape: of the whole crop, whose middle the centre is and which the grid of displacements spans.
            part: of the crop, in its voxels; the whole crop unless told. It may hang over the crop.

        Returns:
            Box in voxels of the image; it may hang over the image.
        """
        part = Box.from_shape(shape) if part is None else part
        if (shape, part) not in self._boxes:
            rim = 1 if self.order == 3 else 0
            ends = [axis.aminmax() for axis in positions(self, shape, part, torch.device("cpu"))]
            self._boxes[shape, part] = Box(
                tuple(floor(low) - rim for low, _ in ends), tuple(ceil(high) + 1 + rim for _, high in ends)
            )
        return self._boxes[shape, part]


def draw_warp(
    options: Augmentation, rng: np.random.Generator, centre: Sequence[float], voxel_size: Sequence[float] | None = None
) -> Warp:
    """Draw the warp of one sample.

    Lengths that are stated in voxels of the last axis are as long in micrometres along the other axes, and a rotation is one of the
    object, not of the array, if the voxel size is known. Displacements are "sampled from a Gaussian distribution with 10 pixels
    standard deviation", "random displacement vectors on a coarse 3 by 3 grid" (Ronneberger et al. 2015, section 3.1).

    Args:
        options: ranges.
        rng: the sample's own.
        centre: of the crop, D numbers, in voxels of the image.
        voxel_size: along the last D axes at least, in any one unit; None for unknown: taken as equal.
    """
    dims = len(centre)
    size = np.ones(dims) if voxel_size is None else np.asarray(voxel_size[-dims:], dtype=np.float64)
    voxels = size[-1] / size  # along each axis, of what is one voxel along the last one
    magnification = np.exp(rng.uniform(*np.log(options.scale)))
    mirror = rng.choice([-1.0, 1.0], dims) if options.flip else np.ones(dims)
    turn = _draw_rotation(options, rng, dims)
    shift = rng.uniform(-options.shift, options.shift, dims) * voxels
    grid = rng.normal(0.0, options.deformation, (dims, *(options.grid,) * dims))
    return Warp(
        centre=tuple(float(value) for value in np.asarray(centre, dtype=np.float64) + shift),
        linear=turn * (voxels[:, None] / voxels) * mirror / magnification,
        displacements=grid * voxels.reshape(-1, *(1,) * dims),
        order=options.order,
    )


def _draw_rotation(options: Augmentation, rng: np.random.Generator, dims: int) -> NDArray[np.float64]:
    """In the plane of the last two axes, or about an axis of any direction."""
    angle = np.radians(rng.uniform(-options.rotation, options.rotation))
    result = np.eye(dims)
    if dims == 3 and options.rotation_3d:
        x, y, z = (direction := rng.normal(size=3)) / np.linalg.norm(direction)
        cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        result += np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross  # Rodrigues' formula
    else:
        result[-2:, -2:] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return result


def positions(warp: Warp, shape: Shape, part: Box, device: torch.device) -> list[Tensor]:
    """Position in the image of each voxel of a crop's part, along each axis; not to be written to.

    Those of the whole crop are kept in the warp, unless they are large, since image, labels and weights of a sample all need them.

    Args:
        warp: of the sample.
        shape: of the whole crop.
        part: of the crop, in its voxels; it may hang over the crop.
        device: of the result.

    Returns:
        D tensors of ``part.shape``, float64.
    """
    whole = Box.from_shape(shape)
    # Whether all of the crop is computed depends on shapes alone, so that the bits do not depend on what was asked before.
    if not whole.contains(part) or 8 * len(shape) * whole.voxel_count > _KEPT_BYTES:
        return _positions(warp, shape, part, device)
    key = shape, device
    if key not in warp._kept:
        warp._kept[key] = _positions(warp, shape, whole, device)
    return [along[part.slices()] for along in warp._kept[key]]


def _positions(warp: Warp, shape: Shape, part: Box, device: torch.device) -> list[Tensor]:
    """One small matrix product an axis: the displacement is separable, and the linear map rides along as two more columns.

    In float64, so that positions far from the origin lose nothing and no device rounds the factors to fewer bits; whole positions
    come out whole.
    """
    dims = len(shape)
    splines = [
        spline_matrix(size, points, start, stop).to(device)
        for size, points, start, stop in zip(shape, warp.displacements.shape[1:], part.start, part.stop, strict=True)
    ]  # (voxels, points) each
    steps = [
        torch.arange(start, stop, dtype=torch.float64, device=device) - size // 2
        for size, start, stop in zip(shape, part.start, part.stop, strict=True)
    ]
    one = torch.ones((), dtype=torch.float64, device=device)
    result = []
    for axis in range(dims):
        values = torch.from_numpy(warp.displacements[axis]).to(device)
        along = torch.full((1,) * (dims - 1), warp.centre[axis], dtype=torch.float64, device=device)
        for other in range(dims - 1):
            values = torch.tensordot(splines[other], values, dims=([1], [other])).movedim(0, other)
            along = along + warp.linear[axis, other] * steps[other].reshape(-1, *(1,) * (dims - 2 - other))
        rows = prod(part.shape[:-1])
        left = torch.cat([values.reshape(rows, -1), along.reshape(rows, 1), one.expand(rows, 1)], dim=1)
        right = torch.cat([splines[-1].T, one.expand(1, part.shape[-1]), warp.linear[axis, -1] * steps[-1][None]])
        result.append((left @ right).reshape(part.shape))
    return result


@lru_cache(maxsize=64)
def spline_matrix(size: int, points: int, start: int, stop: int) -> Tensor:
    """Cubic interpolation along one axis, from ``points`` values that span ``size`` voxels to voxels start..stop-1.

    The interpolating B-spline whose coefficients are mirrored at both ends, that is scipy's order 3 with mode "mirror".

    Returns:
        (stop - start, points), float64, not to be written to; each row sums to 1.
    """
    last = points - 1
    places = np.arange(start, stop) * (last / (size - 1)) if size > 1 else np.full(stop - start, last / 2)
    places = np.abs((places + last) % (2 * last) - last)  # mirrored into 0..last
    return torch.from_numpy(_basis(places, points) @ np.linalg.inv(_basis(np.arange(points, dtype=np.float64), points)))


def _basis(places: NDArray[np.float64], points: int) -> NDArray[np.float64]:
    """Weight of each coefficient, (places, points); the one before the first is the second, and likewise at the end."""
    distance = np.abs(places[:, None] - np.arange(-1, points + 1))
    near, far = 2 / 3 - distance**2 + distance**3 / 2, np.maximum(2 - distance, 0) ** 3 / 6
    weights = np.where(distance < 1, near, far)
    weights[:, 2] += weights[:, 0]
    weights[:, -3] += weights[:, -1]
    return weights[:, 1:-1]

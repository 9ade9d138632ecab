"""More weight for background between cells that nearly touch: equation 2 of the U-Net paper, for any size. Knows no network, no storage.

Ronneberger et al. 2015, arXiv:1505.04597, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import InputError
from unet_core.geometry import Box, Shape
from unet_core.training.cell_distances import two_nearest

NEGLIGIBLE = 1e-6  # of w0: what is below it is exactly 0, so that a voxel's weight depends on what lies near it alone

Instances = NDArray[np.integer]


def border_weights(
    instances: Instances, w0: float, sigma: float, voxel_size: tuple[float, ...] | None = None
) -> NDArray[np.float32]:
    """``w0 exp(-(d1 + d2)^2 / (2 sigma^2))`` on background, 0 elsewhere and where it is below a millionth of ``w0``.

        cell 1 |<-- d1 -->x<---- d2 ---->| cell 2

    d1 and d2 are the distances from a voxel's centre to that of the nearest voxel of the nearest and of the second nearest cell. An
    ignored voxel belongs to no cell and has weight 0. A cell is whatever has one id, connected or not.

    Args:
        instances: ids of shape ([Z,] Y, X): 0 background, above it cells, below it ignored.
        w0: weight between two cells that touch.
        sigma: how far it reaches, in voxels of the last axis.
        voxel_size: of each axis, in any unit, if they differ; distances are physical ones over that of the last axis.

    Returns:
        Weights of the shape of ``instances``.

    Raises:
        InputError: if ``sigma`` or a voxel size is not above 0, or ``w0`` is below it.
    """
    spacing = _checked(instances.ndim, w0, sigma, voxel_size)
    farthest = _farthest(sigma)
    first, second = two_nearest(instances, farthest, spacing)
    both = first + second
    shown = (instances == 0) & (both <= farthest)
    weights = np.zeros(instances.shape, dtype=np.float32)
    weights[shown] = w0 * np.exp(-(both[shown].astype(np.float64) ** 2) / (2 * sigma**2))
    return weights


def border_weights_of_box(
    read_instances: Callable[[Box], Instances],
    bounds: Box,
    box: Box,
    w0: float,
    sigma: float,
    voxel_size: tuple[float, ...] | None = None,
) -> NDArray[np.float32]:
    """``border_weights`` of the whole of ``bounds``, in ``box`` alone; equal for any cut.

        read   |<- reach ->|<---- box ---->|<- reach ->|      cut off at the faces of bounds

    A weight is 0 unless d1 + d2 is at most S, and d1 is at least one voxel: d2 counts up to S less that, the reach. The voxel of a
    cell that is nearest to a voxel of ``box`` is read if it lies within reach; if not, the cell, cut or not, seems no nearer than it is,
    and the weight is 0 either way.

    Args:
        read_instances: ids of a box inside ``bounds``; equal ids in two boxes mean one cell.
        bounds: where there are ids; nothing outside is read.
        box: inside ``bounds``.

    Raises:
        InputError: as ``border_weights``.
    """
    more = reach(sigma, box.ndim, voxel_size)
    grown = box.grow(more, more).intersect(bounds)
    weights = border_weights(read_instances(grown), w0, sigma, voxel_size)
    return np.ascontiguousarray(weights[box.shift(tuple(-first for first in grown.start)).slices()])


def reach(sigma: float, ndim: int, voxel_size: tuple[float, ...] | None = None) -> Shape:
    """Voxels along each axis around a box within which cells change weights in it."""
    spacing = relative_spacing(ndim, voxel_size)
    return tuple(max(1, math.ceil((_farthest(sigma) - min(spacing)) / step)) for step in spacing)


def relative_spacing(ndim: int, voxel_size: tuple[float, ...] | None) -> tuple[float, ...]:
    """Distance of neighbours along each axis, in voxels of the last axis.

    Raises:
        InputError: if a voxel size is not above 0, or there is not one an axis.
    """
    if voxel_size is None:
        return (1.0,) * ndim
    if len(voxel_size) != ndim or not all(math.isfinite(size) and size > 0 for size in voxel_size):
        raise InputError(
            f"Voxel size is {voxel_size}, the labels have {ndim} axes; give one size above 0 for each axis, or none."
        )
    return tuple(size / voxel_size[-1] for size in voxel_size)


def _checked(ndim: int, w0: float, sigma: float, voxel_size: tuple[float, ...] | None) -> tuple[float, ...]:
    if not (math.isfinite(sigma) and sigma > 0 and math.isfinite(w0) and w0 >= 0):
        raise InputError(
            f"Border weights have w0 {w0} and sigma {sigma}; give w0 of at least 0 (10 in the paper) and sigma above 0 (5)."
        )
    return relative_spacing(ndim, voxel_size)


def _farthest(sigma: float) -> float:
    """d1 + d2 beyond which the weight is negligible."""
    return sigma * math.sqrt(-2 * math.log(NEGLIGIBLE))

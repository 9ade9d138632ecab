"""Seeded watershed: touching objects of one mask are divided where the mask is narrow, or where a boundary is probable.

mask ----> distance to background ----> seeds (its domes) ----> flood from the seeds, over the mask
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from skimage.morphology import local_maxima, reconstruction
from skimage.segmentation import watershed

from unet_core.errors import InputError
from unet_core.postprocess.components import connected_components, in_scan_order

LEARNT_DEPTH = 0.2  # of tanh(d / scale); best of 0.1, 0.2, .. 0.5 on nuclei that were not learnt from


def distance_to_background(mask: ArrayLike, voxel_size: tuple[float, ...] | None = None) -> NDArray[np.float64]:
    """Euclidean distance of each foreground voxel's centre to that of the nearest background voxel.

    The edge of the image is no background; a mask without background is as far from it as the image is long.

    Args:
        mask: of 2 or 3 dimensions; anything but 0 is foreground.
        voxel_size: along its axes; distances are in its unit. In voxels unless told.
    """
    foreground = np.asarray(mask) != 0
    spacing = _spacing(voxel_size, foreground.ndim)
    if foreground.all():
        return np.full(foreground.shape, float(np.linalg.norm(np.multiply(foreground.shape, spacing))))
    distance: NDArray[np.float64] = ndimage.distance_transform_edt(foreground, sampling=spacing)
    return distance


def seeds_by_h_maxima(height: NDArray[Any], h: float, connectivity: int = 1) -> NDArray[np.int64]:
    """Seeds where ``height`` has a dome that rises more than ``h`` above the lowest way to a higher one (h-maxima).

    Regional maxima of the reconstruction of ``height - h`` under ``height`` (Soille 2004, section 6.3), numbered in scan order.

    Args:
        height: of 2 or 3 dimensions.
        h: in the unit of ``height``, above 0.
        connectivity: as in ``connected_components``.

    Raises:
        InputError: if ``h`` is not above 0.
    """
    if not h > 0:
        raise InputError(f"h is {h}; a dome rises by more than 0.")
    values = np.asarray(height, dtype=np.float64)
    if values.max() == values.min():  # a plain has no dome
        return np.zeros(values.shape, dtype=np.int64)
    footprint = ndimage.generate_binary_structure(values.ndim, connectivity)
    lowered = reconstruction(values - h, values, method="dilation", footprint=footprint)
    return connected_components(local_maxima(lowered, footprint=footprint), connectivity)


def seeds_by_distance(distance: NDArray[Any], threshold: float, connectivity: int = 1) -> NDArray[np.int64]:
    """Seeds where ``distance`` is above ``threshold``: what is left of a mask after its rim is taken off, numbered in scan order."""
    return connected_components(distance > threshold, connectivity)


def watershed_on_distance(
    mask: ArrayLike,
    seeds: NDArray[np.int64] | None = None,
    *,
    h: float = 1.0,
    voxel_size: tuple[float, ...] | None = None,
    connectivity: int = 1,
) -> NDArray[np.int64]:
    """Divide a mask at its necks: flood the distance to background from its domes.

    A part of the mask without a seed stays one instance, so that every foreground voxel is in one.

    Args:
        mask: of 2 or 3 dimensions; anything but 0 is foreground.
        seeds: ids from 0; by default ``seeds_by_h_maxima`` of the distance.
        h: how much a dome must rise, in the unit of ``voxel_size``; in voxels without one.
        voxel_size: along the axes of ``mask``.
        connectivity: as in ``connected_components``.

    Returns:
        Ids in scan order, 0 on background.
    """
    foreground = np.asarray(mask) != 0
    distance = distance_to_background(foreground, voxel_size)
    return _flood(-distance, seeds_by_h_maxima(distance, h, connectivity) if seeds is None else seeds, foreground, connectivity)


def watershed_on_boundaries(
    boundaries: NDArray[Any],
    mask: ArrayLike,
    seeds: NDArray[np.int64] | None = None,
    *,
    h: float = 0.1,
    connectivity: int = 1,
) -> NDArray[np.int64]:
    """Divide a mask where a boundary is probable: flood the boundary map from its valleys.

    A part of the mask without a seed stays one instance, so that every foreground voxel is in one.

    Args:
        boundaries: probability of a boundary, of 2 or 3 dimensions.
        mask: of the same shape; anything but 0 is foreground.
        seeds: ids from 0; by default valleys at least ``h`` deep, inside the mask.
        h: depth of a valley, in probability.
        connectivity: as in ``connected_components``.

    Returns:
        Ids in scan order, 0 on background.

    Raises:
        InputError: if the shapes differ.
    """
    return _divided(-np.asarray(boundaries, dtype=np.float64), mask, seeds, h, connectivity)


def watershed_on_learnt_distance(
    distance: NDArray[Any],
    mask: ArrayLike,
    seeds: NDArray[np.int64] | None = None,
    *,
    h: float = LEARNT_DEPTH,
    connectivity: int = 1,
) -> NDArray[np.int64]:
    """Divide a mask where a network says that a border is near: flood what its distance head gave from its domes.

    A part of the mask without a seed stays one instance, so that every foreground voxel is in one.

    Args:
        distance: tanh(d / scale) of 2 or 3 dimensions, d above zero inside an instance.
        mask: of the same shape; anything but 0 is foreground.
        seeds: ids from 0; by default domes of ``distance`` at least ``h`` high, inside the mask.
        h: height of a dome, in -1..1.
        connectivity: as in ``connected_components``.

    Returns:
        Ids in scan order, 0 on background.

    Raises:
        InputError: if the shapes differ.
    """
    return _divided(np.asarray(distance, dtype=np.float64), mask, seeds, h, connectivity)


def _divided(
    height: NDArray[np.float64], mask: ArrayLike, seeds: NDArray[np.int64] | None, h: float, connectivity: int
) -> NDArray[np.int64]:
    """Flood from the domes of ``height``, which is above -1 inside instances."""
    foreground = np.asarray(mask) != 0
    if height.shape != foreground.shape:
        raise InputError(f"The map has shape {height.shape} and the mask {foreground.shape}; they must be equal.")
    if seeds is None:
        # Background is as low as can be, so that domes end with the mask.
        seeds = seeds_by_h_maxima(np.where(foreground, height, -1.0), h, connectivity)
    return _flood(-height, seeds, foreground, connectivity)


def _flood(
    height: NDArray[np.float64], seeds: NDArray[np.int64], mask: NDArray[np.bool_], connectivity: int
) -> NDArray[np.int64]:
    inside = np.where(mask, seeds, 0)
    if inside.any():
        flooded = watershed(height, inside, mask=mask, connectivity=connectivity).astype(np.int64)
    else:
        flooded = np.zeros(mask.shape, dtype=np.int64)
    rest = connected_components(mask & (flooded == 0), connectivity)
    return in_scan_order(np.where(rest > 0, rest + flooded.max(initial=0), flooded))


def _spacing(voxel_size: tuple[float, ...] | None, dims: int) -> tuple[float, ...]:
    if voxel_size is not None and len(voxel_size) != dims:
        raise InputError(f"Voxel size {voxel_size} has {len(voxel_size)} numbers for {dims} dimensions; give one an axis.")
    return (1.0,) * dims if voxel_size is None else voxel_size

"""Watersheds in memory: touching objects of one mask are divided where it is narrow, or where a border is predicted.

mask, or map ----> heights ----> hills of steepest ascent ----> hills that rise too little join the next one

``unet segment --instances`` gives the same partition in blocks: ``blockwise_watershed``. By affinities: ``affinities``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unet_core.errors import InputError
from unet_core.postprocess.ascent import VoxelPasses, climb
from unet_core.postprocess.components import check_connectivity, in_scan_order
from unet_core.postprocess.distance import distance_within
from unet_core.postprocess.merging import merge_low

LEARNT_DEPTH = 0.2  # of tanh(d / scale); best of 0.1, 0.2, .. 0.5 on nuclei that were not learnt from
BOUNDARY_DEPTH = 0.1  # of a probability
# Voxels along the finest axis up to which distances to background are told apart; what is deeper inside is one plain. Two objects that
# touch in a neck of more than twice this are not divided; a block has to read so much more at each end.
REACH = {1: 64, 2: 64, 3: 32}


def watershed_on_distance(
    mask: ArrayLike,
    *,
    h: float | None = None,
    voxel_size: tuple[float, ...] | None = None,
    reach: float | None = None,
    connectivity: int = 1,
) -> NDArray[np.int64]:
    """Divide a mask at its necks: its distance to background makes hills.

    Args:
        mask: of 2 or 3 dimensions; anything but 0 is foreground. The end of the array is no background.
        h: how much a hill must rise above the way to the next, in the unit of ``voxel_size``; one voxel of the finest axis unless told.
        voxel_size: along the axes of ``mask``; 1 unless told.
        reach: up to which distances count, in the same unit; ``REACH`` voxels of the finest axis unless told.
        connectivity: as in ``connected_components``.

    Returns:
        Ids in scan order, 0 on background. Every foreground voxel is in an instance.

    Raises:
        InputError: if a number has no meaning.
    """
    labels = _labels(mask)
    spacing = (1.0,) * labels.ndim if voxel_size is None else voxel_size
    if len(spacing) != labels.ndim:
        raise InputError(f"Voxel size {voxel_size} has {len(spacing)} numbers for {labels.ndim} dimensions; give one an axis.")
    reach = REACH[labels.ndim] * min(spacing) if reach is None else reach
    return divide(labels, distance_within(labels, reach, spacing), min(spacing) if h is None else h, connectivity)


def watershed_on_boundaries(
    boundaries: NDArray[Any], mask: ArrayLike, *, h: float = BOUNDARY_DEPTH, connectivity: int = 1
) -> NDArray[np.int64]:
    """Divide a mask where a boundary is probable: valleys of the boundary map make instances.

    Args:
        boundaries: probability of a boundary, of 2 or 3 dimensions.
        mask: of the same shape; anything but 0 is foreground.
        h: depth of a valley, in probability.
        connectivity: as in ``connected_components``.

    Returns:
        Ids in scan order, 0 on background. Every foreground voxel is in an instance.

    Raises:
        InputError: if the shapes differ, or a number has no meaning.
    """
    return divide(_labels(mask), 1 - np.asarray(boundaries, dtype=np.float32), h, connectivity)


def watershed_on_learnt_distance(
    distance: NDArray[Any], mask: ArrayLike, *, h: float = LEARNT_DEPTH, connectivity: int = 1
) -> NDArray[np.int64]:
    """Divide a mask where a network says that a border is near: what its distance head gave makes hills.

    Args:
        distance: tanh(d / scale) of 2 or 3 dimensions, d above zero inside an instance.
        mask: of the same shape; anything but 0 is foreground.
        h: how much a hill must rise, in -1..1.
        connectivity: as in ``connected_components``.

    Returns:
        Ids in scan order, 0 on background. Every foreground voxel is in an instance.

    Raises:
        InputError: if the shapes differ, or a number has no meaning.
    """
    return divide(_labels(mask), np.asarray(distance, dtype=np.float32), h, connectivity)


def divide(labels: NDArray[np.uint8], heights: NDArray[np.float32], depth: float, connectivity: int = 1) -> NDArray[np.int64]:
    """Divide what has one label into its hills; a hill that rises at most ``depth`` above its highest pass joins the one behind it.

    These are as many as there are h-maxima (Soille 2004, section 6.3), one in each. Every part of equal label has one at least.

    Args:
        labels: 0 is background.
        heights: of the same shape.
        depth: in the unit of the heights, above 0.
        connectivity: as in ``connected_components``.

    Returns:
        Ids in scan order, 0 on background.

    Raises:
        InputError: if the shapes differ, or a number has no meaning.
    """
    check_connectivity(connectivity, labels.ndim)
    if heights.shape != labels.shape:
        raise InputError(f"The map has shape {heights.shape} and the mask {labels.shape}; they must be equal.")
    if not depth > 0:
        raise InputError(f"h is {depth}; a hill rises by more than 0.")
    if not np.isfinite(heights).all():
        raise InputError("The map has voxels that are no finite number; a watershed needs a height everywhere.")
    hills = climb(labels, heights, connectivity)
    nowhere = np.zeros(len(hills.tops), dtype=bool)
    owner, _ = merge_low(
        VoxelPasses(labels, heights, hills.of, connectivity), hills.tops, depth, is_open=nowhere, is_seen=nowhere
    )
    return in_scan_order(owner[hills.of])


def _labels(mask: ArrayLike) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.asarray(mask) != 0).astype(np.uint8)

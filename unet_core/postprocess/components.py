"""Connected components of a mask, and what is common to all instances: ids in scan order, a smallest size."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from unet_core.errors import InputError


def connected_components(mask: ArrayLike, connectivity: int = 1) -> NDArray[np.int64]:
    """Number the connected parts of a mask 1, 2, .. in the order in which a scan (last axis fastest) meets them; 0 elsewhere.

    Args:
        mask: of 1 to 3 dimensions; anything but 0 is foreground.
        connectivity: how many axes a step to a neighbour may change: 1 for 4 neighbours in 2D and 6 in 3D, the number of
            dimensions for 8 and 26.

    Raises:
        InputError: if the connectivity is none of these.
    """
    foreground = np.asarray(mask) != 0
    check_connectivity(connectivity, foreground.ndim)
    found, _ = ndimage.label(foreground, ndimage.generate_binary_structure(foreground.ndim, connectivity))
    return in_scan_order(found)


def check_connectivity(connectivity: int, ndim: int) -> None:
    """Refuse what is no number of axes.

    Raises:
        InputError: naming it.
    """
    if not 1 <= connectivity <= ndim:
        raise InputError(f"Connectivity is {connectivity}; for {ndim} dimensions it is 1 to {ndim}.")


def in_scan_order(instances: NDArray[Any]) -> NDArray[np.int64]:
    """Renumber ids 1, 2, .. by their first voxel in a scan (last axis fastest); 0 stays.

    Args:
        instances: ids from 0, not far above their number.
    """
    flat = instances.ravel()
    if not flat.size or not flat.max():
        return np.zeros(instances.shape, dtype=np.int64)
    first = np.full(int(flat.max()) + 1, flat.size, dtype=np.int64)
    # Only where a run begins can an id be met first; going backwards, the assignment that stays is the first of the scan.
    starts = np.flatnonzero(np.concatenate(([True], flat[1:] != flat[:-1])))[::-1]
    first[flat[starts]] = starts
    first[0] = -1
    order = np.argsort(first, kind="stable")
    numbers = np.empty_like(first)
    numbers[order] = np.arange(len(order))
    renumbered: NDArray[np.int64] = numbers[instances]
    return renumbered


def remove_small(instances: NDArray[Any], min_voxels: int) -> NDArray[np.int64]:
    """Make background of every instance of fewer than ``min_voxels`` voxels; the others are renumbered in scan order.

    Args:
        instances: ids from 0, not far above their number.
        min_voxels: smallest size that stays.
    """
    sizes = np.bincount(instances.ravel())
    kept = sizes >= min_voxels
    return in_scan_order(np.where(kept[instances], instances, 0))

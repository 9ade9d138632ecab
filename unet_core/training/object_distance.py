"""Signed distance to the border of the instance, and where it is known. Knows no network.

Above zero inside: to the nearest voxel that is not of the same instance, be it background or another instance.
Below zero on background: to the nearest voxel of any instance.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unet_core.training.cell_distances import consecutive


def signed_distance(
    instances: NDArray[np.integer], reach: float, spacing: tuple[float, ...]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Distances between centres of voxels, those beyond ``reach`` set to it; exact where all within reach is seen.

    Args:
        instances: ids of shape ([Z,] Y, X): 0 background, above it instances, below it ignored.
        reach: in the unit of ``spacing``.
        spacing: distance of neighbours along each axis.

    Returns:
        Distances, -reach..reach; and whether they are known: not on ignored voxels, nor where an ignored voxel, which may hide a
        border, lies nearer than the border that was found.
    """
    ignored = instances < 0
    distance = -_to(instances > 0, reach, spacing)
    # An instance's voxel finds the nearest one outside in the instance's bounding box with a rim of one voxel: what lies farther out is
    # farther than its projection onto the rim, which is outside the instance too (or ignored, and then nothing is known).
    numbers, _ = consecutive(instances)
    for number, found in enumerate(ndimage.find_objects(numbers), start=1):
        window = tuple(slice(max(0, part.start - 1), part.stop + 1) for part in found)
        own = numbers[window] == number
        distance[window][own] = _to(~(own | ignored[window]), reach, spacing)[own]
    if not ignored.any():
        return distance, ~ignored
    return distance, np.abs(distance) <= _to(ignored, math.inf, spacing)


def _to(chosen: NDArray[np.bool_], reach: float, spacing: tuple[float, ...]) -> NDArray[np.float32]:
    """Distance of each voxel to the nearest chosen one, at most ``reach``."""
    if not chosen.any():
        return np.full(chosen.shape, reach, dtype=np.float32)
    return np.minimum(ndimage.distance_transform_edt(~chosen, sampling=spacing), reach).astype(np.float32)

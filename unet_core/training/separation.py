"""Background between touching instances, so that there is a border to learn. Knows no network, no storage."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unet_core.training.cell_distances import consecutive

SEPARATION_MARGIN = 1  # voxels around a box that decide what happens inside it


def separate_touching(instances: NDArray[np.int64]) -> NDArray[np.int64]:
    """Turn every voxel of an instance that touches another instance, by a face, edge or corner, into background.

        1 1 1 2 2 2  ->  1 1 0 0 2 2

    A morphological operation, as in Ronneberger et al. 2015, section 3 ("the separation border is computed using morphological
    operations"): where the largest id of the 3 x 3 (x 3) neighbourhood is not its smallest one. It looks one voxel far, treats all
    instances alike and does not change under mirroring; so the result is that of the whole image in any box that was grown by
    one voxel before, mirrored or not. Afterwards no two instances touch in any sense. What is nowhere thicker than the border vanishes.

    Args:
        instances: ids of shape ([Z,] Y, X): 0 background, above it instances, below it ignored, which touches nothing.

    Returns:
        A copy, of the same shape and type.
    """
    numbers, count = consecutive(instances)  # scipy filters by way of float64, which would mix up ids above 2**53
    largest = ndimage.maximum_filter(numbers, size=3, mode="nearest")
    smallest = ndimage.minimum_filter(np.where(numbers > 0, numbers, count + 1), size=3, mode="nearest")
    return np.where((numbers > 0) & (largest != smallest), instances.dtype.type(0), instances)

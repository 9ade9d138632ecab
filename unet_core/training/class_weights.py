"""The weight of each class in the loss, from how often it occurs. Knows no images.

w_c of Ronneberger et al. 2015, arXiv:1505.04597, equation 2, which "balances the class frequencies".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import InputError


def class_weights(counts: NDArray[np.integer] | Sequence[int], names: Sequence[str] | None = None) -> NDArray[np.float64]:
    """Weights under which every class weighs the same in sum, and an annotated voxel weighs 1 in the mean.

    Args:
        counts: annotated voxels of each class.
        names: of the classes, for the message; their numbers unless told.

    Returns:
        ``sum(counts) / (K counts)``, of shape (K,).

    Raises:
        InputError: naming classes without any voxel: no finite weight balances them.

    Example:
        >>> class_weights([30, 10]).round(3).tolist()
        [0.667, 2.0]
    """
    voxels = np.asarray(counts, dtype=np.float64)
    empty = [names[number] if names else str(number) for number in range(len(voxels)) if voxels[number] <= 0]
    if empty or not voxels.size:
        raise InputError(
            f"No voxel is annotated as {', '.join(empty) or 'any class'} (voxels by class: {[int(value) for value in voxels]}), so that "
            "its weight would be infinite; annotate some, leave the class out, or train without balance."
        )
    result: NDArray[np.float64] = voxels.sum() / (len(voxels) * voxels)
    return result

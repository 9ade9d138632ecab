"""How much a place of a result is worth a look: the entropy of its probabilities, or how much two results differ there.

Scores of voxels are whole numbers from 0 to ``UNIT``, so that their sums depend on no order. Knows no files.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import xlogy

UNIT = 65535  # the highest score of a voxel


def entropies(probabilities: NDArray[Any], kind: Literal["classes", "regions"]) -> NDArray[np.int64]:
    """Shannon's entropy of each voxel, ``UNIT`` where all classes are equally likely.

    Args:
        probabilities: of shape (K, *spatial), float from 0 to 1 or uint8 from 0 to 255. Of classes they add up to about 1 (the rounding of
            uint8 is divided out); of regions each is one by itself, and the entropies are averaged.
        kind: of the head.

    Example:
        >>> entropies(np.array([[0.5, 1.0], [0.5, 0.0]]), "classes").tolist()
        [65535, 0]
    """
    shares = probabilities.astype(np.float64)
    if probabilities.dtype == np.uint8:
        shares /= 255
    if kind == "classes":
        total = np.maximum(shares.sum(axis=0), np.finfo(np.float64).tiny)
        found = (np.log(total) - xlogy(shares, shares).sum(axis=0) / total) / np.log(max(2, len(shares)))
    else:
        found = -(xlogy(shares, shares) + xlogy(1 - shares, 1 - shares)).mean(axis=0) / np.log(2)
    return np.rint(found.clip(0, 1) * UNIT).astype(np.int64)


def differences(first: NDArray[np.integer], second: NDArray[np.integer]) -> NDArray[np.int64]:
    """``UNIT`` where two label images have other values, 0 elsewhere."""
    return (first != second).astype(np.int64) * UNIT

"""How much a place of a result is worth a look: the entropy of its probabilities, or how much two results differ there.

Scores of voxels are whole numbers from 0 to ``UNIT``, so that their sums depend on no order. Knows no files.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import xlogy

UNIT = 65535  # the highest score of a voxel


def entropies(probabilities: NDArray[Any], kind: Literal["classes", "regions"]) -> NDArray[np.uint16]:
    """Shannon's entropy of each voxel, ``UNIT`` where all classes are equally likely.

    Args:
        probabilities: of shape (K, *spatial), float from 0 to 1 or uint8 from 0 to 255. Of classes they add up to about 1 (the rounding of
            uint8 is divided out); of regions each is one by itself, and the entropies are averaged.
        kind: of the head.

    Example:
        >>> entropies(np.array([[0.5, 1.0], [0.5, 0.0]]), "classes").tolist()
        [65535, 0]
    """
    if probabilities.dtype == np.uint8:
        found: NDArray[np.floating] = _of_bytes(probabilities, kind)
    elif kind == "classes":
        shares = probabilities.astype(np.float64)
        total = np.maximum(shares.sum(axis=0), np.finfo(np.float64).tiny)
        found = (np.log(total) - xlogy(shares, shares).sum(axis=0) / total) / np.log(max(2, len(shares)))
    else:
        found = _binary(probabilities.astype(np.float64)).mean(axis=0)
    return np.rint(found.clip(0, 1) * np.float32(UNIT)).astype(np.uint16)


def _binary(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = -(xlogy(shares, shares) + xlogy(1 - shares, 1 - shares)) / np.log(2)
    return found


def _of_bytes(stored: NDArray[np.uint8], kind: Literal["classes", "regions"]) -> NDArray[np.float32]:
    """The same of whole numbers, whose logarithms are looked up."""
    values = np.arange(256, dtype=np.float64)
    if kind == "regions":
        return _added(_binary(values / 255) / len(stored), stored)
    total = stored.sum(axis=0, dtype=np.uint16 if len(stored) <= 256 else np.int64)
    totals, scale = np.maximum(np.arange(255 * len(stored) + 1, dtype=np.float64), 1), 1 / np.log(max(2, len(stored)))
    logarithms, inverses = (np.log(totals) * scale).astype(np.float32), (scale / totals).astype(np.float32)
    found: NDArray[np.float32] = logarithms[total] - _added(xlogy(values, values), stored) * inverses[total]
    return found


def _added(table: NDArray[np.float64], stored: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The sum over channels of a number for each stored value."""
    short = table.astype(np.float32)
    result: NDArray[np.float32] = short[stored[0]]
    for channel in stored[1:]:
        result += short[channel]
    return result


def differences(first: NDArray[np.integer], second: NDArray[np.integer]) -> NDArray[np.uint16]:
    """``UNIT`` where two label images have other values, 0 elsewhere."""
    return (first != second).astype(np.uint16) * np.uint16(UNIT)

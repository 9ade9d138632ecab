"""Distance to the nearest voxel of another label, up to a reach: the same number in any box that holds the reach. Arrays only.

Squared distances are whole numbers (weights of the axes are rounded to them), so that neither the way of adding nor the box decides
a last bit. One axis after the other: the nearest along the last, then at each k of the others what is k further may be nearer.
"""

from __future__ import annotations

from itertools import count
from math import floor, isqrt, log2

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import InputError

NEAREST, FURTHEST = 0.01, 4096  # reaches in voxels of the finest axis; with more, squares lose the ratios of the axes, then all
_MOST = np.iinfo(np.int32).max


def distance_within(labels: NDArray[np.uint8], reach: float, spacing: tuple[float, ...]) -> NDArray[np.float32]:
    """Euclidean distance of each voxel's centre to that of the nearest voxel with another label; ``reach`` where it is more.

    The end of the array is no other label. Ratios of ``spacing`` are taken to 1e-5, or to what 2**31 leaves for a long reach.

    Args:
        labels: 0 is background, whose distance is 0.
        reach: in the unit of ``spacing``.
        spacing: of voxels along each axis.

    Raises:
        InputError: if the reach is no number of voxels between ``NEAREST`` and ``FURTHEST``.
    """
    finest = min(spacing)
    limit = reach / finest
    if not NEAREST <= limit <= FURTHEST:
        raise InputError(
            f"reach is {reach:g}, {limit:g} voxels of {finest:g}; distances are told up to {NEAREST} to {FURTHEST:,} voxels."
        )
    unit = 2.0 ** min(20, floor(log2(_MOST / (2 * (limit + 1) ** 2))))
    most = round(limit**2 * unit)
    weights = [min(most, round((size / finest) ** 2 * unit)) for size in spacing]  # one step of more is as far as can be
    squared = _along_last(labels, weights[-1], most)
    several = int(np.count_nonzero(np.bincount(labels.ravel(), minlength=256)[1:])) > 1
    for axis, weight in list(enumerate(weights))[-2::-1]:
        squared = _along(np.moveaxis(labels, axis, 0), np.moveaxis(squared, axis, 0), weight, several)
        squared = np.moveaxis(squared, 0, axis)
    distance = squared.astype(np.float32)
    distance *= np.float32(1 / unit)
    np.sqrt(distance, out=distance)
    distance *= np.float32(finest)
    return distance


def _along_last(labels: NDArray[np.uint8], weight: int, most: int) -> NDArray[np.int32]:
    """Squared distance along the last axis."""
    length = labels.shape[-1]
    places = np.arange(length, dtype=np.int32)
    changes = labels[..., 1:] != labels[..., :-1]
    far = isqrt(most // weight) + 1  # so many voxels are beyond the reach
    before = np.full(labels.shape, -far, dtype=np.int32)  # the last voxel of the run before
    before[..., 1:][changes] = np.broadcast_to(places[:-1], changes.shape)[changes]
    np.maximum.accumulate(before, axis=-1, out=before)
    after = np.full(labels.shape, length + far, dtype=np.int32)
    after[..., :-1][changes] = np.broadcast_to(places[1:], changes.shape)[changes]
    backwards = after[..., ::-1]
    np.minimum.accumulate(backwards, axis=-1, out=backwards)
    np.subtract(places, before, out=before)
    np.subtract(after, places, out=after)
    nearest = np.minimum(before, after, out=before)
    np.minimum(nearest, far, out=nearest)
    squared = np.multiply(nearest, nearest, out=nearest)
    np.minimum(squared, most // weight + 1, out=squared)
    squared *= np.int32(weight)
    np.minimum(squared, most, out=squared)
    squared[labels == 0] = 0
    return squared


def _along(labels: NDArray[np.uint8], squared: NDArray[np.int32], weight: int, several: bool) -> NDArray[np.int32]:
    """Squared distance along the first axis and those before; ``several``: whether other labels than background are met."""
    result = squared.copy()
    for k in count(1):
        further = weight * k * k
        if k >= len(labels) or further >= result.max(initial=0):  # nothing is so far from another label any more
            return result
        for here, there in ((slice(k, None), slice(None, -k)), (slice(None, -k), slice(k, None))):
            nearer = squared[there] + np.int32(further)
            if several:
                nearer[labels[there] != labels[here]] = further
            np.minimum(result[here], nearer, out=result[here])
    raise AssertionError

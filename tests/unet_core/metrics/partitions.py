"""Random partitions that resemble each other, for tests of scores."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

SHAPES = ((33, 47), (7, 17, 23))


def partition(shape: tuple[int, ...], seed: int, segments: int = 9, background: float = 0.2) -> NDArray[np.int64]:
    """Nearest of some random points, with a share of background."""
    random = np.random.default_rng(seed)
    points = np.zeros(shape, dtype=np.int64)
    points.ravel()[random.choice(points.size, segments, replace=False)] = np.arange(1, segments + 1)
    nearest = ndimage.distance_transform_edt(points == 0, return_distances=False, return_indices=True)
    ids = points[tuple(nearest)]
    noise = ndimage.gaussian_filter(random.normal(size=shape), 2)
    return np.where(noise < np.quantile(noise, background), 0, ids)


def alike(reference: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """A prediction for it: moved by a voxel, two segments joined, one cut, some background of its own."""
    random = np.random.default_rng(seed)
    predicted = np.roll(reference, 1, axis=-1)
    predicted[predicted == 3] = 4
    cut = np.indices(reference.shape)[0] > reference.shape[0] // 2
    predicted[(predicted == 5) & cut] = 77
    predicted[ndimage.gaussian_filter(random.normal(size=reference.shape), 2) > 0.25] = 0
    return predicted


def blur(ids: NDArray[np.int64], seed: int) -> NDArray[np.float32]:
    """A map that is high inside the segments and uncertain at their borders."""
    random = np.random.default_rng(seed)
    noisy = ndimage.gaussian_filter((ids > 0).astype(float), 1) + ndimage.gaussian_filter(random.normal(0, 0.6, ids.shape), 1)
    return np.clip(noisy, 0, 1).astype(np.float32)

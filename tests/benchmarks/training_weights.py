"""Border weights against one distance transform of the whole image per cell: ``python -m tests.benchmarks.training_weights SIDE CELLS``."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tests.benchmarks.training_data import cells
from unet_core.training.border_weights import border_weights

W0, SIGMA = 10.0, 5.0  # of the U-Net paper
ROUNDS = 3


def by_transforms(instances: NDArray[np.int32], w0: float, sigma: float) -> NDArray[np.float64]:
    """Equation 2 of the U-Net paper as it is read at first: the distance to every cell, and of these the two smallest."""
    first = np.full(instances.shape, np.inf)
    second = first.copy()
    for number in range(1, int(instances.max()) + 1):
        if not (instances == number).any():
            continue  # hidden by others
        distance = ndimage.distance_transform_edt(instances != number)
        second = np.minimum(second, np.maximum(first, distance))
        first = np.minimum(first, distance)
    weights: NDArray[np.float64] = w0 * np.exp(-((first + second) ** 2) / (2 * sigma**2)) * (instances == 0)
    return weights


def measure(side: int, count: int) -> dict[str, Any]:
    """Seconds of both, one number a round, and the largest difference of their weights."""
    instances = cells(side, count, seed=0)
    seconds: dict[str, list[float]] = {"own": [], "transforms": []}
    for _ in range(ROUNDS):
        began = time.perf_counter()
        own = border_weights(instances, W0, SIGMA)
        between = time.perf_counter()
        other = by_transforms(instances, W0, SIGMA)
        seconds["own"].append(between - began)
        seconds["transforms"].append(time.perf_counter() - between)
    return seconds | {"difference": float(np.abs(own - other).max())}


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), int(sys.argv[2]))))

"""The weight of each pixel in the loss, from instances: class balance, and more between cells that nearly touch.

Ronneberger et al. 2015, equation 2. Knows no network.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def border_weight_map(instances: NDArray[np.integer], w0: float = 10.0, sigma: float = 5.0) -> NDArray[np.float32]:
    """``w_c(x) + w0 exp(-(d1 + d2)^2 / (2 sigma^2))``, the second term on background only.

    d1 and d2 are the distances, in voxels, to the nearest and the second nearest cell. w_c balances background against
    foreground: each class weighs the same in sum, and the mean of w_c is 1.

    Args:
        instances: ids of shape (Y, X) or (Z, Y, X), 0 the background.
        w0: weight between two cells that touch.
        sigma: in voxels, how far it reaches.

    Returns:
        Weights of the shape of ``instances``.
    """
    foreground = instances > 0
    fraction = float(foreground.mean())
    weights = np.ones(instances.shape, dtype=np.float32)
    if 0 < fraction < 1:
        weights[foreground] = 0.5 / fraction
        weights[~foreground] = 0.5 / (1 - fraction)
    first = np.full(instances.shape, np.inf, dtype=np.float32)
    second = first.copy()
    reach = int(np.ceil(4 * sigma))  # beyond it the second term is below w0 / 2980
    for number, found in enumerate(ndimage.find_objects(instances), start=1):
        if found is None:
            continue
        window = tuple(
            slice(max(0, part.start - reach), min(size, part.stop + reach))
            for part, size in zip(found, instances.shape, strict=True)
        )
        distance = ndimage.distance_transform_edt(instances[window] != number).astype(np.float32)
        nearest, next_nearest = first[window], second[window]
        second[window] = np.minimum(next_nearest, np.maximum(nearest, distance))
        first[window] = np.minimum(nearest, distance)
    border = w0 * np.exp(-((first + second) ** 2) / (2 * sigma**2))
    weights += np.where(foreground, 0, border).astype(np.float32)
    return weights

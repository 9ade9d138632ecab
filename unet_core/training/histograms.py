"""Intensities of one image as if they were another's, by matching histograms (Milletari et al. 2016, section 4). Any device."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

QUANTILES = tuple(np.linspace(0, 100, 65).tolist())  # ranks that stand for a histogram


def match_histogram(image: Tensor, own: NDArray[np.float64], other: NDArray[np.float64]) -> Tensor:
    """Each intensity becomes the one that has its rank in the other image; linear between quantiles, a shift outside of them.

    Args:
        image: (C, *spatial), float32.
        own: quantiles of the image that it was cut from, (C, Q), ascending.
        other: of the image that it shall look like, at the same ranks.

    Returns:
        A new tensor of the same shape.
    """
    return torch.stack([_matched(channel, *_curve(*pair)) for channel, *pair in zip(image, own, other, strict=True)])


def _curve(own: NDArray[np.float64], other: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points of the map, strictly ascending: an intensity with several ranks gets the mean of what they stand for."""
    values, places, counts = np.unique(own, return_inverse=True, return_counts=True)
    return values, np.bincount(places, weights=other) / counts


def _matched(channel: Tensor, points: NDArray[np.float64], images: NDArray[np.float64]) -> Tensor:
    x, y = (torch.from_numpy(values).to(channel.device, torch.float32) for values in (points, images))
    if len(x) == 1:
        return channel + (y - x)
    place = torch.searchsorted(x, channel.contiguous()).clamp(1, len(x) - 1)
    slopes = (y[1:] - y[:-1]) / (x[1:] - x[:-1])
    within = channel.clamp(x[0], x[-1])
    return y[place - 1] + (within - x[place - 1]) * slopes[place - 1] + (channel - within)

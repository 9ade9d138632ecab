"""Normalisation of intensities, always with numbers fixed before the first block. Nothing here reads an image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict


class Normalisation(BaseModel):
    """How intensities become network input: ``(value - offset) / scale``, one pair a channel.

    Which numbers those are is said by the model package (``fixed``) or computed once while planning (``image``, ``moments``);
    they never depend on the block, since that would show as seams.

    Args:
        offset: subtracted, one number a channel.
        scale: divided by, one number a channel, above zero.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    offset: tuple[float, ...]
    scale: tuple[float, ...]

    def apply(self, image: NDArray[np.generic]) -> NDArray[np.float32]:
        """Normalised copy, of shape (C, *spatial) in float32, of an image of shape (C, *spatial)."""
        shape = (-1,) + (1,) * (image.ndim - 1)
        offset = np.asarray(self.offset, dtype=np.float32).reshape(shape)
        scale = np.asarray(self.scale, dtype=np.float32).reshape(shape)
        result = image.astype(np.float32)
        result -= offset
        result /= scale
        return result


def from_percentiles(low: NDArray[np.floating], high: NDArray[np.floating], eps: float = 0.0) -> Normalisation:
    """Normalisation that takes the percentiles ``low`` and ``high`` of each channel to 0 and 1.

    A channel without contrast (high == low) is only shifted, unless ``eps`` is added to the span.
    """
    span = np.asarray(high, dtype=np.float64) - np.asarray(low, dtype=np.float64) + eps
    return Normalisation(offset=tuple(map(float, low)), scale=tuple(map(float, np.where(span > 0, span, 1.0))))


def from_moments(mean: NDArray[np.floating], deviation: NDArray[np.floating], eps: float) -> Normalisation:
    """Normalisation that takes mean and standard deviation of each channel to 0 and 1, as ``(value - mean) / (deviation + eps)``.

    Args:
        mean: one number a channel.
        deviation: likewise.
        eps: above zero, so that a channel without contrast is only shifted.
    """
    return Normalisation(offset=tuple(map(float, mean)), scale=tuple(map(float, np.asarray(deviation, dtype=np.float64) + eps)))

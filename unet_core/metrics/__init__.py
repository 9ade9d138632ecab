"""Scores of a prediction against a reference; arrays in, numbers out. Knows no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def iou(prediction: ArrayLike, reference: ArrayLike) -> float:
    """Intersection over union of two masks of one shape: TP / (TP + FP + FN); 1.0 if both are empty."""
    a, b = np.asarray(prediction, dtype=bool), np.asarray(reference, dtype=bool)
    if a.shape != b.shape:
        raise ValueError(f"Prediction has shape {a.shape} and reference {b.shape}; they must be equal.")
    union = np.count_nonzero(a | b)
    return float(np.count_nonzero(a & b) / union) if union else 1.0


def dice(prediction: ArrayLike, reference: ArrayLike) -> float:
    """Dice coefficient of two masks: 2 TP / (2 TP + FP + FN) = 2 J / (1 + J)."""
    overlap = iou(prediction, reference)
    return 2 * overlap / (1 + overlap)


def bootstrap_interval(
    scores: Sequence[float], confidence: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of independent scores, e.g. one an image.

    Args:
        scores: at least one.
        confidence: coverage, between 0 and 1.
        draws: resamples.
        seed: of their generator.
    """
    values = np.asarray(scores, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(0, len(values), size=(draws, len(values)))
    tail = (1 - confidence) / 2
    low, high = np.quantile(values[picks].mean(axis=1), [tail, 1 - tail])
    return float(low), float(high)

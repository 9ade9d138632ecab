"""How far a mean score can be trusted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


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
    random = np.random.default_rng(seed)
    # One resample at a time: all at once would be gigabytes for the sections of a large stack.
    means = [values[random.integers(0, len(values), size=len(values))].mean() for _ in range(draws)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)

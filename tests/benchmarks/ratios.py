"""How much slower one set of wall times is than another, and how sure that is. Knows no contender."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SAMPLES = 10_000


@dataclass(frozen=True)
class Ratio:
    """A ratio of medians with the ends of its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def ratio_of_medians(over: Sequence[float], under: Sequence[float], seed: int = 0) -> Ratio:
    """The median of ``over`` divided by that of ``under``, with its bootstrap percentile interval (Efron 1979).

    Both are resampled on their own. Of three rounds each, as ``make bench`` has them, the interval is that of all resamples there
    are: between the fastest over the slowest and the slowest over the fastest.

    Args:
        over: seconds of each round.
        under: likewise; the numbers of rounds may differ.
        seed: of the resamples.

    Example:
        >>> print(ratio_of_medians([2.0, 2.0, 2.0], [1.0, 1.0]))
        2.00 [2.00, 2.00]
    """
    random = np.random.default_rng(seed)
    medians = [np.median(random.choice(list(times), (SAMPLES, len(times))), axis=1) for times in (over, under)]
    low, high = np.percentile(medians[0] / medians[1], (2.5, 97.5))
    return Ratio(statistics.median(over) / statistics.median(under), float(low), float(high))

"""Scores of partitions: which voxels belong together. Rand scores and the variation of information.

Every score is a function of two arrays of ids, and, with ``_of``, of the contingency table that blocks add up to. Voxels
that are background (0) in the reference are left out. The scores differ in what background of the prediction is:

    adapted Rand, VOI         one segment like any other
    Rand 2012, V_rand, V_info each voxel a segment of its own
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unet_core.metrics.contingency import Contingency


@dataclass(frozen=True)
class PairScore:
    """A score that counts pairs of voxels.

    Args:
        precision: of the pairs that the prediction keeps together, the share that belongs together (falls with mergers).
        recall: of the pairs that belong together, the share that the prediction keeps together (falls with splits).
        f_score: harmonic mean of both.
    """

    precision: float
    recall: float
    f_score: float

    @property
    def error(self) -> float:
        return 1 - self.f_score


@dataclass(frozen=True)
class PairCounts:
    """Pairs of voxels: together in both, in the prediction, in the reference. Those of several sections add up."""

    both: float
    prediction: float
    reference: float

    def __add__(self, other: PairCounts) -> PairCounts:
        return PairCounts(self.both + other.both, self.prediction + other.prediction, self.reference + other.reference)

    @property
    def score(self) -> PairScore:
        precision, recall = _ratio(self.both, self.prediction), _ratio(self.both, self.reference)
        total = self.prediction + self.reference
        return PairScore(precision, recall, 2 * self.both / total if total else 1.0)


def adapted_rand(prediction: ArrayLike, reference: ArrayLike, ignore: int | None = None) -> PairScore:
    """Adapted Rand score, as in scikit-image's ``adapted_rand_error``: pairs n (n - 1) / 2; ``.error`` is 1 - F.

    scikit-image 0.26 returns precision and recall swapped against its documentation; here they mean what they say.

    Args:
        prediction: ids; background (0) is one segment like any other.
        reference: ids of the same shape; background is left out.
        ignore: value of the reference that is left out too.

    Raises:
        InputError: if shapes differ, or one holds no whole numbers from 0.
    """
    return adapted_rand_of(Contingency.of(prediction, reference, ignore))


def adapted_rand_of(table: Contingency) -> PairScore:
    """``adapted_rand`` of a contingency table."""
    kept = table.on_reference_foreground()
    return PairCounts(_pairs(kept.counts), _pairs(kept.prediction_sums[1]), _pairs(kept.reference_sums[1])).score


def rand_2012(prediction: ArrayLike, reference: ArrayLike, ignore: int | None = None) -> PairScore:
    """Foreground-restricted Rand score of ISBI 2012: pairs n (n - 1) / 2; background voxels of the prediction are in no pair.

    ``metrics.rand_error_2012`` is the challenge's error, over thresholds of a map. Arguments as of ``adapted_rand``.
    """
    return rand_2012_of(Contingency.of(prediction, reference, ignore)).score


def rand_2012_of(table: Contingency) -> PairCounts:
    """The pairs of ``rand_2012`` of a contingency table."""
    kept = table.on_reference_foreground()
    names, sizes, _ = kept.prediction_sums
    return PairCounts(_pairs(kept.counts[kept.prediction != 0]), _pairs(sizes[names != 0]), _pairs(kept.reference_sums[1]))


def v_rand(prediction: ArrayLike, reference: ArrayLike, ignore: int | None = None) -> PairScore:
    """V_rand of Arganda-Carreras et al. 2015 (doi:10.3389/fnana.2015.00142), without thinning: pairs n^2.

    A voxel makes a pair with itself, and each background voxel of the prediction is a segment of its own, so that it adds
    this one pair. ``metrics.v_rand_thinned`` is the challenge's score. Arguments as of ``adapted_rand``.
    """
    return v_rand_of(Contingency.of(prediction, reference, ignore)).score


def v_rand_of(table: Contingency) -> PairCounts:
    """The pairs of ``v_rand`` of a contingency table."""
    kept = table.on_reference_foreground()
    names, sizes, _ = kept.prediction_sums
    single = float(sizes[names == 0].sum())
    return PairCounts(
        _squares(kept.counts[kept.prediction != 0]) + single,
        _squares(sizes[names != 0]) + single,
        _squares(kept.reference_sums[1]),
    )


@dataclass(frozen=True)
class Voi:
    """Variation of information in bits; 0 is best.

    Args:
        split: H(prediction given reference): what the prediction divides that belongs together.
        merge: H(reference given prediction): what it joins that does not.
    """

    split: float
    merge: float

    @property
    def total(self) -> float:
        return self.split + self.merge


def voi(prediction: ArrayLike, reference: ArrayLike, ignore: int | None = None, *, count_background: bool = False) -> Voi:
    """Variation of information (Meila 2003) in bits, as in scikit-image: (split, merge).

    Args:
        prediction: ids; background (0) is one segment like any other.
        reference: ids of the same shape.
        ignore: value of the reference that is left out.
        count_background: take background of the reference as one segment, instead of leaving it out.

    Raises:
        InputError: if shapes differ, or one holds no whole numbers from 0.
    """
    return voi_of(Contingency.of(prediction, reference, ignore), count_background=count_background)


def voi_of(table: Contingency, *, count_background: bool = False) -> Voi:
    """``voi`` of a contingency table; 0 for an empty one."""
    kept = table if count_background else table.on_reference_foreground()
    joint = _entropy(kept.counts, kept.voxels)
    predicted, truth = _entropy(kept.prediction_sums[1], kept.voxels), _entropy(kept.reference_sums[1], kept.voxels)
    return Voi(split=max(0.0, joint - truth) / math.log(2), merge=max(0.0, joint - predicted) / math.log(2))


@dataclass(frozen=True)
class InformationScore:
    """V_info: the share of each partition's entropy that the other explains.

    Args:
        precision: C(T given S) = (H(T) - H(T given S)) / H(T), of reference T and prediction S (falls with mergers).
        recall: C(S given T) = (H(S) - H(S given T)) / H(S) (falls with splits).
        f_score: harmonic mean of both.
    """

    precision: float
    recall: float
    f_score: float


@dataclass(frozen=True)
class Information:
    """Mutual information and entropies in nats, each times the number of voxels, so that those of several sections add up."""

    mutual: float
    prediction: float
    reference: float

    def __add__(self, other: Information) -> Information:
        return Information(self.mutual + other.mutual, self.prediction + other.prediction, self.reference + other.reference)

    @property
    def score(self) -> InformationScore:
        # A partition of one segment has no entropy, so there is nothing of it to explain.
        precision, recall = _ratio(self.mutual, self.reference), _ratio(self.mutual, self.prediction)
        total = precision + recall
        return InformationScore(precision, recall, 2 * precision * recall / total if total else 0.0)


def v_info(prediction: ArrayLike, reference: ArrayLike, ignore: int | None = None) -> InformationScore:
    """V_info of Arganda-Carreras et al. 2015 (doi:10.3389/fnana.2015.00142), without thinning.

    Each background voxel of the prediction is a segment of its own. ``metrics.v_info_thinned`` is the challenge's score.
    Arguments as of ``adapted_rand``.
    """
    return v_info_of(Contingency.of(prediction, reference, ignore)).score


def v_info_of(table: Contingency) -> Information:
    """The information of ``v_info`` of a contingency table."""
    kept = table.on_reference_foreground()
    voxels = kept.voxels
    if not voxels:
        return Information(0.0, 0.0, 0.0)
    names, sizes, _ = kept.prediction_sums
    single = float(sizes[names == 0].sum()) / voxels * math.log(voxels)  # voxels of probability 1 / n each
    truth = _entropy(kept.reference_sums[1], voxels)
    predicted = _entropy(sizes[names != 0], voxels) + single
    joint = _entropy(kept.counts[kept.prediction != 0], voxels) + single
    return Information(max(0.0, truth + predicted - joint) * voxels, predicted * voxels, truth * voxels)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 1.0


def _pairs(counts: NDArray[np.int64]) -> float:
    values = counts.astype(np.float64)  # squares of counts above 3e9 do not fit into 64 bits
    return float((values * (values - 1)).sum() / 2)


def _squares(counts: NDArray[np.int64]) -> float:
    values = counts.astype(np.float64)
    return float((values * values).sum())


def _entropy(counts: NDArray[np.int64], voxels: int) -> float:
    """-sum p log p in nats, of counts among ``voxels``."""
    shares = counts / max(voxels, 1)
    return float(-(shares * np.log(shares)).sum())

"""Scores of objects: which reference instance was found, and how well its outline fits.

Every score is a function of two arrays of ids, and, with ``_of``, of the contingency table that blocks add up to.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unet_core.metrics.contingency import Contingency


@dataclass(frozen=True)
class Seg:
    """SEG of the Cell Tracking Challenge; those of several frames add up, since it is the mean over ALL reference objects.

    Args:
        iou_sum: of the matched pairs.
        references: objects of the reference.
    """

    iou_sum: float
    references: int

    def __add__(self, other: Seg) -> Seg:
        return Seg(self.iou_sum + other.iou_sum, self.references + other.references)

    @property
    def score(self) -> float:
        """NaN without reference objects."""
        return self.iou_sum / self.references if self.references else float("nan")


def seg(prediction: ArrayLike, reference: ArrayLike, ignore: int | None = None) -> Seg:
    """SEG (Ulman et al. 2017): mean over reference objects R of the IoU with the S that covers more than half of R, else 0.

    Objects of the prediction that match nothing are not punished.

    Args:
        prediction: ids; 0 is background.
        reference: ids of the same shape.
        ignore: value of the reference whose voxels are left out, of objects of the prediction too.

    Raises:
        InputError: if shapes differ, or one holds no whole numbers from 0.
    """
    return seg_of(Contingency.of(prediction, reference, ignore))


def seg_of(table: Contingency) -> Seg:
    """``seg`` of a contingency table."""
    pairs = _overlaps(table)
    matched = 2 * pairs.both > pairs.reference
    return Seg(float(pairs.iou[matched].sum()), _object_count(table.reference_sums[0]))


@dataclass(frozen=True)
class PanopticQuality:
    """Panoptic quality and its two factors; those of several images add up.

    Args:
        iou_sum: of the matched pairs.
        true_positives: matched pairs.
        false_positives: objects of the prediction that match nothing.
        false_negatives: objects of the reference that nothing matches.
    """

    iou_sum: float
    true_positives: int
    false_positives: int
    false_negatives: int

    def __add__(self, other: PanopticQuality) -> PanopticQuality:
        return PanopticQuality(
            self.iou_sum + other.iou_sum,
            self.true_positives + other.true_positives,
            self.false_positives + other.false_positives,
            self.false_negatives + other.false_negatives,
        )

    @property
    def pq(self) -> float:
        """Sum of matched IoU / (TP + FP / 2 + FN / 2) = SQ x RQ; NaN without any object."""
        return self.iou_sum / self._weight if self._weight else float("nan")

    @property
    def sq(self) -> float:
        """Segmentation quality: mean IoU of the matched pairs; 0 if there are none, NaN without any object."""
        if not self._weight:
            return float("nan")
        return self.iou_sum / self.true_positives if self.true_positives else 0.0

    @property
    def rq(self) -> float:
        """Recognition quality: TP / (TP + FP / 2 + FN / 2), the F-score of finding objects; NaN without any object."""
        return self.true_positives / self._weight if self._weight else float("nan")

    @property
    def _weight(self) -> float:
        return self.true_positives + (self.false_positives + self.false_negatives) / 2


def panoptic_quality(prediction: ArrayLike, reference: ArrayLike, ignore: int | None = None) -> PanopticQuality:
    """PQ of one class (Kirillov et al. 2019, arXiv:1801.00868): a pair matches if its IoU is above 0.5. Arguments as of ``seg``."""
    return panoptic_quality_of(Contingency.of(prediction, reference, ignore))


def panoptic_quality_of(table: Contingency) -> PanopticQuality:
    """``panoptic_quality`` of a contingency table."""
    pairs = _overlaps(table)
    matched = 2 * pairs.both > pairs.reference + pairs.prediction - pairs.both  # strictly above 0.5, in whole numbers
    found = int(matched.sum())
    return PanopticQuality(
        float(pairs.iou[matched].sum()),
        found,
        _object_count(table.prediction_sums[0]) - found,
        _object_count(table.reference_sums[0]) - found,
    )


@dataclass(frozen=True)
class _Overlaps:
    """Pairs of objects that meet: voxels of both, of the predicted and of the reference object."""

    both: NDArray[np.int64]
    prediction: NDArray[np.int64]
    reference: NDArray[np.int64]

    @property
    def iou(self) -> NDArray[np.float64]:
        return self.both / (self.reference + self.prediction - self.both)


def _overlaps(table: Contingency) -> _Overlaps:
    _, reference_sizes, of_reference = table.reference_sums
    _, prediction_sizes, of_prediction = table.prediction_sums
    objects = (table.reference != 0) & (table.prediction != 0)
    return _Overlaps(table.counts[objects], prediction_sizes[of_prediction[objects]], reference_sizes[of_reference[objects]])


def _object_count(numbers: NDArray[np.uint64]) -> int:
    return int(np.count_nonzero(numbers))

"""Scores of classes and masks: how much of a class was found, and how much of what was found is right.

Every score is a function of two arrays, and, with ``_of``, of the contingency table that blocks add up to.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from unet_core.errors import InputError
from unet_core.metrics.contingency import Contingency


def iou(prediction: ArrayLike, reference: ArrayLike, ignore: int | None = None, label: int | None = None) -> float:
    """Intersection over union J of two masks: TP / (TP + FP + FN); 1.0 if both are empty.

    Args:
        prediction: bool or integers, of any shape.
        reference: of the same shape.
        ignore: value of the reference whose voxels are left out.
        label: the number that is foreground, in both; any but 0 unless told.

    Raises:
        InputError: if shapes differ, or one holds floating-point numbers.
    """
    return iou_of(Contingency.of(prediction, reference, ignore), label)


def dice(prediction: ArrayLike, reference: ArrayLike, ignore: int | None = None, label: int | None = None) -> float:
    """Dice coefficient, or F-score, of two masks: 2 TP / (2 TP + FP + FN) = 2 J / (1 + J). Arguments as of ``iou``."""
    return dice_of(Contingency.of(prediction, reference, ignore), label)


def iou_of(table: Contingency, label: int | None = None) -> float:
    """``iou`` of a contingency table."""
    both = table.count(label, label)
    union = _size(table.prediction, table, label) + _size(table.reference, table, label) - both
    return both / union if union else 1.0


def dice_of(table: Contingency, label: int | None = None) -> float:
    """``dice`` of a contingency table."""
    overlap = iou_of(table, label)
    return 2 * overlap / (1 + overlap)


def _size(numbers: np.ndarray, table: Contingency, label: int | None) -> int:
    return int(table.counts[numbers != 0 if label is None else numbers == label].sum())


@dataclass(frozen=True)
class FcnScores:
    """The four scores of Long, Shelhamer, Darrell 2015 (arXiv:1411.4038, section 5), of n_ij voxels of class i taken for j.

    Args:
        pixel_accuracy: sum_i n_ii / sum_i t_i, with t_i = sum_j n_ij.
        mean_accuracy: mean of n_ii / t_i over the classes that the reference has.
        mean_iu: mean of n_ii / (t_i + sum_j n_ji - n_ii) over the classes that reference or prediction have.
        frequency_weighted_iu: the same, each class weighted by t_i / sum_k t_k.
    """

    pixel_accuracy: float
    mean_accuracy: float
    mean_iu: float
    frequency_weighted_iu: float


def fcn_scores(prediction: ArrayLike, reference: ArrayLike, ignore: int | None = None) -> FcnScores:
    """Pixel accuracy, mean accuracy, mean IU and frequency-weighted IU of two arrays of class numbers; 0 is a class too.

    Raises:
        InputError: if shapes differ, one holds floating-point numbers, or nothing is left to score.
    """
    return fcn_scores_of(Contingency.of(prediction, reference, ignore))


def fcn_scores_of(table: Contingency) -> FcnScores:
    """``fcn_scores`` of a contingency table."""
    if not table.voxels:
        raise InputError(
            "The reference is ignored everywhere, so that there is nothing to score; check the value that is ignored."
        )
    unions = class_iou_of(table)
    classes, sizes, _ = table.reference_sums
    right = np.array([table.count(int(number), int(number)) for number in classes])
    weights = sizes / sizes.sum()
    return FcnScores(
        pixel_accuracy=float(right.sum() / sizes.sum()),
        mean_accuracy=float(np.mean(right / sizes)),
        mean_iu=float(np.mean(list(unions.values()))),
        frequency_weighted_iu=float(sum(weight * unions[int(number)] for number, weight in zip(classes, weights, strict=True))),
    )


def class_iou_of(table: Contingency) -> dict[int, float]:
    """Intersection over union of every class that reference or prediction have, by its number."""
    numbers = np.union1d(table.reference_sums[0], table.prediction_sums[0])
    return {int(number): iou_of(table, int(number)) for number in numbers}

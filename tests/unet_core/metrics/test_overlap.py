"""IoU, Dice and FCN's scores against counting and torchmetrics; the bootstrap against the normal interval."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from unet_core.errors import InputError
from unet_core.metrics import bootstrap_interval, dice, fcn_scores, iou


def test_iou_and_dice_by_counting() -> None:
    random = np.random.default_rng(0)
    a, b = random.random((7, 9)) > 0.5, random.random((7, 9)) > 0.5
    both = sum(bool(x and y) for x, y in zip(a.flat, b.flat, strict=True))
    either = sum(bool(x or y) for x, y in zip(a.flat, b.flat, strict=True))
    assert iou(a, b) == both / either
    assert dice(a, b) == pytest.approx(2 * both / (a.sum() + b.sum()))
    assert iou(np.zeros(3, bool), np.zeros(3, bool)) == 1
    with pytest.raises(InputError, match="must be equal"):
        iou(a, b[:3])
    with pytest.raises(InputError, match="Threshold a map first"):  # every probability above 0 would be foreground
        iou(np.full((7, 9), 0.1), b)


def test_one_class_among_several() -> None:
    prediction, reference = np.array([0, 1, 2, 2, 3]), np.array([0, 1, 2, 1, 255])
    assert iou(prediction, reference, ignore=255, label=2) == 1 / 2
    assert iou(prediction, reference, ignore=255, label=1) == 1 / 2
    assert iou(prediction, reference, ignore=255) == 1
    assert iou(prediction, reference) == 1  # 255 is foreground unless it is ignored


def test_fcn_scores_are_those_of_torchmetrics() -> None:
    random = np.random.default_rng(1)
    reference = random.choice(5, (13, 29), p=[0.5, 0.2, 0.15, 0.1, 0.05])
    prediction = np.where(random.random((13, 29)) < 0.6, reference, random.integers(0, 5, (13, 29)))
    reference[2:4] = 255
    predicted, truth = torch.from_numpy(prediction), torch.from_numpy(reference)
    settings = {"num_classes": 5, "ignore_index": 255}
    scores = fcn_scores(prediction, reference, ignore=255)
    assert scores.pixel_accuracy == pytest.approx(float(MulticlassAccuracy(average="micro", **settings)(predicted, truth)))
    assert scores.mean_accuracy == pytest.approx(float(MulticlassAccuracy(average="macro", **settings)(predicted, truth)))
    assert scores.mean_iu == pytest.approx(float(MulticlassJaccardIndex(average="macro", **settings)(predicted, truth)))
    weighted = float(MulticlassJaccardIndex(average="weighted", **settings)(predicted, truth))
    assert scores.frequency_weighted_iu == pytest.approx(weighted)


def test_classes_that_the_reference_lacks() -> None:
    """A class that nobody has is in no mean; one that is only predicted lowers the mean IU to 0 for it, and no accuracy."""
    scores = fcn_scores(np.array([0, 0, 7, 2]), np.array([0, 0, 2, 2]))
    assert scores.mean_accuracy == (1 + 1 / 2) / 2
    assert scores.mean_iu == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert scores.frequency_weighted_iu == pytest.approx(0.5 * 1 + 0.5 * 1 / 2)


def test_the_bootstrap_interval_is_about_the_normal_one() -> None:
    values = list(np.random.default_rng(0).normal(5, 1, 200))
    low, high = bootstrap_interval(values)
    assert low < np.mean(values) < high
    assert high - low == pytest.approx(2 * 1.96 / np.sqrt(200), rel=0.25)


def test_the_bootstrap_takes_one_resample_at_a_time() -> None:
    values = np.random.default_rng(1).random(1000)
    picks = np.random.default_rng(0).integers(0, 1000, size=(2000, 1000))
    tracemalloc.start()
    found = bootstrap_interval(values)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == tuple(np.quantile(values[picks].mean(axis=1), [0.025, 0.975]))
    assert peak < 1 << 20

"""Scores of voxels, against scipy's entropy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import entropy

from unet_core.corrections.scores import UNIT, differences, entropies


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("classes", [2, 5])
def test_entropy_of_classes_is_scipys(dtype: str, classes: int) -> None:
    logits = np.random.default_rng(classes).normal(0, 3, (classes, 7, 9))
    shares = np.exp(logits) / np.exp(logits).sum(axis=0)
    stored = np.rint(shares * 255).astype(np.uint8) if dtype == "uint8" else shares.astype(np.float32)
    expected = entropy(stored.astype(np.float64), axis=0, base=classes)  # scipy divides by the sum
    np.testing.assert_allclose(entropies(stored, "classes") / UNIT, expected, atol=1 / UNIT)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_entropy_of_regions_is_the_mean_of_their_own(dtype: str) -> None:
    drawn = np.random.default_rng(1).integers(0, 256, (3, 4, 5))
    stored = drawn.astype(np.uint8) if dtype == "uint8" else (drawn / 255).astype(np.float32)
    expected = entropy(np.stack([drawn, 255 - drawn]) / 255, axis=0, base=2).mean(axis=0)
    np.testing.assert_allclose(entropies(stored, "regions") / UNIT, expected, atol=1e-4)


def test_certain_and_undecided_voxels_are_the_ends_of_the_scale() -> None:
    certain, undecided = np.uint8([[255], [0]]), np.full((4, 1), 64, np.uint8)
    assert entropies(certain, "classes").tolist() == [0]
    assert entropies(undecided, "classes").tolist() == [UNIT]
    assert entropies(np.zeros((2, 1), np.uint8), "classes").tolist() == [0]  # nothing was stored there
    assert differences(np.uint8([1, 2]), np.uint8([1, 3])).tolist() == [0, UNIT]

"""Rand scores and VOI against scikit-image, and against loops over all pairs of voxels."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from skimage.metrics import adapted_rand_error, variation_of_information

from tests.unet_core.metrics.partitions import SHAPES, alike, partition
from unet_core.metrics import adapted_rand, rand_2012, v_info, v_rand, voi

HALVES = np.repeat([[1, 1, 2, 2]], 4, axis=0)  # one reference segment of 4 x 4 voxels, cut into two
ONE = np.ones((4, 4), dtype=int)


@pytest.mark.parametrize("shape", SHAPES)
def test_adapted_rand_is_that_of_scikit_image_with_precision_and_recall_the_right_way(shape: tuple[int, ...]) -> None:
    reference = partition(shape, 0)
    prediction = alike(reference, 1)
    error, called_precision, called_recall = adapted_rand_error(reference, prediction)
    score = adapted_rand(prediction, reference)
    assert score.error == pytest.approx(error)
    assert (score.precision, score.recall) == pytest.approx((called_recall, called_precision))
    assert abs(score.precision - score.recall) > 0.01


def test_a_segment_that_is_cut_has_full_precision() -> None:
    score = adapted_rand(HALVES, ONE)
    assert score.error == pytest.approx(0.3636, abs=1e-4)
    assert (score.precision, score.recall) == (1, pytest.approx(0.4667, abs=1e-4))
    merged = adapted_rand(ONE, HALVES)
    assert (merged.precision, merged.recall) == (pytest.approx(0.4667, abs=1e-4), 1)


@pytest.mark.parametrize("shape", SHAPES)
def test_voi_is_that_of_scikit_image(shape: tuple[int, ...]) -> None:
    reference = partition(shape, 2)
    prediction = alike(reference, 3)
    split, merge = variation_of_information(reference, prediction)
    found = voi(prediction, reference, count_background=True)
    assert (found.split, found.merge) == pytest.approx((split, merge))
    split, merge = variation_of_information(reference, prediction, ignore_labels=(0,))
    found = voi(prediction, reference)
    assert (found.split, found.merge) == pytest.approx((split, merge))
    assert found.total == found.split + found.merge


def test_a_cut_is_one_bit_of_split_and_a_merger_one_bit_of_merge() -> None:
    assert (voi(HALVES, ONE).split, voi(HALVES, ONE).merge) == (1, 0)
    assert (voi(ONE, HALVES).split, voi(ONE, HALVES).merge) == (0, 1)


def tiny(seed: int) -> tuple[list[int], list[int]]:
    random = np.random.default_rng(seed)
    return random.integers(0, 4, 23).tolist(), random.integers(0, 4, 23).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_rand_2012_by_a_loop_over_pairs(seed: int) -> None:
    prediction, reference = tiny(seed)
    inside = [k for k in range(23) if reference[k]]
    both = predicted = truth = 0
    for i, j in combinations(inside, 2):
        together = prediction[i] == prediction[j] != 0  # background voxels of the prediction are in no pair
        both += together and reference[i] == reference[j]
        predicted += together
        truth += reference[i] == reference[j]
    score = rand_2012(prediction, reference)
    assert (score.precision, score.recall) == pytest.approx((both / predicted, both / truth))
    assert score.f_score == pytest.approx(2 * both / (predicted + truth))


def singletons(prediction: list[int]) -> list[int]:
    """Background voxels as segments of their own."""
    return [value or 100 + place for place, value in enumerate(prediction)]


@pytest.mark.parametrize("seed", range(5))
def test_v_rand_by_a_loop_over_all_ordered_pairs(seed: int) -> None:
    prediction, reference = tiny(seed)
    own = singletons(prediction)
    inside = [k for k in range(23) if reference[k]]
    pairs = [(own[i] == own[j], reference[i] == reference[j]) for i in inside for j in inside]
    both, predicted, truth = (sum(flags) for flags in zip(*[(a and b, a, b) for a, b in pairs], strict=True))
    score = v_rand(prediction, reference)
    assert (score.precision, score.recall) == pytest.approx((both / predicted, both / truth))
    assert score.f_score == pytest.approx(2 * both / (predicted + truth))


@pytest.mark.parametrize("seed", range(5))
def test_v_info_from_scikit_images_entropies(seed: int) -> None:
    prediction, reference = tiny(seed)
    inside = np.array(reference) != 0
    truth, own = np.array(reference)[inside], np.array(singletons(prediction))[inside]
    _, entropy_truth = (
        variation_of_information(truth, np.ones_like(truth))[0],
        variation_of_information(truth, np.ones_like(truth))[1],
    )
    _, entropy_own = variation_of_information(own, np.ones_like(own))
    own_given_truth, truth_given_own = variation_of_information(truth, own)
    precision = (entropy_truth - truth_given_own) / entropy_truth
    recall = (entropy_own - own_given_truth) / entropy_own
    score = v_info(prediction, reference)
    assert (score.precision, score.recall) == pytest.approx((precision, recall))
    assert score.f_score == pytest.approx(2 * precision * recall / (precision + recall))


def test_background_of_the_prediction_is_one_segment_for_adapted_rand_and_many_for_v_rand() -> None:
    lost = np.zeros((5, 7), dtype=int)
    whole = np.ones((5, 7), dtype=int)
    assert adapted_rand(lost, whole).f_score == 1
    assert rand_2012(lost, whole).f_score == 0
    assert v_rand(lost, whole).f_score == pytest.approx(2 * 35 / (35 + 35**2))


@pytest.mark.parametrize("score", [adapted_rand, rand_2012, v_rand, v_info])
def test_equal_partitions_score_one_whatever_their_numbers(score: object) -> None:
    reference = partition(SHAPES[0], 6)
    found = score(np.where(reference, 1000 - reference, 0), reference)  # type: ignore[operator]
    assert found.f_score == pytest.approx(1)
    background = np.where(reference == 0, 5, reference)  # what is background in the reference does not count
    assert score(background, reference).f_score == pytest.approx(1)  # type: ignore[operator]


def test_counts_of_large_images_do_not_overflow() -> None:
    from unet_core.metrics import Contingency
    from unet_core.metrics.partitions import v_rand_of

    voxels = 10**13
    table = Contingency(*(np.array([1, 2], dtype=np.uint64) for _ in range(2)), np.array([voxels, voxels]))
    assert v_rand_of(table).score.f_score == 1
    assert v_rand_of(table).both == pytest.approx(2e26)

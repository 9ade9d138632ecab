"""Where prediction and reference differ is what a loop over voxels finds; the worst places are those of a search over the whole."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.measure import label

from tests.unet_core.metrics.partitions import alike, blur, partition
from unet_core.evaluation import Evidence, Meaning, MeaningOptions, Pair, gather, pair_of_arrays, score_images
from unet_core.evaluation.table import needs_of
from unet_core.geometry import Box
from unet_core.report import worst
from unet_core.report.differences import Compared
from unet_core.report.worst import WorstCases, worst_places
from unet_core.volumes.array import ArrayVolume

SHAPES = [(41, 57), (5, 23, 31)]


def compared(pair: Pair, metric: str) -> Compared:
    return Compared(pair, gather(pair, needs_of([metric])), metric == "pq")


def fitting(predicted: NDArray[Any], truth: NDArray[Any]) -> set[tuple[int, int]]:
    """Pairs (prediction, reference) of objects that overlap each other most, by counting every pair."""
    overlaps = {
        (found, real): int(np.count_nonzero((predicted == found) & (truth == real)))
        for found in np.unique(predicted[predicted > 0]).tolist()
        for real in np.unique(truth[truth > 0]).tolist()
    }
    return {
        (found, real)
        for (found, real), voxels in overlaps.items()
        if voxels
        and voxels == max(count for pair, count in overlaps.items() if pair[0] == found)
        and voxels == max(count for pair, count in overlaps.items() if pair[1] == real)
    }


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_objects_that_do_not_fit_are_merged_or_split(shape: tuple[int, ...]) -> None:
    truth = partition(shape, 1)
    predicted = alike(truth, 1)
    truth[..., :4] = 999  # is ignored
    pair = pair_of_arrays("a", predicted, truth, Meaning("ids", "ids", MeaningOptions(ignore=999)))
    found = compared(pair, "pq").read(Box.from_shape(shape))
    kept = truth != 999
    fits = fitting(np.where(kept, predicted, 0), np.where(kept, truth, 0))
    assert 3 < len(fits) < 9
    for index in np.ndindex(shape):
        one, other, counts = int(predicted[index]), int(truth[index]), bool(kept[index])
        expected = (
            counts and one > 0 and other == 0,
            counts and one == 0 and other > 0,
            counts and one > 0 and other > 0 and (one, other) not in fits,
            not counts,
            counts and one > 0 and (one, other) in fits,
        )
        masks = (found.false_positive, found.false_negative, found.confused, found.ignored, found.right)
        assert tuple(bool(mask[index]) for mask in masks) == expected
    assert min(mask.sum() for mask in masks) > 10


@pytest.mark.parametrize("instances", ["components", "watershed"])
def test_objects_of_a_map_are_those_that_its_scores_are_made_of(instances: Any) -> None:
    truth = partition((41, 57), 2)
    values = blur(truth, 2)
    options = MeaningOptions(instances=instances, depth=1.0 if instances == "watershed" else None, min_voxels=4)
    pair = pair_of_arrays("a", values, truth, Meaning("map", "ids", options))
    found = compared(pair, "pq").read(Box.from_shape((41, 57)))
    ids = pair.meaning.predicted_instances(values, None)
    np.testing.assert_array_equal(found.prediction, ids)
    known = np.isin(ids.astype(np.int64) * 1000 + truth, [one * 1000 + other for one, other in fitting(ids, truth)])
    np.testing.assert_array_equal(found.confused, (ids > 0) & (truth > 0) & ~known)
    np.testing.assert_array_equal(found.right, known & (ids > 0) & (truth > 0))


def test_classes_are_confused_and_masks_are_not() -> None:
    random = np.random.default_rng(0)
    predicted, truth = (random.integers(0, 4, (23, 31)) for _ in range(2))
    both = (predicted > 0) & (truth > 0)
    classes = compared(pair_of_arrays("a", predicted, truth, Meaning("classes", "classes")), "mean_iu").read(
        Box.from_shape((23, 31))
    )
    np.testing.assert_array_equal(classes.confused, both & (predicted != truth))
    masks = compared(pair_of_arrays("a", predicted, truth, Meaning("mask", "mask")), "iou").read(Box.from_shape((23, 31)))
    assert not masks.confused.any()
    np.testing.assert_array_equal(masks.false_positive, (predicted > 0) & (truth == 0))
    np.testing.assert_array_equal(masks.false_negative, (predicted == 0) & (truth > 0))
    label_2 = Meaning("classes", "classes", MeaningOptions(label=2, invert_reference=False))
    one = compared(pair_of_arrays("a", predicted, truth, label_2), "iou").read(Box.from_shape((23, 31)))
    np.testing.assert_array_equal(one.false_negative, (predicted != 2) & (truth == 2))


@pytest.mark.parametrize("shape", [(150, 170), (4, 150, 170)], ids=str)
def test_the_worst_places_have_the_most_wrong_voxels(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worst, "SIDE", 40)
    monkeypatch.setattr(worst, "_READ_VOXELS", 1000)
    truth = partition(shape, 3, segments=40) > 0
    predicted = np.roll(truth, 2, axis=-1)
    pair = pair_of_arrays("a", predicted, truth, Meaning("mask", "mask"))
    places = worst_places(compared(pair, "iou"), 3)
    wrong = predicted != truth
    starts = [sorted({*range(0, size - 39, 10), size - 40}) for size in shape[-2:]]
    every = [
        int(plane[y : y + 40, x : x + 40].sum()) for plane in wrong.reshape(-1, *shape[-2:]) for y in starts[0] for x in starts[1]
    ]
    assert [place.shape for place in places] == [(1,) * (len(shape) - 2) + (40, 40)] * 3
    counts = [int(wrong[place.slices()].sum()) for place in places]
    assert counts[0] == max(every)
    assert counts == sorted(counts, reverse=True)
    assert all(one.intersect(other).is_empty for one, other in pairwise(places))


def images(count: int, seed: int = 0) -> list[Pair]:
    found = []
    for number in range(count):
        truth = partition((41, 57), seed + number)
        predicted = np.where(np.random.default_rng(number).random(truth.shape) < 0.04 * (number * 7 % count), 0, truth)
        found.append(pair_of_arrays(f"image-{number}", predicted, truth, Meaning("ids", "ids")))
    return found


def collected(pairs: list[Pair], metric: str) -> tuple[WorstCases, list[float]]:
    cases, scores = WorstCases(metric, 4), []

    def look(pair: Pair, evidence: Evidence, row: dict[str, float]) -> None:
        cases.add(pair, evidence, row)
        scores.append(row[cases.value])

    score_images(pairs, (metric,), on_image=look)
    return cases, scores


@pytest.mark.parametrize(("metric", "worst_is"), [("iou", min), ("voi", max), ("adapted_rand", max)])
def test_of_many_images_those_with_the_worst_scores_are_kept(metric: str, worst_is: Any) -> None:
    cases, scores = collected(images(11), metric)
    kept = cases.cases()
    expected = sorted(range(11), key=lambda number: scores[number], reverse=worst_is is max)[:4]
    assert [case.name for case in kept] == [f"image-{number}" for number in expected]
    assert [case.score for case in kept] == [scores[number] for number in expected]
    assert kept[0].score == worst_is(scores)


def test_of_few_images_several_places_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worst, "SIDE", 20)
    cases, scores = collected(images(3, 5), "iou")
    kept = cases.cases()
    order = sorted(range(3), key=lambda number: scores[number])
    assert [case.name for case in kept[:3]] == [f"image-{number}" for number in order]
    assert len(kept) == 4
    assert len({(case.name, case.place) for case in kept}) == 4


def test_an_image_without_a_score_comes_last_and_a_perfect_one_is_shown_too() -> None:
    empty, truth = np.zeros((41, 57), dtype=np.int64), partition((41, 57), 1)
    pairs = [pair_of_arrays(name, truth, other, Meaning("ids", "ids")) for name, other in (("none", empty), ("same", truth))]
    cases, _ = collected(pairs, "adapted_rand")
    first, second = cases.cases()[:2]
    assert (first.name, first.wrong, first.right) == ("same", 0, int((truth > 0).sum()))
    assert (second.name, np.isnan(second.score)) == ("none", True)


def test_panels_show_image_outlines_and_differences() -> None:
    truth = np.zeros((30, 40), dtype=np.uint8)
    truth[5:15, 5:15] = 1
    predicted = np.roll(truth, 3, axis=1)
    image = np.full((1, 30, 40), 80, dtype=np.uint8)
    image[:, 5:15, 5:15] = 200

    bare = pair_of_arrays("a", predicted, truth, Meaning("mask", "mask"))
    for pair, titles in (
        (replace(bare, image=lambda: ArrayVolume(image, "cyx")), ["image", "reference", "prediction", "differences"]),
        (bare, ["reference", "prediction", "differences"]),
        (replace(bare, image=lambda: ArrayVolume(image[:, 1:], "cyx")), ["reference", "prediction", "differences"]),
    ):
        (case, *_) = collected([pair], "iou")[0].cases()
        panels = dict(case.panels)
        assert list(panels) == titles
        np.testing.assert_array_equal(panels["reference"].drawn > 0, (truth > 0) & ~_inner(truth))
        np.testing.assert_array_equal(panels["prediction"].drawn > 0, (predicted > 0) & ~_inner(predicted))
        shown = panels["differences"].flat()
        for color, mask in ((worst.FALSE_POSITIVE, predicted > truth), (worst.FALSE_NEGATIVE, predicted < truth)):
            np.testing.assert_array_equal((shown == list(bytes.fromhex(color[1:]))).all(axis=-1), mask)
        assert (case.false_positive, case.false_negative, case.confused, case.right) == (30, 30, 0, 70)


def _inner(mask: NDArray[Any]) -> NDArray[np.bool_]:
    """Voxels of one object whose four neighbours are its own."""
    inside = np.pad(mask > 0, 1)
    assert label(mask).max() == 1
    return inside[2:, 1:-1] & inside[:-2, 1:-1] & inside[1:-1, 2:] & inside[1:-1, :-2]

"""Scores over thresholds by brute force at each threshold; both pixel errors; thinning."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import label
from skimage.metrics import adapted_rand_error

from tests.unet_core.metrics.partitions import alike, blur, partition
from unet_core.errors import InputError
from unet_core.metrics import (
    pixel_error_fiji,
    pixel_error_max_f,
    rand_error_2012,
    v_info,
    v_info_thinned,
    v_rand,
    v_rand_thinned,
)
from unet_core.metrics.maps import THRESHOLDS, PixelCounts, thin_borders

REFERENCE = partition((41, 53), 0, 9, 0.3)
MAP = blur(REFERENCE, 1)
STACK = np.stack([partition((29, 37), seed, 5 + seed, 0.3) for seed in range(3)])
STACK_MAP = np.stack([blur(alike(section, seed), seed) for seed, section in enumerate(STACK)])


def test_the_two_pixel_errors_are_two_numbers() -> None:
    cuts = [np.float32(level) < MAP for level in THRESHOLDS]
    f_scores = [2 * (cut & (REFERENCE > 0)).sum() / (cut.sum() + (REFERENCE > 0).sum()) for cut in cuts]
    assert pixel_error_max_f(MAP, REFERENCE) == pytest.approx(1 - max(f_scores))
    wrong = ((MAP > 0.5).astype(float) - (REFERENCE > 0)) ** 2
    assert pixel_error_fiji(MAP, REFERENCE) == pytest.approx(wrong.mean())
    assert pixel_error_fiji(MAP, REFERENCE, threshold=0.3) == pytest.approx(((MAP > 0.3) ^ (REFERENCE > 0)).mean())
    assert abs(pixel_error_fiji(MAP, REFERENCE) - pixel_error_max_f(MAP, REFERENCE)) > 0.01


def test_maps_in_bytes_are_cut_where_their_fractions_are() -> None:
    stored = np.round(MAP * 255).astype(np.uint8)
    for threshold in (0.0, 0.2, 0.5, 0.9):
        expected = np.mean((stored > threshold * 255) ^ (REFERENCE > 0))  # 0.2 * 255 = 51 exactly: above, not at it
        assert pixel_error_fiji(stored, REFERENCE, threshold=threshold) == pytest.approx(expected)


def test_parts_of_an_image_add_up() -> None:
    whole = PixelCounts.of(MAP, REFERENCE, THRESHOLDS, ignore=3)
    parts = [PixelCounts.of(MAP[a:b], REFERENCE[a:b], THRESHOLDS, ignore=3) for a, b in ((0, 7), (7, 30), (30, 41))]
    total = parts[0] + parts[1] + parts[2]
    assert (total.max_f_error, total.squared_difference) == (whole.max_f_error, whole.squared_difference)
    kept = REFERENCE != 3
    assert whole.max_f_error == pixel_error_max_f(MAP[kept], REFERENCE[kept])


def pair_f_score(prediction: np.ndarray, reference: np.ndarray) -> float:
    """The Rand F-score of 2012 by scikit-image: background of the prediction in segments of one voxel, which make no pairs."""
    alone = np.arange(prediction.size).reshape(prediction.shape) + prediction.max() + 1
    return 1 - adapted_rand_error(reference, np.where(prediction, prediction, alone))[0]


def test_rand_error_2012_is_the_best_of_all_thresholds_on_4_connected_components() -> None:
    truth = label(REFERENCE > 0, connectivity=1)
    scores = [pair_f_score(label(np.float32(level) < MAP, connectivity=1), truth) for level in THRESHOLDS]
    assert rand_error_2012(MAP, REFERENCE) == pytest.approx(1 - max(scores))
    diagonal = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]])
    assert rand_error_2012(diagonal.astype(bool), diagonal) == 0
    joined = diagonal.copy()
    joined[1, 2] = 1  # now one component: 8 of 9 pixels are truth, 28 pairs, of which 6 + 6 are right
    assert rand_error_2012(joined.astype(bool), diagonal) == pytest.approx(1 - 2 * 12 / (28 + 12))


@pytest.mark.parametrize(("thinned", "score"), [(v_rand_thinned, v_rand), (v_info_thinned, v_info)])
def test_thinned_scores_are_the_best_of_all_thresholds(thinned: object, score: object) -> None:
    by_section = [
        [score(thin_borders(values > np.float32(level)), label(section > 0, connectivity=1)).f_score for level in THRESHOLDS]  # type: ignore[operator]
        for section, values in zip(STACK, STACK_MAP, strict=True)
    ]
    macro = np.max(np.mean(by_section, axis=0))
    assert thinned(STACK_MAP, STACK) == pytest.approx(macro)  # type: ignore[operator]
    micro = thinned(STACK_MAP, STACK, average="micro")  # type: ignore[operator]
    assert micro != pytest.approx(macro)
    assert 0 < micro <= max(map(max, by_section))


def test_micro_v_rand_adds_up_the_pairs_of_the_sections() -> None:
    """Which is the score of one section that holds all of them side by side, background between, up to the pairs' weights."""
    both = predicted = truth = 0.0
    for section, values in zip(STACK, STACK_MAP, strict=True):
        found = v_rand(thin_borders(values > 0.5), label(section > 0, connectivity=1))
        sizes = np.bincount(label(section > 0, connectivity=1).ravel())[1:]
        both += found.recall * (sizes**2).sum()
        predicted += found.recall * (sizes**2).sum() / found.precision
        truth += (sizes**2).sum()
    assert v_rand_thinned(STACK_MAP, STACK, thresholds=(0.5,), average="micro") == pytest.approx(2 * both / (predicted + truth))


def test_thinned_borders_are_lines_between_the_components_that_were() -> None:
    foreground = MAP > 0.6
    components, thin = label(foreground, connectivity=1), thin_borders(foreground)
    assert thin.max() == components.max()
    assert (np.unique(np.stack([components[foreground], thin[foreground]]), axis=1).shape[1]) == components.max()
    for first, second in ((thin[1:], thin[:-1]), (thin[:, 1:], thin[:, :-1])):  # 4-neighbours are of one segment or of a line
        assert not ((first != second) & (first > 0) & (second > 0)).any()
    near = ndimage.generate_binary_structure(2, 1)
    largest = ndimage.maximum_filter(thin, footprint=near)
    smallest = ndimage.minimum_filter(np.where(thin == 0, thin.max() + 1, thin), footprint=near)
    assert (smallest[thin == 0] < largest[thin == 0]).mean() > 0.9  # the rest are crossings
    assert not thin_borders(np.zeros((5, 7), dtype=bool)).any()


def test_thick_borders_cost_v_rand_only_where_they_are_not_thinned() -> None:
    cells = np.ones((31, 41), dtype=int)
    cells[:, 20] = 0
    thick = cells.astype(bool).copy()
    thick[:, 17:24] = False
    assert v_rand_thinned(thick, cells) == pytest.approx(1)
    assert v_rand(label(thick, connectivity=1), label(cells, connectivity=1)).f_score < 0.95


def test_ignored_pixels_are_in_no_score() -> None:
    marked, damaged = REFERENCE.copy(), MAP.copy()
    marked[:, :9] = 255
    damaged[:, :8] = 0.3
    for score in (pixel_error_max_f, pixel_error_fiji, rand_error_2012):
        assert score(damaged, marked, ignore=255) == pytest.approx(score(MAP[:, 9:], REFERENCE[:, 9:]), abs=0.05)
        assert score(damaged, marked, ignore=255) != score(damaged, marked)


def test_what_is_no_map_is_refused() -> None:
    with pytest.raises(InputError, match="values from 0 to 37"):
        pixel_error_max_f(np.array([[0.0, 37.0]]), np.array([[0, 1]]))
    with pytest.raises(InputError, match="type int64"):
        rand_error_2012(np.zeros((3, 3), int), np.ones((3, 3), int))
    with pytest.raises(InputError, match="must be equal"):
        v_rand_thinned(np.zeros((3, 3)), np.ones((3, 4), int))
    with pytest.raises(InputError, match="ascending"):
        pixel_error_max_f(np.zeros((3, 3)), np.ones((3, 3), int), thresholds=(0.5, 0.1))
    with pytest.raises(InputError, match="4 dimensions"):
        v_rand_thinned(np.zeros((1, 1, 3, 3)), np.ones((1, 1, 3, 3), int))
    assert np.isnan(v_rand_thinned(np.zeros((3, 3)), np.zeros((3, 3), int)))

"""Tables of parts of an image add up to the table of the whole, and so do all scores that come from them."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unet_core.metrics.partitions import SHAPES, alike, partition
from unet_core.errors import InputError
from unet_core.metrics import Contingency
from unet_core.metrics.objects import panoptic_quality_of, seg_of
from unet_core.metrics.overlap import dice_of, fcn_scores_of, iou_of
from unet_core.metrics.partitions import adapted_rand_of, rand_2012_of, v_info_of, v_rand_of, voi_of

SCORES = (
    iou_of,
    dice_of,
    fcn_scores_of,
    adapted_rand_of,
    rand_2012_of,
    v_rand_of,
    v_info_of,
    voi_of,
    seg_of,
    panoptic_quality_of,
)


@pytest.mark.parametrize("top", [3, 2**20, 2**40, 2**64 - 1])
def test_pairs_are_counted_as_a_loop_counts_them(top: int) -> None:
    random = np.random.default_rng(0)
    names = np.array([0, 1, 2, top], dtype=np.uint64)
    prediction, reference = random.choice(names, (5, 7, 11)), random.choice(names, (5, 7, 11))
    table = Contingency.of(prediction, reference)
    counted = Counter(zip(reference.ravel().tolist(), prediction.ravel().tolist(), strict=True))
    keys = list(zip(table.reference.tolist(), table.prediction.tolist(), strict=True))
    assert dict(zip(keys, table.counts.tolist(), strict=True)) == dict(counted)
    assert keys == sorted(counted)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), cuts=st.lists(st.integers(0, 46), max_size=4), more=st.lists(st.integers(0, 32), max_size=3))
def test_any_cut_gives_every_score_of_the_whole_to_the_bit(seed: int, cuts: list[int], more: list[int]) -> None:
    ids = partition(SHAPES[0], seed)
    reference = np.where(ids == 2, np.uint64(2**64 - 1), ids.astype(np.uint64))
    prediction = alike(ids, seed)
    rows, columns = sorted({0, 33, *more}), sorted({0, 47, *cuts})
    tables = [
        Contingency.of(prediction[a:b, c:d], reference[a:b, c:d], ignore=6)
        for a, b in pairwise(rows)
        for c, d in pairwise(columns)
    ]
    order = np.random.default_rng(seed).permutation(len(tables))
    whole, merged = Contingency.of(prediction, reference, ignore=6), Contingency.merge(tables[k] for k in order)
    for name in ("prediction", "reference", "counts"):
        np.testing.assert_array_equal(getattr(merged, name), getattr(whole, name))
    assert 6 not in whole.reference
    for score in SCORES:
        assert score(merged) == score(whole)


def test_ignored_voxels_change_no_score() -> None:
    reference = partition(SHAPES[1], 4)
    prediction = alike(reference, 4)
    left_out = partition(SHAPES[1], 5) == 7
    marked = np.where(left_out, -1, reference)
    for score in SCORES:
        kept = score(Contingency.of(prediction[~left_out], reference[~left_out]))
        assert score(Contingency.of(prediction, marked, ignore=-1)) == kept
        assert score(Contingency.of(np.where(left_out, 1234, prediction), marked, ignore=-1)) == kept


def test_bad_arrays_are_refused_with_both_values() -> None:
    with pytest.raises(InputError, match=r"shape \(3, 4\) and reference \(4, 3\)"):
        Contingency.of(np.zeros((3, 4), int), np.zeros((4, 3), int))
    with pytest.raises(InputError, match="type float64; classes and instances are whole numbers"):
        Contingency.of(np.zeros(3), np.zeros(3, int))
    with pytest.raises(InputError, match="reference holds -1; numbers begin at 0"):
        Contingency.of(np.zeros(3, int), np.full(3, -1))


def test_tables_of_nothing_have_scores() -> None:
    nothing = Contingency.of(np.zeros((0, 4), int), np.zeros((0, 4), int))
    assert Contingency.merge([]).voxels == nothing.voxels == 0
    assert iou_of(nothing) == adapted_rand_of(nothing).f_score == 1
    assert voi_of(nothing).total == 0
    assert np.isnan(seg_of(nothing).score)
    with pytest.raises(InputError, match="nothing to score"):
        fcn_scores_of(nothing)

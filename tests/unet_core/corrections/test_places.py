"""Places are chosen as a person would with all sums before her eyes, whatever the blocks the scores came in."""

from __future__ import annotations

from itertools import product
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_core.corrections.places import Places
from unet_core.geometry import BlockGrid, Box


@st.composite
def images(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, ...], tuple[int, ...]]:
    """Scores, size of the boxes, and blocks that the scores are added in."""
    dims = draw(st.integers(2, 3))
    shape = tuple(draw(st.integers(1, 23 if dims == 2 else 9)) for _ in range(dims))
    size = tuple(draw(st.integers(1, extent)) for extent in shape)
    blocks = tuple(draw(st.integers(1, extent)) for extent in shape)
    scores = np.random.default_rng(draw(st.integers(0, 99))).integers(0, draw(st.sampled_from([3, 65536])), shape)
    return scores, size, blocks


def filled(scores: np.ndarray, size: tuple[int, ...], blocks: tuple[int, ...]) -> Places:
    places = Places(scores.shape, size)
    for box in BlockGrid(scores.shape, blocks).blocks():
        places.add(box, scores[box.slices()])
    return places


def every(starts: tuple[np.ndarray, ...]) -> np.ndarray:
    return np.ones(tuple(map(len, starts)), dtype=bool)


@given(images())
@settings(max_examples=60)
def test_sums_are_those_of_the_whole_array_whatever_the_blocks(image) -> None:
    scores, size, blocks = image
    places = filled(scores, size, blocks)
    for starts in places.ladder:
        totals = places.totals(starts)
        for place, start in zip(np.ndindex(totals.shape), product(*starts), strict=True):
            assert totals[place] == scores[Box.from_shape(size, tuple(map(int, start))).slices()].sum()


@given(images(), st.integers(1, 6))
@settings(max_examples=60)
def test_the_best_that_do_not_overlap_are_taken_in_their_order(image, count: int) -> None:
    """Against a loop over all places of the finest step at which so many fit."""
    scores, size, blocks = image
    places = filled(scores, size, blocks)
    chosen = places.choose(count, places.totals, every, [])

    def greedy(starts) -> list[Box]:
        left = [Box.from_shape(size, tuple(map(int, start))) for start in product(*starts)]
        found: list[Box] = []
        while left and len(found) < count:
            best = max(left, key=lambda box: int(scores[box.slices()].sum()))  # the first of equal ones
            found.append(best)
            left = [box for box in left if box.intersect(best).is_empty]
        return found

    tried = [greedy(starts) for starts in places.ladder]
    enough = [found for found in tried if len(found) == count]
    assert chosen == (enough[0] if enough else max(tried, key=len))
    assert len(chosen) >= min(count, prod(extent // side for extent, side in zip(scores.shape, size, strict=True)))


def test_no_box_overlaps_what_is_taken_or_lies_where_it_is_not_allowed() -> None:
    places = Places((100, 90), (20, 20))
    places.add(Box.from_shape((100, 90)), np.ones((100, 90), dtype=np.int64))
    taken = [Box((0, 0), (31, 90)), Box((95, 0), (100, 5))]

    def right(starts) -> np.ndarray:
        return np.broadcast_to(starts[1] >= 40, tuple(map(len, starts)))

    chosen = places.choose(99, places.totals, right, taken)
    assert len(chosen) == 6
    assert all(box.start[1] >= 40 for box in chosen)
    assert all(box.intersect(other).is_empty for box in chosen for other in taken)


def test_boxes_begin_at_quarters_of_their_size_and_reach_the_end_of_the_image() -> None:
    places = Places((1000, 256), (256, 256))
    assert places.ladder[0][0].tolist() == [*range(0, 745, 64), 744]
    assert places.ladder[0][1].tolist() == [0]


def test_an_image_of_many_small_boxes_is_looked_at_in_whole_steps() -> None:
    places = Places((40_000, 40_000), (32, 32))
    assert places.sums.size < 2_000_000
    assert places.ladder[0][0][1] == 32


@pytest.mark.parametrize("count", [3, 4])
def test_where_quarters_leave_gaps_boxes_lie_side_by_side(count: int) -> None:
    """The best box lies in the middle, and no other fits beside it; four do fit."""
    scores = np.zeros((512, 512), dtype=np.int64)
    scores[128:384, 128:384] = 5
    places = filled(scores, (256, 256), (512, 512))
    assert places.choose(1, places.totals, every, []) == [Box((128, 128), (384, 384))]
    chosen = places.choose(count, places.totals, every, [])
    assert len(chosen) == count

"""Watersheds in blocks against those of the whole array."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.unet_core.postprocess.cells import touching_cells
from tests.unet_core.postprocess.test_watershed import classes, landscape
from unet_core.geometry import BlockGrid
from unet_core.metrics import adapted_rand, panoptic_quality
from unet_core.postprocess import ascent, blockwise_watershed, divide
from unet_core.postprocess.blockwise_watershed import describe_hills, land_box
from unet_core.postprocess.distance import distance_within
from unet_core.postprocess.joining import Joiner


def in_blocks(
    labels: np.ndarray, heights: np.ndarray, block: tuple[int, ...], depth: float, connectivity: int = 1, ahead: int = 1
) -> np.ndarray:
    grid = BlockGrid(labels.shape, block)
    joiner, runs = Joiner(grid, depth), {}
    for number in np.random.default_rng(0).permutation(grid.block_count).tolist():
        own = grid.block(number)
        land = land_box(own, labels.shape, ahead).slices()
        runs[number], described = describe_hills(
            np.ascontiguousarray(labels[land]),
            np.ascontiguousarray(heights[land]),
            own,
            labels.shape,
            depth=depth,
            connectivity=connectivity,
            ahead=ahead,
        )
        joiner.add(number, described)
    joined = joiner.join()
    result = np.zeros(labels.shape, dtype=np.int64)
    for number, own in enumerate(grid.blocks()):
        result[own.slices()] = runs[number].replaced(np.concatenate(([0], joined.ids_of(number))), own.shape)
    np.testing.assert_array_equal(joined.sizes, np.bincount(result.ravel())[1:])
    for number in range(1, len(joined.values) + 1):
        assert set(labels[result == number]) == {joined.values[number - 1]}
    return result


CUTS = [((11, 17), [(3, 4), (1, 1), (11, 2)]), ((5, 6, 7), [(2, 3, 4), (5, 1, 7), (1, 2, 3)])]


@pytest.mark.parametrize("kind", ["noise", "steps", "distance"])
@pytest.mark.parametrize(("shape", "blocks"), CUTS, ids=str)
def test_any_blocks_that_look_any_way_ahead_give_the_hills_of_the_whole(
    kind: str, shape: tuple[int, ...], blocks: list[tuple[int, ...]]
) -> None:
    random = np.random.default_rng(3)
    for seed in range(4):
        labels = classes(shape, seed)
        heights = landscape(kind, labels, seed)
        depth, connectivity = float(random.choice([0.1, 0.4, 1.0, 2.0])), int(random.integers(1, len(shape) + 1))
        expected = divide(labels, heights, depth, connectivity)
        for block in blocks:
            ahead = int(random.integers(1, 4))
            np.testing.assert_array_equal(in_blocks(labels, heights, block, depth, connectivity, ahead), expected)


@pytest.mark.parametrize(
    ("shape", "blocks"), [((130, 170), [(32, 32), (64, 24), (130, 57)]), ((30, 41, 53), [(16, 16, 16), (8, 32, 24), (30, 41, 7)])]
)
def test_cells_that_touch_are_divided_in_blocks_as_in_the_whole(shape: tuple[int, ...], blocks: list[tuple[int, ...]]) -> None:
    cells = touching_cells(shape, seed=2)
    labels = cells.mask.astype(np.uint8)
    away = distance_within(labels, 32.0, (1.0,) * len(shape))
    for heights, depth in ((away, 1.0), (cells.learnt_distance, 0.2), (cells.foreground_map, 0.1)):
        whole = divide(labels, heights, depth)
        assert panoptic_quality(whole, cells.ids).pq > 0.8
        for block in blocks:
            found = in_blocks(labels, heights, block, depth, ahead=4)
            assert adapted_rand(found, whole).error == 0
            assert panoptic_quality(found, whole).pq == 1
            np.testing.assert_array_equal(found, whole)


def _all_known(*arguments: Any, **named: Any) -> ascent.Hills:
    hills = ascent.climb(*arguments, **named)
    return ascent.Hills(hills.of, hills.tops, np.zeros_like(hills.is_open))


def _join_unseen(passes: Any, tops: Any, depth: float, is_open: Any, is_seen: Any) -> Any:
    return TRUE_MERGE(passes, tops, depth, is_open, np.zeros_like(is_seen))


def _no_passes(*arguments: Any) -> Any:
    return tuple(values[:0] for values in TRUE_PASSES(*arguments))


TRUE_MERGE, TRUE_PASSES = blockwise_watershed.merge_low, blockwise_watershed._passes


@pytest.mark.parametrize(("name", "mutant"), [("climb", _all_known), ("merge_low", _join_unseen), ("_passes", _no_passes)])
def test_blocks_would_differ_from_the_whole_without(
    name: str, mutant: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hills being open, hills staying apart from what nobody is told of, and passes."""
    monkeypatch.setattr(blockwise_watershed, name, mutant)
    differing = 0
    for seed in range(20):
        labels = classes((11, 17), seed)
        heights = landscape("steps", labels, seed)
        differing += (in_blocks(labels, heights, (3, 4), 1.0) != divide(labels, heights, 1.0)).any()
    assert differing

"""Components in blocks against scikit-image's of the whole array."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import label

from unet_core.geometry import BlockGrid
from unet_core.postprocess import block_parts
from unet_core.postprocess.block_parts import Runs, describe_parts, seen_box
from unet_core.postprocess.blockwise import label_parts
from unet_core.postprocess.joining import Joiner

SHAPES = [((37, 53), (16, 16)), ((37, 53), (37, 7)), ((40, 64), (8, 64)), ((19, 23, 31), (8, 8, 8)), ((9, 23, 31), (9, 5, 16))]


def classes(shape: tuple[int, ...], seed: int, values: int = 3, smooth: float = 0.9) -> np.ndarray:
    """Blobs of a few classes, many of them touching the next across edges and corners."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), smooth)
    return np.digitize(noise, np.quantile(noise, np.linspace(0.4, 1, values)[:-1])).astype(np.uint8)


def blockwise_instances(labels: np.ndarray, block: tuple[int, ...], connectivity: int, min_voxels: int = 0) -> np.ndarray:
    grid = BlockGrid(labels.shape, block)
    joiner, runs = Joiner(grid), {}
    for number in np.random.default_rng(0).permutation(grid.block_count).tolist():
        own = grid.block(number)
        seen = labels[seen_box(own, labels.shape).slices()]
        runs[number], parts = describe_parts(seen, label_parts(seen, connectivity), own, labels.shape)
        joiner.add(number, parts)
    joined = joiner.join(min_voxels)
    result = np.zeros(labels.shape, dtype=np.uint64)
    for number, own in enumerate(grid.blocks()):
        result[own.slices()] = runs[number].replaced(np.concatenate(([0], joined.ids_of(number))), own.shape)
    np.testing.assert_array_equal(joined.sizes, np.bincount(result.ravel().astype(np.int64))[1:])
    for number in range(1, len(joined.values) + 1):
        assert set(labels[result == number]) == {joined.values[number - 1]}
    return result


@pytest.mark.parametrize(
    ("shape", "block", "connectivity"), [(*shapes, steps) for shapes in SHAPES for steps in range(1, len(shapes[0]) + 1)]
)
def test_any_blocks_give_the_numbers_of_scikit_image(shape: tuple[int, ...], block: tuple[int, ...], connectivity: int) -> None:
    for seed, smooth in enumerate((0.5, 0.9, 2.0)):
        labels = classes(shape, seed, smooth=smooth)
        expected = label(labels, background=0, connectivity=connectivity)
        np.testing.assert_array_equal(blockwise_instances(labels, block, connectivity), expected)


@pytest.mark.parametrize("block", [(5, 7), (1, 1), (64, 64)])
def test_a_spiral_through_all_blocks_is_one(block: tuple[int, ...]) -> None:
    spiral = np.zeros((41, 43), dtype=np.uint8)
    top, left, bottom, right = 0, 0, 40, 42
    while top <= bottom and left <= right:
        spiral[top, left : right + 1] = 1
        spiral[top : bottom + 1, right] = 1
        spiral[bottom, left + 2 : right + 1] = 1
        spiral[top + 2 : bottom + 1, left + 2] = 1
        spiral[top + 2, left + 2 : left + 3] = 1
        top, left, bottom, right = top + 2, left + 2, bottom - 2, right - 2
    expected = label(spiral, connectivity=1)
    np.testing.assert_array_equal(blockwise_instances(spiral, block, 1), expected)
    assert expected.max() < 4


@pytest.mark.parametrize("at_once", [1, 40, 10**6])
@pytest.mark.parametrize("shape", [(11, 13), (5, 7, 9), (1, 64)])
def test_runs_are_the_longest_whatever_is_looked_at_at_once(
    at_once: int, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_parts, "_AT_ONCE", at_once)
    parts = classes((*shape[:-1], shape[-1] + 1), 1).astype(np.uint32)[..., :-1]  # not one piece of memory
    runs = Runs.of(parts)
    expected = [(len(list(run)), part) for part, run in groupby(parts.ravel().tolist())]
    assert list(zip(runs.lengths.tolist(), runs.parts.tolist(), strict=True)) == expected
    np.testing.assert_array_equal(runs.replaced(np.array([0, 5, 7, 9]), shape), np.array([0, 5, 7, 9])[parts])


def test_small_instances_are_left_out_by_their_whole_size() -> None:
    labels = classes((37, 53), 4)
    expected = label(labels, background=0, connectivity=1)
    sizes = np.bincount(expected.ravel())
    kept = np.where(sizes[expected] >= 9, expected, 0)
    _, ranks = np.unique(kept, return_inverse=True)
    np.testing.assert_array_equal(blockwise_instances(labels, (8, 16), 1, min_voxels=9), ranks.reshape(labels.shape))
    assert 0 < ranks.max() < expected.max()


def test_without_edges_and_corners_components_would_fall_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Faces alone do not join what touches at the corner of four blocks."""
    labels = np.zeros((8, 8), dtype=np.uint8)
    labels[3, 3], labels[4, 4] = 1, 1
    assert blockwise_instances(labels, (4, 4), 2).max() == 1
    true = block_parts._shared_steps
    monkeypatch.setattr(block_parts, "_shared_steps", lambda *arguments: [one for one in true(*arguments) if sum(one[0]) < 2])
    assert blockwise_instances(labels, (4, 4), 2).max() == 2


def test_nothing_has_no_instances() -> None:
    assert blockwise_instances(np.zeros((9, 9), dtype=np.uint8), (4, 4), 1).max() == 0

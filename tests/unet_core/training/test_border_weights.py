"""Border weights against equation 2 by brute force, whole and cut anywhere; separation and class weights."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from unet_core.errors import InputError
from unet_core.geometry import BlockGrid, Box
from unet_core.training import cell_distances
from unet_core.training.border_weights import NEGLIGIBLE, border_weights, border_weights_of_box, reach
from unet_core.training.class_weights import class_weights
from unet_core.training.separation import separate_touching


def equation_2(instances, w0, sigma, spacing) -> NDArray[np.float64]:
    """Voxel by voxel, from the list of voxels of every cell."""
    cells = [np.argwhere(instances == number) * spacing for number in np.unique(instances[instances > 0])]
    weights = np.zeros(instances.shape)
    for voxel in np.argwhere(instances == 0):
        d1, d2, *_ = sorted(np.sqrt(((cell - voxel * spacing) ** 2).sum(axis=1)).min() for cell in cells)
        weights[tuple(voxel)] = w0 * np.exp(-((d1 + d2) ** 2) / (2 * sigma**2))
    return weights


def blobs(shape, count, seed=0, radius=4.0) -> NDArray[np.int64]:
    """Balls with ids that are not consecutive, some cut by others; an ignored corner."""
    random = np.random.default_rng(seed)
    grid = np.stack(np.mgrid[tuple(slice(0, size) for size in shape)], axis=-1)
    instances = np.zeros(shape, dtype=np.int64)
    for number in range(count):
        centre = random.uniform(0, shape)
        instances[((grid - centre) ** 2).sum(axis=-1) < random.uniform(1, radius) ** 2] = 3 * number + 2
    instances[tuple(slice(0, size // 4) for size in shape)] = -1
    return instances


def by_windows(numbers, farthest, spacing):
    return cell_distances._by_windows(numbers, cell_distances._windows(numbers, farthest, spacing), spacing)


CASES = [((23, 31), 6, None), ((23, 31), 6, (2.0, 0.5)), ((9, 14, 17), 5, None), ((9, 14, 17), 7, (4.0, 1.0, 2.0))]


@pytest.mark.parametrize(("shape", "count", "voxel_size"), CASES)
def test_weights_are_equation_2_by_brute_force_to_a_millionth(shape, count, voxel_size) -> None:
    instances, w0, sigma = blobs(shape, count), 10.0, 2.5
    spacing = np.ones(len(shape)) if voxel_size is None else np.array(voxel_size) / voxel_size[-1]
    found = border_weights(instances, w0, sigma, voxel_size)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, equation_2(instances, w0, sigma, spacing), atol=1.01 * NEGLIGIBLE * w0, rtol=1e-5)
    assert found.max() > 0.5
    assert not found[instances != 0].any()


@pytest.mark.parametrize(("shape", "count", "voxel_size"), CASES)
def test_both_ways_to_the_second_nearest_cell_agree(shape, count, voxel_size) -> None:
    numbers, found = cell_distances.consecutive(blobs(shape, 3 * count, radius=2.5))
    assert set(np.unique(numbers)) == set(range(found + 1))
    spacing, farthest = voxel_size or (1.0,) * len(shape), 9.0
    first, second = by_windows(numbers, farthest, spacing)
    other_first, other_second = cell_distances._by_digits(numbers, found, spacing)
    near = first + second <= farthest
    np.testing.assert_array_equal(near[numbers == 0], (other_first + other_second <= farthest)[numbers == 0])
    near &= numbers == 0
    assert near.any()
    np.testing.assert_allclose(first[near], other_first[near], rtol=1e-6)
    np.testing.assert_allclose(second[near], other_second[near], rtol=1e-6)


def test_a_few_cells_that_wind_through_everything_are_done_by_digits(monkeypatch) -> None:
    instances = np.zeros((40, 600), dtype=np.int64)
    instances[:, ::2] = np.arange(1, 301)
    instances[0] = 0
    expected = by_windows(instances.astype(np.int32), 5.0, (1.0, 1.0))
    monkeypatch.setattr(cell_distances, "DENSE", 0)
    first, second = cell_distances.two_nearest(instances, 5.0, (1.0, 1.0))
    outside = instances == 0
    np.testing.assert_array_equal(first[outside], expected[0][outside])
    np.testing.assert_array_equal(second[outside], expected[1][outside])


@pytest.mark.parametrize(("shape", "block", "voxel_size"), [((67, 90), (17, 33), None), ((20, 33, 41), (7, 33, 15), (3.0, 1, 1))])
def test_any_cut_gives_the_weights_of_the_whole(shape, block, voxel_size) -> None:
    instances, sigma = blobs(shape, 25, radius=8), 1.7
    bounds = Box.from_shape(shape, (5,) * len(shape))
    read_boxes = []

    def read(box: Box):
        assert bounds.contains(box)
        read_boxes.append(box)
        return instances[box.shift((-5,) * box.ndim).slices()]

    whole = border_weights(instances, 7.0, sigma, voxel_size)
    assert (whole > 0.1).sum() > 100
    for local in BlockGrid(shape, block).blocks():
        box = local.shift(bounds.start)
        np.testing.assert_array_equal(border_weights_of_box(read, bounds, box, 7.0, sigma, voxel_size), whole[local.slices()])
    assert len({box.shape for box in read_boxes}) > 1


def test_less_than_the_reach_changes_weights(monkeypatch) -> None:
    """The reach is needed: what is read one third less far gives another map."""
    instances = np.zeros((1, 60), dtype=np.int64)
    instances[0, 0], instances[0, 22] = 1, 2
    bounds, box, sigma = Box.from_shape(instances.shape), Box((0, 21), (1, 40)), 4.4  # d1 + d2 = 22 at position 21 of S = 23.1
    assert reach(sigma, 2) == (23, 23)
    whole = border_weights(instances, 1.0, sigma)
    assert whole[0, 21] > 0
    read = lambda wanted: instances[wanted.slices()]  # noqa: E731
    np.testing.assert_array_equal(border_weights_of_box(read, bounds, box, 1.0, sigma), whole[box.slices()])
    monkeypatch.setattr("unet_core.training.border_weights.reach", lambda *_: (15, 15))
    assert (border_weights_of_box(read, bounds, box, 1.0, sigma) != whole[box.slices()]).any()


@pytest.mark.parametrize("instances", [np.zeros((5, 7), int), np.full((5, 7), -1), np.full((5, 7), 9), np.eye(5, 7, dtype=int)])
def test_fewer_than_two_cells_have_no_border(instances) -> None:
    assert not border_weights(instances, 10, 5).any()


def test_ids_of_64_bits_cost_no_memory() -> None:
    instances = blobs((40, 50), 9)
    large = np.where(instances > 0, instances + 2**60, instances)
    np.testing.assert_array_equal(border_weights(large, 10, 3), border_weights(instances, 10, 3))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((10, 0), "sigma 0"), ((-1, 5), "w0 -1"), ((1, 5, (1.0,)), "2 axes"), ((1, 5, (0.0, 1.0)), "above 0")],
)
def test_options_without_a_meaning_are_refused(arguments, words) -> None:
    with pytest.raises(InputError, match=words):
        border_weights(np.zeros((5, 7), int), *arguments)


def separated_by_hand(instances):
    result = instances.copy()
    for voxel in np.argwhere(instances > 0):
        around = instances[tuple(slice(max(0, part - 1), part + 2) for part in voxel)]
        if ((around > 0) & (around != instances[tuple(voxel)])).any():
            result[tuple(voxel)] = 0
    return result


@pytest.mark.parametrize("shape", [(41, 30), (9, 14, 17)])
def test_touching_instances_are_separated_as_by_hand_in_any_cut_and_mirrored(shape) -> None:
    instances = blobs(shape, 30, seed=3, radius=7)
    found = separate_touching(instances)
    np.testing.assert_array_equal(found, separated_by_hand(instances))
    assert 0 < (found != instances).sum() < (instances > 0).sum()
    large = np.where(instances > 0, instances + 2**60, instances)
    np.testing.assert_array_equal(separate_touching(large), np.where(found > 0, found + 2**60, found))
    everywhere = np.ones((3,) * len(shape))
    for number in np.unique(found[found > 0]):
        around = found[ndimage.binary_dilation(found == number, everywhere)]
        assert set(around[around > 0]) == {number}
    mirrored = separate_touching(np.pad(instances, 4, "reflect"))[(slice(1, -1),) * len(shape)]
    np.testing.assert_array_equal(mirrored, np.pad(found, 3, "reflect"))
    whole = Box.from_shape(shape)
    for box in BlockGrid(shape, (6,) * len(shape)).blocks():
        grown = box.grow((1,) * box.ndim, (1,) * box.ndim).intersect(whole)
        inner = box.shift(tuple(-first for first in grown.start)).slices()
        np.testing.assert_array_equal(separate_touching(instances[grown.slices()])[inner], found[box.slices()])


def test_balanced_classes_weigh_the_same_and_one_in_the_mean() -> None:
    counts = np.array([9000, 5, 700])
    weights = class_weights(counts)
    np.testing.assert_allclose(weights * counts, counts.sum() / 3)
    assert (weights * counts).sum() / counts.sum() == pytest.approx(1)
    with pytest.raises(InputError, match="annotated as glia, 1"):
        class_weights([0, 0, 4], ["glia", "1", "x"])
    with pytest.raises(InputError, match="as 1 "):
        class_weights([3, 0])

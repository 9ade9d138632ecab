"""Watersheds in memory against brute force, and against the flood of scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import label
from skimage.morphology import local_maxima, reconstruction
from skimage.segmentation import watershed

from tests.unet_core.postprocess.cells import touching_cells
from unet_core.errors import InputError
from unet_core.metrics import panoptic_quality
from unet_core.postprocess import (
    connected_components,
    divide,
    in_scan_order,
    watershed_on_boundaries,
    watershed_on_distance,
    watershed_on_learnt_distance,
)
from unet_core.postprocess.distance import distance_within
from unet_core.training.object_distance import signed_distance

SHAPES = ((37, 53), (9, 23, 31))


def classes(shape: tuple[int, ...], seed: int) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    return np.digitize(noise, np.quantile(noise, [0.3, 0.7])).astype(np.uint8)


def landscape(kind: str, labels: np.ndarray, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    if kind == "noise":
        return random.random(labels.shape, dtype=np.float32)
    if kind == "steps":  # as of probabilities in few bits: most neighbours are equal
        return np.round(4 * random.random(labels.shape)).astype(np.float32)
    return distance_within(labels, 3.0, (1.0,) * labels.ndim)


def brute_force(labels: np.ndarray, heights: np.ndarray, depth: float, connectivity: int) -> np.ndarray:
    """Climb voxel by voxel; then, from the highest pass to the lowest, join what is low on one of its sides."""
    steps = [
        step for step in np.ndindex((3,) * labels.ndim) if 0 < sum(abs(part - 1) for part in step) <= connectivity
    ]  # in the order of a scan

    def beside(place: tuple[int, ...]) -> list[tuple[int, ...]]:
        found = (tuple(one + part - 1 for one, part in zip(place, step, strict=True)) for step in steps)
        inside = (other for other in found if all(0 <= one < size for one, size in zip(other, labels.shape, strict=True)))
        return [other for other in inside if labels[other] == labels[place]]

    def rank(place: tuple[int, ...]) -> tuple[float, tuple[int, ...]]:
        return heights[place], tuple(-one for one in place)

    ahead = {place: max([place, *beside(place)], key=rank) for place in zip(*map(tuple, np.nonzero(labels)), strict=True)}

    def top(place: tuple[int, ...]) -> tuple[int, ...]:
        while ahead[place] != place:
            place = ahead[place]
        return place

    hill = {place: top(place) for place in ahead}
    passes = [
        (min(heights[one], heights[other]), tuple(-part for part in one), tuple(-part for part in other))
        for one in ahead
        for other in beside(one)
        if one < other and hill[one] != hill[other]
    ]
    owner = {place: place for place in set(hill.values())}

    def owner_of(place: tuple[int, ...]) -> tuple[int, ...]:
        while owner[place] != place:
            place = owner[place]
        return place

    for height, one, other in sorted(passes, reverse=True):
        first, second = (owner_of(hill[tuple(-part for part in end)]) for end in (one, other))
        lower, higher = sorted((first, second), key=rank)
        if lower != higher and float(heights[lower]) - float(height) <= depth:
            owner[lower] = higher
    numbers = {place: number for number, place in enumerate(owner, 1)}
    result = np.zeros(labels.shape, dtype=np.int64)
    for place in ahead:
        result[place] = numbers[owner_of(hill[place])]
    return in_scan_order(result)


@pytest.mark.parametrize("kind", ["noise", "steps", "distance"])
@pytest.mark.parametrize("shape", [(11, 17), (5, 6, 7)])
def test_hills_are_those_of_brute_force(kind: str, shape: tuple[int, ...]) -> None:
    counts = set()
    for seed in range(4):
        labels = classes(shape, seed)
        heights = landscape(kind, labels, seed)
        for depth in (0.1, 1.0):
            for connectivity in range(1, len(shape) + 1):
                found = divide(labels, heights, depth, connectivity)
                np.testing.assert_array_equal(found, brute_force(labels, heights, depth, connectivity))
                counts.add(found.max())
    assert len(counts) > 5


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("h", [1, 7, 20])
def test_each_hill_has_one_h_maximum(shape: tuple[int, ...], h: int) -> None:
    """A part of what reaches within h of a top is one if nothing in it is higher than that top."""
    smooth = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=shape), 2)
    height = np.round(40 * smooth / smooth.std()).astype(np.int32) + 200
    found = divide(np.ones(shape, dtype=np.uint8), height.astype(np.float32), h)
    hills = []
    for top in np.unique(height):
        parts = label(height >= top - h, connectivity=1)
        for part in np.flatnonzero(ndimage.maximum(height, parts, np.arange(parts.max() + 1)) == top):
            if part:
                assert len(set(found[parts == part])) == 1
                hills.append(found[parts == part][0])
    assert sorted(hills) == list(range(1, found.max() + 1))


@pytest.mark.parametrize("shape", [(130, 170), (30, 41, 53)])
def test_cells_are_divided_where_a_flood_would_divide_them(shape: tuple[int, ...]) -> None:
    cells = touching_cells(shape, seed=1)
    away = ndimage.distance_transform_edt(cells.mask)
    heights = {"distance": away, "learnt": cells.learnt_distance, "map": cells.foreground_map}
    depths = {"distance": 1.0, "learnt": 0.2, "map": 0.1}
    found = {
        "distance": watershed_on_distance(cells.mask),
        "learnt": watershed_on_learnt_distance(cells.learnt_distance, cells.mask),
        "map": watershed_on_boundaries(1 - cells.foreground_map, cells.mask),
    }
    for name, ids in found.items():
        np.testing.assert_array_equal(ids > 0, cells.mask)
        np.testing.assert_array_equal(in_scan_order(ids), ids)
        height = np.where(cells.mask, heights[name].astype(np.float64), heights[name].min() - 10)
        lowered = reconstruction(height - depths[name], height, footprint=ndimage.generate_binary_structure(len(shape), 1))
        seeds = label(local_maxima(lowered, connectivity=1) & cells.mask, connectivity=1)  # h-maxima: Soille 2004, section 6.3
        flooded = watershed(-height, seeds, mask=cells.mask)
        assert ids.max() == seeds.max() > 10
        assert panoptic_quality(ids, flooded).pq > 0.96
        assert panoptic_quality(ids, cells.ids).pq > 0.8
    assert connected_components(cells.mask).max() < 0.7 * cells.ids.max()


def test_two_disks_that_touch_are_divided_and_voxel_size_counts() -> None:
    rows, columns = np.indices((41, 70))
    disks = ((rows - 20) ** 2 + (columns - 20) ** 2 < 15**2) | ((rows - 20) ** 2 + (columns - 46) ** 2 < 15**2)
    assert connected_components(disks).max() == 1
    divided = watershed_on_distance(disks)
    assert divided.max() == 2
    assert (divided[20, 20], divided[20, 46]) == (1, 2)
    assert watershed_on_distance(disks, h=30.0).max() == 1
    assert watershed_on_distance(disks, h=30.0, voxel_size=(10.0, 10.0)).max() == 2
    assert watershed_on_distance(disks, reach=6.0).max() == 1  # the neck is wider
    assert watershed_on_distance(disks, reach=12.0).max() == 2
    with pytest.raises(InputError, match="2 numbers for 3 dimensions"):
        watershed_on_distance(np.ones((3, 3, 3)), voxel_size=(1.0, 1.0))


def test_watershed_on_boundaries_cuts_where_they_are_probable() -> None:
    mask = np.zeros((19, 33), dtype=bool)
    mask[2:17, 2:31] = True
    boundaries = np.full(mask.shape, 0.1)
    boundaries[:, 14] = 0.6
    found = watershed_on_boundaries(boundaries, mask)
    np.testing.assert_array_equal(found > 0, mask)
    assert found.max() == 2
    assert set(found[2:17, 2:14].ravel()) == {1}
    assert set(found[2:17, 15:31].ravel()) == {2}
    assert watershed_on_boundaries(boundaries, mask, h=0.7).max() == 1
    with pytest.raises(InputError, match="must be equal"):
        watershed_on_boundaries(boundaries[1:], mask)


def test_masks_without_background_or_foreground_have_instances_too() -> None:
    assert watershed_on_distance(np.ones((5, 7))).tolist() == np.ones((5, 7)).tolist()
    assert watershed_on_distance(np.zeros((5, 7))).max() == 0
    assert watershed_on_boundaries(np.zeros((5, 7)), np.ones((5, 7))).max() == 1


def test_a_learnt_distance_divides_what_touches() -> None:
    """The distance to the own border of two halves of one square, which no distance to background tells apart."""
    truth = np.zeros((24, 30), dtype=np.int64)
    truth[4:20, 3:14], truth[4:20, 14:27] = 1, 2
    distance, _ = signed_distance(truth, 15.0, (1.0, 1.0))
    learnt = np.tanh(distance / 5)
    found = watershed_on_learnt_distance(learnt, truth > 0)
    assert found.max() == 2
    assert (found != truth).sum() <= 1  # a corner is as high as the rims of both
    assert watershed_on_distance(truth > 0).max() == 1
    assert watershed_on_learnt_distance(learnt, truth > 0, h=1.9).max() == 1  # no hill is so high
    with pytest.raises(InputError, match="shape"):
        watershed_on_learnt_distance(learnt[1:], truth > 0)


def test_what_has_no_meaning_is_refused() -> None:
    ones, heights = np.ones((3, 4), dtype=np.uint8), np.ones((3, 4), dtype=np.float32)
    with pytest.raises(InputError, match="h is 0"):
        divide(ones, heights, 0)
    with pytest.raises(InputError, match="Connectivity is 3"):
        divide(ones, heights, 1, 3)
    heights[1, 1] = np.nan
    with pytest.raises(InputError, match="no finite number"):
        divide(ones, heights, 1)
    for reach in (1e-9, 1e5, float("nan")):
        with pytest.raises(InputError, match="reach is"):
            watershed_on_distance(ones, reach=reach)


@pytest.mark.parametrize(
    ("shape", "spacing"), [((37, 53), (1.0, 1.0)), ((9, 23, 31), (2.5, 0.4, 0.4)), ((9, 23, 31), (0.3, 0.7, 9.0))]
)
@pytest.mark.parametrize("reach", [0.9, 3.0, 100.0])
def test_distances_are_those_of_scipy_up_to_the_reach(shape: tuple[int, ...], spacing: tuple[float, ...], reach: float) -> None:
    labels = classes(shape, 3)
    expected = np.zeros(shape)
    for value in (1, 2):
        expected = np.where(labels == value, ndimage.distance_transform_edt(labels == value, sampling=spacing), expected)
    np.testing.assert_allclose(distance_within(labels, reach, spacing), np.minimum(expected, reach), rtol=2e-5)
    whole = np.ones(shape, dtype=np.uint8)
    np.testing.assert_allclose(distance_within(whole, reach, spacing), reach, rtol=1e-6)


def test_distances_are_the_same_numbers_in_any_box_that_holds_the_reach() -> None:
    labels, spacing, reach = classes((21, 43, 49), 5), (0.37, 0.113, 0.113), 0.6
    whole = distance_within(labels, reach, spacing)
    ring = [int(np.ceil(reach / step)) for step in spacing]
    inner = tuple(slice(more, size - more) for more, size in zip(ring, labels.shape, strict=True))
    for first in ((0, 0, 0), (3, 1, 2)):
        box = tuple(slice(start, None) for start in first)
        part = distance_within(np.ascontiguousarray(labels[box]), reach, spacing)
        moved = tuple(slice(start + more, size - more) for start, more, size in zip(first, ring, labels.shape, strict=True))
        np.testing.assert_array_equal(part[tuple(slice(more, -more) for more in ring)], whole[moved])
    assert len(np.unique(whole[inner])) > 10

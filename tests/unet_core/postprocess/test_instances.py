"""Components and watersheds against scipy and scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import label
from skimage.segmentation import watershed

from unet_core.errors import InputError
from unet_core.metrics import voi
from unet_core.postprocess import (
    connected_components,
    distance_to_background,
    in_scan_order,
    remove_small,
    seeds_by_distance,
    seeds_by_h_maxima,
    watershed_on_boundaries,
    watershed_on_distance,
    watershed_on_learnt_distance,
)
from unet_core.training.object_distance import signed_distance

SHAPES = ((37, 53), (9, 23, 31))


def blobs(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 0.8) > 0.12


def is_in_scan_order(ids: np.ndarray) -> bool:
    seen = list(dict.fromkeys(ids[ids > 0].tolist()))
    return seen == list(range(1, len(seen) + 1))


def same_partition(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(((one > 0) == (other > 0)).all()) and voi(one, other).total < 1e-9


@pytest.mark.parametrize("shape", SHAPES)
def test_components_are_those_of_scikit_image_in_scan_order(shape: tuple[int, ...]) -> None:
    mask = blobs(shape)
    counts = []
    for connectivity in range(1, len(shape) + 1):
        found = connected_components(mask, connectivity)
        assert same_partition(found, label(mask, connectivity=connectivity))
        assert is_in_scan_order(found)
        counts.append(found.max())
    assert counts[0] > counts[-1] > 1
    with pytest.raises(InputError, match="Connectivity is 4"):
        connected_components(mask, 4)
    assert connected_components(np.zeros(shape)).max() == 0


def test_ids_are_renumbered_in_scan_order() -> None:
    ids = np.array([[0, 7, 7, 2], [9, 0, 2, 2], [1, 7, 0, 9]])
    assert in_scan_order(ids).tolist() == [[0, 1, 1, 2], [3, 0, 2, 2], [4, 1, 0, 3]]
    ordered = connected_components(blobs((61, 67)))
    shuffled = np.append(0, 1 + np.random.default_rng(0).permutation(ordered.max()))[ordered]
    np.testing.assert_array_equal(in_scan_order(shuffled), ordered)


def test_small_instances_become_background() -> None:
    ids = np.array([[1, 1, 0, 2], [3, 3, 3, 0], [0, 4, 4, 4]])
    assert remove_small(ids, 3).tolist() == [[0, 0, 0, 0], [1, 1, 1, 0], [0, 2, 2, 2]]
    np.testing.assert_array_equal(remove_small(ids, 1), ids)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("h", [1, 7, 20])
def test_h_maxima_by_cutting_at_every_height(shape: tuple[int, ...], h: int) -> None:
    """A part of what reaches within h of a top is a seed if nothing in it is higher than that top."""
    smooth = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=shape), 2)
    height = np.round(40 * smooth / smooth.std()).astype(np.int32) + 200
    expected = np.zeros(shape, dtype=bool)
    count = 0
    for top in np.unique(height):
        parts = label(height >= top - h, connectivity=1)
        for part in np.flatnonzero(ndimage.maximum(height, parts, np.arange(parts.max() + 1)) == top):
            if part:
                expected |= parts == part
                count += 1
    found = seeds_by_h_maxima(height, h)
    np.testing.assert_array_equal(found > 0, expected)
    assert found.max() == count
    assert is_in_scan_order(found)


def test_domes_need_a_height() -> None:
    with pytest.raises(InputError, match="h is 0"):
        seeds_by_h_maxima(np.arange(12.0).reshape(3, 4), 0)
    assert not seeds_by_h_maxima(np.full((5, 7), 3.0), 1).any()


@pytest.mark.parametrize("shape", SHAPES)
def test_watershed_on_distance_is_that_of_scikit_image(shape: tuple[int, ...]) -> None:
    mask, size = blobs(shape, 3), (2.5, 0.4, 0.4)[-len(shape) :]
    distance = ndimage.distance_transform_edt(mask, sampling=size)
    np.testing.assert_array_equal(distance_to_background(mask, size), distance)
    seeds = seeds_by_h_maxima(distance, 0.3)
    found = watershed_on_distance(mask, h=0.3, voxel_size=size)
    expected = watershed(-distance, seeds, mask=mask, connectivity=1)
    flooded = expected > 0
    assert flooded.mean() > 0.2
    np.testing.assert_array_equal(found > 0, mask)
    assert same_partition(np.where(flooded, found, 0), expected)
    assert is_in_scan_order(found)
    assert found.max() >= connected_components(mask).max()


def test_two_disks_that_touch_are_divided_and_voxel_size_counts() -> None:
    rows, columns = np.indices((41, 70))
    disks = ((rows - 20) ** 2 + (columns - 20) ** 2 < 15**2) | ((rows - 20) ** 2 + (columns - 46) ** 2 < 15**2)
    assert connected_components(disks).max() == 1
    divided = watershed_on_distance(disks)
    assert divided.max() == 2
    assert (divided[20, 20], divided[20, 46]) == (1, 2)
    assert watershed_on_distance(disks, h=30.0).max() == 1
    assert watershed_on_distance(disks, h=30.0, voxel_size=(10.0, 10.0)).max() == 2
    by_rim = seeds_by_distance(distance_to_background(disks), 12.0)
    np.testing.assert_array_equal(watershed_on_distance(disks, by_rim) > 0, disks)
    assert watershed_on_distance(disks, by_rim).max() == 2
    with pytest.raises(InputError, match="2 numbers for 3 dimensions"):
        distance_to_background(np.ones((3, 3, 3)), (1.0, 1.0))


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
    np.testing.assert_array_equal(watershed_on_learnt_distance(learnt, truth > 0), truth)
    assert watershed_on_distance(truth > 0).max() == 1
    assert watershed_on_learnt_distance(learnt, truth > 0, h=1.9).max() == 1  # no dome is so high
    with pytest.raises(InputError, match="shape"):
        watershed_on_learnt_distance(learnt[1:], truth > 0)

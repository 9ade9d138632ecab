"""Components against scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import label

from unet_core.errors import InputError
from unet_core.metrics import voi
from unet_core.postprocess import (
    connected_components,
    in_scan_order,
    remove_small,
)

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

"""Statistics of parts against numpy on all their voxels at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.unet_core.training.conftest import MakeDataset
from unet_core.errors import InputError
from unet_core.training import statistics as statistics_module
from unet_core.training.dataset import open_parts
from unet_core.training.statistics import Statistics, take_statistics

RANDOM = np.random.default_rng(2)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics_module, "_BLOCK_SIDE", {2: 11, 3: 6})


def check(found: Statistics, voxels: np.ndarray, ranks: tuple[float, ...], rtol: float = 1e-12) -> None:
    """``voxels`` (C, n)."""
    voxels = voxels.astype(np.float64)
    assert found.voxel_count == voxels.shape[1]
    np.testing.assert_allclose(found.mean, voxels.mean(axis=1), rtol=rtol)
    np.testing.assert_allclose(found.deviation, voxels.std(axis=1), rtol=rtol)
    np.testing.assert_array_equal(found.minimum, voxels.min(axis=1))
    np.testing.assert_array_equal(found.maximum, voxels.max(axis=1))
    np.testing.assert_allclose(found.percentiles, np.percentile(voxels, ranks, axis=1), rtol=rtol, atol=1e-12)
    assert found.is_exact


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.float32, np.float16])
def test_statistics_are_those_of_the_training_boxes_alone(make_data: MakeDataset, dtype: Any, dims: int) -> None:
    info = np.iinfo(dtype) if np.dtype(dtype).kind in "iu" else None
    values = RANDOM.integers(info.min, info.max + 1, (7, 23, 31)) if info else RANDOM.normal(1000, 3, (7, 23, 31))
    image = values.astype(dtype)
    image[6] = info.max if info else 60000
    labels = np.zeros(image.shape, np.uint8)
    boxes = {"part": None, "boxes": {"train": ["1:4,2:20", "4:6,:,3:30"], "test": "6:"}}
    parts = open_parts(make_data({"s": (image, labels)}, s=boxes), dims, "train")
    voxels = np.concatenate([image[1:4, 2:20].ravel(), image[4:6, :, 3:30].ravel()])[None]
    ranks = (0.0, 1.0, 37.3, 50.0, 99.8, 100.0)
    check(take_statistics(parts, ranks), voxels, ranks, rtol=1e-12 if info else 1e-9)


def test_each_channel_has_its_own(make_data: MakeDataset) -> None:
    first, second = (RANDOM.integers(0, 255, (19 + n, 23, 3), dtype=np.uint8) // (1, 2, 3) for n in range(2))
    images = [each.astype(np.uint8) for each in (first, second)]
    dataset = make_data({str(n): (image, np.zeros(image.shape[:2], np.uint8)) for n, image in enumerate(images)})
    voxels = np.concatenate([image.reshape(-1, 3) for image in images]).T
    check(take_statistics(open_parts(dataset, 2, "train")), voxels, (1.0, 99.8))


def test_percentiles_of_many_floats_are_those_of_a_fixed_sample(make_data: MakeDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    image = RANDOM.normal(size=(150, 170)).astype(np.float32)
    parts = open_parts(make_data({"s": (image, np.zeros(image.shape, np.uint8))}), 2, "train")
    monkeypatch.setattr(statistics_module, "SAMPLED_VOXELS", 10_000)
    found = take_statistics(parts, (5.0, 50.0))
    assert not found.is_exact
    assert found == take_statistics(parts, (5.0, 50.0))
    np.testing.assert_allclose(found.mean, image.mean(dtype=np.float64), rtol=1e-9)
    for rank, value in zip((5.0, 50.0), found.percentiles, strict=True):
        assert abs((image < value[0]).mean() - rank / 100) < 0.02


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_voxel_that_is_no_number_is_named_with_its_position(make_data: MakeDataset, bad: float) -> None:
    image = RANDOM.normal(size=(3, 23, 31)).astype(np.float32)
    image[2, 13, 17] = bad
    parts = open_parts(make_data({"s": (image, np.zeros(image.shape, np.uint8))}), 2, "train")
    with pytest.raises(InputError, match=rf"Image s.tif z=2 is {bad} at voxel \(13, 17\), channel 0 \(1 such in 11:22, 11:22\)"):
        take_statistics(parts)
    boxes = {"part": None, "boxes": {"train": "0:2"}}
    take_statistics(open_parts(make_data({"s": (image, np.zeros(image.shape, np.uint8))}, s=boxes), 2, "train"))

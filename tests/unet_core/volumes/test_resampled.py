"""Volumes at another voxel size: what torch makes of the whole array, and the same bits however it is cut."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.transform import resize

from tests.conftest import textured
from unet_core.geometry import Box
from unet_core.volumes import ArrayVolume
from unet_core.volumes import resampled as module
from unet_core.volumes.resampled import AxisSteps, ResampledVolume, ratio_of


def whole(volume: ResampledVolume) -> Any:
    return volume.read(Box.from_shape(volume.spatial_shape))


def by_triangles(values: np.ndarray[Any, Any], ratios: tuple[Fraction, ...]) -> np.ndarray[Any, Any]:
    """The definition, voxel by voxel, one matrix an axis."""
    for axis, ratio in enumerate(ratios):
        size = values.shape[axis]
        count = max(1, int(size / ratio + Fraction(1, 2)))
        centres = (np.arange(count) + 0.5) * float(ratio) - 0.5
        weights = np.maximum(0, max(1.0, float(ratio)) - np.abs(np.arange(size) - centres[:, None]))
        weights /= weights.sum(axis=1, keepdims=True)
        values = np.moveaxis(np.tensordot(weights, values, (1, axis)), 0, axis)
    return values


RATIOS = [
    (Fraction(2), Fraction(2)),
    (Fraction(5, 3), Fraction(7, 4)),
    (Fraction(500, 499), Fraction(1)),
    (Fraction(3, 5), Fraction(9, 2)),
    (Fraction(1, 3), Fraction(29, 31)),
]


@pytest.mark.parametrize("ratios", RATIOS, ids=str)
@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "f4", "f8"])
def test_every_voxel_is_the_mean_that_the_definition_says(ratios: tuple[Fraction, ...], dtype: str) -> None:
    data = (textured((57, 83)).astype("f8") * (200 if dtype == "u2" else 1)).astype(dtype)
    found = whole(ResampledVolume(ArrayVolume(data), ratios))[0]
    expected = by_triangles(data.astype("f8"), ratios)
    assert (found.dtype, found.shape) == (data.dtype, expected.shape)
    if found.dtype.kind in "iu":
        assert np.abs(found - expected).max() <= 0.5 + 1e-2 * (dtype == "u2") + 1e-3
    else:
        np.testing.assert_allclose(found, expected, atol=1e-4 if dtype == "f4" else 1e-10)


@pytest.mark.parametrize("shape", [(60, 84), (30, 63), (90, 42), (61, 85)])
def test_it_is_what_torch_gives_of_the_whole_array(shape: tuple[int, int]) -> None:
    data = textured((60, 84)).astype("f4")
    ratios = tuple(Fraction(size, new) for size, new in zip(data.shape, shape, strict=True))
    there = torch.nn.functional.interpolate(
        torch.from_numpy(data)[None, None], size=shape, mode="bilinear", antialias=True, align_corners=False
    )[0, 0].numpy()
    np.testing.assert_allclose(whole(ResampledVolume(ArrayVolume(data), ratios))[0], there, atol=1e-3)


def test_it_is_near_what_skimage_gives_of_smooth_images() -> None:
    """Its filter is a Gaussian; of structures of 20 voxels both leave the same, within 2 % of the range."""
    y, x = np.mgrid[:120, :160]
    data = (np.sin(y / 7) * np.cos(x / 9) * 100 + 120).astype("f4")
    for shape in ((60, 80), (48, 96), (100, 100)):
        ratios = tuple(Fraction(size, new) for size, new in zip(data.shape, shape, strict=True))
        there = resize(data, shape, order=1, anti_aliasing=True, preserve_range=True, mode="edge")
        found = whole(ResampledVolume(ArrayVolume(data), ratios))[0]
        inside = (slice(3, -3), slice(3, -3))
        assert np.abs(found - there)[inside].max() < 0.02 * 200


@settings(max_examples=60)
@given(st.data())
def test_any_box_has_the_bits_of_the_whole(data: st.DataObject) -> None:
    dims = data.draw(st.integers(2, 3))
    shape = tuple(data.draw(st.integers(1, 40 if dims == 2 else 14)) for _ in range(dims))
    ratios = tuple(Fraction(data.draw(st.integers(1, 23)), data.draw(st.integers(1, 11))) for _ in range(dims))
    ratios = tuple(min(max(ratio, Fraction(1, 5)), Fraction(16)) for ratio in ratios)
    dtype = data.draw(st.sampled_from(["u1", "u2", "f4", "f8"]))
    random = np.random.default_rng(data.draw(st.integers(0, 1000)))
    values = (random.random((2, *shape)) * 250).astype(dtype)
    volume = ResampledVolume(ArrayVolume(values, axes="cyx" if dims == 2 else "czyx"), ratios)
    together = whole(volume)
    assert together.shape == (2, *volume.spatial_shape)
    start = tuple(data.draw(st.integers(0, size - 1)) for size in volume.spatial_shape)
    stop = tuple(data.draw(st.integers(first + 1, size)) for first, size in zip(start, volume.spatial_shape, strict=True))
    box = Box(start, stop)
    assert volume.read(box).tobytes() == together[(slice(None), *box.slices())].tobytes()


def test_slabs_change_no_bit_and_bound_what_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    source = ArrayVolume(textured((300, 200)).astype("f4"))
    read: list[int] = []
    original = ArrayVolume.read
    monkeypatch.setattr(ArrayVolume, "read", lambda self, box: read.append(box.voxel_count * 4) or original(self, box))
    volume = ResampledVolume(source, (Fraction(7, 3), Fraction(5, 2)))
    at_once = whole(volume)
    assert len(read) == 1
    monkeypatch.setattr(module, "SLAB_BYTES", 20 * 200 * 4)
    read.clear()
    assert whole(volume).tobytes() == at_once.tobytes()
    assert len(read) > 10
    slab = volume.slab_shape(volume.spatial_shape)
    assert max(read) <= slab[0] * slab[1] * 4 <= 30 * 200 * 4


def test_nothing_is_lost_at_the_ends_and_constants_stay() -> None:
    for size in (1, 2, 3, 10, 37):
        for ratio in (Fraction(1, 4), Fraction(1), Fraction(3, 2), Fraction(16)):
            steps = AxisSteps(ratio, size)
            taps, weights = steps.weights(0, steps.size)
            assert (weights >= 0).all()
            np.testing.assert_allclose(weights.sum(axis=1), 1)
            assert taps[weights > 0].min() == 0
            assert taps[weights > 0].max() == size - 1
            assert steps.reach(0, steps.size) == (0, size)
    data = np.full((1, 31, 47), 201, "u1")
    for ratios in RATIOS:
        assert (whole(ResampledVolume(ArrayVolume(data, axes="cyx"), ratios)) == 201).all()


def test_values_that_are_no_numbers_stay_where_their_weight_is() -> None:
    data = np.ones((40, 40), "f4")
    data[20, 20] = np.nan
    volume = ResampledVolume(ArrayVolume(data), (Fraction(2), Fraction(2)))
    lost = np.isnan(whole(volume)[0])
    assert lost.sum() == 4  # the triangles of 2 x 2 voxels reach it
    assert volume.read(Box((0, 0), (9, 20)))[0].all()


def test_lengths_follow_the_grid() -> None:
    volume = ResampledVolume(
        ArrayVolume(textured((9, 60, 84)), "zyx", (2.0, 0.25, 0.5)), (Fraction(1), Fraction(2), Fraction(1, 2))
    )
    assert volume.spatial_shape == (9, 30, 168)
    assert volume.voxel_size == volume.scale == (2.0, 0.5, 0.25)
    assert volume.translation == (0.0, 0.125, -0.125)
    assert [ratio_of(0.5, 0.25), ratio_of(0.25, 0.2527)] == [Fraction(2), Fraction(2500, 2527)]

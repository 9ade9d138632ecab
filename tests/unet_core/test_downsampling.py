"""Coarser levels and counts against brute force."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from math import fsum
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from unet_core import downsampling
from unet_core.downsampling import downsample, label_counts


def cells(values: np.ndarray[Any, Any], factor: tuple[int, ...]) -> dict[tuple[int, ...], list[Any]]:
    """The voxels of every cell, one voxel after the other."""
    found: dict[tuple[int, ...], list[Any]] = {}
    for position in np.ndindex(*values.shape):
        cell = tuple(place // step for place, step in zip(position, factor, strict=True))
        found.setdefault(cell, []).append(values[position].item())
    return found


shapes = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 3)), min_size=2, max_size=3)


@given(st.integers(0, 10**6), shapes, st.integers(1, 9), st.sampled_from([1, 5, 1 << 18]))
def test_labels_get_the_most_frequent_and_of_equals_the_smallest(
    seed: int, axes: list[tuple[int, int]], labels: int, band: int
) -> None:
    shape, factor = zip(*axes, strict=True)
    values = np.random.default_rng(seed).integers(0, labels, shape).astype("u1") * np.uint8(31)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(downsampling, "_BAND_BYTES", band)
        coarse = downsample(values, factor, "labels")
    assert coarse.dtype == np.uint8
    expected = {cell: scipy.stats.mode(voxels).mode for cell, voxels in cells(values, factor).items()}
    assert {position: coarse[position] for position in np.ndindex(*coarse.shape)} == expected


@given(st.integers(0, 10**6), shapes, st.sampled_from(["uint8", "float32"]), st.integers(1, 4), st.sampled_from([1, 5, 1 << 18]))
def test_intensities_get_the_mean_of_every_channel(
    seed: int, axes: list[tuple[int, int]], dtype: str, channels: int, band: int
) -> None:
    shape, factor = zip(*axes, strict=True)
    values = np.random.default_rng(seed).random((channels, *shape)) ** 9
    values = (values * 255.9).astype("u1") if dtype == "uint8" else values.astype("f4")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(downsampling, "_BAND_BYTES", band)
        coarse = downsample(values, factor, "probabilities")
    assert coarse.dtype == dtype
    for channel in range(channels):
        for cell, voxels in cells(values[channel], factor).items():
            mean = fsum(voxels) / len(voxels)
            if dtype == "uint8":
                assert coarse[channel][cell] == int(mean + 0.5)  # a half is exact in binary, a third is never near it
            else:
                np.testing.assert_array_max_ulp(coarse[channel][cell], np.float32(mean), 1)


def test_ties_and_cut_cells_by_hand() -> None:
    labels = np.array([[7, 3, 9, 9, 2], [3, 7, 1, 1, 2], [5, 5, 6, 4, 8]], dtype="u1")
    np.testing.assert_array_equal(downsample(labels, (2, 2), "labels"), [[3, 1, 2], [5, 4, 8]])
    np.testing.assert_array_equal(downsample(labels, (2, 2), "map"), [[5, 5, 2], [5, 5, 8]])
    full = np.full((3, 5, 4), 255, dtype="u1")
    np.testing.assert_array_equal(downsample(full, (2, 2, 2), "map"), np.full((2, 3, 2), 255))


@pytest.mark.parametrize("shape", [(2051, 2049), (131, 127, 129)])
@pytest.mark.parametrize("kind", ["labels", "map"])
def test_memory_beside_the_result_does_not_grow_with_the_array(shape: tuple[int, ...], kind: str) -> None:
    values = np.random.default_rng(1).integers(0, 5, shape).astype("u1")
    tracemalloc.start()
    result = downsample(values, (2,) * len(shape), kind)
    counts = label_counts(values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(counts.values()) == values.size
    assert peak - result.nbytes < 5 * downsampling._BAND_BYTES


@given(st.integers(0, 10**6), st.integers(1, 255), st.sampled_from([7, 64, 1 << 18]))
def test_every_label_is_counted(seed: int, labels: int, band: int) -> None:
    values = np.random.default_rng(seed).integers(0, labels, (13, 17)).astype("u1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(downsampling, "_BAND_BYTES", band)
        counts = label_counts(values[:, 3:])
    assert counts == Counter(values[:, 3:].ravel().tolist())
    assert list(counts) == sorted(counts)

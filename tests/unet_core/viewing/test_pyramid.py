"""An image at any reduction is what reducing the whole image gives, however little of it is read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unet_core.downsampling import downsample
from unet_core.geometry import Box
from unet_core.inputs import Source
from unet_core.viewing import pyramid
from unet_core.viewing.pyramid import Pyramid
from unet_core.volumes import ArrayVolume


def opened(levels: list[NDArray[Any]], axes: str, is_labels: bool) -> Pyramid:
    return Pyramid(
        lambda level: Source(ArrayVolume(levels[level], axes=axes), axes.removeprefix("c")), range(len(levels)), is_labels
    )


@pytest.mark.parametrize("most", [50, 1 << 24])
@pytest.mark.parametrize("shape", [(75, 93), (13, 22, 37)], ids=str)
@pytest.mark.parametrize("is_labels", [False, True])
def test_any_box_is_a_part_of_the_whole_reduced(
    shape: tuple[int, ...], is_labels: bool, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pyramid, "_VOXELS", most)
    image = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    kind, axes = ("instances" if is_labels else "mean"), "zyx"[-len(shape) :]
    halved = downsample(image, (2,) * len(shape), kind)
    shown = opened([image, halved], axes, is_labels)
    for factor in (1, 2, 3, 4, 6):
        steps = (factor,) * len(shape)
        level, left = (halved, factor // 2) if factor % 2 == 0 else (image, factor)
        if factor == 3:  # 1.5 voxels of the coarser level
            continue
        whole = downsample(level, (left,) * len(shape), kind)[None]
        size = tuple(-(-extent // factor) for extent in shape)
        assert whole.shape[1:] == size
        np.testing.assert_array_equal(shown.read(Box.from_shape(size), steps), whole)
        part = Box(tuple(extent // 3 for extent in size), tuple(extent - 1 for extent in size))
        np.testing.assert_array_equal(shown.read(part, steps), whole[(slice(None), *part.slices())])


def test_levels_that_are_no_whole_reduction_are_sampled_in_the_middle() -> None:
    image = np.arange(90, dtype=np.uint8)[None].repeat(60, 0)
    third = image[1::3, 1::3]
    shown = opened([image, third], "yx", False)
    found = shown.read(Box((0, 0), (15, 23)), (4, 4))[0]
    centres = (np.arange(23) + 0.5) * 4
    assert found.shape == (15, 23)
    assert np.abs(found[0][:22] + 0.5 - centres[:22]).max() <= 2  # within half a voxel of the coarser level, and rounding


def test_an_image_that_is_being_written_is_opened_again() -> None:
    array = np.zeros((8, 8), np.uint8)
    count = 0

    def open_level(level: int) -> Source:
        nonlocal count
        count += 1
        return Source(ArrayVolume(array.copy(), axes="yx"), "yx")

    shown = Pyramid(open_level, [0], True, reopen_seconds=0.0)
    array[:] = 7
    assert shown.read(Box((0, 0), (8, 8)), (1, 1)).min() == 7
    kept = Pyramid(open_level, [0], True)
    before = count
    kept.read(Box((0, 0), (8, 8)), (1, 1))
    assert count == before

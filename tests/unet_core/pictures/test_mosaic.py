"""The picture that fills in shows, for each pixel, the share of each class in what is committed, and dark where nothing is."""

from __future__ import annotations

import numpy as np
import pytest

from unet_core.geometry import Box
from unet_core.pictures.mosaic import Mosaic
from unet_core.pictures.scene import ShownClass
from unet_core.stages import stages_of
from unet_core.volumes import ArrayVolume

GROUND, STRENGTH = 150, 0.7


@pytest.mark.parametrize("shape", [(61, 83), (5, 61, 83)], ids=str)
def test_units_fill_in_in_any_order_and_twice_as_the_shares_of_the_plane(shape: tuple[int, ...]) -> None:
    labels = np.random.default_rng(0).integers(0, 3, shape).astype(np.uint8)
    block, axes = (3, 7, 9)[-len(shape) :], "zyx"[-len(shape) :]
    stages = stages_of([(shape, (1,) * len(shape))], block, has_instances=False)
    volume = ArrayVolume(labels, axes)
    classes = [ShownClass("one", 1, "#ff0000", "labels"), ShownClass("two", 2, "#00ff00", "labels")]
    mosaic = Mosaic(stages, classes, lambda path, level: volume, pixels=30)
    units = sorted(mosaic.units, reverse=True)
    some = units[: len(units) // 2]
    assert mosaic.add([*some, some[0]]) == len(some)
    plane, middle = labels if labels.ndim == 2 else labels[2], (2,) if len(shape) == 3 else ()
    there = np.zeros(plane.shape, dtype=bool)
    for index in some:
        box = stages[0].grid.block(index).intersect(Box((*middle, 0, 0), (*(place + 1 for place in middle), *plane.shape)))
        there[box.slices()[-2:]] = True
    drawn = mosaic.draw()
    assert drawn.shape == (21, 28, 3)
    seen = 0
    for row, column in np.ndindex(21, 28):
        place = (slice(3 * row, 3 * row + 3), slice(3 * column, 3 * column + 3))
        whole, part = there[place].all(), there[place].any()
        if whole:
            color = np.full(3, float(GROUND))
            for value, ink in ((1, (255, 0, 0)), (2, (0, 255, 0))):
                strength = STRENGTH * (plane[place] == value).mean()
                color = color * (1 - strength) + np.array(ink) * strength
            if mosaic.share < 1:
                np.testing.assert_allclose(drawn[row, column], color, atol=1)
            seen += 1
        elif not part:
            assert (drawn[row, column] == round(0.35 * GROUND)).all()
    assert 50 < seen < 500
    mosaic.add(units)
    assert mosaic.share == 1.0

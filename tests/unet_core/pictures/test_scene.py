"""Pictures of planes show what the whole arrays hold, and are made without holding them."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from skimage.segmentation import find_boundaries

from tests.unet_core.pictures.scenes import Counted, scene_of
from unet_core.geometry import Box
from unet_core.pictures import shrinking
from unet_core.pictures.rgb import Contrast, Drawing, contrast_of, jpeg, to_rgb


def random_labels(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.uint8]:
    """Pieces of 3 voxels and more, of classes 0, 1 and 2."""
    small = np.random.default_rng(seed).integers(0, 3, tuple(-(-size // 3) for size in shape), dtype=np.uint8)
    for axis in range(len(shape)):
        small = np.repeat(small, 3, axis=axis)
    return small[tuple(slice(size) for size in shape)]


def colour(seed: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 255, (3, *shape), dtype=np.uint8)


def means_of_cells(values: NDArray[Any], step: int) -> NDArray[np.float64]:
    """By a loop over cells, of (C, Y, X)."""
    rows, columns = (-(-size // step) for size in values.shape[1:])
    cells = [
        [values[:, y * step : (y + 1) * step, x * step : (x + 1) * step].mean(axis=(1, 2)) for x in range(columns)]
        for y in range(rows)
    ]
    return np.moveaxis(np.asarray(cells), -1, 0)


def test_an_overview_is_the_mean_of_cells_and_outlines_their_majority(monkeypatch: pytest.MonkeyPatch) -> None:
    image, labels = colour(1, (75, 93)), random_labels((75, 93))
    scene = scene_of(image, labels, (16, 32))
    monkeypatch.setattr(shrinking, "TILE_VOXELS", 300)
    view = scene.overview(pixels=24)
    assert (view.plane.step, view.drawing.rgb.shape) == ((4, 4), (19, 24, 3))
    np.testing.assert_allclose(view.drawing.rgb, np.moveaxis(means_of_cells(image, 4), 0, -1), atol=0.51)
    expected = np.zeros((19, 24), dtype=np.uint8)
    for value in (1, 2):
        share = means_of_cells((labels == value)[None], 4)[0]
        expected[find_boundaries(share > 0.5, mode="inner")] = value
    np.testing.assert_array_equal(view.drawing.drawn, expected)
    assert 0.1 < (expected > 0).mean() < 0.9
    for source in (*scene.sources, scene.labels("labels/classes")):
        assert isinstance(source, Counted)
        assert max(source.reads) <= 300
        assert sum(source.reads) == labels.size


def test_coarse_levels_are_read_where_there_are_some() -> None:
    image, labels = colour(1, (640, 960)), random_labels((640, 960))
    halves = tuple(np.rint(means_of_cells(image, step)).astype(np.uint8) for step in (2, 4))
    scene = scene_of((image, *halves), labels, (64, 64), ((1, 1), (2, 2), (4, 4), (8, 8)))
    view = scene.overview(pixels=250)
    assert view.plane.step == (4, 4)
    np.testing.assert_array_equal(view.drawing.rgb, np.moveaxis(halves[1], 0, -1))
    assert [sum(source.reads) for source in scene.sources if isinstance(source, Counted)] == [0, 0, 160 * 240]
    volume = scene.labels("labels/classes", 2)
    assert isinstance(volume, Counted)
    assert sum(volume.reads) == 160 * 240


@pytest.mark.parametrize(("rows", "columns"), [(1, 2), (1, 0), (0, 2)])
def test_sections_of_a_volume_lie_as_they_are_asked_for(rows: int, columns: int) -> None:
    shape, centre = (13, 22, 37), (5, 17, 9)
    labels = random_labels(shape)
    image = np.random.default_rng(0).integers(0, 60_000, (1, *shape), dtype=np.uint16)
    view = scene_of(image, labels, (8, 8, 8)).overview(centre, (rows, columns))
    (hidden,) = {0, 1, 2} - {rows, columns}
    plane, truth = (values.take(centre[hidden], axis=hidden) for values in (image[0], labels))
    if rows > columns:
        plane, truth = plane.T, truth.T
    assert view.contrast == Contrast(*np.percentile(plane, (0.5, 99.5)))
    np.testing.assert_array_equal(view.drawing.rgb, to_rgb(plane[None], view.contrast))
    outlined = np.zeros_like(truth)
    for value in (1, 2):
        outlined[find_boundaries(truth == value, mode="inner")] = value
    np.testing.assert_array_equal(view.drawing.drawn, outlined)


def test_a_close_up_outlines_every_object_in_the_colour_of_its_class_where_ids_are_known() -> None:
    labels = np.ones((20, 30), dtype=np.uint8)
    labels[:4], labels[4:, 20:] = 0, 2
    ids = np.where(labels, 7, 0).astype(np.uint64)
    ids[4:, 15:], ids[4:, 20:] = 9, 8  # 7 and 9 are of one class, and touch
    image, box = colour(1, labels.shape), Box((2, 8), (19, 25))
    for known, objects in ((None, labels), (ids, ids)):
        drawn = scene_of(image, labels, (8, 8), ids=known).close_up(box).drawing.drawn
        expected = np.where(find_boundaries(objects, mode="inner"), labels, 0)[box.slices()]
        np.testing.assert_array_equal(drawn[1:-1, 1:-1], expected[1:-1, 1:-1])


def test_what_was_not_computed_is_dark() -> None:
    image = np.full((3, 50, 70), 200, dtype=np.uint8)
    scene = scene_of(image, np.zeros((50, 70), dtype=np.uint8), (16, 32), undone=(4,))  # rows 16 to 31, columns 32 to 63
    dark = scene.overview().drawing.rgb[..., 0] < 200
    expected = np.zeros((50, 70), dtype=bool)
    expected[16:32, 32:64] = True
    np.testing.assert_array_equal(dark, expected)


def test_without_an_image_the_classes_are_drawn_in_their_colours() -> None:
    labels = random_labels((40, 50))
    scene = replace(scene_of(colour(0, (40, 50)), labels, (16, 16)), sources=())
    view = scene.overview()
    assert view.contrast is None
    np.testing.assert_array_equal((view.drawing.rgb == 255).all(axis=-1), labels == 0)
    reds, blues = (view.drawing.rgb[labels == value].mean(axis=0) for value in (1, 2))
    assert reds[0] > reds[2] + 50
    assert blues[2] > blues[0] + 50


def test_the_overlay_alone_is_transparent_where_nothing_is_drawn() -> None:
    mask = np.zeros((9, 11), dtype=bool)
    mask[2:5, 3:9] = True
    drawing = Drawing.of(np.full((9, 11, 3), 90, np.uint8), [(mask, "#12b312")])
    found = np.asarray(Image.open(io.BytesIO(drawing.overlay_png())).convert("RGBA"))
    np.testing.assert_array_equal(found[..., 3] > 0, mask)
    assert found[3, 4].tolist() == [0x12, 0xB3, 0x12, 255]
    assert drawing.flat()[3, 4].tolist() == [0x12, 0xB3, 0x12]
    decoded = np.asarray(Image.open(io.BytesIO(jpeg(drawing.rgb))))
    assert np.abs(decoded.astype(int) - 90).max() <= 2


def test_colour_of_8_bits_is_shown_as_stored_and_all_else_by_its_percentiles() -> None:
    values = np.random.default_rng(0).integers(30, 200, (3, 40, 50))
    assert contrast_of(values, np.dtype(np.uint8)) == Contrast(0, 255)
    for dtype, channels in ((np.uint16, 3), (np.uint8, 1), (np.float32, 2)):
        shown = contrast_of(values[:channels], np.dtype(dtype))
        assert (shown.low, shown.high) == tuple(np.percentile(values[:channels], (0.5, 99.5)))
    flat = np.full((1, 4, 5), 7.0)
    assert len(np.unique(to_rgb(flat, contrast_of(flat, np.dtype(np.float32))))) == 1

"""Outlines against a point-in-polygon test of every voxel's centre, and against scikit-image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.draw import polygon as skimage_polygon

from tests.unet_core.training.conftest import polygon
from unet_core.errors import InputError
from unet_core.geometry import Box
from unet_core.training.geojson import inside, paint, read_outlines

SHAPE = (23, 31)
Ring = list[tuple[float, float]]


def crossings(rings: list[Ring], x: float, y: float) -> bool:
    """Even-odd rule, one point at a time: edges crossed by the ray to the left."""
    odd = False
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring, [*ring[1:], ring[0]], strict=True):
            if (y0 <= y) != (y1 <= y) and x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x:
                odd = not odd
    return odd


def brute_force(rings: list[Ring], box: Box) -> np.ndarray:
    rows, columns = (range(first, last) for first, last in zip(box.start, box.stop, strict=True))
    return np.array([[crossings(rings, x + 0.5, y + 0.5) for x in columns] for y in rows]).reshape(box.shape)


def edges_of(rings: list[Ring]) -> np.ndarray:
    return np.array([(*a, *b) for ring in rings for a, b in zip(ring, [*ring[1:], ring[0]], strict=True)], dtype=float)


points = st.tuples(st.floats(-9, 40), st.floats(-9, 32)) | st.tuples(
    st.integers(-2, 40).map(lambda n: n / 2), st.integers(0, 46).map(lambda n: n / 2)
)
rings = st.lists(st.lists(points, min_size=3, max_size=9), min_size=1, max_size=3)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(
    rings=rings, start=st.tuples(st.integers(-3, 20), st.integers(-3, 28)), size=st.tuples(st.integers(1, 12), st.integers(1, 12))
)
def test_any_box_of_any_polygon_is_the_even_odd_rule_at_voxel_centres(rings: list[Ring], start: Any, size: Any) -> None:
    edges, box = edges_of(rings), Box.from_shape(size, start)
    whole = Box((-3, -3), (36, 44))
    found = inside(edges, box)
    np.testing.assert_array_equal(found, brute_force(rings, box))
    np.testing.assert_array_equal(found, inside(edges, whole)[box.shift((3, 3)).slices()])


def test_a_polygon_is_what_scikit_image_draws() -> None:
    random = np.random.default_rng(3)
    for _ in range(20):
        x, y = random.uniform(0, 31, 7), random.uniform(0, 23, 7)
        expected = np.zeros(SHAPE, dtype=bool)
        expected[skimage_polygon(y - 0.5, x - 0.5, SHAPE)] = True  # its pixel centres are whole numbers
        np.testing.assert_array_equal(inside(edges_of([list(zip(x, y, strict=True))]), Box.from_shape(SHAPE)), expected)


def test_tiles_that_share_an_edge_cover_each_voxel_once() -> None:
    left = [(2.0, 1.0), (15.5, 4.5), (9.0, 20.0), (2.0, 20.0)]
    right = [(15.5, 4.5), (28.0, 1.0), (28.0, 20.0), (9.0, 20.0)]
    top = [(2.0, 1.0), (28.0, 1.0), (15.5, 4.5)]
    times = sum(inside(edges_of([ring]), Box.from_shape(SHAPE)).astype(int) for ring in (left, right, top))
    expected = np.zeros(SHAPE, int)
    expected[1:20, 2:28] = 1
    np.testing.assert_array_equal(times, expected)


def read(tmp_path: Path, features: Any, scale: tuple[float, float] = (1.0, 1.0)) -> Any:
    (tmp_path / "a.geojson").write_text(json.dumps(features))
    return read_outlines(str(tmp_path / "a.geojson"), scale)


SQUARE = [(4.0, 3.0), (20.0, 3.0), (20.0, 15.0), (4.0, 15.0)]
HOLE = [(8.0, 6.0), (12.0, 6.0), (12.0, 10.0), (8.0, 10.0)]
TRIANGLE = [(10.2, 1.1), (30.9, 12.3), (11.7, 22.4)]


def test_holes_order_sections_and_levels(tmp_path: Path) -> None:
    several = {"type": "MultiPolygon", "coordinates": [[TRIANGLE], [[(0, 0), (3, 0), (3, 3)]]]}
    features = [
        polygon(SQUARE, HOLE, name="a"),
        {"type": "Feature", "geometry": several, "properties": {"classification": "b"}},
        polygon(SQUARE, name=None, z=2),
    ]
    outlines = read(tmp_path, {"type": "FeatureCollection", "features": features})
    assert outlines.names == ("a", "b", None)
    values = np.array([7, 9, 11])
    expected = np.zeros((3, *SHAPE), int)
    whole = Box.from_shape(SHAPE)
    expected[0][brute_force([SQUARE, HOLE], whole)] = 7
    expected[0][brute_force([TRIANGLE, [(0, 0), (3, 0), (3, 3)]], whole)] = 9  # drawn later, lies on top
    expected[2][brute_force([SQUARE], whole)] = 11
    np.testing.assert_array_equal(paint(outlines, values, Box.from_shape((3, *SHAPE)), 0), expected)
    for box in (Box((1, 4, 5), (3, 9, 22)), Box((0, 14, 0), (1, 15, 31)), Box((2, 0, 30), (3, 23, 31))):
        np.testing.assert_array_equal(paint(outlines, values, box, 0), expected[box.slices()])
    np.testing.assert_array_equal(
        paint(outlines, values, whole, 0, np.array([True, False, False])) == 7, brute_force([SQUARE, HOLE], whole)
    )
    coarse = read(tmp_path, features[:1], (1 / 2, 1 / 4))
    scaled = [[(x / 4, y / 2) for x, y in ring] for ring in (SQUARE, HOLE)]
    box = Box.from_shape((12, 8))
    np.testing.assert_array_equal(paint(coarse, values, box, 0) == 7, brute_force(scaled, box))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"type": "Topology"}, "is no GeoJSON FeatureCollection"),
        ([{"type": "Feature"}], "feature 0 has no geometry"),
        ([polygon(SQUARE), {"geometry": {"type": "Point", "coordinates": [1, 2]}}], "feature 1 is a Point; only Polygon and MultiPolygon"),
        ([{"geometry": {"type": "Polygon", "coordinates": [[[1, 2], [3, 4]]]}}], "cannot be read"),
        ([{"geometry": {"type": "Polygon", "coordinates": [[[1, 2], [3, None], [4, 4]]]}}], "cannot be read"),
        ([{"geometry": {"type": "Polygon", "coordinates": [[[1, 2], [3, float("nan")], [4, 4]]]}}], "cannot be read"),
        ([{"geometry": {"type": "Polygon", "coordinates": []}}], "cannot be read"),
    ],
)  # fmt: skip
def test_what_has_no_inside_is_refused_by_its_number(tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read(tmp_path, content)


def test_a_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.geojson").write_text("{")
    with pytest.raises(InputError, match="is not readable GeoJSON"):
        read_outlines(str(tmp_path / "a.geojson"), (1, 1))
    with pytest.raises(InputError, match="not found"):
        read_outlines(str(tmp_path / "b.geojson"), (1, 1))

"""Outlines against shapely and scipy: valid, of the very voxels, one polygon for each set of voxels that are connected by edges."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import ndimage

from unet_core.exports.outlines import Corners, Ring, corners_of, polygons_of

Polygons = list[list[Ring]]


def shape_of(polygons: Polygons) -> shapely.Geometry:
    parts = [shapely.Polygon(outer, holes) for outer, *holes in polygons]
    return parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)


def voxels_of(shape: shapely.Geometry, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Voxels whose centre lies in a shape."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    shapely.prepare(shape)
    return shapely.contains_xy(shape, x, y)


def outlined(labels: NDArray[np.generic]) -> dict[int, Polygons]:
    return dict(polygons_of(corners_of(np.pad(labels, 1))))


def check(labels: NDArray[np.generic], found: dict[int, Polygons]) -> None:
    assert list(found) == [value for value in np.unique(labels).tolist() if value]
    for value, polygons in found.items():
        shape, own = shape_of(polygons), labels == value
        assert shapely.is_valid(shape), shapely.is_valid_reason(shape)
        np.testing.assert_array_equal(voxels_of(shape, labels.shape), own)
        assert shape.area == own.sum()
        assert len(polygons) == ndimage.label(own)[1]
        for outer, *holes in polygons:
            for ring, counter_clockwise in ((outer, True), *((hole, False) for hole in holes)):
                assert shapely.LinearRing(ring).is_ccw == counter_clockwise
                steps = np.diff(ring, axis=0) != 0
                assert (steps.sum(axis=1) == 1).all()  # along the grid
                assert all((a != b).all() for a, b in pairwise(steps))  # and no corner that is none
            assert (outer[0] == min(map(tuple, outer), key=lambda point: (point[1], point[0]))).all()


@settings(max_examples=150)
@given(arrays(np.uint64, st.tuples(st.integers(1, 11), st.integers(1, 9)), elements=st.sampled_from([0, 1, 7, 2**63 + 5])))
def test_polygons_are_valid_and_cover_the_very_voxels_of_a_label(labels: NDArray[np.uint64]) -> None:
    check(labels, outlined(labels))


PICTURES = {
    "two holes that touch in a corner": ["#####", "#.###", "##.##", "#####"],
    "a hole that touches the outside in a corner": ["###", "#.#", "##."],
    "a diagonal is two polygons": ["#..", ".#.", "..#"],
    "an island in a hole in an island": ["#######", "#.....#", "#.###.#", "#.#.#.#", "#.###.#", "#.....#", "#######"],
    "holes of two polygons in one row": ["####.####", "#.##.#.##", "####.####"],
    "a hole below another hole": ["#####...", "#.#.#...", "#####...", "###.#..#", "#####..#"],
    "a cross of holes": ["#####", "##.##", "#.#.#", "##.##", "#####"],
}


@pytest.mark.parametrize("name", PICTURES)
def test_corners_and_holes(name: str) -> None:
    labels = np.array([[letter == "#" for letter in row] for row in PICTURES[name]], dtype=np.uint8)
    check(labels, outlined(labels))


def test_a_square_begins_above_left_and_runs_along_the_row() -> None:
    found = outlined(np.array([[0, 3, 3], [0, 3, 3]]))
    assert {value: [[ring.tolist() for ring in polygon] for polygon in polygons] for value, polygons in found.items()} == {
        3: [[[[1, 0], [3, 0], [3, 2], [1, 2], [1, 0]]]]
    }


def test_corners_of_tiles_in_any_order_give_the_outlines_of_the_whole() -> None:
    labels = (np.random.default_rng(1).random((37, 53)) < 0.6) * np.uint8(9)
    rim = np.pad(labels, 1)
    whole = corners_of(rim)
    cuts = [(0, 7, 8, 38), (0, 20, 54)]  # of the crossings
    parts = [
        corners_of(rim[top : bottom + 1, left : right + 1], top, left)
        for top, bottom in pairwise(cuts[0])
        for left, right in pairwise(cuts[1])
    ]
    shuffled = Corners.join(parts[::-1]).select(np.random.default_rng(2).permutation(sum(map(len, parts))))
    assert len(shuffled) == len(whole)
    expected, found = (list(polygons_of(corners)) for corners in (whole, shuffled))
    assert str(found) == str(expected)
    check(labels, dict(found))


def test_nothing_has_no_outline() -> None:
    assert list(polygons_of(corners_of(np.zeros((5, 4), np.uint8)))) == []

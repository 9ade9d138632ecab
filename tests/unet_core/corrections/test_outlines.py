"""Outlines of labels: painted again they are the labels, they lie on the faces of voxels, and they are polygons as others define them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from unet_core.corrections.outlines import outlines_of
from unet_core.geometry import Box
from unet_core.training.geojson import paint, read_outlines

NAMES = {number: (f"class {number}", "#ff8000" if number == 1 else "") for number in (1, 2, 7)}


def painted(tmp_path: Path, features: list, shape: tuple[int, ...], value_of) -> np.ndarray:
    (tmp_path / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    outlines = read_outlines(str(tmp_path / "a.geojson"), (1.0, 1.0))
    values = np.array([value_of(number, name) for number, name in enumerate(outlines.names)], dtype=np.int64)
    return paint(outlines, values, Box.from_shape(shape), 0)


@pytest.mark.parametrize("seed", range(4))
def test_painted_again_they_are_the_labels(tmp_path: Path, seed: int) -> None:
    """Noise has holes, islands in holes, single voxels and voxels that touch at corners."""
    random = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(random.normal(size=(37, 41)), seed / 2)
    labels = np.array([0, 1, 2, 7, 9])[np.digitize(smooth / smooth.std(), [-0.6, 0, 0.5, 1.5])]
    features = outlines_of(labels, NAMES, as_ids=False, section=None)
    found = painted(tmp_path, features, labels.shape, lambda number, name: int(name.split()[1]))
    np.testing.assert_array_equal(found, np.where(labels == 9, 0, labels))  # 9 has no name


def test_an_object_in_pieces_is_one_feature(tmp_path: Path) -> None:
    ids = np.zeros((9, 12), np.uint16)
    ids[1:4, 1:4] = ids[6:8, 2:3] = 40
    ids[2, 2] = 0
    ids[3:7, 7:11] = 3
    features = outlines_of(ids, {1: ("cell", "")}, as_ids=True, section=None)
    assert [feature["geometry"]["type"] for feature in features] == ["Polygon", "MultiPolygon"]
    found = painted(tmp_path, features, ids.shape, lambda number, name: (3, 40)[number])
    np.testing.assert_array_equal(found, ids)


def test_they_lie_on_the_faces_of_voxels_and_say_class_colour_and_section() -> None:
    labels = np.zeros((10, 12), np.uint8)
    labels[2:5, 3:9] = 1
    (feature,) = outlines_of(labels, NAMES, as_ids=False, section=4)
    ((*points, last),) = feature["geometry"]["coordinates"]
    assert points[0] == last
    xs, ys = zip(*points, strict=True)
    assert (min(xs), max(xs), min(ys), max(ys)) == (3, 9, 2, 5)  # QuPath's pixel (3, 2) covers 3 to 4 and 2 to 3
    assert feature["geometry"]["plane"] == {"c": -1, "z": 4, "t": 0}
    assert feature["properties"] == {"objectType": "annotation", "classification": {"name": "class 1", "color": [255, 128, 0]}}

"""GeoJSON against the voxels of the output: painted back they are the label image, whatever the tiles."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import tifffile
import zarr
from numpy.typing import NDArray
from scipy import ndimage
from shapely.geometry import shape as shape_of

from tests.unet_core.exports.conftest import DrawOutput, blobs
from unet_core import ledger
from unet_core.errors import InputError
from unet_core.exports import Options, export_result, tiles
from unet_core.geometry import Box
from unet_core.store import open_store
from unet_core.tables import read_objects_table
from unet_core.training.geojson import paint, read_outlines

Feature = dict[str, Any]
BLOCKS: dict[tuple[int, ...], tuple[int, ...]] = {(75, 93): (32, 32), (9, 22, 37): (8, 16, 16)}


def features_of(path: Path) -> list[Feature]:
    found = json.loads(path.read_bytes())
    assert found["type"] == "FeatureCollection"
    return list(found["features"])


def stored(output: Path, name: str) -> NDArray[Any]:
    return np.asarray(zarr.open_array(output / "labels" / name / "0", mode="r")[...])


def painted(features: list[Feature], values: list[int], shape: tuple[int, ...], step: int = 1) -> NDArray[np.int64]:
    """Every feature painted into voxels by shapely; no voxel twice."""
    out = np.zeros(shape, dtype=np.int64)
    y, x = np.mgrid[: shape[-2], : shape[-1]] * step + step / 2
    for feature, value in zip(features, values, strict=True):
        geometry = feature["geometry"]
        outline = shape_of(geometry)
        assert shapely.is_valid(outline), shapely.is_valid_reason(outline)
        shapely.prepare(outline)
        section = out[geometry.get("plane", {"z": 0})["z"]] if len(shape) == 3 else out
        inside = shapely.contains_xy(outline, x, y)
        assert not section[inside].any()
        section[inside] = value
    return out


@pytest.fixture(params=["small tiles", "one tile"])
def side(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "small tiles":
        monkeypatch.setattr(tiles, "_SIDE", 1)  # of one chunk


@pytest.mark.usefixtures("side")
@pytest.mark.parametrize("shape", BLOCKS, ids=str)
def test_objects_painted_back_are_the_instances(
    shape: tuple[int, ...], draw_output: DrawOutput, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    labels = blobs(shape)
    labels[..., 2:60, 3] = labels[..., 2:60, 30] = labels[..., 2, 3:31] = 2  # across many tiles
    output = draw_output(
        labels, instances="components", connectivity=2, measure="small" in request.node.name, block_shape=BLOCKS[shape]
    )
    instances = stored(output, "instances")
    target = tmp_path / "objects.geojson"
    done = export_result(str(output), str(target))
    features = features_of(target)
    assert done.facts["features"] == len(features)
    names = [int(feature["properties"]["name"]) for feature in features]
    np.testing.assert_array_equal(painted(features, names, shape), instances)
    pairs = {
        (section, int(label)) for section, plane in enumerate(np.atleast_3d(instances)) for label in np.unique(plane) if label
    }
    if len(shape) == 3:
        assert len(features) == len(pairs)
    assert {feature["geometry"]["type"] for feature in features} == {"Polygon", "MultiPolygon"}
    assert len({uuid.UUID(feature["id"]) for feature in features}) == len(features)
    for feature, name in zip(features, names, strict=True):
        own = labels[instances == name][0]
        color = [0, 255, 0] if own == 2 else [255, 0, 0]
        assert feature["properties"]["objectType"] == "detection"
        assert feature["properties"]["classification"] == {"name": f"class {own}", "color": color}
    # Our own reader of QuPath's files paints the same.
    outlines = read_outlines(str(target), (1.0, 1.0))
    again = paint(outlines, np.array(names, dtype=np.int64), Box.from_shape(shape), 0)
    np.testing.assert_array_equal(again, instances)


def test_measurements_are_those_of_the_table(draw_output: DrawOutput, tmp_path: Path) -> None:
    output = draw_output(blobs((40, 50)), instances="components")
    export_result(str(output), str(tmp_path / "objects.geojson"))
    table = {row["label"]: row for row in read_objects_table(str(output)).to_pylist()}
    features = features_of(tmp_path / "objects.geojson")
    assert len(features) == len(table)
    for feature in features:
        row = table[int(feature["properties"]["name"])]
        measured = feature["properties"]["measurements"]
        assert measured["voxels"] == row["voxels"] == shape_of(feature["geometry"]).area
        assert measured["area_um2"] == pytest.approx(row["area_um2"], rel=1e-5)
        wanted = {name for name, value in row.items() if value is not None and name not in ("label", "class", "class_value")}
        assert set(measured) == {name for name in wanted if not name.startswith("bbox_")}
    export_result(str(output), str(tmp_path / "plain.geojson"), options=Options(measurements=False, object_type="annotation"))
    plain = features_of(tmp_path / "plain.geojson")
    assert {feature["properties"]["objectType"] for feature in plain} == {"annotation"}
    assert not any("measurements" in feature["properties"] for feature in plain)
    assert [feature["geometry"] for feature in plain] == [feature["geometry"] for feature in features]


def test_no_two_features_of_an_output_have_one_id(draw_output: DrawOutput, tmp_path: Path) -> None:
    output = draw_output(blobs((40, 50)), instances="components")
    found = []
    for name in ("instances", "classes"):
        export_result(str(output), str(tmp_path / f"{name}.geojson"), labels=name)
        found += features_of(tmp_path / f"{name}.geojson")
    ids = [uuid.UUID(feature["id"]) for feature in found]
    assert len(set(ids)) == len(ids) > 20
    assert {(own.variant, own.version) for own in ids} == {(uuid.RFC_4122, 8)}
    # An outline has the same id whatever is left out beside it.
    export_result(str(output), str(tmp_path / "large.geojson"), labels="classes", options=Options(min_voxels=5))
    outlines = {feature["id"]: feature["geometry"] for feature in found}
    large = features_of(tmp_path / "large.geojson")
    assert len(large) > 3
    assert all(outlines[feature["id"]] == feature["geometry"] for feature in large)


@pytest.mark.usefixtures("side")
@pytest.mark.parametrize("shape", BLOCKS, ids=str)
def test_regions_painted_back_are_the_classes(shape: tuple[int, ...], draw_output: DrawOutput, tmp_path: Path) -> None:
    labels = blobs(shape)
    labels[..., 2:60, 3] = labels[..., 2:60, 30] = labels[..., 2, 3:31] = 2
    output = draw_output(labels, block_shape=BLOCKS[shape])
    export_result(str(output), str(tmp_path / "regions.geojson"))
    features = features_of(tmp_path / "regions.geojson")
    values = [int(feature["properties"]["classification"]["name"][-1]) for feature in features]
    np.testing.assert_array_equal(painted(features, values, shape), labels)
    sections = labels if len(shape) == 3 else labels[None]
    assert len(features) == sum(ndimage.label(section == value)[1] for section in sections for value in (1, 2))
    assert {feature["properties"]["objectType"] for feature in features} == {"annotation"}
    assert len({feature["id"] for feature in features}) == len(features)
    areas = [feature["properties"]["measurements"]["voxels"] for feature in features]
    assert areas == [shape_of(feature["geometry"]).area for feature in features]
    assert features[0]["properties"]["measurements"]["area_um2"] == areas[0] * 0.25
    export_result(str(output), str(tmp_path / "large.geojson"), options=Options(min_voxels=5))
    assert len(features_of(tmp_path / "large.geojson")) == sum(area >= 5 for area in areas) < len(areas)


def pyramid(path: Path, kind: str, shape: tuple[int, int]) -> str:
    """An image whose level 1 is coarser by 3 and 2 (Zarr), or 2 and 2 (TIFF)."""
    image = np.ones(shape, np.uint8)
    if kind == "tiff":
        with tifffile.TiffWriter(path / "image.tif") as file:
            file.write(image, subifds=1, tile=(16, 16))
            file.write(image[::2, ::2], subfiletype=1, tile=(16, 16))
        return str(path / "image.tif")
    group = zarr.create_group(path / "image.zarr", zarr_format=2)
    sets = []
    for level, factor in enumerate([(1, 1), (3, 2)]):
        group.create_array(str(level), data=image[:: factor[0], :: factor[1]])
        scale, move = [0.5 * step for step in factor], [7 + 0.25 * (step - 1) for step in factor]
        sets.append(
            {
                "path": str(level),
                "coordinateTransformations": [{"type": "scale", "scale": scale}, {"type": "translation", "translation": move}],
            }
        )
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "yx"]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": sets}]
    return str(path / "image.zarr")


@pytest.mark.parametrize(("kind", "factor"), [("tiff", (2, 2)), ("zarr", (3, 2))])
def test_outlines_of_a_coarser_level_lie_in_pixels_of_level_0(
    kind: str, factor: tuple[int, int], draw_output: DrawOutput, tmp_path: Path
) -> None:
    image = pyramid(tmp_path, kind, (60, 64))
    labels = blobs((60 // factor[0], 32))
    output = draw_output(labels, image=image, level=1, voxel_size_um=None)
    export_result(str(output), str(tmp_path / "regions.geojson"))
    features = features_of(tmp_path / "regions.geojson")
    values = [int(feature["properties"]["classification"]["name"][-1]) for feature in features]
    np.testing.assert_array_equal(painted(features, values, (60, 64)), np.kron(labels, np.ones(factor, np.uint8)))
    assert isinstance(features[0]["geometry"]["coordinates"][0][0][0], int)
    moved = shutil.move(image, tmp_path / f"moved-{Path(image).name}")
    with pytest.raises(InputError, match="is needed to know where its pixels lie"):
        export_result(str(output), str(tmp_path / "again.geojson"))
    export_result(str(output), str(tmp_path / "again.geojson"), options=Options(image=str(moved)))
    assert (tmp_path / "again.geojson").read_bytes() == (tmp_path / "regions.geojson").read_bytes()


def test_compressed_files_hold_the_same_and_are_the_same_every_time(draw_output: DrawOutput, tmp_path: Path) -> None:
    output = draw_output(blobs((40, 50)), instances="components")
    for name in ("a.geojson", "a.geojson.gz", "b.geojson.gz", "a.geojson.zip", "b.geojson.zip"):
        export_result(str(output), str(tmp_path / name))
    plain = (tmp_path / "a.geojson").read_bytes()
    assert gzip.decompress((tmp_path / "a.geojson.gz").read_bytes()) == plain
    with zipfile.ZipFile(tmp_path / "a.geojson.zip") as archive:
        assert archive.namelist() == ["a.geojson"]
        assert archive.read("a.geojson") == plain
    assert (tmp_path / "a.geojson.gz").read_bytes() == (tmp_path / "b.geojson.gz").read_bytes()


def test_an_output_without_objects_gives_no_feature(draw_output: DrawOutput, tmp_path: Path) -> None:
    output = draw_output(np.zeros((20, 20), np.uint8), instances="components")
    assert export_result(str(output), str(tmp_path / "none.geojson")).facts["features"] == 0
    assert features_of(tmp_path / "none.geojson") == []


def test_what_cannot_be_exported_is_refused_and_writes_nothing(draw_output: DrawOutput, tmp_path: Path) -> None:
    output = draw_output(blobs((20, 20)))
    (tmp_path / "there.geojson").touch()
    before = sorted(tmp_path.iterdir())
    for target, more, words in (
        ("there.geojson", {}, "exists; delete it"),
        ("objects.csv", {}, "suffix that says no format"),
        ("none/a.geojson", {}, "there is no folder"),
        ("a.geojson", {"labels": "instances"}, "--instances components"),
        ("a.geojson", {"labels": "cells"}, "it has classes"),
        ("a.ome.tif", {"options": Options(min_voxels=3)}, "--min-voxels has no meaning for the format ome-tiff"),
        (f"{output.name}/a.geojson", {}, "lie inside each other"),
    ):
        with pytest.raises(InputError, match=words):
            export_result(str(output), str(tmp_path / target), **more)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no local path"):
        export_result(str(output), "s3://bucket/a.geojson")
    open_store(str(output)).delete(ledger.COMPLETE_KEY)
    with pytest.raises(InputError, match="is unfinished"):
        export_result(str(output), str(tmp_path / "a.geojson"))
    assert sorted(tmp_path.iterdir()) == before


_SLOWLY = """
import sys, time
from unet_core.exports import export_result, geojson
whole = geojson.region_outlines
def slowly(walk):
    for number, outline in enumerate(whole(walk)):
        if number == 5:
            print("under way", flush=True)
            time.sleep(60)
        yield outline
geojson.region_outlines = slowly
export_result(sys.argv[1], sys.argv[2])
"""


def test_a_killed_export_leaves_nothing_that_looks_finished(draw_output: DrawOutput, tmp_path: Path) -> None:
    output, target = draw_output(blobs((20, 20))), tmp_path / "exports" / "regions.geojson"
    target.parent.mkdir()
    process = subprocess.Popen([sys.executable, "-c", _SLOWLY, str(output), str(target)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "under way\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    left = list(target.parent.iterdir())
    assert [path.name.startswith(".regions.geojson.") for path in left] == [True]
    time.sleep(0.01)
    export_result(str(output), str(target))
    assert list(target.parent.iterdir()) == [target]

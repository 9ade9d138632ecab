"""Plates: every field of view by its name, in both versions, and what naming a plate instead of a field is answered with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaozarrs
import zarr

from tests.conftest import DATA, needs_data, textured
from unet_core.errors import VolumeError
from unet_core.job import make_job
from unet_core.segment import run
from unet_core.store import open_store
from unet_core.volumes import open_volume
from unet_core.volumes.plates import Field, fields

LAYOUT = {"A/1": ["0", "1"], "A/12": ["0"], "H/1": ["1", "0"]}


def plate(folder: Path, version: str, layout: dict[str, list[str]] = LAYOUT) -> Path:
    zarr_format: Any = 2 if version == "0.4" else 3

    def group(path: str, attributes: dict[str, Any]) -> None:
        node = zarr.open_group(folder / path, mode="w", zarr_format=zarr_format)
        node.attrs.update(attributes if version == "0.4" else {"ome": {"version": "0.5", **attributes}})

    stated = {"version": version} if version == "0.4" else {}
    rows, columns = ["A", "H"], ["1", "12"]
    wells = [
        {"path": path, "rowIndex": rows.index(path.split("/")[0]), "columnIndex": columns.index(path.split("/")[1])}
        for path in layout
    ]
    named = {"rows": [{"name": row} for row in rows], "columns": [{"name": column} for column in columns]}
    group("", {"plate": {"name": "p", "wells": wells, **named, **stated}})
    for row in {path.split("/")[0] for path in layout}:
        zarr.open_group(folder / row, mode="a", zarr_format=zarr_format)
    for path, images in layout.items():
        group(path, {"well": {"images": [{"path": image, "acquisition": 3} for image in images], **stated}})
        for number, image in enumerate(images):
            axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"]
            datasets = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [0.5, 0.5]}]}]
            group(f"{path}/{image}", {"multiscales": [{"axes": axes, "datasets": datasets, **stated}]})
            named_axes = None if version == "0.4" else ["y", "x"]
            data, place = textured((40, 50), number), folder / path / image / "0"
            zarr.create_array(place, data=data, chunks=(20, 20), zarr_format=zarr_format, dimension_names=named_axes)
    return folder


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_every_field_of_a_plate_and_of_a_well(version: str, tmp_path: Path) -> None:
    url = str(plate(tmp_path / "p.zarr", version))
    yaozarrs.validate_zarr_store(url)
    expected = [
        Field(f"{url}/{row}/{column}/{image}", row, column, image, 3)
        for row, column, image in [("A", "1", "0"), ("A", "1", "1"), ("A", "12", "0"), ("H", "1", "1"), ("H", "1", "0")]
    ]
    assert list(fields(url)) == expected
    assert [field.name for field in fields(f"{url}/")] == ["A/1/0", "A/1/1", "A/12/0", "H/1/1", "H/1/0"]
    assert list(fields(f"{url}/H/1")) == expected[3:]
    for field in expected:
        assert open_volume(field.url).voxel_size == (0.5, 0.5)


def test_a_plate_on_an_object_store(bucket: str, tmp_path: Path) -> None:
    folder, store = plate(tmp_path / "p", "0.5"), open_store(f"{bucket}/p")
    for path in folder.rglob("*"):
        if path.is_file():
            store.put(path.relative_to(folder).as_posix(), path.read_bytes())
    assert [field.name for field in fields(f"{bucket}/p")] == [field.name for field in fields(str(folder))]
    assert open_volume(fields(f"{bucket}/p")[-1].url).shape == (40, 50)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_plate_given_to_segment_is_refused_with_its_first_fields(
    version: str, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    url = str(plate(tmp_path / "p", version, {"A/1": ["0", "1"], "A/12": ["0"], "H/1": ["1", "0"], "H/12": ["0", "1"]}))
    with pytest.raises(VolumeError) as caught:
        run(make_job(image=url, output=str(tmp_path / "out"), model=str(make_model())))
    first = ", ".join(f"{url}/{name}" for name in ("A/1/0", "A/1/1", "A/12/0", "H/1/1", "H/1/0", "H/12/0"))
    assert str(caught.value) == (
        f"{url} is a plate of 4 wells, not one image; name one field of view, each gets a result of its own: {first}, .."
    )
    assert not (tmp_path / "out").exists()


def test_damaged_and_hostile_plates(tmp_path: Path) -> None:
    folder = plate(tmp_path / "p", "0.5")

    def stated(**changes: Any) -> None:
        document = json.loads((folder / "zarr.json").read_text())
        document["attributes"]["ome"]["plate"].update(changes)
        (folder / "zarr.json").write_text(json.dumps(document))

    stated(rows=[{"name": "../.."}, {}], columns=7)
    assert [field.name for field in fields(str(folder))][:3] == ["A/1/0", "A/1/1", "A/12/0"]
    stated(wells=[{"path": "../x"}])
    with pytest.raises(VolumeError, match="path leaves the group: well 0"):
        fields(str(folder))
    stated(wells=[{"path": "A/1"}, {"path": "B/7"}])
    for call in (fields, open_volume):
        with pytest.raises(VolumeError, match="well 'B/7' missing in .*; copy it again"):
            call(str(folder))
    stated(wells=[])
    assert fields(str(folder)) == ()
    with pytest.raises(VolumeError, match="is a plate of 0 wells; name one image, no field of view is listed"):
        open_volume(str(folder))
    for other in (folder / "A", folder / "A/1/0"):
        with pytest.raises(VolumeError, match="is no plate and no well of one"):
            fields(str(other))


@needs_data
def test_the_plate_of_bioformats2raw() -> None:
    url = str(DATA / "omezarr/bioformats2raw_v04/hcs.zarr")
    names = [field.name for field in fields(url)]
    assert names == [f"{row}/{column}/{field}" for row in "AB" for column in (1, 2) for field in (0, 1)]

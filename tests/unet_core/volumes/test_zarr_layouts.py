"""What the groups around an array say of it: levels named by their own URL, bioformats2raw, units that differ, odd but legal paths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from unet_core.errors import VolumeError
from unet_core.geometry import Box
from unet_core.store import open_store
from unet_core.volumes import open_volume
from unet_core.volumes.units import UNIT_UM, unit_name

SHAPE = {"t": 2, "c": 1, "z": 1, "y": 40, "x": 50}
STEPS = {"t": 1.0, "c": 1.0, "z": 300.0, "y": 0.5, "x": 0.25}


def image(folder: Path, axes: str = "tcyx", version: str = "0.5", units: dict[str, Any] | None = None, **entry: Any) -> Path:
    """An OME-Zarr image of two levels, ``lowest/0`` and ``lowest/1``."""
    group = zarr.open_group(folder, mode="w", zarr_format=2 if version == "0.4" else 3)
    data = np.random.default_rng(0).integers(1, 255, [SHAPE[axis] for axis in axes]).astype("u1")
    datasets = []
    for level in range(2):
        step = 2**level
        group.create_array(f"s/{level}", data=data[..., ::step, ::step], chunks=(1,) * (len(axes) - 2) + (16, 16))
        transforms = [
            {"type": "scale", "scale": [STEPS[axis] * (step if axis in "yx" else 1) for axis in axes]},
            {"type": "translation", "translation": [7.0 if axis in "zyx" else 0.0 for axis in axes]},
        ]
        datasets.append({"path": f"s/{level}", "coordinateTransformations": transforms})
    units = {axis: "micrometer" for axis in "zyx"} if units is None else units
    kinds = {"t": "time", "c": "channel"}
    named = [{"name": axis, "type": kinds.get(axis, "space")} | ({"unit": units[axis]} if axis in units else {}) for axis in axes]
    multiscales = [{"version": version, "axes": named, "datasets": datasets} | entry]
    stated = {"version": "0.5", "multiscales": multiscales}
    group.attrs.update({"multiscales": multiscales} if version == "0.4" else {"ome": stated})
    return folder


def change(folder: Path, path: str, value: Any) -> Path:
    """Set a field of the first multiscale of a version 3 image."""
    document = json.loads((folder / "zarr.json").read_text())
    node = document["attributes"]["ome"]["multiscales"][0]
    *parents, last = path.split(".")
    for part in parents:
        node = node[int(part)] if isinstance(node, list) else node[part]
    if value is None:
        del node[last]
    else:
        node[last] = value
    (folder / "zarr.json").write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("level", [0, 1])
def test_an_array_of_an_image_has_what_the_image_states(version: str, level: int, tmp_path: Path) -> None:
    whole = open_volume(str(image(tmp_path / "i", version=version)), level, time=1)
    alone = open_volume(f"{tmp_path}/i/s/{level}", time=1)
    for name in ("axes", "shape", "voxel_size", "scale", "unit", "translation", "chunk_shape"):
        assert getattr(alone, name) == getattr(whole, name)
    assert (alone.level, [entry.shape for entry in alone.levels]) == (0, [whole.shape])
    box = Box((3, 5), (17, 20))
    np.testing.assert_array_equal(alone.read(box), whole.read(box))
    with pytest.raises(VolumeError, match="has 2 time points; choose one with --time"):
        open_volume(f"{tmp_path}/i/s/{level}")
    with pytest.raises(VolumeError, match=f"level 1 of .*s/{level} does not exist; it is a single array, level 0"):
        open_volume(f"{tmp_path}/i/s/{level}", 1, time=1)


def test_an_array_beside_the_levels_or_in_an_image_of_an_old_version_is_a_plain_array(tmp_path: Path) -> None:
    image(tmp_path / "i")
    zarr.create_array(tmp_path / "i/s/other", data=np.ones((3, 8, 9), "u1"), chunks=(1, 8, 9))
    assert open_volume(f"{tmp_path}/i/s/other").axes == "zyx"
    image(tmp_path / "old", axes="cyx", version="0.4", version_note=1)
    document = json.loads((tmp_path / "old/.zattrs").read_text())
    document["multiscales"][0]["version"] = "0.1"
    (tmp_path / "old/.zattrs").write_text(json.dumps(document))
    assert (open_volume(f"{tmp_path}/old/s/0").axes, open_volume(f"{tmp_path}/old/s/0").voxel_size) == ("zyx", None)


def test_an_array_of_an_image_on_an_object_store(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(f"{bucket}/i")
    for path in image(tmp_path / "i", axes="zyx").rglob("*"):
        if path.is_file():
            store.put(path.relative_to(tmp_path / "i").as_posix(), path.read_bytes())
    here, there = open_volume(f"{tmp_path}/i/s/1"), open_volume(f"{bucket}/i/s/1")
    assert (there.axes, there.voxel_size, there.scale) == (here.axes, (300.0, 1.0, 0.5), here.scale)
    np.testing.assert_array_equal(there.read(Box.from_shape((1, 20, 25))), here.read(Box.from_shape((1, 20, 25))))
    assert open_volume(f"{bucket}/i").shape == (1, 40, 50)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(Exception, match=r"s3://bucket/i cannot be used: the server does not answer; check") as caught:
        open_volume(f"{bucket}/i")
    assert "\n" not in str(caught.value)


def converted(folder: Path, names: list[str], version: str, listed: bool) -> Path:
    """What bioformats2raw writes: images below a group that only says so, and their list in OME."""
    zarr_format: Any = 2 if version == "0.4" else 3
    stated: dict[str, Any] = {"bioformats2raw.layout": 3}
    root = zarr.open_group(folder, mode="w", zarr_format=zarr_format)
    root.attrs.update(stated if version == "0.4" else {"ome": stated | {"version": "0.5"}})
    for number, name in enumerate(names):
        image(folder / name, axes="yx" if number else "zyx", version=version)
    ome = zarr.open_group(folder / "OME", mode="w", zarr_format=zarr_format)
    if listed:
        series: dict[str, Any] = {"series": names}
        ome.attrs.update(series if version == "0.4" else {"ome": series | {"version": "0.5"}})
    return folder


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("listed", [True, False])
def test_images_that_bioformats2raw_has_converted(version: str, listed: bool, tmp_path: Path) -> None:
    alone = open_volume(str(converted(tmp_path / "one", ["0"], version, listed)), 1)
    assert (alone.axes, alone.level, alone.voxel_size) == ("zyx", 1, (300.0, 1.0, 0.5))
    names = ["b", "a"] if listed else ["2", "10"]
    url = str(converted(tmp_path / "two", names, version, listed))
    expected = f"{url} holds 2 images, name one: --series 0: {url}/{names[0]}; --series 1: {url}/{names[1]}."
    with pytest.raises(VolumeError) as caught:
        open_volume(url)
    assert str(caught.value) == expected
    assert [open_volume(url, series=number).axes for number in range(2)] == ["zyx", "yx"]
    with pytest.raises(VolumeError, match="series 2 of .* does not exist; it has 0 to 1"):
        open_volume(url, series=2)


def test_a_hostile_list_of_series_is_refused(tmp_path: Path) -> None:
    folder = converted(tmp_path / "a", ["0"], "0.4", listed=True)
    for series, words in [
        (["../x"], "path leaves the group: series 0"),
        (["9"], "series 0 '9' missing in"),
        ([7], "path leaves"),
    ]:
        (folder / "OME/.zattrs").write_text(json.dumps({"series": series}))
        with pytest.raises(VolumeError, match=words):
            open_volume(str(folder))
    (folder / ".zattrs").write_text("{}")
    with pytest.raises(VolumeError, match=r"no OME multiscales in .*name one: .*/a/0\.$"):
        open_volume(str(folder))


@pytest.mark.parametrize("path", ["s/0/", "./s/0", "s//0", "s/./0"])
def test_paths_of_levels_are_put_in_their_plain_form(path: str, tmp_path: Path) -> None:
    folder = change(image(tmp_path / "i", axes="yx"), "datasets.0.path", path)
    assert open_volume(str(folder)).missing_chunks() == ()
    assert open_volume(str(folder)).read(Box((0, 0), (40, 50))).all()
    assert open_volume(f"{folder}/s/0").voxel_size == (0.5, 0.25)


UNITS: list[tuple[str, str, dict[str, Any], tuple[float, ...] | None, tuple[float, ...], str | None, tuple[float, ...]]] = [
    ("same", "yx", {"y": "nanometer", "x": "nanometer"}, (0.0005, 0.00025), (0.5, 0.25), "nanometer", (7.0, 7.0)),
    ("aliases", "yx", {"y": "µm", "x": "um"}, (0.5, 0.25), (0.5, 0.25), "micrometer", (7.0, 7.0)),
    (
        "differ",
        "zyx",
        {"z": "nanometer", "y": "micrometer", "x": "mm"},
        (0.3, 0.5, 250.0),
        (0.3, 0.5, 250.0),
        "micrometer",
        (0.007, 7.0, 7000.0),
    ),
    ("lone section", "zyx", {"y": "mm", "x": "mm"}, (3e5, 500.0, 250.0), (300.0, 0.5, 0.25), "millimeter", (7.0, 7.0, 7.0)),
    ("one missing", "yx", {"y": "mm"}, None, (0.5, 0.25), None, (7.0, 7.0)),
    ("unknown", "yx", {"y": "pixel", "x": "pixel"}, None, (0.5, 0.25), "pixel", (7.0, 7.0)),
    ("none", "yx", {}, None, (0.5, 0.25), None, (7.0, 7.0)),
    ("empty", "yx", {"y": "", "x": None}, None, (0.5, 0.25), None, (7.0, 7.0)),
]


@pytest.mark.parametrize(
    ("axes", "units", "size", "scale", "unit", "translation"), [case[1:] for case in UNITS], ids=[case[0] for case in UNITS]
)
def test_units_of_the_axes(
    axes: str, units: Any, size: Any, scale: Any, unit: str | None, translation: Any, tmp_path: Path
) -> None:
    volume = open_volume(str(image(tmp_path / "i", axes=axes, units=units)))
    assert volume.voxel_size == (None if size is None else pytest.approx(size))
    assert volume.scale == pytest.approx(scale)
    assert (volume.unit, volume.translation) == (unit, pytest.approx(translation))


@pytest.mark.parametrize("value", [None, [], [{"type": "identity"}]])
def test_a_voxel_size_that_is_not_stated_is_unknown(value: Any, tmp_path: Path) -> None:
    folder = change(image(tmp_path / "i", axes="yx"), "datasets.1.coordinateTransformations", value)
    volume = open_volume(str(folder), 1)
    assert (volume.voxel_size, volume.unit, volume.scale) == (None, None, (1.0, 1.0))
    assert [entry.voxel_size for entry in volume.levels] == [(0.5, 0.25), None]


def test_a_scale_of_the_whole_image_stretches_its_levels(tmp_path: Path) -> None:
    folder = image(tmp_path / "i", axes="yx", coordinateTransformations=[{"type": "scale", "scale": [10, 100]}])
    volume = open_volume(str(folder), 1)
    assert volume.voxel_size == pytest.approx((10.0, 50.0))
    assert volume.translation == (70.0, 700.0)


def test_names_of_units() -> None:
    for name in UNIT_UM:
        assert unit_name(name) == unit_name(f" {name.upper()}s") == name
    for text in ("um", "µm", "μm", "micron", "Microns", "micrometre", "\\u00b5m"):
        assert unit_name(text) == "micrometer"
    assert [unit_name(text) for text in ("nm", "mm", "cm", "m", "Å", "inch", "pm", "feet")] == [
        *("nanometer", "millimeter", "centimeter", "meter", "angstrom", "inch", "picometer", "foot")
    ]
    assert [unit_name(text) for text in ("", "pixel", "s", "second")] == [None] * 4


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4"])
@pytest.mark.parametrize("count", [3, 4])
def test_a_plain_array_of_colours_ends_in_channels(dtype: str, count: int, tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 255, (20, 30, count)).astype(dtype)
    zarr.create_array(tmp_path / "a", data=data, chunks=(16, 16, count))
    volume = open_volume(str(tmp_path / "a"))
    assert (volume.axes, volume.shape) == ("cyx", (count, 20, 30))
    np.testing.assert_array_equal(volume.read(Box.from_shape((20, 30))), np.moveaxis(data, -1, 0))


def test_names_of_dimensions_may_be_capitals(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a", data=np.ones((4, 5, 6), "i2"), chunks=(4, 5, 6), dimension_names=["Z", "Y", "X"])
    assert open_volume(str(tmp_path / "a")).axes == "zyx"

"""Precomputed and OME-TIFF, read back by tensorstore, tifffile and our own reader: every level as stored."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray

from tests.unet_core.exports.conftest import DrawOutput, blobs
from unet_core.errors import JobError
from unet_core.exports import export_result
from unet_core.tables import read_objects_table
from unet_core.volumes import Box, open_volume

BLOCKS: dict[tuple[int, ...], tuple[int, ...]] = {(300, 530): (256, 128), (70, 300, 66): (64, 128, 64)}


def stored(output: Path, name: str) -> list[NDArray[Any]]:
    """Every level of a label image."""
    folder = output / "labels" / name
    return [
        np.asarray(zarr.open_array(folder / level.name, mode="r")[...])
        for level in sorted(folder.iterdir())
        if level.name.isdigit()
    ]


def precomputed(path: Path) -> list[NDArray[np.uint64]]:
    """Every scale in the order (z,) y, x, as tensorstore reads it."""
    import tensorstore

    scales = json.loads((path / "info").read_bytes())["scales"]
    kvstore = {"driver": "file", "path": f"{path}/"}
    found = (
        tensorstore.open({"driver": "neuroglancer_precomputed", "kvstore": kvstore, "scale_index": index}).result()
        for index in range(len(scales))
    )
    return [np.asarray(scale[..., 0].read().result()).transpose() for scale in found]


@pytest.mark.parametrize("shape", BLOCKS, ids=str)
def test_precomputed_reads_back_as_stored(shape: tuple[int, ...], draw_output: DrawOutput, tmp_path: Path) -> None:
    size = (0.04, 0.008, 0.004)[-len(shape) :]
    output = draw_output(blobs(shape), instances="components", block_shape=BLOCKS[shape], voxel_size_um=size)
    properties = {}
    for name in ("instances", "classes"):
        target = tmp_path / f"{name}.precomputed"
        done = export_result(str(output), str(target), labels=name)
        levels = stored(output, name)
        assert done.facts["levels"] == len(levels) > 1
        for own, found in zip(levels, precomputed(target), strict=True):
            np.testing.assert_array_equal(found.reshape(own.shape), own)
        info = json.loads((target / "info").read_bytes())
        assert info["scales"][0]["resolution"] == ([4, 8, 40] if len(shape) == 3 else [4, 8, 4])
        assert info["scales"][0]["size"] == [*shape[::-1], 1][:3]
        assert info["scales"][0]["voxel_offset"] == [0, 0, 0]
        assert info["scales"][0]["sharding"]["@type"] == "neuroglancer_uint64_sharded_v1"
        properties[name] = json.loads((target / info["segment_properties"] / "info").read_bytes())["inline"]
    by_name = {entry["id"]: entry for entry in properties["classes"]["properties"]}
    assert (properties["classes"]["ids"], by_name["label"]["values"]) == (["1", "2"], ["class 1", "class 2"])
    table = read_objects_table(str(output)).to_pydict()
    assert list(map(int, properties["instances"]["ids"])) == table["label"]
    by_name = {entry["id"]: entry for entry in properties["instances"]["properties"]}
    assert by_name["label"]["values"] == table["class"]
    tags = [by_name["class"]["tags"][number] for (number,) in by_name["class"]["values"]]
    assert tags == [word.replace(" ", "_") for word in table["class"]]
    assert by_name["voxels"]["values"] == table["voxels"]
    assert by_name["voxels"]["data_type"] == "uint32"
    measured = "volume_um3" if len(shape) == 3 else "area_um2"
    np.testing.assert_allclose(by_name[measured]["values"], table[measured], rtol=1e-5)


@pytest.mark.parametrize(("moved", "origin", "notes"), [((8, 12), [24, 16, 0], 0), ((8.1, 13), [26, 16, 0], 1)], ids=str)
def test_precomputed_keeps_the_place_of_the_first_voxel(
    moved: tuple[float, float], origin: list[int], notes: int, draw_output: DrawOutput, tmp_path: Path
) -> None:
    labels = blobs((60, 64))
    group = zarr.create_group(tmp_path / "image.zarr", zarr_format=2)
    group.create_array("0", data=np.ones(labels.shape, np.uint8))
    transforms = [{"type": "scale", "scale": [0.5, 0.5]}, {"type": "translation", "translation": list(moved)}]
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "yx"]
    group.attrs["multiscales"] = [
        {"version": "0.4", "axes": axes, "datasets": [{"path": "0", "coordinateTransformations": transforms}]}
    ]
    output = draw_output(labels, image=str(tmp_path / "image.zarr"), voxel_size_um=None)
    done = export_result(str(output), str(tmp_path / "out"), format="precomputed")
    info = json.loads((tmp_path / "out" / "info").read_bytes())
    assert info["scales"][0]["voxel_offset"] == origin
    assert info["scales"][0]["resolution"] == [500, 500, 500]
    assert len(done.facts["notes"]) == notes
    np.testing.assert_array_equal(precomputed(tmp_path / "out")[0][0], labels)


@pytest.mark.parametrize("shape", BLOCKS, ids=str)
def test_ome_tiff_reads_back_as_stored(shape: tuple[int, ...], draw_output: DrawOutput, tmp_path: Path) -> None:
    size = (0.04, 0.008, 0.004)[-len(shape) :]
    output = draw_output(blobs(shape), instances="components", block_shape=BLOCKS[shape], voxel_size_um=size)
    for name, dtype in (("instances", np.uint32), ("classes", np.uint8)):
        target = tmp_path / f"{name}.ome.tif"
        export_result(str(output), str(target), labels=name)
        levels = stored(output, name)
        with tifffile.TiffFile(target) as file:
            assert file.is_bigtiff
            assert file.is_ome
            assert file.pages[0].is_tiled
            (series,) = file.series
            assert series.dtype == dtype
            assert len(series.levels) == len(levels) > 1
            for number, (own, found) in enumerate(zip(levels, series.levels, strict=True)):
                expected = own[np.arange(shape[0]) * len(own) // shape[0]] if len(shape) == 3 else own
                np.testing.assert_array_equal(found.asarray(), expected, err_msg=f"level {number}")
        volume = open_volume(str(target))
        assert volume.voxel_size == pytest.approx(size)
        np.testing.assert_array_equal(volume.read(Box.from_shape(shape))[0], levels[0])
        assert [level.shape[-2:] for level in volume.levels] == [own.shape[-2:] for own in levels]


def test_without_tensorstore_precomputed_says_what_to_install(
    draw_output: DrawOutput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = draw_output(blobs((20, 20)))
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    monkeypatch.delitem(sys.modules, "unet_core.exports.precomputed", raising=False)
    with pytest.raises(JobError, match=r"pip install 'unet-flows\[precomputed\]'"):
        export_result(str(output), str(tmp_path / "out.precomputed"))
    assert not list(tmp_path.glob("*out.precomputed*"))

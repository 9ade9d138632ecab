"""The output as other programs see it, and how its pyramid is laid out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaozarrs
import zarr

from tests.conftest import textured
from unet_core.downsampling import downsample
from unet_core.job import make_job
from unet_core.output import images_of
from unet_core.plan import LabelName, pyramid
from unet_core.segment import run
from unet_core.volumes import open_volume

Maker = Callable[..., Path]


@pytest.mark.parametrize("ngff", ["0.5", "0.4"])
@pytest.mark.parametrize(
    ("kind", "probabilities"), [("classes", "none"), ("classes", "float32"), ("regions", "uint8"), ("regions", "none")]
)
def test_the_output_is_a_valid_ome_zarr(
    ngff: Any, kind: str, probabilities: Any, make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(
        make_job(
            image=str(make_image((300, 270))), output=str(out), model=str(make_model(kind)), ngff=ngff, probabilities=probabilities,
            block_shape=(128, 128), voxel_size_um=(0.5, 0.25),
        )
    )  # fmt: skip
    yaozarrs.validate_zarr_store(out)
    attributes = json.loads((out / ("zarr.json" if ngff == "0.5" else ".zattrs")).read_text())
    multiscale = (attributes["attributes"]["ome"] if ngff == "0.5" else attributes)["multiscales"][0]
    assert [axis["name"] for axis in multiscale["axes"]] == (["c"] if probabilities != "none" or kind == "regions" else []) + [
        "y",
        "x",
    ]
    assert multiscale["datasets"][0]["coordinateTransformations"][0]["scale"][-2:] == [0.5, 0.25]
    for path in ("", *(f"labels/{name.name}" for name in (out / "labels").iterdir() if name.is_dir())):
        yaozarrs.validate_zarr_store(out / path)
        volume = open_volume(str(out / path), missing="fill")
        assert volume.voxel_size == (0.5, 0.25)
        assert len(volume.levels) > 1
        stored = volume.to_dask().compute(scheduler="synchronous")
        coarser = open_volume(str(out / path), 1, missing="fill").to_dask().compute(scheduler="synchronous")
        np.testing.assert_array_equal(coarser, downsample(stored, (1, 2), "labels" if path else "image"))
    label_names = sorted(name.name for name in (out / "labels").iterdir() if name.is_dir())
    assert label_names == (["classes"] if kind == "classes" else ["class_0", "class_1", "class_2"])


def test_regions_whose_names_look_alike_have_folders_of_their_own() -> None:
    names = ("a b", "a_b", "A-B", "a-b", "é", "ü", "a_b-2")
    classes = tuple(LabelName(value=number, name=name, color="#ff0000") for number, name in enumerate(names, start=1))
    folders = [image.path.removeprefix("labels/") for image in images_of("regions", classes, "none")[1:]]
    assert folders == ["a_b", "a_b-2", "A-B", "a-b-4", "_", "_-6", "a_b-2-7"]


def test_a_region_leaves_the_folder_of_the_ids_of_objects_to_them() -> None:
    classes = tuple(LabelName(value=value, name=name, color="#ff0000") for value, name in ((7, "Instances"), (255, "instances")))
    for has_instances, folders in ((False, ["Instances", "instances-255"]), (True, ["Instances-7", "instances-255"])):
        images = images_of("regions", classes, "none", has_instances=has_instances)[1:]
        assert [image.path.removeprefix("labels/") for image in images] == folders


def test_shards_hold_whole_blocks_with_checksums(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    run(
        make_job(image=str(make_image((300, 270))), output=str(tmp_path / "out"), model=str(make_model()), block_shape=(128, 128))
    )
    metadata = json.loads((tmp_path / "out/labels/classes/0/zarr.json").read_text())
    assert metadata["chunk_grid"]["configuration"]["chunk_shape"] == [128, 128]
    sharding = metadata["codecs"][0]
    assert sharding["name"] == "sharding_indexed"
    assert {"name": "zstd", "configuration": {"level": 3, "checksum": True}} in sharding["configuration"]["codecs"]
    shard = tmp_path / "out/labels/classes/0/c/1/1"
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 4
    shard.write_bytes(data)
    with pytest.raises(Exception, match="(?i)checksum|corrupt"):
        zarr.open_array(tmp_path / "out/labels/classes/0", mode="r")[128:256, 128:256]


def test_napari_reads_image_and_labels(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    from napari_ome_zarr import napari_get_reader

    out = tmp_path / "out.zarr"
    run(
        make_job(
            image=str(make_image((300, 270))), output=str(out), model=str(make_model()), voxel_size_um=(0.5, 0.5), ngff="0.4"
        )
    )
    reader = napari_get_reader(str(out))
    assert reader is not None
    layers = reader(str(out))
    kinds = [layer[2] for layer in layers]
    assert "image" in kinds
    assert "labels" in kinds
    found = np.asarray(layers[kinds.index("labels")][0][0])
    expected = np.asarray(zarr.open_array(out / "labels/classes/0", mode="r")[...])
    np.testing.assert_array_equal(found, expected)


def test_pyramids_of_anisotropic_volumes_become_isotropic() -> None:
    levels = pyramid((50, 2000, 1500), (0.05, 0.004, 0.004))
    assert [level.factor for level in levels[1:]] == [(1, 2, 2), (1, 2, 2), (1, 2, 2)]
    assert [level.shape for level in levels] == [(50, 2000, 1500), (50, 1000, 750), (50, 500, 375), (50, 250, 188)]
    assert textured((4, 4)).shape == (4, 4)

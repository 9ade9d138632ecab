"""Labels attached to the image: the voxels of the result where they belong, nothing of the image lost, the list last, refusals first."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaozarrs
import zarr

from tests.conftest import DATA, needs_data, textured
from tests.unet_core.test_instances import instances_of
from tests.unet_core.test_segment import labels_of
from unet_core.attachment import copying
from unet_core.errors import InputError, JobError, ResumeError
from unet_core.geometry import Box
from unet_core.job import SegmentationJob, make_job
from unet_core.planning import resolve
from unet_core.segment import open_result, run
from unet_core.store import open_store
from unet_core.volumes import open_volume

Maker = Callable[..., Path]
SIZES = {"t": 1, "c": 2, "z": 1, "y": 300, "x": 230}
STEPS = {"t": 1.0, "c": 1.0, "z": 2.0, "y": 0.5, "x": 0.25}


def write_image(
    folder: Path, ngff: str, axes: str = "tczyx", levels: int = 2, labels: tuple[str, ...] = (), consolidate: bool = False
) -> Path:
    """An OME-Zarr image as another program writes it, with other label images, attributes of others, and consolidated metadata."""
    group = zarr.open_group(folder, mode="w", zarr_format=3 if ngff == "0.5" else 2)
    types = {"t": "time", "c": "channel"}
    names = [
        {"name": axis, "type": types.get(axis, "space")} | ({"unit": "micrometer"} if axis in "zyx" else {}) for axis in axes
    ]

    def multiscale(kept: str, count: int) -> dict[str, Any]:
        datasets = []
        for level in range(count):
            more = {axis: 2.0**level if axis in "yx" else 1.0 for axis in kept}
            steps = [
                {"type": "scale", "scale": [STEPS[axis] * more[axis] for axis in kept]},
                {"type": "translation", "translation": [10 * STEPS[axis] if axis in "yx" else 0.0 for axis in kept]},
            ]
            datasets.append({"path": str(level), "coordinateTransformations": steps})
        version = {"version": "0.4"} if ngff == "0.4" else {}
        return {**version, "axes": [name for name in names if name["name"] in kept], "datasets": datasets}

    def attributes(of: Any, value: dict[str, Any], **others: Any) -> None:
        of.attrs.update(({"ome": {"version": "0.5"} | value} if ngff == "0.5" else value) | others)

    attributes(group, {"multiscales": [multiscale(axes, levels)]}, mine={"kept": [1, 2.5, None]})
    values = np.stack([textured((SIZES["y"], SIZES["x"]), seed) for seed in range(2)])
    for level in range(levels):
        data = values[:, :: 2**level, :: 2**level]
        data = data[0] if "c" not in axes else data
        shape = tuple(data.shape[-2:]["yx".index(axis)] if axis in "yx" else SIZES[axis] for axis in axes)
        group.create_array(str(level), data=data.reshape(shape), chunks=tuple(min(size, 64) for size in shape))
    if labels:
        inside = group.create_group("labels")
        attributes(inside, {"labels": list(labels)}, theirs="kept")
        for name in labels:
            attributes(inside.create_group(name), {"multiscales": [multiscale(axes.replace("c", ""), 1)], "image-label": {}})
            shape = tuple(SIZES[axis] for axis in axes if axis != "c")
            inside[name].create_array("0", data=np.ones(shape, "u2"), chunks=shape)
    if consolidate:
        consolidated(folder)
    return folder


def consolidated(folder: Path) -> None:
    with warnings.catch_warnings(action="ignore"):  # in Zarr version 3 it is an extension of zarr-python
        zarr.consolidate_metadata(folder)


def job_for(folder: Path, image: Path, model: Path, **more: Any) -> SegmentationJob:
    fields = {"channels": (1,), "block_shape": (128, 128), "instances": "components", "attach": "cells"} | more
    return make_job(image=str(image), output=str(folder / "out"), model=str(model), **fields)


def hashes(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def listed(image: Path, ngff: str) -> dict[str, Any]:
    document = json.loads((image / "labels" / ("zarr.json" if ngff == "0.5" else ".zattrs")).read_text())
    return document["attributes"]["ome"] if ngff == "0.5" else document


@pytest.mark.parametrize("of_result", ["0.5", "0.4"])
@pytest.mark.parametrize("ngff", ["0.5", "0.4"])
def test_labels_lie_in_the_image_as_in_the_result(ngff: Any, of_result: Any, make_model: Maker, tmp_path: Path) -> None:
    image = write_image(tmp_path / "image.zarr", ngff, labels=("nuclei", "ROI 2"))
    before = hashes(image)
    job = job_for(tmp_path, image, make_model(levels=2, classes=5), ngff=of_result)
    summary = run(job)
    assert summary.attached == [f"{image}/labels/cells", f"{image}/labels/cells-instances"]
    after = hashes(image)
    for key in before:  # nothing but the list has changed, and of that nothing is gone
        assert before[key] == after[key] or key in ("labels/zarr.json", "labels/.zattrs")
    assert listed(image, ngff)["labels"] == ["nuclei", "ROI 2", "cells", "cells-instances"]
    assert "theirs" in (image / "labels" / ("zarr.json" if ngff == "0.5" else ".zattrs")).read_text()
    assert not [key for key in set(after) - set(before) if not key.startswith("labels/cells")]
    for name, own in (("cells", "classes"), ("cells-instances", "instances")):
        yaozarrs.validate_zarr_store(image / "labels" / name)
        for level in range(2):
            found = zarr.open_array(image / "labels" / name / str(level), mode="r")
            expected = open_result(job.output).to_dask(f"labels/{own}", level).compute(scheduler="synchronous")
            assert found.shape == (1, 1, *expected.shape)
            np.testing.assert_array_equal(found[0, 0], expected)
            assert found.metadata.zarr_format == (3 if ngff == "0.5" else 2)
        assert not (image / "labels" / name / "2").exists()
    assert labels_of(tmp_path / "out").any()
    assert instances_of(tmp_path / "out").max() > 3
    assert run(job).computed == 0
    assert hashes(image) == after


@pytest.mark.parametrize("ngff", ["0.5", "0.4"])
def test_labels_of_a_coarser_level_lie_where_that_level_lies(ngff: Any, make_model: Maker, tmp_path: Path) -> None:
    image = write_image(tmp_path / "image.zarr", ngff, levels=3)
    run(job_for(tmp_path, image, make_model(levels=2), level=1, instances="none", voxel_size_um=(1.0, 7.0, 7.0)))
    for url in (image, image / "labels/cells"):
        first = open_volume(str(url), 1 if url == image else 0, channels=(1,) if url == image else None, missing="fill")
        assert (first.voxel_size, first.translation, first.unit) == ((2.0, 1.0, 0.5), (0.0, 5.0, 2.5), "micrometer")
    labels = open_volume(str(image / "labels/cells"), missing="fill")
    assert [level.shape for level in labels.levels] == [(1, 150, 115)]  # its result has no coarser one
    found = zarr.open_array(image / "labels/cells/0", mode="r")[0, 0]
    np.testing.assert_array_equal(found, labels_of(tmp_path / "out"))
    attributes = json.loads((image / "labels/cells" / ("zarr.json" if ngff == "0.5" else ".zattrs")).read_text())
    ome = attributes["attributes"]["ome"] if ngff == "0.5" else attributes
    assert ome["image-label"]["source"] == {"image": "../../"}
    assert [entry["name"] for entry in ome["image-label"]["properties"]] == ["class 0", "class 1", "class 2"]
    assert [axis["name"] for axis in ome["multiscales"][0]["axes"]] == ["t", "z", "y", "x"]


def test_coarser_label_images_stay_in_place(make_model: Maker, tmp_path: Path) -> None:
    """Against the centres of the voxels that each coarse one stands for."""
    image = write_image(tmp_path / "image.zarr", "0.5", axes="yx", levels=2)
    run(job_for(tmp_path, image, make_model(levels=2), channels=None))
    fine, coarse = (open_volume(str(image / "labels/cells"), level, missing="fill") for level in (0, 1))
    for axis in range(2):
        factor = round(fine.shape[axis] / coarse.shape[axis])  # the finer sampled axis is halved, as in the result
        centres = fine.translation[axis] + fine.scale[axis] * np.arange(fine.shape[axis] // factor * factor)
        expected = centres.reshape(-1, factor).mean(1)
        places = coarse.translation[axis] + coarse.scale[axis] * np.arange(len(expected))
        np.testing.assert_allclose(places, expected)
    assert coarse.shape == (300, 115)


@pytest.mark.parametrize("ngff", ["0.5", "0.4"])
def test_readers_of_consolidated_metadata_see_the_labels_too(ngff: Any, make_model: Maker, tmp_path: Path) -> None:
    image = write_image(tmp_path / "plate.zarr/A/1/0", ngff, labels=("nuclei",), consolidate=True)
    for folder in (tmp_path / "plate.zarr/A/1", tmp_path / "plate.zarr/A", tmp_path / "plate.zarr"):
        zarr.open_group(folder, mode="a", zarr_format=3 if ngff == "0.5" else 2).attrs["of"] = folder.name
    consolidated(tmp_path / "plate.zarr")
    run(job_for(tmp_path, image, make_model(levels=2)))
    for folder, inside in ((tmp_path / "plate.zarr", "A/1/0/"), (image, "")):
        group = zarr.open_group(folder, mode="r", use_consolidated=True)
        array = group[f"{inside}labels/cells-instances/1"]
        np.testing.assert_array_equal(array[0, 0], instances_of(tmp_path / "out", 1))
        attributes = dict(group[f"{inside}labels"].attrs)
        assert (attributes["ome"] if ngff == "0.5" else attributes)["labels"] == ["nuclei", "cells", "cells-instances"]
        assert group[f"{inside}labels/nuclei/0"][...].all()
        assert dict(group[inside.rstrip("/")].attrs if inside else group.attrs)["mine"] == {"kept": [1, 2.5, None]}


KILLED = """
import os, signal, sys
from unet_core import store
from unet_core.job import SegmentationJob
from unet_core.segment import run
left, image = int(sys.argv[2]), sys.argv[3]
def dying(self, key, data, true=store.LocalStore._write_part):
    global left
    part = true(self, key, data)
    if str(self.root) == image:
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
    return part
store.LocalStore._write_part = dying
run(SegmentationJob.model_validate_json(sys.argv[1]))
print(left)
"""


@pytest.mark.slow
@pytest.mark.parametrize("ngff", ["0.5", "0.4"])
def test_killed_while_labels_are_attached_it_ends_in_the_same_bytes_and_lists_nothing_before(
    ngff: Any, make_model: Maker, tmp_path: Path
) -> None:
    """Killed after each of some puts into the image, temporary file and all."""
    image, model = write_image(tmp_path / "image.zarr", ngff, labels=("nuclei",), consolidate=True), make_model(levels=2)
    job = job_for(tmp_path, image, model)
    run(job.model_copy(update={"attach": None}))
    shutil.copytree(image, tmp_path / "untouched.zarr")
    run(job)
    expected = hashes(image)

    def run_killed(after: int) -> int:
        words = [sys.executable, "-c", KILLED, job.model_dump_json(), str(after), str(image)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        return done.returncode

    puts = len(expected) - len(hashes(tmp_path / "untouched.zarr")) + 2
    for after in (1, puts - 1) if ngff == "0.5" else (5, puts // 2):
        for path in image.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(tmp_path / "untouched.zarr", image, dirs_exist_ok=True, copy_function=shutil.copy2)
        assert run_killed(after) == -signal.SIGKILL
        assert listed(image, ngff)["labels"] == ["nuclei"]
        assert run(job).attached
        assert hashes(image) == expected


def test_more_segmented_is_attached_anew_and_not_listed_meanwhile(
    make_model: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = write_image(tmp_path / "image.zarr", "0.5", labels=("nuclei",))
    job = job_for(tmp_path, image, make_model(levels=2, classes=5))
    run(job.model_copy(update={"roi": ("0:64,0:64",)}))
    assert not np.any(zarr.open_array(image / "labels/cells/0", mode="r")[0, 0, 128:])
    true, seen = copying._Copy.unit, []
    monkeypatch.setattr(copying._Copy, "unit", lambda self, unit: seen.append(listed(image, "0.5")["labels"]) or true(self, unit))
    run(job)
    assert seen
    assert all(names == ["nuclei"] for names in seen)
    np.testing.assert_array_equal(
        zarr.open_array(image / "labels/cells-instances/0", mode="r")[0, 0], instances_of(tmp_path / "out")
    )
    assert listed(image, "0.5")["labels"] == ["nuclei", "cells", "cells-instances"]


def test_what_was_damaged_in_the_image_is_mended_when_it_is_run_again(make_model: Maker, tmp_path: Path) -> None:
    image = write_image(tmp_path / "image.zarr", "0.5")
    job = job_for(tmp_path, image, make_model(levels=2))
    run(job)
    expected = hashes(image)
    (image / "labels/cells/0/c/0/0/1/1").write_bytes(b"rubbish")
    (image / "labels/cells/1/zarr.json").unlink()
    run(job)
    assert hashes(image) == expected


def test_a_name_is_taken_once(make_model: Maker, tmp_path: Path) -> None:
    image = write_image(tmp_path / "image.zarr", "0.5", labels=("nuclei",))
    job = job_for(tmp_path, image, make_model(levels=2))
    run(job)
    expected = hashes(image)
    other = job.model_copy(update={"output": str(tmp_path / "other"), "connectivity": 2})
    for name, taken in (("cells", "cells"), ("nuclei", "nuclei")):
        with pytest.raises(ResumeError, match=f"has label image '{taken}' already, which is not of this plan; give another name"):
            run(other.model_copy(update={"attach": name}))
    assert not (tmp_path / "other").exists()
    assert run(job.model_copy(update={"output": str(tmp_path / "again")})).attached  # of the same plan, computed once more
    assert hashes(image) == expected
    assert run(other.model_copy(update={"attach": "cells2"})).attached
    assert listed(image, "0.5")["labels"] == ["nuclei", "cells", "cells-instances", "cells2", "cells2-instances"]


def test_a_partial_run_attaches_nothing(make_model: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unet_core import worker

    image = write_image(tmp_path / "image.zarr", "0.5")
    job = job_for(tmp_path, image, make_model(levels=2))
    before = hashes(image)
    monkeypatch.setattr(worker, "_commit", lambda unit: (_ for _ in ()).throw(OSError("no more")))
    summary = run(job)
    assert (summary.status, summary.attached) == ("partial", [])
    assert hashes(image) == before


def test_regions_are_attached_by_their_names(make_model: Maker, tmp_path: Path) -> None:
    image = write_image(tmp_path / "image.zarr", "0.4", axes="yx")
    model = make_model("regions", levels=2, classes=2)
    summary = run(job_for(tmp_path, image, model, channels=None, instances="none"))
    assert [url.rpartition("/")[2] for url in summary.attached] == ["cells-class_0", "cells-class_1"]


@pytest.mark.parametrize("kind", ["tiff", "array", "several times", "older version", "damaged list"])
def test_an_image_that_cannot_take_labels_is_refused_before_the_run(kind: str, make_model: Maker, tmp_path: Path) -> None:
    image, words = tmp_path / "image.zarr", "writes into OME-Zarr images only, .* is none; leave it out"
    if kind == "tiff":
        image = tmp_path / "image.tif"
        tifffile.imwrite(image, textured((100, 90)))
    elif kind == "array":
        zarr.create_array(image, data=textured((100, 90)))
    else:
        write_image(image, "0.4", axes="yx", labels=("nuclei",))
        attributes = json.loads((image / ".zattrs").read_text())
        if kind == "several times":
            shutil.rmtree(image)
            write_image(image, "0.5", axes="tyx", levels=1)
            shutil.rmtree(image / "0")
            zarr.create_array(image / "0", data=np.stack([textured((100, 90))] * 2), chunks=(1, 50, 50))
            words = "has 2 time points, and labels are made of one of them"
        elif kind == "older version":
            attributes["multiscales"][0]["version"] = "0.3"
            (image / ".zattrs").write_text(json.dumps(attributes))
            words = 'version "0.3" of OME-Zarr'
        else:
            (image / "labels/.zattrs").write_text('{"labels": {"a": 1}}')
            words = "is no list of names"
    job = job_for(tmp_path, image, make_model(levels=2), channels=None, time=1 if kind == "several times" else None)
    before = hashes(tmp_path)
    with pytest.raises(InputError, match=words) as told:
        run(job)
    assert "\n" not in str(told.value)
    assert hashes(tmp_path) == before


def test_an_image_that_cannot_be_written_is_refused_before_the_run(
    make_model: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = write_image(tmp_path / "image.zarr", "0.5", labels=("nuclei",))
    true = tempfile.TemporaryFile

    def refused(dir: Any) -> Any:  # root may write into any folder
        if str(dir).startswith(str(image)):
            raise OSError(30, "Read-only file system")
        return true(dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", refused)
    with pytest.raises(JobError, match=r"--attach cannot write into .*image.zarr/labels \(Read-only file system\)"):
        resolve(job_for(tmp_path, image, make_model(levels=2)))


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "__x", "a" * 101, "é"])
def test_a_name_that_is_none_is_refused(name: str, make_model: Maker, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="attach"):
        job_for(tmp_path, tmp_path / "image.zarr", make_model(levels=2), attach=name)


def test_labels_are_attached_in_an_object_store(bucket: str, make_model: Maker, tmp_path: Path) -> None:
    image = write_image(tmp_path / "image.zarr", "0.4", axes="yx", labels=("nuclei",))
    store = open_store(bucket)
    for path in image.rglob("*"):
        if path.is_file():
            store.put(f"plate/image.zarr/{path.relative_to(image).as_posix()}", path.read_bytes())
    job = job_for(tmp_path, image, make_model(levels=2), channels=None).model_copy(update={"image": f"{bucket}/plate/image.zarr"})
    assert run(job).attached == [f"{bucket}/plate/image.zarr/labels/cells", f"{bucket}/plate/image.zarr/labels/cells-instances"]
    labels = open_volume(f"{bucket}/plate/image.zarr/labels/cells", missing="fill")
    np.testing.assert_array_equal(labels.read(Box.from_shape(labels.spatial_shape))[0], labels_of(tmp_path / "out"))
    assert json.loads(store.get("plate/image.zarr/labels/.zattrs"))["labels"] == ["nuclei", "cells", "cells-instances"]


@needs_data
def test_an_image_of_bioformats2raw_takes_labels(make_model: Maker, tmp_path: Path) -> None:
    shutil.copytree(DATA / "omezarr/bioformats2raw_v04/bf2raw.zarr", tmp_path / "bf.zarr")
    job = job_for(
        tmp_path,
        tmp_path / "bf.zarr",
        make_model(levels=2),
        series=1,
        channels=(0,),
        block_shape=(32, 32),
        missing="fill",
        cast=True,
    )
    assert run(job).attached[0] == f"{tmp_path}/bf.zarr/1/labels/cells"
    yaozarrs.validate_zarr_store(tmp_path / "bf.zarr/1")


def test_napari_shows_the_labels_with_the_image(make_model: Maker, tmp_path: Path) -> None:
    from napari_ome_zarr import napari_get_reader

    image = write_image(tmp_path / "image.ome.zarr", "0.4", labels=("nuclei",))
    run(job_for(tmp_path, image, make_model(levels=2)))
    reader = napari_get_reader(str(image))
    assert reader is not None
    layers = {layer[1]["name"]: layer for layer in reader(str(image)) if layer[2] == "labels"}
    assert {"cells", "cells-instances", "nuclei"} == {name.split("/")[-1] for name in layers}
    found = next(layer for name, layer in layers.items() if name.endswith("cells"))
    np.testing.assert_array_equal(np.squeeze(np.asarray(found[0][0])), labels_of(tmp_path / "out"))
    assert list(found[1]["scale"])[-2:] == [0.5, 0.25]

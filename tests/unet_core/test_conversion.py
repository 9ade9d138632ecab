"""Conversions: voxels as they were, whatever the format; levels by the mean of whole arrays; unfinished ones are no images."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaozarrs
import zarr
from PIL import Image

from tests.conftest import textured
from unet_core.conversion import convert, make_conversion
from unet_core.conversion import plan as conversion_plan
from unet_core.errors import BlockError, InputError, JobError, LedgerError, ResumeError, VolumeError
from unet_core.store import open_store
from unet_core.volumes import Volume, open_volume

ROOT = Path(__file__).resolve().parents[2]
SLIDE = ROOT / "unet_core/bundled/CMU-1-Small-Region.svs"


def whole(volume: Volume) -> Any:
    return volume.to_dask().compute(scheduler="synchronous")


def coarser(values: np.ndarray[Any, Any], factor: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """The mean of what is in each cell, also of cells that the end of the array cuts; rounded half up."""
    filled = np.pad(
        values.astype(float), [(0, -size % step) for size, step in zip(values.shape, factor, strict=True)], constant_values=np.nan
    )
    cells = filled.reshape([part for size, step in zip(filled.shape, factor, strict=True) for part in (size // step, step)])
    return np.floor(np.nanmean(cells, axis=tuple(range(1, cells.ndim, 2))) + 0.5).astype(values.dtype)


def stack(path: Path, shape: tuple[int, ...] = (5, 301, 270)) -> np.ndarray[Any, Any]:
    """An anisotropic 16-bit stack of ImageJ, of which a part is all 0."""
    data = textured(shape).astype("u2") * 200
    data[:, :260, :260] = 0
    resolution, metadata = (4, 2), {"axes": "ZYX", "spacing": 1.0, "unit": "um"}
    tifffile.imwrite(path, data, imagej=True, resolution=resolution, metadata=metadata)
    return data


@pytest.mark.parametrize("ngff", ["0.5", "0.4"])
def test_a_stack_keeps_its_voxels_and_sizes_and_each_level_is_the_mean_of_the_one_before(ngff: Any, tmp_path: Path) -> None:
    data = stack(tmp_path / "a.tif")
    summary = convert(make_conversion(source=str(tmp_path / "a.tif"), target=str(tmp_path / "a.zarr"), ngff=ngff))
    yaozarrs.validate_zarr_store(tmp_path / "a.zarr")
    assert summary.computed == summary.blocks > 2
    volume = open_volume(str(tmp_path / "a.zarr"))  # absent chunks are an error
    assert volume.missing_chunks() == ()
    assert (volume.axes, volume.dtype, volume.unit) == ("zyx", np.dtype("u2"), "micrometer")
    assert volume.voxel_size == pytest.approx((1.0, 0.5, 0.25))
    np.testing.assert_array_equal(whole(volume), data)
    np.testing.assert_array_equal(np.asarray(zarr.open_array(tmp_path / "a.zarr/0", mode="r")[...]), data)
    assert [entry.shape for entry in volume.levels] == [(5, 301, 270), (5, 301, 135), (5, 151, 68)]  # x is finest, then y and x
    for level, factor in ((1, (1, 1, 2)), (2, (1, 2, 2))):
        found = open_volume(str(tmp_path / "a.zarr"), level)
        data = coarser(data, factor)
        np.testing.assert_array_equal(whole(found), data)
    assert found.translation == pytest.approx((0.0, 0.25, 0.375))
    assert found.voxel_size == pytest.approx((1.0, 1.0, 1.0))


def test_a_slide_keeps_voxels_size_and_colours(tmp_path: Path) -> None:
    convert(make_conversion(source=str(SLIDE), target=str(tmp_path / "a.ome.zarr")))
    yaozarrs.validate_zarr_store(tmp_path / "a.ome.zarr")
    before, after = open_volume(str(SLIDE)), open_volume(str(tmp_path / "a.ome.zarr"))
    np.testing.assert_array_equal(whole(after), np.moveaxis(tifffile.imread(SLIDE, series=0), -1, 0))
    assert after.voxel_size == before.voxel_size == (0.499, 0.499)
    assert [(channel.name, channel.color) for channel in after.layout.channels] == [
        ("red", "FF0000"),
        ("green", "00FF00"),
        ("blue", "0000FF"),
    ]


def channels(path: Path) -> np.ndarray[Any, Any]:
    data = np.random.default_rng(0).integers(0, 60000, (3, 2, 41, 53)).astype("u2")
    metadata = {"axes": "CZYX", "Channel": {"Name": ["DAPI", "CD3", "Ki67 µ"]}, "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    tifffile.imwrite(path, data, ome=True, metadata=metadata | {"PhysicalSizeZ": 2.0})
    return data


def test_channels_are_chosen_and_keep_their_names(tmp_path: Path) -> None:
    data = channels(tmp_path / "a.ome.tif")
    source = str(tmp_path / "a.ome.tif")
    summary = convert(make_conversion(source=source, target=str(tmp_path / "all"), ngff="0.4"))
    assert summary.channels == ("DAPI", "CD3", "Ki67 µ")
    convert(make_conversion(source=source, target=str(tmp_path / "some"), channels=(2, 0)))
    for name, expected, names in (("all", data, ["DAPI", "CD3", "Ki67 µ"]), ("some", data[[2, 0]], ["Ki67 µ", "DAPI"])):
        yaozarrs.validate_zarr_store(tmp_path / name)
        volume = open_volume(str(tmp_path / name))
        np.testing.assert_array_equal(whole(volume), expected)
        assert [channel.name for channel in volume.layout.channels] == names
    again = open_volume(str(tmp_path / "all"), channels=(1,))
    assert [channel.name for channel in again.layout.channels] == ["CD3"]
    omero = json.loads((tmp_path / "some/zarr.json").read_text())["attributes"]["ome"]["omero"]["channels"]
    window = {"min": 0.0, "max": 65535.0, "start": float(data[2].min()), "end": float(data[2].max())}
    assert omero[0]["window"] == window


@pytest.mark.parametrize("dtype", ["bool", "i1", "u2", "f2", "f4", "f8"])
def test_arrays_of_every_type_keep_their_bits(dtype: str, tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(size=(40, 300)) * 50
    data[:5] = 0
    data = data.astype(dtype)
    if data.dtype.kind == "f":
        data[7, 7], data[20, 290] = np.nan, -0.0
    zarr.create_array(tmp_path / "a", data=data, chunks=(16, 16))
    for ngff in ("0.5", "0.4"):
        convert(make_conversion(source=str(tmp_path / "a"), target=str(tmp_path / ngff), ngff=ngff, voxel_size_um=(0.5, 0.25)))
        yaozarrs.validate_zarr_store(tmp_path / ngff)
        found = open_volume(str(tmp_path / ngff))
        assert whole(found).tobytes() == data.tobytes()
        assert (found.dtype, found.voxel_size, len(found.levels)) == (data.dtype, (0.5, 0.25), 2)


def test_ids_are_never_averaged(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 4, (31, 301)).astype("u8") * (1 << 40)
    zarr.create_array(tmp_path / "a", data=ids, chunks=(16, 16))
    source, target = str(tmp_path / "a"), str(tmp_path / "b")
    with pytest.raises(JobError, match="uint64 voxels, which may be ids or intensities; .*--levels-by mode keeps ids"):
        convert(make_conversion(source=source, target=target))
    with pytest.raises(JobError, match="sums are too large; use --levels-by mode"):
        convert(make_conversion(source=source, target=target, levels_by="mean"))
    assert not (tmp_path / "b").exists()
    convert(make_conversion(source=source, target=target, levels_by="mode"))
    yaozarrs.validate_zarr_store(target)
    level = whole(open_volume(target, 1))
    for place in np.ndindex(*level.shape):
        values, counts = np.unique(ids[2 * place[0] : 2 * place[0] + 2, 2 * place[1] : 2 * place[1] + 2], return_counts=True)
        assert level[place] == values[counts.argmax()]


def test_a_level_a_picture_and_a_time_point(tmp_path: Path) -> None:
    data = textured((200, 300))
    with tifffile.TiffWriter(tmp_path / "p.tif") as writer:
        writer.write(data, tile=(64, 64), subifds=1, resolution=(40000, 20000), resolutionunit="CENTIMETER")
        writer.write(data[::2, ::2], tile=(64, 64), subfiletype=1)
    convert(make_conversion(source=str(tmp_path / "p.tif"), target=str(tmp_path / "p"), level=1))
    found, wanted = open_volume(str(tmp_path / "p")), open_volume(str(tmp_path / "p.tif"), 1)
    np.testing.assert_array_equal(whole(found), data[::2, ::2])
    assert found.voxel_size == pytest.approx(wanted.voxel_size)
    assert found.translation == pytest.approx(wanted.translation)
    Image.fromarray(data).save(tmp_path / "a.png")
    convert(make_conversion(source=str(tmp_path / "a.png"), target=str(tmp_path / "g")))
    assert (open_volume(str(tmp_path / "g")).axes, open_volume(str(tmp_path / "g")).voxel_size) == ("yx", None)
    zarr.create_array(tmp_path / "t", data=np.stack([data, 255 - data])[:, None, None], dimension_names=[*"tczyx"])
    with pytest.raises(VolumeError, match="has 2 time points; choose one with --time 0 to 1"):
        convert(make_conversion(source=str(tmp_path / "t"), target=str(tmp_path / "u")))
    convert(make_conversion(source=str(tmp_path / "t"), target=str(tmp_path / "u"), time=1))
    np.testing.assert_array_equal(whole(open_volume(str(tmp_path / "u")))[0, 0], 255 - data)


def test_from_and_onto_an_object_store(bucket: str, tmp_path: Path) -> None:
    data = stack(tmp_path / "a.tif", (3, 70, 300))
    convert(make_conversion(source=str(tmp_path / "a.tif"), target=f"{bucket}/a.zarr"))
    convert(make_conversion(source=f"{bucket}/a.zarr", target=str(tmp_path / "b.zarr")))
    np.testing.assert_array_equal(whole(open_volume(str(tmp_path / "b.zarr"))), data)


def digest(folder: Path) -> dict[str, str]:
    """Hash of everything but the ledger, which holds times."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and "ledger" not in path.parts]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


KILLED = """
import sys
from unet_core.conversion import convert, make_conversion, plan
plan.SHARD_SHAPES = {("0.5", 3): ((2, 128, 128),)}
print("ready", flush=True)
convert(make_conversion(source=sys.argv[1], target=sys.argv[2]))
"""


@pytest.mark.slow
def test_a_conversion_killed_anywhere_is_no_image_and_ends_in_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack(tmp_path / "a.tif", (3, 300, 270))
    monkeypatch.setattr(conversion_plan, "SHARD_SHAPES", {("0.5", 3): ((2, 128, 128),)})
    undisturbed = tmp_path / "undisturbed" / "i.zarr"
    convert(make_conversion(source=str(tmp_path / "a.tif"), target=str(undisturbed), threads=1))
    target, random, unfinished = tmp_path / "killed" / "i.zarr", np.random.default_rng(0), 0
    for _ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path / "a.tif"), str(target)], cwd=ROOT, stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        child.stdout.readline()
        records = len(list(target.glob(".unet/ledger/*/*.json")))
        deadline = time.monotonic() + 60
        while len(list(target.glob(".unet/ledger/*/*.json"))) == records and time.monotonic() < deadline and child.poll() is None:
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.04))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        if not (target / "zarr.json").exists():
            unfinished += 1
            with pytest.raises(VolumeError, match="is an unfinished conversion; run 'unet convert' of the same source again"):
                open_volume(str(target))
    assert unfinished >= 2
    summary = convert(make_conversion(source=str(tmp_path / "a.tif"), target=str(target)))
    assert 0 < summary.computed < summary.blocks
    assert digest(target) == digest(undisturbed)
    assert open_volume(str(target)).missing_chunks() == ()


def test_memory_does_not_grow_with_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion_plan, "SHARD_SHAPES", {("0.5", 2): ((128, 128),)})
    peaks = []
    for height in (768, 3072):
        rows = np.tile(textured((256, 512)), (height // 256, 1))
        tifffile.imwrite(tmp_path / f"{height}.tif", rows, tile=(64, 64), compression="zlib")
        job = make_conversion(source=str(tmp_path / f"{height}.tif"), target=str(tmp_path / f"{height}.zarr"), threads=1)
        tracemalloc.start()
        convert(job)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert rows.nbytes == 3 << 19
    assert peaks[1] < peaks[0] + (300 << 10)


def test_what_the_target_holds_is_never_taken_for_something_else(tmp_path: Path) -> None:
    stack(tmp_path / "a.tif", (3, 50, 270))
    source, target = str(tmp_path / "a.tif"), str(tmp_path / "b.zarr")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").write_text("x")
    with pytest.raises(ResumeError, match=r"other exists and was not made by a conversion \(it holds file\); give a new folder"):
        convert(make_conversion(source=source, target=str(tmp_path / "other")))
    with pytest.raises(JobError, match="is the source itself"):
        make_conversion(source=source, target=source)
    done = convert(make_conversion(source=source, target=target))
    before = digest(tmp_path / "b.zarr")
    assert convert(make_conversion(source=source, target=target)).computed == 0
    assert digest(tmp_path / "b.zarr") == before
    with pytest.raises(ResumeError, match="begun with another ngff: 0.5 then, 0.4 now; give a new target"):
        convert(make_conversion(source=source, target=target, ngff="0.4"))
    lost = next((tmp_path / "b.zarr/1").rglob("c/*/*/*"))
    lost.unlink()
    with pytest.raises(LedgerError, match=r"is not whole: 1/c/0/0/0 is missing. Run the same command once more"):
        convert(make_conversion(source=source, target=target))
    with pytest.raises(VolumeError, match="unfinished conversion"):
        open_volume(target)
    assert convert(make_conversion(source=source, target=target)).computed == 1 < done.blocks
    assert digest(tmp_path / "b.zarr") == before
    stack(tmp_path / "a.tif", (3, 50, 271))
    with pytest.raises(ResumeError, match="begun with another input"):
        convert(make_conversion(source=source, target=target))


def test_absent_and_damaged_chunks_of_the_source(tmp_path: Path, make_model: Any) -> None:
    from unet_core.job import make_job
    from unet_core.segment import run

    data = textured((60, 50))
    zarr.create_array(tmp_path / "a", data=data, chunks=(20, 25))
    (tmp_path / "a/c/1/1").unlink()
    source, target = str(tmp_path / "a"), str(tmp_path / "b")
    with pytest.raises(VolumeError, match=r"chunk c/1/1 is missing \(1 in all\).*use --missing fill"):
        convert(make_conversion(source=source, target=target))
    assert not (tmp_path / "b").exists()
    assert convert(make_conversion(source=source, target=target, missing="fill")).missing_chunks == 1
    data[20:40, 25:] = 0
    np.testing.assert_array_equal(whole(open_volume(target)), data)
    (tmp_path / "a/c/0/0").write_bytes(b"damaged")
    with pytest.raises(BlockError, match=r"level 0 block 0 \(yx 0:60, 0:50\): chunk c/0/0 corrupt"):
        convert(make_conversion(source=source, target=str(tmp_path / "c"), missing="fill"))
    with pytest.raises(VolumeError, match="unfinished conversion"):
        open_volume(str(tmp_path / "c"))
    for path in (tmp_path / "c").glob("[0-9]*"):  # as if killed before the first array
        for file in sorted(path.rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
        path.rmdir()
    assert open_store(str(tmp_path / "c")).child_names() == (".unet",)
    with pytest.raises(InputError, match="exists and was not made by this program"):
        run(make_job(image=target, output=str(tmp_path / "c"), model=str(make_model())))

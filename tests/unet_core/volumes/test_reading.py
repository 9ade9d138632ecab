"""Every format against numpy, with files written here; and that no more is read than must be."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import DATA, needs_data, textured
from unet_core.errors import UnetCoreError, VolumeError
from unet_core.geometry import Box
from unet_core.volumes import ArrayVolume, open_volume, read_reflected, tiff_pages
from unet_core.volumes.zarr_guard import GuardedStore

BOX = Box((5, 11), (29, 37))


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=3).flatmap(
        lambda shape: st.tuples(
            st.just(tuple(shape)),
            st.tuples(*(st.integers(-15, 15) for _ in shape)),
            st.tuples(*(st.integers(1, 20) for _ in shape)),
        )
    )
)
def test_mirrored_reading_is_numpy_pad(case: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]) -> None:
    shape, start, size = case
    array = np.arange(np.prod(shape)).reshape(shape)

    class Plain:
        spatial_shape = shape

        def read(self, box: Box) -> Any:
            assert Box.from_shape(shape).contains(box)
            return array[box.slices()][None]

    padded = np.pad(array, 40, mode="reflect")
    expected = padded[tuple(slice(first + 40, first + 40 + count) for first, count in zip(start, size, strict=True))]
    np.testing.assert_array_equal(read_reflected(Plain(), Box.from_shape(size, start))[0], expected)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("sharded", [False, True])
def test_zarr_arrays(zarr_format: int, sharded: bool, tmp_path: Path) -> None:
    if sharded and zarr_format == 2:
        return
    data = np.random.default_rng(0).integers(0, 60000, (3, 41, 53)).astype(">u2" if zarr_format == 2 else "u2")
    zarr.create_array(
        tmp_path / "a",
        data=data,
        chunks=(1, 8, 16),
        shards=(3, 16, 32) if sharded else None,
        zarr_format=zarr_format,  # type: ignore[arg-type]
    )
    volume = open_volume(str(tmp_path / "a"))
    assert (volume.axes, volume.shape, volume.dtype, volume.chunk_shape) == ("zyx", (3, 41, 53), np.dtype("u2"), (1, 8, 16))
    box = Box((1, 5, 11), (3, 29, 37))
    np.testing.assert_array_equal(volume.read(box)[0], data[box.slices()])
    np.testing.assert_array_equal(volume.to_dask().compute(scheduler="synchronous"), data)
    assert volume.missing_chunks() == ()


@pytest.mark.parametrize("axes", ["yx", "cyx", "zyx", "czyx", "tczyx"])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr_levels_scale_and_axes(axes: str, version: str, tmp_path: Path) -> None:
    sizes = {"t": 1, "c": 2, "z": 5, "y": 40, "x": 50}
    data = np.random.default_rng(0).integers(0, 255, [sizes[axis] for axis in axes]).astype("u1")
    steps = {"z": 2.0, "y": 0.5, "x": 0.25}
    group = zarr.open_group(tmp_path / "i", mode="w", zarr_format=2 if version == "0.4" else 3)
    datasets = []
    for level in range(2):
        step = 2**level
        part = data[..., ::step, ::step]
        group.create_array(str(level), data=part, chunks=tuple(max(1, size // 3) for size in part.shape))
        scale = [steps.get(axis, 1.0) * (step if axis in "yx" else 1) for axis in axes]
        move = [7.0 if axis in steps else 0.0 for axis in axes]
        transforms = [{"type": "scale", "scale": scale}, {"type": "translation", "translation": move}]
        datasets.append({"path": str(level), "coordinateTransformations": transforms})
    named = [
        {"name": axis, "type": "space" if axis in steps else "channel"} | ({"unit": "millimeter"} if axis in steps else {})
        for axis in axes
    ]
    multiscales = [{"version": version, "axes": named, "datasets": datasets}]
    group.attrs.update(
        {"multiscales": multiscales} if version == "0.4" else {"ome": {"version": "0.5", "multiscales": multiscales}}
    )
    volume = open_volume(str(tmp_path / "i"), 1)
    spatial = axes.replace("t", "").replace("c", "")
    assert volume.axes == axes.removeprefix("t")
    assert volume.voxel_size == pytest.approx(tuple(1000 * steps[axis] * (2 if axis in "yx" else 1) for axis in spatial))
    assert volume.translation == (7.0,) * len(spatial)
    assert len(volume.levels) == 2
    expected = data[..., ::2, ::2]
    np.testing.assert_array_equal(volume.to_dask().compute(scheduler="synchronous"), expected[0] if "t" in axes else expected)


TIFFS: list[tuple[str, tuple[int, ...], dict[str, Any], str]] = [
    ("plain", (41, 53), {}, "yx"),
    ("tiled", (41, 53), {"tile": (16, 32), "compression": "zlib"}, "yx"),
    ("lzw-rgb", (41, 53, 3), {"photometric": "rgb", "tile": (16, 16), "compression": "lzw"}, "cyx"),
    ("planar", (3, 41, 53), {"photometric": "rgb", "planarconfig": "separate", "tile": (16, 16)}, "cyx"),
    ("stack", (5, 41, 53), {"photometric": "minisblack"}, "zyx"),
    (
        "ome",
        (2, 5, 41, 53),
        {"ome": True, "metadata": {"axes": "CZYX", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5, "PhysicalSizeZ": 2.0}},
        "czyx",
    ),
    (
        "imagej",
        (5, 41, 53),
        {"imagej": True, "resolution": (4, 2), "metadata": {"axes": "ZYX", "spacing": 2.0, "unit": "um"}},
        "zyx",
    ),
    ("big", (41, 53), {"bigtiff": True, "rowsperstrip": 7}, "yx"),
]


@pytest.mark.parametrize(("name", "shape", "options", "axes"), TIFFS, ids=[case[0] for case in TIFFS])
def test_tiff_families(name: str, shape: tuple[int, ...], options: dict[str, Any], axes: str, tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 255, shape).astype("u2" if name in ("ome", "imagej") else "u1")
    tifffile.imwrite(tmp_path / "a.tif", data, **options)
    volume = open_volume(str(tmp_path / "a.tif"))
    expected = np.moveaxis(data, -1, 0) if name == "lzw-rgb" else data
    assert (volume.axes, volume.shape) == (axes, expected.shape)
    box = Box((1, *BOX.start), (3, *BOX.stop)) if "z" in axes else BOX
    found = volume.read(box)
    wanted = expected[(slice(None),) * (1 if "c" in axes else 0) + box.slices()]
    np.testing.assert_array_equal(found if "c" in axes else found[0], wanted)
    if name in ("ome", "imagej"):
        assert volume.voxel_size == pytest.approx((2.0, 0.5, 0.25))
    else:
        assert volume.voxel_size is None


def test_pyramidal_tiff_levels(tmp_path: Path) -> None:
    data = textured((200, 300))
    with tifffile.TiffWriter(tmp_path / "p.tif") as writer:
        writer.write(data, tile=(64, 64), subifds=1, resolution=(40000, 20000), resolutionunit="CENTIMETER")
        writer.write(data[::2, ::2], tile=(64, 64), subfiletype=1)
    volume = open_volume(str(tmp_path / "p.tif"), 1)
    assert [level.shape for level in volume.levels] == [(200, 300), (100, 150)]
    assert volume.voxel_size == pytest.approx((1.0, 0.5))
    np.testing.assert_array_equal(volume.read(BOX)[0], data[::2, ::2][BOX.slices()])


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "I;16", "1"])
def test_png_modes(mode: str, tmp_path: Path) -> None:
    gray = textured((41, 53))
    colour = np.stack([gray, 255 - gray, gray // 2], axis=-1)
    pictures = {
        "L": (Image.fromarray(gray), gray),
        "RGB": (Image.fromarray(colour), np.moveaxis(colour, -1, 0)),
        "RGBA": (Image.fromarray(np.dstack([colour, gray])), np.moveaxis(np.dstack([colour, gray]), -1, 0)),
        "P": (
            Image.fromarray(colour).quantize(16),
            np.moveaxis(np.asarray(Image.fromarray(colour).quantize(16).convert("RGB")), -1, 0),
        ),
        "I;16": (Image.fromarray(gray.astype("u2") * 200), gray.astype("u2") * 200),
        "1": (Image.fromarray(gray > 127), (gray > 127) * np.uint8(255)),
    }
    picture, expected = pictures[mode]
    picture.save(tmp_path / "a.png")
    volume = open_volume(str(tmp_path / "a.png"))
    assert volume.shape == expected.shape
    found = volume.read(BOX)
    np.testing.assert_array_equal(found if expected.ndim == 3 else found[0], expected[(..., *BOX.slices())])


def test_only_the_chunks_that_meet_the_box_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zarr.create_array(tmp_path / "a", data=textured((64, 96)), chunks=(16, 16))
    read: list[str] = []
    original = GuardedStore.get

    async def counting(self: Any, key: str, prototype: Any, byte_range: Any = None) -> Any:
        if "c/" in key:
            read.append(key)
        return await original(self, key, prototype, byte_range)

    monkeypatch.setattr(GuardedStore, "get", counting)
    open_volume(str(tmp_path / "a")).read(Box((10, 33), (32, 65)))
    assert sorted(read) == [f"c/{y}/{x}" for y in (0, 1) for x in (2, 3, 4)]


def test_only_the_tiles_that_meet_the_box_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "a.tif", textured((64, 96)), tile=(16, 16), compression="zlib")
    volume: Any = open_volume(str(tmp_path / "a.tif"))
    read: list[int] = []
    original = tiff_pages.stored_segment
    monkeypatch.setattr(
        tiff_pages, "stored_segment", lambda page, index, *rest: read.append(index) or original(page, index, *rest)
    )
    volume.read(Box((10, 33), (32, 65)))
    assert sorted(read) == [2, 3, 4, 8, 9, 10]


@needs_data
def test_a_slide_reads_as_tifffile_reads_it() -> None:
    path = DATA / "slides" / "CMU-1-Small-Region.svs"
    volume = open_volume(str(path))
    assert (volume.axes, volume.shape, volume.voxel_size) == ("cyx", (3, 2967, 2220), (0.499, 0.499))
    whole = tifffile.imread(path, series=0)
    box = Box((1201, 1999), (1531, 2220))
    np.testing.assert_array_equal(volume.read(box), np.moveaxis(whole[box.slices()], -1, 0))


def _stores() -> list[Path]:
    marks = {"zarr.json", ".zarray", ".zgroup", ".zattrs", "attributes.json"}
    found = [Path(root) for root, _, files in os.walk(DATA / "omezarr") if marks & set(files)]
    return sorted([*found, *(DATA / "slides").glob("*"), *(DATA / "omezarr").rglob("*.zip")])


@needs_data
@pytest.mark.parametrize("path", _stores(), ids=lambda path: path.relative_to(DATA).as_posix())
def test_files_of_other_tools_open_or_are_refused_in_one_line(path: Path) -> None:
    try:
        volume = open_volume(str(path))
    except UnetCoreError as error:
        text = str(error)
        assert "\n" not in text
        assert any(word in text for word in ("name one", "unknown format", "unsupported zarr_format", "no OME multiscales"))
        return
    size = tuple(min(9, extent) for extent in volume.spatial_shape)
    assert volume.read(Box.from_shape(size)).shape == (volume.channel_count, *size)


@needs_data
def test_codecs_and_orders_of_other_tools_give_the_same_voxels() -> None:
    examples = DATA / "omezarr" / "zarr_implementations" / "examples" / "zarr.zr"
    arrays = [
        open_volume(str(folder)).to_dask().compute(scheduler="synchronous") for folder in examples.iterdir() if folder.is_dir()
    ]
    assert len(arrays) > 2
    assert all((array == arrays[0]).all() for array in arrays)
    assert arrays[0].std() > 0
    orders = DATA / "omezarr" / "n5-zarr" / "examples" / "dimensionOrder.zarr"
    first, second = (
        open_volume(str(orders / name)).to_dask().compute(scheduler="synchronous") for name in ("c-order", "f-order")
    )
    np.testing.assert_array_equal(first, second)


@pytest.mark.slow
def test_an_image_on_an_object_store_is_segmented_onto_it(bucket: str, tmp_path: Path, make_model: Any) -> None:
    from unet_core.job import make_job
    from unet_core.segment import read_status, run
    from unet_core.store import open_store

    local = tmp_path / "a.zarr"
    zarr.create_array(local, data=textured((50, 61)), chunks=(16, 16))
    store = open_store(f"{bucket}/images/a.zarr")
    for path in local.rglob("*"):
        if path.is_file():
            store.put(path.relative_to(local).as_posix(), path.read_bytes())
    assert not store.put_if_absent("zarr.json", b"x")
    model = str(make_model())
    remote = run(make_job(image=f"{bucket}/images/a.zarr", output=f"{bucket}/results/a", model=model, block_shape=(32, 32)))
    assert (remote.status, remote.computed) == ("complete", 4)
    run(make_job(image=str(local), output=str(tmp_path / "out"), model=model, block_shape=(32, 32)))
    there = open_volume(f"{bucket}/results/a/labels/classes", missing="fill").to_dask().compute(scheduler="synchronous")
    here = np.asarray(zarr.open_array(tmp_path / "out/labels/classes/0", mode="r")[...])
    np.testing.assert_array_equal(there, here)
    assert read_status(f"{bucket}/results/a").state == "complete"
    open_store(f"{bucket}/images/a.zarr").delete("c/1/1")
    with pytest.raises(VolumeError, match="chunk c/1/1 is missing"):
        run(make_job(image=f"{bucket}/images/a.zarr", output=f"{bucket}/results/b", model=model))


def test_array_volume_refuses_axes_that_do_not_fit() -> None:
    with pytest.raises(VolumeError, match="axes"):
        ArrayVolume(np.zeros((3, 4)), axes="zyx")


@pytest.mark.parametrize("channels", [(0,), (2,), (1, 2), (2, 0), (3, 1, 0)])
@pytest.mark.parametrize("name", ["zarr", "zarr-yxc", "ome-tiff", "rgba-tiff", "png"])
def test_channels_are_read_in_the_order_asked_for(name: str, channels: tuple[int, ...], tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 255, (4, 41, 53)).astype("u1")
    path = tmp_path / "a"
    last = np.ascontiguousarray(np.moveaxis(data, 0, -1))
    if name == "zarr":
        zarr.create_array(path, data=data, chunks=(1, 16, 16), dimension_names=["c", "y", "x"])
    elif name == "zarr-yxc":
        zarr.create_array(path, data=last, chunks=(16, 16, 4))
    elif name == "ome-tiff":
        tifffile.imwrite(path, data, ome=True, metadata={"axes": "CYX"}, photometric="minisblack")
    elif name == "rgba-tiff":
        tifffile.imwrite(path, last, photometric="rgb", extrasamples=["unassalpha"], tile=(16, 16))
    else:
        Image.fromarray(last).save(path, format="png")
    volume = open_volume(str(path), channels=channels)
    assert (volume.axes, volume.shape) == ("cyx", (len(channels), 41, 53))
    np.testing.assert_array_equal(volume.read(BOX), data[(list(channels), *BOX.slices())])
    np.testing.assert_array_equal(volume.to_dask().compute(scheduler="synchronous"), data[list(channels)])
    with pytest.raises(VolumeError, match="channel 4 of .* does not exist; it has channels 0 to 3"):
        open_volume(str(path), channels=(0, 4))


def test_an_alpha_channel_that_hides_nothing_is_left_out(tmp_path: Path) -> None:
    colour = np.random.default_rng(0).integers(0, 255, (41, 53, 3)).astype("u1")
    Image.fromarray(np.dstack([colour, np.full((41, 53), 255, "u1")])).save(tmp_path / "a.png")
    assert open_volume(str(tmp_path / "a.png")).shape == (3, 41, 53)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_planes_of_an_ome_tiff_over_several_files(compression: str | None, tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 60000, (3, 41, 53)).astype("u2")
    parts = "".join(
        f'<TiffData FirstC="{c}" PlaneCount="1"><UUID FileName="p{c}.ome.tif">urn:uuid:{c}</UUID></TiffData>' for c in range(3)
    )
    pixels = '<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="53" SizeY="41" SizeZ="1" SizeC="3" SizeT="1">'
    for c in range(3):
        xml = (
            f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{c}"><Image ID="Image:0">'
            f"{pixels}{parts}</Pixels></Image></OME>"
        )
        tifffile.imwrite(
            tmp_path / f"p{c}.ome.tif", data[c], description=xml, metadata=None, compression=compression, tile=(16, 16)
        )
    volume = open_volume(str(tmp_path / "p0.ome.tif"))
    assert (volume.axes, volume.shape) == ("cyx", data.shape)
    np.testing.assert_array_equal(volume.read(BOX), data[(slice(None), *BOX.slices())])
    before = volume.fingerprint()
    (tmp_path / "p2.ome.tif").write_bytes((tmp_path / "p2.ome.tif").read_bytes() + b"x")
    assert open_volume(str(tmp_path / "p0.ome.tif")).fingerprint() != before


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_colour_stacks_with_a_single_page(planar: str, tmp_path: Path) -> None:
    shape = (4, 41, 53, 3) if planar == "contig" else (4, 3, 41, 53)
    data = np.random.default_rng(0).integers(0, 255, shape).astype("u1")
    tifffile.imwrite(
        tmp_path / "a.tif",
        data,
        truncate=True,
        photometric="rgb",
        planarconfig=planar,
        metadata={"axes": "ZYXS" if planar == "contig" else "ZSYX"},
    )
    volume = open_volume(str(tmp_path / "a.tif"))
    expected = np.moveaxis(data, -1 if planar == "contig" else 1, 0)
    assert (volume.axes, volume.shape) == ("czyx", expected.shape)
    box = Box((1, *BOX.start), (3, *BOX.stop))
    np.testing.assert_array_equal(volume.read(box), expected[(slice(None), *box.slices())])


def test_every_page_has_its_own_jpeg_tables(tmp_path: Path) -> None:
    pictures = [Image.fromarray(textured((41, 53), seed)) for seed in range(3)]
    pages = []
    for number, quality in enumerate((95, 20, 60)):
        pictures[number].save(tmp_path / f"{number}.tif", compression="jpeg", quality=quality)
        with tifffile.TiffFile(tmp_path / f"{number}.tif") as file:
            page: Any = file.pages[0]
            pages.append((page.jpegtables, page.dataoffsets, page.databytecounts, (tmp_path / f"{number}.tif").read_bytes()))
    assert len({tables for tables, *_ in pages}) == 3
    pictures[0].save(tmp_path / "a.tif", save_all=True, append_images=pictures[1:], compression="jpeg")
    expected = tifffile.imread(tmp_path / "a.tif")
    np.testing.assert_array_equal(open_volume(str(tmp_path / "a.tif")).read(Box.from_shape((3, 41, 53)))[0], expected)


def test_white_as_zero_is_turned_and_colours_that_are_no_intensities_are_refused(tmp_path: Path) -> None:
    gray = textured((41, 53))
    tifffile.imwrite(tmp_path / "w.tif", gray, photometric="miniswhite")
    np.testing.assert_array_equal(open_volume(str(tmp_path / "w.tif")).read(BOX)[0], 255 - gray[BOX.slices()])
    colour = Image.fromarray(np.stack([gray, 255 - gray, gray // 2], axis=-1))
    colour.quantize(64).save(tmp_path / "palette.tif")
    colour.convert("YCbCr").save(tmp_path / "ycbcr.tif", compression="tiff_lzw")
    for name, word in [("palette", "PALETTE"), ("ycbcr", "YCBCR")]:
        with pytest.raises(VolumeError, match=f"stores colours as {word}; convert it"):
            open_volume(str(tmp_path / f"{name}.tif"))


def test_large_strips_that_are_not_compressed_are_read_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiff_pages, "MAX_SEGMENT_BYTES", 1000)
    data = textured((410, 53))
    tifffile.imwrite(tmp_path / "a.tif", data, rowsperstrip=410)
    np.testing.assert_array_equal(open_volume(str(tmp_path / "a.tif")).read(BOX)[0], data[BOX.slices()])
    tifffile.imwrite(tmp_path / "b.tif", data, rowsperstrip=410, compression="zlib")
    with pytest.raises(VolumeError, match="pieces of 410 x 53 voxels"):
        open_volume(str(tmp_path / "b.tif"))


def test_tiles_of_several_sections_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "v.tif", np.zeros((4, 70, 90), "u2"), tile=(16, 32, 32), volumetric=True, photometric="minisblack"
    )
    with pytest.raises(VolumeError, match="tiles of 16 sections"):
        open_volume(str(tmp_path / "v.tif"))

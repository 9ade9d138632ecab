"""Depths and alpha of pictures, and voxel sizes as programs write them into TIFF files."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.conftest import textured
from unet_core.errors import VolumeError
from unet_core.geometry import Box
from unet_core.volumes import open_volume

GRAY = textured((41, 53))


@pytest.mark.parametrize("samples", [2, 3, 4])
def test_16_bit_pictures_keep_their_depth(samples: int, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65535, (41, 53, samples)).astype("u2")
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(values))
    volume = open_volume(str(tmp_path / "a.png"))
    assert (volume.dtype, volume.shape) == (np.dtype("u2"), (samples, 41, 53))
    np.testing.assert_array_equal(volume.read(Box.from_shape((41, 53))), np.moveaxis(values, -1, 0))


def test_gray_with_opaque_alpha_is_gray(tmp_path: Path) -> None:
    Image.fromarray(GRAY).convert("LA").save(tmp_path / "a.png")
    volume = open_volume(str(tmp_path / "a.png"))
    assert volume.axes == "yx"
    np.testing.assert_array_equal(volume.read(Box.from_shape((41, 53)))[0], GRAY)


def test_a_picture_too_large_to_decode_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(GRAY).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(VolumeError, match="too large to be decoded whole .* convert it to tiled TIFF"):
        open_volume(str(tmp_path / "a.png"))


@pytest.mark.parametrize(
    ("resolution", "unit", "size"),
    [
        ((40000, 20000), "CENTIMETER", (0.5, 0.25)),
        ((118.11, 118.11), "CENTIMETER", None),  # 300 dots an inch
        ((300, 300), "INCH", None),
        ((101600, 50800), "INCH", (0.5, 0.25)),
        ((4, 2), "NONE", None),
    ],
)
def test_resolution_tags_tell_the_voxel_size_but_not_how_to_print(
    resolution: tuple[float, float], unit: str, size: tuple[float, float] | None, tmp_path: Path
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GRAY, resolution=resolution, resolutionunit=unit)
    assert open_volume(str(tmp_path / "a.tif")).voxel_size == (None if size is None else pytest.approx(size))


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        ({"PhysicalSizeXUnit": "um"}, (0.5, 0.25)),
        ({"PhysicalSizeXUnit": "\u00b5m", "PhysicalSizeYUnit": "\u03bcm"}, (0.5, 0.25)),
        ({"PhysicalSizeX": 250, "PhysicalSizeXUnit": "nm"}, (0.5, 0.25)),
        ({"PhysicalSizeX": 0.0}, None),
        ({"PhysicalSizeX": -1}, None),
        ({"PhysicalSizeXUnit": "reference frame"}, None),
    ],
)
def test_physical_sizes_of_ome_tiff(attributes: dict[str, Any], size: tuple[float, float] | None, tmp_path: Path) -> None:
    stated = {"axes": "YX", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5} | attributes
    tifffile.imwrite(tmp_path / "a.ome.tif", GRAY, metadata=stated)
    assert open_volume(str(tmp_path / "a.ome.tif")).voxel_size == (None if size is None else pytest.approx(size))


def test_a_single_section_needs_no_depth(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.ome.tif", GRAY[None], metadata={"axes": "ZYX", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5})
    volume = open_volume(str(tmp_path / "a.ome.tif"))
    assert volume.voxel_size is not None
    assert volume.voxel_size[-2:] == (0.5, 0.25)


def test_the_voxel_size_is_that_of_the_image_that_is_there(tmp_path: Path) -> None:
    """An OME-TIFF of one position of several names the files of the others, which may be absent."""
    pixels = (
        '<Pixels ID="Pixels:{0}" DimensionOrder="XYZCT" Type="uint8" SizeX="53" SizeY="41" SizeZ="1" SizeC="1" SizeT="1" '
        'PhysicalSizeX="{1}" PhysicalSizeY="{1}">'
    )
    part = '<TiffData PlaneCount="1"><UUID FileName="p{0}.ome.tif">urn:uuid:{0}</UUID></TiffData></Pixels>'
    images = "".join(
        f'<Image ID="Image:{number}" Name="position {number}">' + (pixels + part).format(number, size) + "</Image>"
        for number, size in enumerate((9.0, 0.5))
    )
    xml = f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1">{images}</OME>'
    tifffile.imwrite(tmp_path / "p1.ome.tif", GRAY, description=xml, metadata=None)
    volume = open_volume(str(tmp_path / "p1.ome.tif"))
    assert volume.voxel_size == (0.5, 0.5)
    np.testing.assert_array_equal(volume.read(Box.from_shape((41, 53)))[0], GRAY)


@pytest.mark.parametrize(("mpp", "size"), [("0.499", 0.499), ("0,499", 0.499), ("0", None)])
def test_voxel_size_of_aperio_slides(mpp: str, size: float | None, tmp_path: Path) -> None:
    colour = np.stack([GRAY, GRAY, GRAY], axis=-1)
    description = f"Aperio Image Library v1\r\n53x41 [0,0 53x41] (16x16) JPEG/RGB Q=70|AppMag = 20|MPP = {mpp}|Left = 1"
    tifffile.imwrite(tmp_path / "a.svs", colour, photometric="rgb", tile=(16, 16), description=description, metadata=None)
    assert open_volume(str(tmp_path / "a.svs")).voxel_size == (None if size is None else (size, size))


def test_the_thumbnail_of_a_slide_has_not_the_voxels_of_the_slide() -> None:
    slide = str(files("unet_core") / "bundled" / "CMU-1-Small-Region.svs")
    assert open_volume(slide).voxel_size == (0.499, 0.499)
    assert open_volume(slide, series=1).voxel_size is None


def test_coarser_levels_of_a_tiff_begin_in_the_middle_of_the_voxels_they_stand_for(tmp_path: Path) -> None:
    data = textured((200, 300))
    with tifffile.TiffWriter(tmp_path / "p.tif") as writer:
        writer.write(data, tile=(64, 64), subifds=1, resolution=(40000, 20000), resolutionunit="CENTIMETER")
        writer.write(data[::2, ::2], tile=(64, 64), subfiletype=1)
    assert open_volume(str(tmp_path / "p.tif")).translation == (0.0, 0.0)
    assert open_volume(str(tmp_path / "p.tif"), 1).translation == pytest.approx((0.25, 0.125))
    tifffile.imwrite(tmp_path / "a.tif", GRAY)
    assert open_volume(str(tmp_path / "a.tif")).translation == (0.0, 0.0)


def test_a_sparse_file_of_one_piece_holds_no_voxels(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.ones((64, 64), "u1"), tile=(64, 64))
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as file:
        for tag in ("TileByteCounts", "TileOffsets"):
            file.pages[0].tags[tag].overwrite(0)  # type: ignore[union-attr]
    volume = open_volume(str(tmp_path / "a.tif"))
    assert volume.missing_chunks() == ("tile 0 of page 0",)
    with pytest.raises(VolumeError, match="tile 0 of page 0 is missing"):
        volume.read(Box((0, 0), (9, 9)))
    assert not open_volume(str(tmp_path / "a.tif"), missing="fill").read(Box((0, 0), (64, 64))).any()


def test_absent_tiles_are_named_before_any_is_read(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 255, (64, 96)).astype("u1")
    tifffile.imwrite(tmp_path / "a.tif", data, tile=(16, 16), compression="zlib")
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as file:
        counts = list(file.pages[0].tags["TileByteCounts"].value)  # type: ignore[union-attr]
        counts[8] = counts[23] = 0
        file.pages[0].tags["TileByteCounts"].overwrite(counts)  # type: ignore[union-attr]
    volume = open_volume(str(tmp_path / "a.tif"))
    assert volume.missing_chunks() == ("tile 8 of page 0", "tile 23 of page 0")
    assert volume.missing_chunks(Box((0, 0), (20, 33))) == ("tile 8 of page 0",)
    with pytest.raises(VolumeError, match="chunk tile 8 of page 0 is missing .* --missing fill"):
        volume.read(Box((0, 0), (64, 96)))
    filled = data.copy()
    filled[16:32, 32:48] = filled[48:, 80:] = 0
    np.testing.assert_array_equal(open_volume(str(tmp_path / "a.tif"), missing="fill").read(Box((0, 0), (64, 96)))[0], filled)


def test_damaged_tiff_headers_give_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, tag, value, words in [
        ("compression", "Compression", 60000, "compression 60000 of .* is not known"),
        ("tile", "TileWidth", 0, "not a readable TIFF|tiles of"),
        ("width", "ImageWidth", 2**31 - 1, "needs .* tiles and lists"),
    ]:
        path = tmp_path / f"{name}.tif"
        tifffile.imwrite(path, GRAY, tile=(16, 16), compression="zlib")
        with tifffile.TiffFile(path, mode="r+b") as file:
            file.pages[0].tags[tag].overwrite(value)  # type: ignore[union-attr]
        with pytest.raises(VolumeError, match=words) as caught:
            open_volume(str(path))
        assert not re.search(r"\n", str(caught.value))
    assert not caplog.records

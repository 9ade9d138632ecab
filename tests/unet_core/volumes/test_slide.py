"""Slides of several makers through OpenSlide: voxels as they were stored, background where nothing was scanned, any box the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile

from tests.unet_core.volumes.slides import TILE, colours, write_dicom, write_mrxs, write_ndpi, write_scn
from unet_core.conversion import convert, make_conversion
from unet_core.errors import ChunkError, VolumeError
from unet_core.geometry import Box
from unet_core.job import make_job
from unet_core.segment import run
from unet_core.volumes import Volume, open_volume, slide
from unet_core.volumes.protocol import Selection

SVS = Path(__file__).resolve().parents[3] / "unet_core/bundled/CMU-1-Small-Region.svs"


def whole(volume: Volume) -> Any:
    return volume.to_dask().compute(scheduler="synchronous")


def channels_first(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.moveaxis(pixels, -1, 0)


def test_openslide_gives_the_voxels_of_tifffile() -> None:
    """An Aperio slide is opened as TIFF; here by OpenSlide, which must not make a difference."""
    there = slide.open_slide(str(SVS), Selection())
    here = open_volume(str(SVS))
    assert type(here) is not type(there)
    assert (there.axes, there.shape, there.dtype, there.voxel_size) == (here.axes, here.shape, here.dtype, here.voxel_size)
    np.testing.assert_array_equal(whole(there), channels_first(tifffile.imread(SVS, series=0)))


def test_ndpi(tmp_path: Path) -> None:
    pixels = colours((150, 213))
    path = write_ndpi(tmp_path / "a.ndpi", [pixels, pixels[:148:2, :212:2]])
    volume = open_volume(str(path))
    # The last is made by OpenSlide, which decodes the JPEG of the level before at half its size.
    assert (volume.axes, [level.shape for level in volume.levels]) == ("cyx", [(3, 150, 213), (3, 74, 106), (3, 37, 53)])
    assert volume.voxel_size == pytest.approx((0.5, 0.25))
    assert [channel.name for channel in volume.layout.channels] == ["red", "green", "blue"]
    (tmp_path / "a.tif").write_bytes(path.read_bytes())  # told by the name, tifffile would expect longer offsets
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        pages: list[Any] = [*file.pages]
        stored = [imagecodecs.jpeg_decode(path.read_bytes()[page.dataoffsets[0] :][: page.databytecounts[0]]) for page in pages]
    for level, expected in enumerate(stored):
        np.testing.assert_array_equal(whole(open_volume(str(path), level)), channels_first(expected))
    assert np.abs(stored[0].astype(int) - pixels).mean() < 20


def test_scn_and_what_lies_around_its_image(tmp_path: Path) -> None:
    pixels, offset = colours((90, 130)), (20, 30)
    volume = open_volume(str(write_scn(tmp_path / "a.scn", pixels, offset)))
    expected = np.full((110, 160, 3), 255, np.uint8)
    expected[20:, 30:] = pixels
    np.testing.assert_array_equal(whole(volume), channels_first(expected))
    assert volume.voxel_size == pytest.approx((0.5, 0.5))


def test_mrxs_has_its_background_colour_where_nothing_was_scanned(tmp_path: Path) -> None:
    pixels, absent = colours((5 * TILE, 7 * TILE)), {(1, 2), (4, 6)}
    path = write_mrxs(tmp_path / "a.mrxs", pixels, absent, fill="C0FFEE")
    expected = pixels.copy()
    for row, column in absent:
        expected[row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE] = (0xC0, 0xFF, 0xEE)
    volume = open_volume(str(path))
    assert [level.shape for level in volume.levels] == [(3, 160, 224), (3, 80, 112)]
    assert [level.voxel_size for level in volume.levels] == [(0.25, 0.25), (0.5, 0.5)]
    np.testing.assert_array_equal(whole(volume), channels_first(expected))
    coarse = whole(open_volume(str(path), 1))
    np.testing.assert_array_equal(coarse[:, :32, :32], channels_first(pixels[:64:2, :64:2]))
    assert (coarse[:, 5, 40] == (0xC0, 0xFF, 0xEE)).all()
    np.testing.assert_array_equal(whole(open_volume(str(path), channels=(2, 0))), channels_first(expected)[[2, 0]])
    before = volume.fingerprint()
    data = tmp_path / "a/Data0000.dat"
    data.write_bytes(data.read_bytes() + b"x")
    assert open_volume(str(path)).fingerprint() != before


def test_dicom(tmp_path: Path) -> None:
    pixels = colours((150, 213))
    series = write_dicom(tmp_path / "level-0.dcm", pixels)
    write_dicom(tmp_path / "level-1.dcm", pixels[:150:2, :212:2], 1, series)
    volume = open_volume(str(tmp_path / "level-0.dcm"))
    assert [level.shape for level in volume.levels] == [(3, 150, 213), (3, 75, 106)]
    assert volume.voxel_size == pytest.approx((0.5, 0.5))
    np.testing.assert_array_equal(whole(volume), channels_first(pixels))
    np.testing.assert_array_equal(whole(open_volume(volume.url, 1)), channels_first(pixels[:150:2, :212:2]))
    before = volume.fingerprint()
    write_dicom(tmp_path / "level-1.dcm", pixels[:150:2, 1:213:2], 1, series)
    assert open_volume(volume.url).fingerprint() != before


def test_any_box_has_the_same_voxels_also_between_whole_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """150 / 49 and 213 / 70 are no whole numbers: OpenSlide would give other voxels for other starts."""
    monkeypatch.setattr(slide, "CHUNK_SIDE", 16)
    pixels = colours((150, 213))
    path = write_ndpi(tmp_path / "a.ndpi", [pixels, pixels[1:148:3, 1:210:3]])
    volume = open_volume(str(path), 1)
    together = whole(volume)
    random, differ = np.random.default_rng(0), 0
    for _ in range(40):
        start = tuple(int(random.integers(0, size)) for size in (49, 70))
        stop = tuple(int(random.integers(first + 1, size + 1)) for first, size in zip(start, (49, 70), strict=True))
        box = Box(start, stop)
        np.testing.assert_array_equal(volume.read(box), together[(slice(None), *box.slices())])
        raw: Any = volume
        location = [round(first * raw._downsample) for first in start]
        direct = np.asarray(raw._slide.read_region(location[::-1], 1, box.shape[::-1]))[..., :3]
        differ += not np.array_equal(channels_first(direct), volume.read(box))
    assert differ


def test_a_slide_is_segmented_the_same_for_any_cut_and_from_its_conversion(
    make_model: Callable[..., Path], tmp_path: Path
) -> None:
    source = str(write_mrxs(tmp_path / "a.mrxs", colours((5 * TILE, 4 * TILE)), {(2, 1)}))
    convert(make_conversion(source=source, target=str(tmp_path / "a.zarr")))
    model, found = str(make_model(in_channels=3)), []
    for number, (image, block) in enumerate([(source, (160, 128)), (source, (32, 48)), (str(tmp_path / "a.zarr"), (64, 64))]):
        run(make_job(image=image, output=str(tmp_path / f"{number}"), model=model, block_shape=block))
        found.append(whole(open_volume(f"{tmp_path}/{number}/labels/classes", missing="fill")))
    assert len(np.unique(found[0])) > 1
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])


def test_damaged_slides_are_refused_in_one_line(tmp_path: Path) -> None:
    path = write_mrxs(tmp_path / "a.mrxs", colours((2 * TILE, 2 * TILE)), set())
    ini = tmp_path / "a/Slidedat.ini"
    text = ini.read_text()
    ini.write_text(text.replace("INDEXFILE", "INDEX"))
    with pytest.raises(VolumeError, match="is not a readable slide: .*; copy it again") as caught:
        open_volume(str(path))
    assert "\n" not in str(caught.value)
    ini.write_text(text)
    data = tmp_path / "a/Data0000.dat"
    data.write_bytes(bytes(len(data.read_bytes())))
    with pytest.raises(ChunkError, match=r"chunk .* of level 0 corrupt: .*a\.mrxs: .*; restore it"):
        whole(open_volume(str(path)))
    with pytest.raises(VolumeError, match="level 2 of .* does not exist; it has levels 0 to 1"):
        open_volume(str(path), 2)
    with pytest.raises(VolumeError, match="is a single slide; leave --series and --time away"):
        open_volume(str(path), time=1)

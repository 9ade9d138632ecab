"""TIFF and SVS on an S3-compatible server: the voxels of the local file, few bytes more than they need, and what is damaged or absent."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import textured
from tests.unet_core.volumes.test_reading import TIFFS
from unet_core.conversion import convert, make_conversion
from unet_core.errors import ChunkError, ResumeError, VolumeError
from unet_core.geometry import Box
from unet_core.job import make_job
from unet_core.object_store import S3Store
from unet_core.segment import open_result, run
from unet_core.store import open_store
from unet_core.volumes import Volume, open_volume
from unet_core.volumes.range_file import joined

ROOT = Path(__file__).resolve().parents[3]
SLIDE = ROOT / "unet_core/bundled/CMU-1-Small-Region.svs"


@pytest.fixture
def put(bucket: str) -> Callable[[Path], str]:
    """A function that copies a file to the server and gives its URL."""

    def copy(path: Path) -> str:
        open_store(bucket).put(f"slides/{path.name}", path.read_bytes())
        return f"{bucket}/slides/{path.name}"

    return copy


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of all that is read of objects from now on, a request each."""
    sizes: list[int] = []
    one, many = S3Store.get_range, S3Store.get_ranges

    def get_range(self: Any, key: str, start: int, size: int) -> bytes:
        data = one(self, key, start, size)
        sizes.append(len(data))
        return data

    def get_ranges(self: Any, key: str, places: Any) -> list[bytes]:
        found = many(self, key, places)
        sizes.extend(map(len, found))
        return found

    monkeypatch.setattr(S3Store, "get_range", get_range)
    monkeypatch.setattr(S3Store, "get_ranges", get_ranges)
    monkeypatch.setattr(S3Store, "get", lambda self, key: pytest.fail(f"the whole of {key} is read"))
    return sizes


def whole(volume: Volume) -> Any:
    return volume.to_dask().compute(scheduler="synchronous")


def needed(box: Box) -> int:
    """Bytes of the slide's tiles that a box meets."""
    with tifffile.TiffFile(SLIDE) as file:
        page: Any = file.pages[0]
        rows, columns = (range(low // 240, -(-high // 240)) for low, high in zip(box.start, box.stop, strict=True))
        across = -(-page.imagewidth // 240)
        return sum(page.databytecounts[row * across + column] for row in rows for column in columns)


def test_a_slide_reads_as_the_local_one_with_few_bytes_more_than_it_needs(put: Callable[[Path], str], read: list[int]) -> None:
    there, here = open_volume(put(SLIDE)), open_volume(str(SLIDE))
    opened = sum(read)
    assert opened <= 200 << 10
    for name in ("axes", "shape", "dtype", "voxel_size", "levels", "chunk_shape"):
        assert getattr(there, name) == getattr(here, name)
    random = np.random.default_rng(0)
    boxes = [Box((0, 0), (2967, 2220)), Box((480, 720), (960, 1200)), Box((1201, 1999), (1531, 2220)), Box((5, 5), (6, 6))]
    for _ in range(8):
        start = tuple(int(random.integers(0, size - 300)) for size in (2967, 2220))
        boxes.append(Box.from_shape(tuple(int(value) for value in random.integers(100, 300, 2)), start))
    for box in boxes:
        read.clear()
        np.testing.assert_array_equal(there.read(box), here.read(box))
        assert needed(box) <= sum(read) <= 1.5 * needed(box)
        assert len(read) <= -(-(box.shape[0] + 240) // 240) + 1  # a request for each row of tiles


@pytest.mark.parametrize(("name", "shape", "options", "axes"), TIFFS, ids=[case[0] for case in TIFFS])
def test_all_families_of_tiff(
    name: str,
    shape: tuple[int, ...],
    options: dict[str, Any],
    axes: str,
    put: Callable[[Path], str],
    read: list[int],
    tmp_path: Path,
) -> None:
    data = np.random.default_rng(0).integers(0, 255, shape).astype(">u2" if name in ("ome", "imagej") else "u1")
    tifffile.imwrite(tmp_path / "a.tif", data, **options)
    there, here = open_volume(put(tmp_path / "a.tif")), open_volume(str(tmp_path / "a.tif"))
    assert (there.axes, there.shape, there.dtype, there.voxel_size) == (here.axes, here.shape, here.dtype, here.voxel_size)
    assert not there.layout.is_mapped
    box = Box((1, 5, 11)[-len(there.spatial_axes) :], (3, 29, 37)[-len(there.spatial_axes) :])
    np.testing.assert_array_equal(there.read(box), here.read(box))
    np.testing.assert_array_equal(whole(there), whole(here))
    assert there.missing_chunks() == here.missing_chunks() == ()


def test_a_large_stack_of_imagej_whose_planes_follow_one_page(
    put: Callable[[Path], str], read: list[int], tmp_path: Path
) -> None:
    data = np.random.default_rng(0).integers(0, 60000, (7, 41, 53)).astype("u2")
    tifffile.imwrite(tmp_path / "a.tif", data, imagej=True, truncate=True, metadata={"axes": "ZYX"}, byteorder=">")
    volume = open_volume(put(tmp_path / "a.tif"))
    assert (volume.shape, volume.chunk_shape) == (data.shape, (1, 41, 53))
    read.clear()
    box = Box((2, 7, 0), (5, 20, 53))
    np.testing.assert_array_equal(volume.read(box)[0], data[box.slices()])
    assert (sum(read), len(read)) == (3 * 13 * 53 * 2, 3)


def test_segmented_and_converted_from_there_as_from_here(
    put: Callable[[Path], str], make_model: Callable[..., Path], tmp_path: Path
) -> None:
    colours = np.stack([textured((150, 170), seed) for seed in range(3)], axis=-1)
    tifffile.imwrite(
        tmp_path / "a.tif",
        colours,
        photometric="rgb",
        tile=(32, 48),
        compression="zlib",
        resolution=(40000, 20000),
        resolutionunit=3,
    )
    url, model = put(tmp_path / "a.tif"), str(make_model(in_channels=3))
    for number, image in enumerate((url, str(tmp_path / "a.tif"))):
        run(make_job(image=image, output=str(tmp_path / f"{number}"), model=model, block_shape=(64, 64)))
    np.testing.assert_array_equal(
        whole(open_result(str(tmp_path / "0")).volume()), whole(open_result(str(tmp_path / "1")).volume())
    )
    convert(make_conversion(source=url, target=str(tmp_path / "c")))
    np.testing.assert_array_equal(whole(open_volume(str(tmp_path / "c"))), np.moveaxis(colours, -1, 0))
    tifffile.imwrite(tmp_path / "a.tif", 255 - colours, photometric="rgb", tile=(32, 48))
    with pytest.raises(ResumeError):
        run(make_job(image=put(tmp_path / "a.tif"), output=str(tmp_path / "0"), model=model, block_shape=(64, 64)))


def test_absent_truncated_and_foreign_objects(put: Callable[[Path], str], bucket: str, tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match=r"input not found: s3://bucket/no.tif \(no such object, and none below it\)"):
        open_volume(f"{bucket}/no.tif")
    with pytest.raises(VolumeError, match="input not found"):
        open_volume(bucket)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with pytest.raises(
        VolumeError, match="is no TIFF .a picture.; of single files only TIFF and SVS are read from object stores"
    ):
        open_volume(put(tmp_path / "a.png"))
    data = textured((200, 300))
    tifffile.imwrite(tmp_path / "a.tif", data, tile=(64, 64), compression="zlib")
    stored = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(stored[:-3000])
    volume = open_volume(put(tmp_path / "cut.tif"))
    np.testing.assert_array_equal(volume.read(Box((0, 0), (64, 64)))[0], data[:64, :64])
    with pytest.raises(ChunkError, match=r"chunk tile \d+ of page 0 corrupt: \d+ of \d+ bytes in s3://.*; the file is truncated"):
        whole(volume)
    sparse = bytearray(stored)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        page: Any = file.pages[0]
        counts = page.tags["TileByteCounts"]
    at = counts.valueoffset + 7 * (counts.valuebytecount // counts.count)
    sparse[at : at + counts.valuebytecount // counts.count] = bytes(counts.valuebytecount // counts.count)
    (tmp_path / "sparse.tif").write_bytes(bytes(sparse))
    url = put(tmp_path / "sparse.tif")
    assert open_volume(url).missing_chunks() == ("tile 7 of page 0",)
    with pytest.raises(ChunkError, match="chunk tile 7 of page 0 is missing in .*; use --missing fill"):
        whole(open_volume(url))
    data[64:128, 128:192] = 0
    np.testing.assert_array_equal(whole(open_volume(url, missing="fill"))[0:200], data)
    volume = open_volume(url)
    open_store(f"{bucket}/slides").delete("sparse.tif")
    with pytest.raises(VolumeError, match="is not there any more; it was removed while it was read"):
        volume.read(Box((0, 0), (64, 64)))


def test_a_server_that_does_not_answer_is_told_as_such(put: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch) -> None:
    url = put(SLIDE)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(Exception, match="cannot be used: the server does not answer; check") as caught:
        open_volume(url)
    assert "\n" not in str(caught.value)


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 400)), min_size=1, max_size=40))
def test_joined_requests_read_at_most_a_third_more(places: list[tuple[int, int]]) -> None:
    ordered = sorted(set(places))
    groups = list(joined(ordered))
    assert [place for group in groups for place in group] == ordered
    bits = np.zeros(6000, bool)
    for start, size in ordered:
        bits[start : start + size] = True
    spans = [(group[0][0], max(start + size for start, size in group)) for group in groups]
    for group, (first, stop) in zip(groups, spans, strict=True):
        own = np.zeros(6000, bool)
        for start, size in group:
            own[start : start + size] = True
        assert stop - first <= own.sum() * 4 / 3


def test_reads_of_every_kind(put: Callable[[Path], str], tmp_path: Path) -> None:
    from unet_core.volumes.range_file import open_object

    content = np.random.default_rng(0).bytes(100_000)
    (tmp_path / "x").write_bytes(content)
    file, plain = open_object(put(tmp_path / "x")), io.BytesIO(content)
    assert file is not None
    random = np.random.default_rng(1)
    for _ in range(60):
        offset, whence, size = int(random.integers(-100, 100_100)), int(random.integers(0, 3)), int(random.integers(-1, 40_000))
        if whence == 1:
            offset = int(random.integers(0, 1000))
        elif whence == 2:
            offset = -abs(offset)
        offset = max(offset, 0) if whence == 0 else max(offset, -100_000) if whence == 2 else offset
        assert file.seek(offset, whence) == plain.seek(offset, whence)
        assert file.read(size) == plain.read(size)
        assert file.tell() == plain.tell()
    assert file.read_places([(99_990, 50), (0, 4), (200_000, 5), (2, 3)]) == [content[99_990:], content[:4], b"", content[2:5]]

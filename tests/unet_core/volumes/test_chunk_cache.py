"""Reading through a cache of decoded chunks: the voxels of the image, each chunk decoded once, within a bound of bytes."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

from unet_core.errors import ChunkError, VolumeError
from unet_core.geometry import Box
from unet_core.volumes import ArrayVolume, Volume, open_volume, tiff_pages, zarr_decode
from unet_core.volumes.chunk_cache import CachedVolume, ChunkCache, cache_bytes, reading_bytes

VALUES = np.random.default_rng(0).integers(0, 65535, (53, 75, 91), dtype=np.uint16)


def write(folder: Path, kind: str) -> tuple[Volume, tuple[int, ...]]:
    """VALUES in one of our formats, and the chunks that one decode reads."""
    if kind == "tiff":
        tifffile.imwrite(folder / "i.tif", VALUES, tile=(32, 16), compression="zlib", photometric="minisblack")
        return open_volume(str(folder / "i.tif")), (1, 32, 16)
    settings: dict[str, Any] = {"zarr2": {"zarr_format": 2}, "zarr3": {}, "shards": {"shards": (32, 40, 64)}}[kind]
    zarr.create_array(folder / "i.zarr", data=VALUES, chunks=(16, 20, 32), **settings)
    return open_volume(str(folder / "i.zarr")), (16, 20, 32)


def random_boxes(count: int) -> list[Box]:
    random = np.random.default_rng(1)
    ends = [np.sort([random.choice(size + 1, 2, replace=False) for _ in range(count)]) for size in VALUES.shape]
    return [Box(tuple(axis[number][0] for axis in ends), tuple(axis[number][1] for axis in ends)) for number in range(count)]


@pytest.mark.parametrize("limit", [0, 50_000, 200_000, 1 << 30])
@pytest.mark.parametrize("kind", ["zarr2", "zarr3", "shards", "tiff"])
def test_any_box_has_the_voxels_of_the_image_and_kept_bytes_stay_in_bounds(kind: str, limit: int, tmp_path: Path) -> None:
    cache = ChunkCache(write(tmp_path, kind)[0], limit)
    for box in random_boxes(25):
        np.testing.assert_array_equal(cache.read(box)[0][0], VALUES[box.slices()])
        kept = [chunk if chunk.base is None else chunk.base for chunk in cache._kept.values()]
        assert sum(chunk.nbytes for chunk in kept) == cache._bytes <= limit


@pytest.mark.parametrize("channels", [None, (2, 0)])
def test_channels_are_read_like_those_of_the_volume(channels: tuple[int, ...] | None, tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "i.zarr", data=VALUES[:3], chunks=(1, 20, 32), dimension_names=["c", "y", "x"])
    volume = open_volume(str(tmp_path / "i.zarr"), channels=channels)
    cache = ChunkCache(volume, 1 << 30)
    for box in (Box((3, 5), (44, 80)), Box((30, 0), (75, 91)), Box((0, 0), (75, 91))):
        np.testing.assert_array_equal(cache.read(box)[0], volume.read(box))


@pytest.mark.parametrize("kind", ["zarr2", "zarr3", "shards", "tiff"])
def test_each_chunk_is_decoded_once_also_by_many_threads(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume, chunk = write(tmp_path, kind)
    decoder = tiff_pages if kind == "tiff" else zarr_decode
    true_decode, decodes = decoder._decode, itertools.count()
    monkeypatch.setattr(decoder, "_decode", lambda *arguments: [next(decodes), true_decode(*arguments)][1])
    boxes = [Box.from_shape((30, 40, 50), start) for start in ((0, 0, 0), (0, 0, 41), (0, 35, 0), (23, 35, 41), (0, 0, 0))]
    cache = ChunkCache(volume, 1 << 30)
    with ThreadPoolExecutor(8) as pool:
        for box, (values, _) in zip(boxes, pool.map(cache.read, boxes), strict=True):
            np.testing.assert_array_equal(values[0], VALUES[box.slices()])
    met = {position for box in boxes for position in np.ndindex(*box.scale_down(chunk).stop) if meets(position, chunk, box)}
    assert next(decodes) == len(met)


def meets(position: tuple[int, ...], chunk: tuple[int, ...], box: Box) -> bool:
    return not Box.from_shape((1,) * len(chunk), position).scale_up(chunk).intersect(box).is_empty


def test_what_is_decoded_is_counted_for_the_one_that_asked(tmp_path: Path) -> None:
    volume, _ = write(tmp_path, "zarr3")
    cache = ChunkCache(volume, 1 << 30)
    first, second = CachedVolume(cache), CachedVolume(cache)
    first.read(Box((0, 0, 0), (16, 20, 33)))
    second.read(Box((0, 0, 40), (16, 21, 91)))
    assert first.decoded_bytes == 2 * 16 * 20 * 64
    assert second.decoded_bytes == 2 * 16 * (20 * (91 - 64) + 20 * (91 - 32))
    assert (second.fingerprint(), second.missing_chunks(), second.shape) == (volume.fingerprint(), (), volume.shape)
    small = CachedVolume(ChunkCache(volume, 100))  # holds no chunk: each box decodes its chunks again
    for _ in range(2):
        small.read(Box((0, 0, 30), (1, 1, 34)))
    assert small.decoded_bytes == 2 * (2 * 16 * 20 * 64)


def test_what_is_not_kept_is_read_in_few_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume, _ = write(tmp_path, "zarr3")
    cache, reads = ChunkCache(volume, 1 << 30), []
    true = type(volume).read
    monkeypatch.setattr(type(volume), "read", lambda self, box: reads.append(box) or true(self, box))
    cache.read(Box((5, 5, 5), (30, 50, 60)))
    assert reads == [Box((0, 0, 0), (32, 60, 64))]  # whole chunks, at once
    cache.read(Box((5, 5, 5), (53, 75, 91)))  # what is left of the image lies on three sides
    assert len(reads) == 1 + 3
    assert sum(box.voxel_count for box in reads) == VALUES.size


def test_a_damaged_chunk_is_named_each_time_and_nothing_of_it_is_kept(tmp_path: Path) -> None:
    volume, _ = write(tmp_path, "zarr3")
    path = tmp_path / "i.zarr/c/1/1/1"
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    cache = ChunkCache(volume, 1 << 30)
    for _ in range(2):
        with pytest.raises(ChunkError, match="chunk c/1/1/1 corrupt"):
            cache.read(Box((0, 0, 0), (20, 30, 40)))
    path.write_bytes(good)
    np.testing.assert_array_equal(cache.read(Box((0, 0, 0), (20, 30, 40)))[0][0], VALUES[:20, :30, :40])
    with pytest.raises(VolumeError, match="does not lie inside"):
        cache.read(Box((0, 0, 0), (20, 30, 92)))


def test_what_is_mapped_is_neither_kept_nor_read_by_whole_chunks(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "plain.tif", VALUES, photometric="minisblack")
    for volume in (open_volume(str(tmp_path / "plain.tif")), ArrayVolume(VALUES, "zyx")):
        assert cache_bytes(volume, (10, 10, 10)) == 0
        assert reading_bytes(volume, (10, 10, 10)) == 2 * 1000
        values, decoded = ChunkCache(volume, 1 << 30).read(Box((1, 2, 3), (5, 7, 9)))
        np.testing.assert_array_equal(values[0], VALUES[1:5, 2:7, 3:9])
        assert decoded == 2 * 4 * 5 * 6


def test_the_bound_is_one_layer_of_blocks_and_never_more_than_the_image(tmp_path: Path) -> None:
    volume, _ = write(tmp_path, "zarr3")
    assert cache_bytes(volume, (16, 30, 30)) == 2 * 32 * 75 * 91  # 16 sections may lie in two layers of chunks
    assert cache_bytes(volume, (50, 30, 30)) == VALUES.nbytes
    assert reading_bytes(volume, (16, 30, 30)) == 2 * (16 * 30 * 30 + 32 * 60 * 64)

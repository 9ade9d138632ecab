"""Stored chunks that are not what they should be: bombs, truncated, absent, behind links; what is sound reads as zarr-python reads it."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, TransposeCodec, ZstdCodec

from tests.conftest import textured
from unet_core.errors import ChunkError, InputError, VolumeError
from unet_core.geometry import Box
from unet_core.volumes import open_volume, zarr_array

DATA = np.random.default_rng(0).integers(1, 60000, (40, 50)).astype("u2")
WHOLE = Box.from_shape(DATA.shape)
BYTES = bytes(16 * 16 * 2)


def stored(folder: Path, **options: Any) -> Path:
    zarr.create_array(folder, data=DATA, **({"chunks": (16, 16)} | options))
    return folder


def reads(folder: Path) -> Any:
    return open_volume(str(folder)).read(WHOLE)[0]


def many(bomb: bytes, count: int = 200) -> bytes:
    return bomb * count


def zstd_frame(blocks: int) -> bytes:
    """A frame of run-length blocks of 128 KiB that does not state its size, as a streaming writer makes it."""
    headers = [((131072 << 3) | (1 << 1) | (number == blocks - 1)).to_bytes(3, "little") for number in range(blocks)]
    return b"\x28\xb5\x2f\xfd\x00\x38" + b"".join(header + b"\x07" for header in headers)


ZEROS = bytes(200 << 20)
BOMBS: dict[str, tuple[Any, Callable[[], bytes]]] = {
    "gzip": (numcodecs.GZip(), lambda: gzip.compress(ZEROS)),
    "gzip members": (numcodecs.GZip(), lambda: many(gzip.compress(bytes(1 << 20)))),
    "zlib": (numcodecs.Zlib(), lambda: zlib.compress(ZEROS)),
    "bz2": (numcodecs.BZ2(), lambda: bz2.compress(ZEROS)),
    "lzma": (numcodecs.LZMA(), lambda: lzma.compress(ZEROS)),
    "zstd": (numcodecs.Zstd(), lambda: numcodecs.Zstd().encode(ZEROS)),
    "zstd stream": (numcodecs.Zstd(), lambda: zstd_frame(1600)),
    "zstd frames": (numcodecs.Zstd(), lambda: numcodecs.Zstd().encode(BYTES) + zstd_frame(1600)),
    "blosc": (numcodecs.Blosc(), lambda: numcodecs.Blosc().encode(ZEROS)),
    "lz4": (numcodecs.LZ4(), lambda: numcodecs.LZ4().encode(ZEROS)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_chunk_that_decodes_to_more_than_declared_allocates_nothing(name: str, tmp_path: Path) -> None:
    codec, bomb = BOMBS[name]
    folder = stored(tmp_path / "a", zarr_format=2, compressors=codec)
    np.testing.assert_array_equal(reads(folder), DATA)
    (folder / "0.1").write_bytes(bomb())
    code = f"""
import resource
from unet_core.geometry import Box
from unet_core.volumes import open_volume
volume = open_volume({str(folder)!r})
volume.read(Box((0, 0), (1, 1)))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    volume.read(Box((0, 0), (1, 50)))
except Exception as error:
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10, type(error).__name__, error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    growth, kind, text = result.stdout.split(maxsplit=2)
    assert kind == "ChunkError"
    assert "chunk 0.1 corrupt" in text
    assert "decoded size exceeds declared 512 bytes; restore it" in text
    assert int(growth) < 100
    assert result.stderr == ""


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


@pytest.mark.parametrize("codec", [GzipCodec(), ZstdCodec(), BloscCodec()], ids=["gzip", "zstd", "blosc"])
def test_a_bomb_inside_a_shard_is_refused(codec: Any, tmp_path: Path) -> None:
    folder = stored(tmp_path / "a", chunks=(8, 8), shards=(40, 56), compressors=codec)
    np.testing.assert_array_equal(reads(folder), DATA)
    encoded = {GzipCodec: gzip.compress, ZstdCodec: numcodecs.Zstd().encode, BloscCodec: numcodecs.Blosc().encode}
    bomb = bytes(encoded[type(codec)](bytes(1 << 20)))
    index = struct.pack("<QQ", 0, len(bomb)) * 35
    (folder / "c/0/0").write_bytes(bomb + index + struct.pack("<I", google_crc32c.value(index)))
    for box in (WHOLE, Box((0, 0), (3, 3))):
        with pytest.raises(ChunkError, match="chunk c/0/0 corrupt: .*decoded size exceeds declared 128 bytes; restore it"):
            open_volume(str(folder)).read(box)


@pytest.mark.parametrize("layout", ["v2", "v3", "shard"])
def test_a_truncated_blosc_chunk_is_refused(layout: str, tmp_path: Path) -> None:
    if layout == "v2":
        folder, name = stored(tmp_path / "a", zarr_format=2, compressors=numcodecs.Blosc()), "0.1"
    else:
        shards = (32, 32) if layout == "shard" else None
        folder, name = stored(tmp_path / "a", compressors=BloscCodec(), shards=shards), "c/0/1"
    chunk = folder / name
    data = chunk.read_bytes()
    if layout == "shard":  # the first chunk says it ends 20 bytes before its end, its neighbour fills the gap
        index = bytearray(data[-4 - 4 * 16 : -4])
        offset, size = struct.unpack_from("<QQ", index, 0)
        struct.pack_into("<QQ", index, 0, offset, size - 20)
        chunk.write_bytes(data[: -4 - len(index)] + bytes(index) + struct.pack("<I", google_crc32c.value(bytes(index))))
    else:
        chunk.write_bytes(data[:-20])
    with pytest.raises(ChunkError, match=rf"chunk {name} corrupt: .*its header states \d+ bytes, there are \d+; restore it"):
        reads(folder)


SOUND: dict[str, dict[str, Any]] = {
    "v2 crc32": {"zarr_format": 2, "filters": [numcodecs.CRC32()], "compressors": numcodecs.Zstd()},
    "v2 adler32": {"zarr_format": 2, "filters": [numcodecs.Adler32()], "compressors": numcodecs.Blosc()},
    "v2 widening": {"zarr_format": 2, "filters": [numcodecs.Delta("<u2", "<i4")], "compressors": numcodecs.GZip()},
    "v2 lz4": {"zarr_format": 2, "filters": [numcodecs.Delta("<u2", "<i8")], "compressors": numcodecs.LZ4()},
    "v2 raw lzma": {"zarr_format": 2, "compressors": numcodecs.LZMA(format=lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2}])},
    "v2 plain": {"zarr_format": 2, "compressors": None},
    "v3 crc32c": {"compressors": [Crc32cCodec(), ZstdCodec()]},
    "v3 two": {"compressors": [GzipCodec(), BloscCodec(), Crc32cCodec()]},
    "shard in a shard": {
        "chunks": (32, 32),
        "compressors": None,
        "serializer": ShardingCodec(
            chunk_shape=(16, 16), codecs=[ShardingCodec(chunk_shape=(4, 8), codecs=[BytesCodec(), Crc32cCodec(), GzipCodec()])]
        ),
    },
    "shard behind a transpose": {
        "chunks": (32, 32),
        "filters": [TransposeCodec(order=(1, 0))],
        "compressors": [ZstdCodec()],
        "serializer": ShardingCodec(chunk_shape=(16, 8), codecs=[BytesCodec(), BloscCodec()]),
    },
}


@pytest.mark.filterwarnings("ignore:Combining a `sharding_indexed` codec")
@pytest.mark.parametrize("name", SOUND)
def test_what_comes_before_the_compressor_may_be_larger_than_the_voxels(name: str, tmp_path: Path) -> None:
    folder = stored(tmp_path / "a", **SOUND[name])
    np.testing.assert_array_equal(reads(folder), DATA)
    box = Box((3, 5), (21, 37))
    volume = open_volume(str(folder))
    np.testing.assert_array_equal(volume.read(box)[0], DATA[box.slices()])
    assert volume.chunk_shape == {"shard in a shard": (4, 8), "shard behind a transpose": (32, 32)}.get(name, (16, 16))


@pytest.mark.parametrize("missing", ["error", "fill"])
@pytest.mark.parametrize("options", [{}, {"shards": (32, 32)}], ids=["chunk", "shard"])
def test_an_empty_chunk_is_found_in_the_listing(missing: Any, options: dict[str, Any], tmp_path: Path) -> None:
    folder = stored(tmp_path / "a", **options)
    (folder / "c/0/1").write_bytes(b"")
    volume = open_volume(str(folder), missing=missing)
    for failing in (volume.missing_chunks, lambda: volume.read(WHOLE)):
        with pytest.raises(ChunkError, match="chunk c/0/1 is empty in .*; restore it from the original, or delete it and use"):
            failing()
    assert volume.missing_chunks(Box((0, 0), (16, 16))) == ()


def test_absent_chunks_are_counted_without_going_through_a_huge_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a"
    array = zarr.create_array(folder, shape=(10**15, 10**6), chunks=(1000, 1000), dtype="u1")
    array[:1000, :3000] = 7
    volume = open_volume(str(folder))
    start = time.monotonic()
    with pytest.raises(VolumeError, match=r"shape \(1000000000000000, 1000000\) has 10{15} chunks here, 4 objects .*--roi"):
        volume.missing_chunks()
    box = Box((0, 0), (4 * 10**7, 10**6))  # 40 million chunks
    absent = volume.missing_chunks(box)
    assert time.monotonic() - start < 5
    assert (len(absent), absent[:2]) == (zarr_array.MAX_NAMED, ("c/0/3", "c/0/4"))
    assert volume.missing_chunks(Box((0, 0), (1000, 3000))) == ()
    assert volume.missing_chunks(Box((500, 2500), (1500, 4500))) == ("c/0/3", "c/0/4", "c/1/2", "c/1/3", "c/1/4")
    assert len(volume.fingerprint()) == 2


@pytest.mark.parametrize("separator", [".", "/"])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_absent_chunks_are_the_same_by_box_and_by_listing(zarr_format: Any, separator: Any, tmp_path: Path) -> None:
    name = "v2" if zarr_format == 2 else "default"
    folder = stored(
        tmp_path / "a", chunks=(4, 4), zarr_format=zarr_format, chunk_key_encoding={"name": name, "separator": separator}
    )
    keys = [path for path in folder.rglob("*") if path.is_file() and path.name not in ("zarr.json", ".zarray", ".zattrs")]
    removed = sorted(keys)[::7]
    for path in removed:
        path.unlink()
    expected = {path.relative_to(folder).as_posix() for path in removed}
    volume: Any = open_volume(str(folder))
    assert set(volume.missing_chunks()) == expected
    (folder / "other").mkdir()
    for number in range(200):  # more objects than chunks
        (folder / "other" / str(number)).write_text("")
    assert set(open_volume(str(folder)).missing_chunks()) == expected


def test_links_inside_the_archive_are_followed_and_others_are_refused(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "image", mode="w")
    for name in ("0", "1"):
        group.create_array(name, data=textured((32, 32)), chunks=(16, 16), compressors=None)
    chunk = tmp_path / "image/1/c/0/1"
    chunk.unlink()
    chunk.symlink_to("../../../0/c/0/1")
    np.testing.assert_array_equal(open_volume(str(tmp_path / "image/1")).read(Box.from_shape((32, 32)))[0], textured((32, 32)))
    for target, kind in [("/etc/passwd", InputError), (tmp_path / "elsewhere", InputError)]:
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        chunk.unlink()
        chunk.symlink_to(target)
        volume = open_volume(str(tmp_path / "image/1"), missing="fill")
        for failing in (volume.missing_chunks, volume.fingerprint, lambda v=volume: v.read(Box.from_shape((32, 32)))):
            with pytest.raises(kind, match="symlink leaves the archive: 1/c/0/1 in .*put a copy"):
                failing()


def test_links_that_lead_nowhere_are_absent_and_loops_are_no_damage(tmp_path: Path) -> None:
    chunk = stored(tmp_path / "a") / "c/0/1"
    chunk.unlink()
    chunk.symlink_to("nowhere")
    volume = open_volume(str(tmp_path / "a"))
    assert volume.missing_chunks() == ("c/0/1",)
    with pytest.raises(ChunkError, match="chunk c/0/1 is missing"):
        volume.read(WHOLE)
    assert not open_volume(str(tmp_path / "a"), missing="fill").read(Box((0, 16), (16, 32))).any()
    for name, target in [("c/0/1", "1"), ("c/0/again", "../../c")]:
        (tmp_path / "a" / name).unlink(missing_ok=True)
        (tmp_path / "a" / name).symlink_to(target)
        with pytest.raises(InputError, match=r"symbolic links in a loop: .*; replace the link") as caught:
            reads(tmp_path / "a")
        assert "corrupt" not in str(caught.value)
        (tmp_path / "a" / name).unlink()


def test_after_an_error_nothing_is_left_to_complain_at_exit(tmp_path: Path) -> None:
    folder = stored(tmp_path / "a", chunks=(2, 2))
    (folder / "c/0/1").write_bytes(b"garbage")
    (folder / "c/5/5").unlink()
    code = f"""
from unet_core.geometry import Box
from unet_core.volumes import open_volume
volume = open_volume({str(folder)!r})
for _ in range(2):
    try:
        volume.read(Box((0, 0), (40, 50)))
    except Exception as error:
        print(type(error).__name__)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    assert result.stdout.split() == ["ChunkError"] * 2
    assert result.stderr == ""

"""Metadata of Zarr arrays that cannot be used: one line that says what, where and how to mend; RELIABILITY rows in the ids."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from unet_core.errors import VolumeError
from unet_core.geometry import Box
from unet_core.volumes import open_volume

Edit = Callable[[dict[str, Any]], None]


def array(folder: Path, **options: Any) -> Path:
    data = np.random.default_rng(0).integers(1, 255, (40, 50)).astype("u1")
    zarr.create_array(folder, data=data, **({"chunks": (16, 16)} | options))
    return folder


def edited(folder: Path, name: str, edit: Edit) -> Path:
    document = json.loads((folder / name).read_text())
    edit(document)
    (folder / name).write_text(json.dumps(document))
    return folder


def setting(path: str, value: Any) -> Edit:
    def edit(document: dict[str, Any]) -> None:
        node: Any = document
        *parents, last = path.split(".")
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node[part]
        node[int(last) if isinstance(node, list) else last] = value

    return edit


REFUSED = "metadata is refused by zarr-python: .*a/zarr.json: .*; write it again with the tool that made it"


def shard(inner: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return {"name": "sharding_indexed", "configuration": {"chunk_shape": [16, 16], "codecs": [inner]} | settings}


SHARD_OF_EVIL = shard({"name": "evil"})
V3 = [
    ("9 zarr_format", "zarr_format", 4, "unsupported zarr_format 4"),
    ("10 negative", "shape", [-1, 50], r"shape\[0\] = -1"),
    ("11 float", "shape", [40.5, 50], "shape must be integers"),
    ("11 string", "shape", "40", "shape must be integers"),
    ("12 chunk 0", "chunk_grid.configuration.chunk_shape", [0, 16], r"chunk_shape\[0\] = 0"),
    ("13 chunk ndim", "chunk_grid.configuration.chunk_shape", [16], "chunk_shape has 1 dims, shape 2"),
    ("15 huge chunk", "chunk_grid.configuration.chunk_shape", [10**9, 10**9], "chunk larger than max_chunk_bytes"),
    ("16 empty", "shape", [0, 1024], "array is empty"),
    ("17 dtype", "data_type", "uint7", "unsupported data_type 'uint7'"),
    ("18 complex", "data_type", "complex64", "unsupported data_type"),
    ("20 codec", "codecs", [{"name": "bytes"}, {"name": "evil"}], "codec 'evil' not allowed"),
    ("21 pickle", "codecs", [{"name": "numcodecs.pickle"}], "codec 'pickle' refused: executes code"),
    ("35 names", "dimension_names", ["y"], "axes: dimension_names of .*name each, or none"),
    ("9 float", "zarr_format", 3.0, "unsupported zarr_format 3.0: .*2 and 3 are read"),
    ("10 huge", "shape", [10**30, 50], r"shape\[0\] = 10{30}: .*below 2\^63"),
    ("20 list", "codecs", [{"name": "bytes"}, ["zstd"]], r"codec '\['zstd'\]' not allowed .*write it again with"),
    ("20 list as name", "codecs", [{"name": ["bytes"]}], r"codec '\['bytes'\]' not allowed"),
    ("20 object as name", "codecs", [{"name": {"a": 1}}], "codec .* not allowed"),
    ("20 settings", "codecs", [{"name": "bytes", "configuration": 7}], "codec 'bytes' not allowed"),
    ("20 none", "codecs", [], "codecs of .* is empty, it must turn voxels into bytes; write it again"),
    ("20 no list", "codecs", None, "codecs of .* must be a list"),
    (
        "20 behind a transpose",
        "codecs",
        [{"name": "transpose", "configuration": {"order": [1, 0]}}, SHARD_OF_EVIL],
        "codec 'evil' not",
    ),
    ("20 shard in a shard", "codecs", [shard(shard(SHARD_OF_EVIL))], "codec 'evil' not allowed"),
    (
        "20 index",
        "codecs",
        [shard({"name": "bytes"}, index_codecs=[{"name": "zstd"}])],
        "codec 'zstd' not allowed .*bytes, crc32c",
    ),
    ("20 no index", "codecs", [shard({"name": "bytes"}, index_codecs=[])], "index_codecs of .* must be bytes with an endian"),
    (
        "20 index order",
        "codecs",
        [shard({"name": "bytes"}, index_codecs=[{"name": "bytes"}])],
        "index_codecs of .* must be bytes",
    ),
    ("20 no bytes in a shard", "codecs", [shard({"name": "zstd", "configuration": {}})], REFUSED),
    ("21 in a shard", "codecs", [shard({"name": "numcodecs.pickle"})], "codec 'pickle' refused: executes code"),
    ("59 shard", "codecs", [shard({"name": "bytes"}, chunk_shape=[10**18, 10**18])], "is not a multiple of its chunk"),
    ("59 shard dims", "codecs", [shard({"name": "bytes"}, chunk_shape=[16])], "is not a multiple of its chunk"),
    ("keys", "chunk_key_encoding", {"name": "default", "configuration": {"separator": 7}}, "chunk_key_encoding .* is not known"),
    ("zarr: no bytes", "codecs", [{"name": "zstd", "configuration": {}}], REFUSED),
    ("zarr: two", "codecs", [{"name": "bytes"}, {"name": "bytes"}], REFUSED),
    ("zarr: level", "codecs", [{"name": "bytes"}, {"name": "zstd", "configuration": {"level": "abc"}}], REFUSED),
    ("zarr: cname", "codecs", [{"name": "bytes"}, {"name": "blosc", "configuration": {"cname": "evil"}}], REFUSED),
    ("zarr: order", "codecs", [{"name": "transpose", "configuration": {"order": [0, 0]}}, {"name": "bytes"}], REFUSED),
    ("zarr: fill text", "fill_value", "abc", REFUSED),
    ("zarr: fill null", "fill_value", None, REFUSED),
    ("zarr: fill list", "fill_value", [1], REFUSED),
    ("zarr: transformers", "storage_transformers", [{"name": "x"}], REFUSED),
    ("zarr: must understand", "unheard_of", {"name": "x", "must_understand": True}, REFUSED),
]


@pytest.mark.parametrize(("path", "value", "words"), [case[1:] for case in V3], ids=[case[0] for case in V3])
def test_version_3_metadata(path: str, value: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match=words) as caught:
        open_volume(str(edited(array(tmp_path / "a"), "zarr.json", setting(path, value))))
    assert_one_line(caught.value)


V2 = [
    ("18 object", "dtype", "|O", "float32 holds exactly, or --cast"),
    ("18 structured", "dtype", [["a", "<i4"]], "unsupported data_type"),
    ("18 string", "dtype", "<U4", "unsupported data_type"),
    ("20 codec", "compressor", {"id": "evil"}, "codec 'evil' not allowed"),
    ("21 pickle", "compressor", {"id": "pickle"}, "codec 'pickle' refused: executes code"),
    ("21 filter", "filters", [{"id": "pickle"}], "codec 'pickle' refused: executes code"),
    ("9 float", "zarr_format", 2.0, "unsupported zarr_format 2.0"),
    ("17 short", "dtype", "f", "unsupported data_type 'f'"),
    ("17 comma", "dtype", ",", "unsupported data_type ','"),
    ("17 subarray", "dtype", "9999999999u1", "unsupported data_type"),
    ("17 NUL", "dtype", "\0", "unsupported data_type"),
    ("20 list", "compressor", ["zstd"], r"codec '\['zstd'\]' not allowed"),
    ("20 list as name", "compressor", {"id": ["zstd"]}, r"codec '\['zstd'\]' not allowed"),
    ("20 filter null", "filters", [None], "codec 'None' not allowed"),
    ("20 filters 7", "filters", 7, "codecs of .* must be a list, it is '7'"),
    ("zarr: filter", "filters", [{"id": "delta"}], REFUSED.replace("zarr.json", ".zarray")),
    ("zarr: fill text", "fill_value", "abc", REFUSED.replace("zarr.json", ".zarray")),
    ("zarr: fill 300", "fill_value", 300, REFUSED.replace("zarr.json", ".zarray")),
    ("zarr: order X", "order", "X", REFUSED.replace("zarr.json", ".zarray")),
    ("zarr: order null", "order", None, REFUSED.replace("zarr.json", ".zarray")),
    ("zarr: lzma", "compressor", {"id": "lzma", "format": 3, "filters": [{"id": 99}]}, REFUSED.replace("zarr.json", ".zarray")),
]


def assert_one_line(error: Exception) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 600
    assert "corrupt" not in str(error)


@pytest.mark.parametrize(("path", "value", "words"), [case[1:] for case in V2], ids=[case[0] for case in V2])
def test_version_2_metadata(path: str, value: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match=words) as caught:
        open_volume(str(edited(array(tmp_path / "a", zarr_format=2), ".zarray", setting(path, value))))
    assert_one_line(caught.value)


def test_large_shard_indices_are_refused(tmp_path: Path) -> None:
    folder = array(tmp_path / "a")
    edited(folder, "zarr.json", setting("chunk_grid.configuration.chunk_shape", [10**5, 10**5]))
    edited(folder, "zarr.json", setting("codecs", [shard({"name": "bytes"}, chunk_shape=[10, 10])]))
    with pytest.raises(
        VolumeError, match="holds 100000000 chunks, its index would be larger than 64 MiB; write it again with larger"
    ):
        open_volume(str(folder))


def test_metadata_that_zarr_python_only_warns_of_is_read_in_silence(tmp_path: Path) -> None:
    folder = edited(array(tmp_path / "a", zarr_format=2), ".zarray", setting("filters", []))
    assert open_volume(str(folder)).read(Box((0, 0), (3, 3))).any()


DOCUMENTS = [
    ("4 empty", b"", "metadata is empty"),
    ("5 truncated", b'{"zarr_format": 3,\n "shape": [', r"metadata is not valid JSON at 2:12"),
    ("6 list", b"[1, 2]", "metadata must be an object"),
    ("7 deep", b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", "metadata nested too deep"),
    ("7 deeper than we read", b'{"a":' + b"[" * 500 + b"]" * 500 + b"}", "metadata nested too deep"),
    ("8 large", b'{"a": "' + b"x" * (2 << 20) + b'"}', "larger than the 1 MiB limit"),
    ("5 long number", b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON: .* number of thousands of digits; restore it"),
    ("5 no text", b"\xff\xfe\x00", "not valid JSON at 1:1"),
]


@pytest.mark.parametrize(("data", "words"), [case[1:] for case in DOCUMENTS], ids=[case[0] for case in DOCUMENTS])
def test_documents_that_are_no_metadata(data: bytes, words: str, tmp_path: Path) -> None:
    (array(tmp_path / "a") / "zarr.json").write_bytes(data)
    with pytest.raises(VolumeError, match=words):
        open_volume(str(tmp_path / "a"))

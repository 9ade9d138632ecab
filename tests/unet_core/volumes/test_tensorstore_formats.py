"""Neuroglancer precomputed volumes and N5 as tensorstore writes them: every box, every chunk that is absent or damaged."""

from __future__ import annotations

import gzip
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import zarr

from tests.conftest import DATA, needs_data, textured
from unet_core.conversion import convert, make_conversion
from unet_core.errors import ChunkError, JobError, VolumeError
from unet_core.geometry import Box
from unet_core.job import make_job
from unet_core.segment import run
from unet_core.store import LocalStore, open_store
from unet_core.volumes import Volume, open_volume

SHAPE = (41, 70, 50)  # z, y, x
OFFSET = (30, 20, 10)
BOX = Box((3, 17, 9), (38, 66, 43))


def sharding(hashed: bool = True, zipped: bool = True, **bits: int) -> dict[str, Any]:
    encoding = "gzip" if zipped else "raw"
    return {
        "@type": "neuroglancer_uint64_sharded_v1",
        "hash": "murmurhash3_x86_128" if hashed else "identity",
        "minishard_index_encoding": encoding,
        "data_encoding": encoding,
    } | ({"preshift_bits": 1, "minishard_bits": 2, "shard_bits": 3} | bits)


def precomputed(
    folder: Path,
    data: np.ndarray[Any, Any],
    encoding: str = "raw",
    shards: dict[str, Any] | None = None,
    box: Box | None = None,
    factor: int = 1,
    **scale: Any,
) -> Path:
    """Write ``data`` (C, Z, Y, X), or a box of it, as a scale of a volume, by tensorstore."""
    steps = [4 * factor, 4 * factor, 40]
    spec = {
        "driver": "neuroglancer_precomputed",
        "kvstore": {"driver": "file", "path": str(folder)},
        "multiscale_metadata": {
            "type": "segmentation" if encoding == "compressed_segmentation" else "image",
            "data_type": str(data.dtype),
            "num_channels": len(data),
        },
        "scale_metadata": {
            "size": list(data.shape[:0:-1]),
            "encoding": encoding,
            "chunk_size": [16, 12, 8],
            "resolution": steps,
            "voxel_offset": [first // (factor if axis < 2 else 1) for axis, first in enumerate(OFFSET[::-1])],
            **({"sharding": shards} if shards else {}),
            **scale,
        },
    }
    array = tensorstore.open(spec, create=True, open=True).result()[tensorstore.d[:].translate_to[0]]
    inside = box or Box.from_shape(data.shape[1:])
    values = data[(slice(None), *inside.slices())].T
    array[tuple(inside.slices()[::-1])].write(values).result()
    return folder


def whole(volume: Volume) -> Any:
    return volume.to_dask().compute(scheduler="synchronous")


def ids(dtype: str = "u8") -> np.ndarray[Any, Any]:
    blobs = (textured(SHAPE) // 60).astype(dtype)
    return blobs[None] * np.array(1_000_003 if np.dtype(dtype).itemsize == 4 else (1 << 40) + 7, dtype)


CASES: list[tuple[str, np.ndarray[Any, Any], dict[str, Any]]] = [
    ("raw", textured(SHAPE)[None], {}),
    ("raw", np.stack([textured(SHAPE, seed) for seed in range(3)]).astype("u2") * 200, {}),
    ("raw", np.random.default_rng(0).normal(size=(1, *SHAPE)).astype("f4"), {"shards": sharding()}),
    ("png", textured(SHAPE)[None], {"shards": sharding(hashed=False)}),
    ("compressed_segmentation", ids("u4"), {"compressed_segmentation_block_size": [8, 8, 8]}),
    ("compressed_segmentation", ids(), {"compressed_segmentation_block_size": [8, 4, 2], "shards": sharding(zipped=False)}),
    ("raw", textured(SHAPE)[None], {"shards": sharding(preshift_bits=0, minishard_bits=0, shard_bits=0)}),
    ("raw", textured(SHAPE)[None], {"shards": sharding(preshift_bits=9, minishard_bits=5, shard_bits=9)}),
]


@pytest.mark.parametrize(("encoding", "data", "options"), CASES, ids=[f"{number}-{case[0]}" for number, case in enumerate(CASES)])
def test_a_precomputed_volume_reads_as_it_was_written(
    encoding: str, data: np.ndarray[Any, Any], options: dict[str, Any], tmp_path: Path
) -> None:
    volume = open_volume(str(precomputed(tmp_path / "v", data, encoding, **options)))
    assert (volume.axes, volume.shape) == (("czyx", data.shape) if len(data) > 1 else ("zyx", SHAPE))
    assert (volume.dtype, volume.chunk_shape, volume.unit) == (data.dtype, (8, 12, 16), "nanometer")
    assert volume.scale == (40.0, 4.0, 4.0)
    assert volume.voxel_size == pytest.approx((0.04, 0.004, 0.004))
    assert volume.translation == (OFFSET[0] * 40.0, OFFSET[1] * 4.0, OFFSET[2] * 4.0)
    np.testing.assert_array_equal(volume.read(BOX), data[(slice(None), *BOX.slices())])
    np.testing.assert_array_equal(whole(volume), data if len(data) > 1 else data[0])
    assert volume.missing_chunks() == ()
    if len(data) > 1:
        np.testing.assert_array_equal(open_volume(volume.url, channels=(2, 0)).read(BOX), data[([2, 0], *BOX.slices())])


def test_jpeg_chunks_are_decoded_as_tensorstore_decodes_them(tmp_path: Path) -> None:
    folder = precomputed(tmp_path / "v", textured(SHAPE)[None], "jpeg", shards=sharding())
    spec = {"driver": "neuroglancer_precomputed", "kvstore": {"driver": "file", "path": str(folder)}}
    there = tensorstore.open(spec, read=True).result().read().result()[..., 0].T
    np.testing.assert_array_equal(whole(open_volume(str(folder))), there)
    assert abs(there.astype(int) - textured(SHAPE)).mean() < 12


def test_every_chunk_of_many_grids_is_found_in_its_shard(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for number, counts in enumerate([(1, 1, 1), (1, 5, 2), (9, 1, 3), (4, 4, 4), (2, 11, 5)]):
        bits = {name: int(random.integers(0, 4)) for name in ("preshift_bits", "minishard_bits", "shard_bits")}
        shape = tuple(2 * count - (count > 1) for count in counts)
        data = random.integers(1, 255, (1, *shape)).astype("u1")
        folder = precomputed(tmp_path / str(number), data, shards=sharding(number % 2 == 0, **bits), chunk_size=[2, 2, 2])
        volume = open_volume(str(folder))
        np.testing.assert_array_equal(whole(volume), data[0])
        assert volume.missing_chunks() == ()


def test_scales_of_a_volume_are_levels_whose_centres_agree(tmp_path: Path) -> None:
    data = textured((41, 70, 50))[None]
    precomputed(tmp_path / "v", data)
    precomputed(tmp_path / "v", data[..., ::2, ::2].copy(), factor=2)
    volume = open_volume(str(tmp_path / "v"), 1)
    assert [entry.shape for entry in volume.levels] == [(41, 70, 50), (41, 35, 25)]
    assert volume.voxel_size == pytest.approx((0.04, 0.008, 0.008))
    assert volume.translation == (OFFSET[0] * 40.0, OFFSET[1] * 4.0 + 2, OFFSET[2] * 4.0 + 2)
    np.testing.assert_array_equal(whole(volume), data[0, :, ::2, ::2])
    with pytest.raises(VolumeError, match="level 2 of .* does not exist; it has levels 0 to 1"):
        open_volume(str(tmp_path / "v"), 2)


@pytest.mark.parametrize("sharded", [False, True])
def test_absent_chunks_are_errors_unless_they_may_be_filled(sharded: bool, tmp_path: Path) -> None:
    data, box = textured(SHAPE)[None], Box((8, 12, 16), (24, 36, 50))
    folder = precomputed(tmp_path / "v", data, shards=sharding() if sharded else None, box=box)
    volume = open_volume(str(folder))
    np.testing.assert_array_equal(volume.read(box)[0], data[0][box.slices()])
    assert volume.missing_chunks(box) == ()
    assert len(volume.missing_chunks()) == 6 * 6 * 4 - 2 * 2 * 3
    name = "[0-9]+ of 4_4_40/[0-7].shard" if sharded else "26-42_20-32_38-46"
    with pytest.raises(ChunkError, match=f"chunk {name} is missing in .*; use --missing fill"):
        volume.read(Box((8, 0, 16), (9, 13, 17)))
    filled = np.zeros_like(data[0])
    filled[box.slices()] = data[0][box.slices()]
    np.testing.assert_array_equal(whole(open_volume(str(folder), missing="fill")), filled)


@pytest.mark.parametrize("sharded", [False, True])
def test_damaged_chunks_are_named_and_change_the_fingerprint(sharded: bool, tmp_path: Path) -> None:
    folder = precomputed(tmp_path / "v", textured(SHAPE)[None], shards=sharding() if sharded else None)
    before = open_volume(str(folder)).fingerprint()
    files = sorted((folder / "4_4_40").iterdir())
    victim = files[len(files) // 2]
    stored = victim.read_bytes()
    damages = {"cut": stored[: len(stored) // 2], "empty": b""}
    if sharded:
        middle = len(stored) // 2
        damages["flipped"] = (
            stored[:middle] + bytes(255 - value for value in stored[middle : middle + 40]) + stored[middle + 40 :]
        )
    for what, data in damages.items():
        victim.write_bytes(data)
        volume = open_volume(str(folder))
        assert volume.fingerprint() != before
        words = "is empty in" if what == "empty" else "corrupt: "
        with pytest.raises(ChunkError, match=f"chunk .*{words}") as caught:
            whole(volume)
        assert victim.name in str(caught.value)
        assert "\n" not in str(caught.value)
        if what == "empty":
            with pytest.raises(ChunkError, match="is empty"):
                volume.missing_chunks()


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_chunks_that_cloud_volume_has_gzipped(suffix: str, tmp_path: Path) -> None:
    folder = precomputed(tmp_path / "v", textured(SHAPE)[None])
    for path in [*(folder / "4_4_40").iterdir()]:
        data = gzip.compress(path.read_bytes())
        path.unlink()
        Path(f"{path}{suffix}").write_bytes(data)
    np.testing.assert_array_equal(whole(open_volume(str(folder))), textured(SHAPE))
    assert open_volume(str(folder)).missing_chunks() == ()


def test_a_sharded_volume_on_an_object_store_is_read_by_ranges(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unet_core.object_store import S3Store

    folder = precomputed(tmp_path / "v", textured(SHAPE)[None], shards=sharding(shard_bits=0))
    store = open_store(f"{bucket}/v")
    for path in folder.rglob("*"):
        if path.is_file():
            store.put(path.relative_to(folder).as_posix(), path.read_bytes())
    read: list[int] = []
    original = S3Store.get_range
    monkeypatch.setattr(
        S3Store, "get_range", lambda self, key, start, size: read.append(size) or original(self, key, start, size)
    )
    volume = open_volume(f"{bucket}/v")
    np.testing.assert_array_equal(volume.read(Box((8, 12, 16), (16, 24, 32)))[0], textured(SHAPE)[8:16, 12:24, 16:32])
    assert len(read) == 3  # place of a minishard's index, the index, the chunk
    assert sum(read) < 3000
    np.testing.assert_array_equal(whole(volume), textured(SHAPE))
    assert volume.fingerprint()["metadata"] == open_volume(str(folder)).fingerprint()["metadata"]


INFO: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("type", lambda info: info.update(data_type="complex64"), "unsupported data_type 'complex64'"),
    ("channels", lambda info: info.update(num_channels=0), r"num_channels\[0\] = 0"),
    ("no scales", lambda info: info.update(scales=[]), "lists no scales"),
    ("encoding", lambda info: info["scales"][0].update(encoding="kempressed"), "encoding 'kempressed' .* raw, jpeg, png"),
    ("size", lambda info: info["scales"][0].update(size=[10, 10]), r"size of .* is \(10, 10\), it must have three numbers"),
    ("huge", lambda info: info["scales"][0].update(chunk_sizes=[[4096, 4096, 4096]]), "chunk larger than max_chunk_bytes"),
    ("key", lambda info: info["scales"][0].update(key="../../x"), "path leaves the group"),
    ("resolution", lambda info: info["scales"][0].update(resolution=[4, 4, 0]), "voxel size must be > 0"),
    ("offset", lambda info: info["scales"][0].update(voxel_offset=[0, 0, 0.5]), "voxel_offset .* whole numbers"),
    ("shards", lambda info: info["scales"][0].update(sharding={"@type": "other"}), "is not neuroglancer_uint64_sharded_v1"),
    (
        "bits",
        lambda info: info["scales"][0].update(sharding=sharding() | {"minishard_bits": 40}),
        "has 40 minishard bits and 3 shard bits; at most 20",
    ),
    ("hash", lambda info: info["scales"][0].update(sharding=sharding() | {"hash": "md5"}), "sharding.hash .* 'md5'"),
]


@pytest.mark.parametrize(("change", "words"), [case[1:] for case in INFO], ids=[case[0] for case in INFO])
def test_what_an_info_says_wrongly_is_named(change: Callable[[dict[str, Any]], Any], words: str, tmp_path: Path) -> None:
    folder = precomputed(tmp_path / "v", textured((8, 9, 10))[None])
    info = json.loads((folder / "info").read_text())
    change(info)
    (folder / "info").write_text(json.dumps(info))
    with pytest.raises(VolumeError, match=words) as caught:
        open_volume(str(folder))
    assert "\n" not in str(caught.value)


BLOSC = {"cname": "lz4", "clevel": 5, "shuffle": 1}


def n5(folder: Path, data: np.ndarray[Any, Any], block: tuple[int, ...], compression: str = "gzip", **attributes: Any) -> Path:
    """Write ``data``, whose last axis is x, as an N5 dataset, by tensorstore."""
    spec = {
        "driver": "n5",
        "kvstore": {"driver": "file", "path": str(folder)},
        "metadata": {
            "dimensions": list(data.shape[::-1]),
            "blockSize": list(block[::-1]),
            "dataType": str(data.dtype),
            "compression": {"type": compression} | (BLOSC if compression == "blosc" else {}),
        },
    }
    tensorstore.open(spec, create=True).result().write(data.T).result()
    document = json.loads((folder / "attributes.json").read_text())
    (folder / "attributes.json").write_text(json.dumps(document | attributes))
    return folder


@pytest.mark.parametrize("compression", ["raw", "gzip", "bzip2", "xz", "zstd", "blosc"])
@pytest.mark.parametrize(
    ("shape", "dtype", "axes"), [((41, 70), ">u2", "yx"), ((9, 41, 30), "f4", "zyx"), ((2, 9, 41, 30), "u1", "czyx")]
)
def test_an_n5_dataset_reads_as_it_was_written(
    compression: str, shape: tuple[int, ...], dtype: str, axes: str, tmp_path: Path
) -> None:
    data = np.random.default_rng(0).integers(0, 255, shape).astype(np.dtype(dtype).newbyteorder("="))
    folder = n5(tmp_path / "d", data, (1,) * (len(shape) - 2) + (16, 20), compression)
    volume = open_volume(str(folder))
    assert (volume.axes, volume.shape, volume.dtype, volume.chunk_shape[-2:]) == (axes, shape, data.dtype, (16, 20))
    np.testing.assert_array_equal(whole(volume), data)
    assert (volume.missing_chunks(), volume.voxel_size) == ((), None)
    spatial = Box((3, 7, 11)[-len(volume.spatial_axes) :], (8, 40, 29)[-len(volume.spatial_axes) :])
    expected = data[(..., *spatial.slices())]
    np.testing.assert_array_equal(volume.read(spatial), expected if "c" in axes else expected[None])


COSEM = {"axes": ["z", "y", "x"], "scale": [40.0, 8.0, 4.0], "translate": [400.0, 80.0, 7.0], "units": ["nm"] * 3}
SCALES: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], tuple[Any, ...]]] = [
    (
        "cosem",
        {},
        {"transform": COSEM},
        {"transform": COSEM | {"scale": [80.0, 16.0, 8.0]}},
        ((0.08, 0.016, 0.008), "nanometer", (400.0, 80.0, 7.0)),
    ),
    (
        "viewer",
        {},
        {"pixelResolution": {"unit": "um", "dimensions": [0.25, 0.5, 2.0]}},
        {"pixelResolution": {"unit": "um", "dimensions": [0.25, 0.5, 2.0]}, "downsamplingFactors": [2, 4, 1]},
        ((2.0, 2.0, 0.5), "micrometer", (0.0, 0.75, 0.125)),
    ),
    (
        "group",
        {"pixelResolution": {"unit": "um", "dimensions": [0.25, 0.5, 2.0]}, "scales": [[1, 1, 1], [2, 2, 2]]},
        {},
        {},
        ((4.0, 1.0, 0.5), "micrometer", (1.0, 0.25, 0.125)),
    ),
    ("no factors", {"resolution": [1, 1, 1], "units": ["nm"] * 3}, {}, {}, (None, None, (0.0, 0.0, 0.0))),
    ("no unit", {"resolution": [1, 1, 1]}, {}, {"downsamplingFactors": [2, 2, 2]}, (None, None, (0.5, 0.5, 0.5))),
]


@pytest.mark.parametrize(
    ("group", "first", "second", "expected"), [case[1:] for case in SCALES], ids=[case[0] for case in SCALES]
)
def test_lengths_and_scales_of_n5(
    group: dict[str, Any], first: dict[str, Any], second: dict[str, Any], expected: tuple[Any, ...], tmp_path: Path
) -> None:
    data = textured((9, 41, 30))
    n5(tmp_path / "g/s0", data, (4, 16, 16), **first)
    n5(tmp_path / "g/s1", data[::2, ::2, ::2], (4, 16, 16), **second)
    if group:
        (tmp_path / "g/attributes.json").write_text(json.dumps(group))
    volume = open_volume(str(tmp_path / "g"), 1)
    size, unit, translation = expected
    assert volume.voxel_size == (None if size is None else pytest.approx(size))
    assert (volume.unit, volume.translation) == (unit, pytest.approx(translation))
    np.testing.assert_array_equal(whole(volume), data[::2, ::2, ::2])
    assert [entry.shape for entry in volume.levels] == [(9, 41, 30), (5, 21, 15)]


def test_n5_that_is_no_image_or_lacks_blocks(tmp_path: Path) -> None:
    n5(tmp_path / "c/raw/s0", textured((9, 41, 30)), (4, 16, 16))
    n5(tmp_path / "c/labels", textured((9, 41, 30)), (4, 16, 16))
    (tmp_path / "c/attributes.json").write_text('{"n5": "2.5.0"}')
    with pytest.raises(VolumeError, match=r"holds several datasets or groups, name one: .*c/labels, .*c/raw\."):
        open_volume(str(tmp_path / "c"))
    folder = tmp_path / "c/labels"
    (folder / "1/2/0").unlink()
    with pytest.raises(ChunkError, match="chunk 1/2/0 is missing in .*; use --missing fill"):
        whole(open_volume(str(folder)))
    assert open_volume(str(folder)).missing_chunks() == ("1/2/0",)
    filled = textured((9, 41, 30))
    filled[:4, 32:, 16:] = 0
    np.testing.assert_array_equal(whole(open_volume(str(folder), missing="fill")), filled)
    (folder / "0/0/0").write_bytes((folder / "0/0/0").read_bytes()[:50])
    with pytest.raises(ChunkError, match="chunk 0/0/0 corrupt: "):
        whole(open_volume(str(folder), missing="fill"))
    for attributes, words in [
        ({"compression": {"type": "lz4"}}, "compression 'lz4'"),
        ({"blockSize": [1]}, "blockSize has 1 dims"),
    ]:
        document = json.loads((folder / "attributes.json").read_text())
        (tmp_path / "bad").mkdir(exist_ok=True)
        (tmp_path / "bad/attributes.json").write_text(json.dumps(document | attributes))
        with pytest.raises(VolumeError, match=words):
            open_volume(str(tmp_path / "bad"))


@needs_data
def test_n5_of_z5py_is_the_zarr_beside_it() -> None:
    examples = DATA / "omezarr" / "zarr_implementations" / "examples"
    expected = whole(open_volume(str(examples / "zarr.zr/gzip")))
    for name in ("gzip", "raw"):
        np.testing.assert_array_equal(whole(open_volume(str(examples / "z5py.n5" / name))), expected)


def test_segmentations_of_all_formats_are_the_same_for_any_cut(make_model: Callable[..., Path], tmp_path: Path) -> None:
    data = textured((12, 50, 41))
    sources = {
        "zarr": tmp_path / "a.zarr",
        "sharded": precomputed(tmp_path / "p", data[None], shards=sharding()),
        "n5": n5(tmp_path / "n", data, (5, 16, 12)),
    }
    zarr.create_array(sources["zarr"], data=data, chunks=(4, 20, 20))
    model, found = str(make_model(dims=3, levels=2)), {}
    for (name, image), block in itertools.product(sources.items(), [(4, 16, 16), (12, 50, 42)]):
        output = tmp_path / f"{name}-{block[0]}"
        assert run(make_job(image=str(image), output=str(output), model=model, block_shape=block)).status == "complete"
        found[name, block] = np.asarray(zarr.open_array(output / "labels/classes/0", mode="r")[...])
    first, *others = found.values()
    assert len(np.unique(first)) > 1
    for other in others:
        np.testing.assert_array_equal(other, first)


def test_a_precomputed_segmentation_is_converted(tmp_path: Path) -> None:
    data = ids()
    folder = precomputed(tmp_path / "v", data, "compressed_segmentation", compressed_segmentation_block_size=[8, 8, 8])
    with pytest.raises(JobError, match="uint64 voxels"):
        convert(make_conversion(source=str(folder), target=str(tmp_path / "t")))
    convert(make_conversion(source=str(folder), target=str(tmp_path / "t"), levels_by="mode"))
    found = open_volume(str(tmp_path / "t"))
    np.testing.assert_array_equal(whole(found), data[0])
    assert (found.unit, found.translation) == ("nanometer", (1200.0, 80.0, 40.0))


@pytest.mark.parametrize(("write", "what"), [(precomputed, "a Neuroglancer precomputed volume"), (n5, "an N5 dataset")])
def test_without_tensorstore_the_line_says_what_to_install(
    write: Any, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = textured((9, 41, 30))
    folder = write(tmp_path / "d", data, (4, 16, 16)) if write is n5 else write(tmp_path / "d", data[None])
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(
        VolumeError, match=f"is {what}, which is read with tensorstore, .*pip install 'unet-flows.precomputed.'"
    ) as caught:
        open_volume(str(folder))
    assert "\n" not in str(caught.value)


def test_parts_of_objects_are_read(tmp_path: Path, bucket: str) -> None:
    for store in (LocalStore(str(tmp_path)), open_store(f"{bucket}/x")):
        store.put("a/b", bytes(range(100)))
        assert store.get_range("a/b", 10, 5) == bytes(range(10, 15))
        with pytest.raises(FileNotFoundError):
            store.get_range("a/c", 0, 5)

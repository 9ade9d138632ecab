"""Stored objects against those of zarr-python, byte for byte, and damaged ones."""

from __future__ import annotations

from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from unet_core import shards
from unet_core.errors import LedgerError
from unet_core.geometry import BlockGrid, Box
from unet_core.shards import ShardLayout


def opened(layout: ShardLayout, objects: dict[str, bytes]) -> tuple[zarr.Array[Any], dict[str, Any]]:
    """The array as zarr-python sees it, and what it stores."""
    make = default_buffer_prototype().buffer.from_bytes
    store = MemoryStore({key: make(data) for key, data in (shards.metadata(layout) | objects).items()})
    return zarr.open_array(store, mode="r+"), store._store_dict


def written(layout: ShardLayout, values: np.ndarray[Any, Any]) -> dict[str, bytes]:
    grid = BlockGrid(layout.shape, layout.shard_shape)
    objects = {
        shards.object_name(layout, grid.coordinates(number)): shards.encode(layout, values[grid.block(number).slices()])
        for number in range(grid.block_count)
    }
    return {name: data for name, data in objects.items() if data is not None}


@st.composite
def layouts(draw: st.DrawFn) -> ShardLayout:
    """Any number of chunks a shard, also odd ones, and arrays that end within shards and chunks."""
    dims = draw(st.integers(2, 3))
    chunk = tuple(draw(st.integers(1, 5)) for _ in range(dims))
    shard = tuple(size * draw(st.integers(1, 5)) for size in chunk)
    shape = tuple(draw(st.integers(1, 2 * size)) for size in shard)
    channels = draw(st.sampled_from([(), (3,)]))
    return ShardLayout(
        shape=channels + shape,
        shard_shape=channels + shard,
        chunk_shape=draw(st.sampled_from([None, (1,) * len(channels) + chunk])),
        dtype=draw(st.sampled_from(["uint8", "float32"])),
        axes="c" * len(channels) + "zyx"[-dims:],
    )


@settings(max_examples=60)
@given(layouts(), st.integers(0, 10**6), st.data())
def test_objects_are_those_of_zarr_python_and_read_back_in_any_box(layout: ShardLayout, seed: int, data: st.DataObject) -> None:
    random = np.random.default_rng(seed)
    values = (random.random(layout.shape) * 5).astype(layout.dtype)
    for axis, size in enumerate(layout.shape):  # some chunks and shards hold only fill values
        np.moveaxis(values, axis, 0)[random.random(size) < 0.4] = 0
    objects = written(layout, values)
    array, stored = opened(layout, {})
    array[...] = values
    assert objects == {name: found.to_bytes() for name, found in stored.items() if name not in shards.metadata(layout)}
    np.testing.assert_array_equal(np.asarray(opened(layout, objects)[0][...]), values)
    start = tuple(data.draw(st.integers(0, size - 1)) for size in layout.shape)
    stop = tuple(data.draw(st.integers(first + 1, size)) for first, size in zip(start, layout.shape, strict=True))
    np.testing.assert_array_equal(shards.decode(layout, objects, Box(start, stop)), values[Box(start, stop).slices()])


LAYOUT = ShardLayout((50, 40), (48, 32), (16, 16), "uint8", "yx")
FIRST = Box((0, 0), (48, 32))


@pytest.fixture
def shard() -> bytes:
    encoded = shards.encode(LAYOUT, np.random.default_rng(0).integers(1, 256, (48, 32)).astype("u1"))
    assert encoded is not None
    return encoded


def test_minus_zero_is_stored_and_zero_is_not() -> None:
    layout = ShardLayout((3, 5), (3, 5), (3, 5), "float32", "yx")
    assert shards.encode(layout, np.zeros((3, 5), "f4")) is None
    data = shards.encode(layout, np.full((3, 5), -0.0, "f4"))
    assert data is not None
    assert np.signbit(shards.decode(layout, {"c/0/0": data}, Box((0, 0), (3, 5)))).all()


def test_values_need_not_lie_in_c_order() -> None:
    values = np.random.default_rng(0).integers(0, 9, (32, 48)).astype("u1").T
    assert shards.encode(LAYOUT, values) == shards.encode(LAYOUT, np.ascontiguousarray(values))


def test_chunks_outside_the_box_are_not_decoded(shard: bytes) -> None:
    first = int.from_bytes(shard[-4 - 96 : -4 - 88], "little"), int.from_bytes(shard[-4 - 88 : -4 - 80], "little")
    assert first[0] == 0
    damaged = bytes(first[1]) + shard[first[1] :]
    np.testing.assert_array_equal(
        shards.decode(LAYOUT, {"c/0/0": damaged}, Box((16, 1), (48, 31))),
        shards.decode(LAYOUT, {"c/0/0": shard}, Box((16, 1), (48, 31))),
    )
    with pytest.raises(LedgerError, match=r"Object c/0/0 is not as this program writes it \(a chunk of shape \(16, 16\): "):
        shards.decode(LAYOUT, {"c/0/0": damaged}, Box((15, 1), (48, 31)))


def with_index(shard: bytes, index: np.ndarray[Any, Any]) -> bytes:
    data = index.tobytes()
    return shard[: -4 - len(data)] + data + google_crc32c.value(data).to_bytes(4, "little")


def test_damaged_objects_are_refused(shard: bytes) -> None:
    index = np.frombuffer(shard[-4 - 96 : -4], dtype="<u8").reshape(6, 2).copy()
    assert with_index(shard, index) == shard
    beyond, swapped = index.copy(), index.copy()
    beyond[2, 1] += 10**6
    swapped[0, 1] -= 3
    for damaged, reason in (
        (shard[:-1], "its index of chunks cannot be read"),
        (shard[:-20] + b"\0" + shard[-19:], "its index of chunks cannot be read"),
        (b"", "its index of chunks cannot be read"),
        (with_index(shard, beyond), r"a chunk ends at byte 100\d+ of \d+"),
        (with_index(shard, swapped), "a chunk of shape"),
        (shards.encode(ShardLayout((48, 32), (48, 32), (16, 8), "uint8", "yx"), np.ones((48, 32), "u1")), "cannot be read"),
        (shards.encode(ShardLayout((96, 32), (96, 32), (32, 16), "uint8", "yx"), np.ones((96, 32), "u1")), "cannot reshape"),
    ):
        assert damaged is not None
        with pytest.raises(LedgerError, match=reason):
            shards.decode(LAYOUT, {"c/0/0": damaged}, FIRST)

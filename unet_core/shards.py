"""Arrays as the stored objects of Zarr and back: Zarr v3 shards, Zarr v2 chunks. Knows arrays and bytes, no plan and no storage.

zarr-python passes each chunk through an event loop and threads; here a shard is one loop over its chunks. What is written are
the bytes that zarr-python writes, down to the order of the chunks.

    | chunk | chunk | ... | offset and length of each chunk, uint64 | crc32c of these |

Format: Zarr v3 specification, codec ``sharding_indexed`` 1.0; Zarr v2 specification.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
import zarr
from numcodecs import Zstd
from numcodecs.checksum32 import CRC32C
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec
from zarr.storage import MemoryStore

from unet_core.errors import LedgerError
from unet_core.geometry import BlockGrid, Box, Shape

_ZSTD: dict[str, Any] = {"level": 3, "checksum": True}
_ABSENT = 2**64 - 1  # offset and length of a chunk that holds only fill values, which are 0


@dataclass(frozen=True)
class ShardLayout:
    """How one array is cut into stored objects; its metadata and its bytes both follow from it.

    Args:
        shape: of the array.
        shard_shape: of a stored object, whole also at the end of the array.
        chunk_shape: of the chunks in a shard. None for Zarr v2, where a stored object is one chunk.
        dtype: of the voxels.
        axes: names, one letter each.
    """

    shape: Shape
    shard_shape: Shape
    chunk_shape: Shape | None
    dtype: str
    axes: str

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        return np.dtype(self.dtype).newbyteorder("<")


@lru_cache(maxsize=256)
def metadata(layout: ShardLayout) -> dict[str, bytes]:
    """The metadata documents of the array, by name."""
    store = MemoryStore()
    if layout.chunk_shape:
        zarr.create_array(
            store,
            shape=layout.shape,
            chunks=layout.chunk_shape,
            shards=layout.shard_shape,
            dtype=layout.dtype,
            compressors=ZstdCodec(**_ZSTD),
            fill_value=0,
            dimension_names=list(layout.axes),
            zarr_format=3,
        )
    else:
        zarr.create_array(
            store,
            shape=layout.shape,
            chunks=layout.shard_shape,
            dtype=layout.dtype,
            compressors=Zstd(**_ZSTD),
            fill_value=0,
            zarr_format=2,
            chunk_key_encoding={"name": "v2", "separator": "/"},
        )
    return {key: value.to_bytes() for key, value in store._store_dict.items()}


def object_name(layout: ShardLayout, coordinates: Shape) -> str:
    """Name of a stored object in the folder of its array; ``coordinates`` in shards."""
    return "/".join((["c"] if layout.chunk_shape else []) + [str(part) for part in coordinates])


def encode(layout: ShardLayout, values: NDArray[Any]) -> bytes | None:
    """The stored object that holds ``values``; None if they are all 0, as no object may exist then.

    Args:
        values: of a shard; smaller than one where the array ends.
    """
    data, has_values = _encoded(layout, values)
    return data if has_values else None


def encode_always(layout: ShardLayout, values: NDArray[Any]) -> bytes:
    """The same, but an object also for values that are all 0: where one is absent, it is lost."""
    return _encoded(layout, values)[0]


def _encoded(layout: ShardLayout, values: NDArray[Any]) -> tuple[bytes, bool]:
    """The object, and whether any value in it is not 0."""
    codec = Zstd(**_ZSTD)
    if layout.chunk_shape is None:
        whole = _filled_up(values, layout.shard_shape, layout.stored_dtype)
        return bytes(codec.encode(whole)), _has_values(whole)
    counts, chunks = _chunks(layout.shard_shape, layout.chunk_shape)
    index = np.full((*counts, 2), _ABSENT, dtype="<u8")
    parts: list[bytes] = []
    end = 0
    for position, box in chunks:
        chunk = values[box.slices()]
        if not chunk.size:
            continue
        chunk = _filled_up(chunk, layout.chunk_shape, layout.stored_dtype)
        if _has_values(chunk):
            data = codec.encode(chunk)
            index[position] = end, len(data)
            end += len(data)
            parts.append(data)
    return b"".join([*parts, CRC32C(location="end").encode(index).tobytes()]), bool(parts)


def decode(layout: ShardLayout, objects: Mapping[str, bytes], box: Box) -> NDArray[Any]:
    """Voxels of ``box`` of the array; those of absent objects are 0. Chunks that do not meet the box are not decoded.

    Args:
        objects: by their name.

    Raises:
        LedgerError: if an object is not one of this layout.
    """
    result = np.zeros(box.shape, dtype=layout.dtype)
    grid = BlockGrid(layout.shape, layout.shard_shape)
    for number in grid.touching(box):
        name = object_name(layout, grid.coordinates(number))
        if name not in objects:
            continue
        wanted = box.shift(tuple(-first for first in grid.block(number).start))
        for chunk, data in _encoded_chunks(layout, objects[name], name):
            part = _overlap(chunk, wanted)
            if part:
                in_chunk, in_result = part
                result[in_result] = _decoded(layout, data, chunk.shape, name)[in_chunk]
    return result


def _encoded_chunks(layout: ShardLayout, data: bytes, name: str) -> list[tuple[Box, memoryview]]:
    """Every stored chunk of an object and its place in the shard."""
    view = memoryview(data)
    if layout.chunk_shape is None:
        return [(Box.from_shape(layout.shard_shape), view)]
    counts, chunks = _chunks(layout.shard_shape, layout.chunk_shape)
    index_bytes = 16 * prod(counts) + 4
    try:
        index = np.frombuffer(CRC32C(location="end").decode(view[-index_bytes:]), dtype="<u8").reshape(*counts, 2)
    except (ValueError, RuntimeError) as error:
        raise _foreign(name, f"its index of chunks cannot be read: {error}") from error
    found = []
    for position, box in chunks:
        offset, length = (int(value) for value in index[position])
        if offset == _ABSENT:
            continue
        if offset + length > len(data) - index_bytes:
            raise _foreign(name, f"a chunk ends at byte {offset + length} of {len(data) - index_bytes}")
        found.append((box, view[offset : offset + length]))
    return found


@lru_cache(maxsize=64)
def _chunks(shard_shape: Shape, chunk_shape: Shape) -> tuple[Shape, tuple[tuple[Shape, Box], ...]]:
    """How many chunks a shard has along each axis, and their positions and boxes in the order in which they are stored.

    The order is zarr-python's, that of Morton: bits of the coordinates take turns, the first axis has the lowest.
    """
    counts = BlockGrid(shard_shape, chunk_shape).counts
    bits = [(axis, bit) for bit in range(max(counts).bit_length()) for axis in range(len(counts)) if (counts[axis] - 1) >> bit]

    def code(position: Shape) -> int:
        return sum((position[axis] >> bit & 1) << rank for rank, (axis, bit) in enumerate(bits))

    positions = sorted(np.ndindex(*counts), key=code)
    starts = (tuple(number * size for number, size in zip(position, chunk_shape, strict=True)) for position in positions)
    return counts, tuple(
        (position, Box.from_shape(chunk_shape, start)) for position, start in zip(positions, starts, strict=True)
    )


def _filled_up(values: NDArray[Any], shape: Shape, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The values in C order, with zeros after them up to ``shape``."""
    if values.shape == shape:
        return np.ascontiguousarray(values, dtype=dtype)
    whole = np.zeros(shape, dtype=dtype)
    whole[tuple(slice(size) for size in values.shape)] = values
    return whole


def _has_values(values: NDArray[Any]) -> bool:
    """Whether any bit is set: -0.0 is a value, too."""
    return bool(values.reshape(-1).view(np.uint8).any())


def _overlap(one: Box, other: Box) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
    """What two boxes share, as slices of each; None if nothing."""
    start = [max(pair) for pair in zip(one.start, other.start, strict=True)]
    stop = [min(pair) for pair in zip(one.stop, other.stop, strict=True)]
    if any(last <= first for first, last in zip(start, stop, strict=True)):
        return None
    of_one, of_other = (
        tuple(slice(first - zero, last - zero) for first, last, zero in zip(start, stop, box.start, strict=True))
        for box in (one, other)
    )
    return of_one, of_other


def _decoded(layout: ShardLayout, data: memoryview, shape: Shape, name: str) -> NDArray[Any]:
    try:
        voxels = np.frombuffer(Zstd(**_ZSTD).decode(data), dtype=layout.stored_dtype)
        return voxels.reshape(shape)
    except (ValueError, RuntimeError) as error:
        raise _foreign(name, f"a chunk of shape {shape}: {error}") from error


def _foreign(name: str, reason: str) -> LedgerError:
    return LedgerError(f"Object {name} is not as this program writes it ({reason}); start again with a new output.")

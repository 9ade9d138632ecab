"""Where the chunks of a sharded Neuroglancer precomputed volume lie: chunk id -> shard, minishard, bytes. Decodes no voxel.

    | start and end of each minishard | chunks ... | index of a minishard | chunks ... | index of a minishard |

Format: "sharded format" of Neuroglancer's precomputed volumes (neuroglancer_uint64_sharded_v1).
"""

from __future__ import annotations

import itertools
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import ChunkError, VolumeError
from unet_core.geometry import Shape
from unet_core.store import Store, StoredObject
from unet_core.volumes.stored_chunks import Ranges, check_count, in_parallel, listing_hash, read_listed
from unet_core.volumes.zarr_array import MAX_NAMED
from unet_core.volumes.zarr_guard import empty_message

MAX_MINISHARD_BYTES = 64 << 20  # of an index, unpacked
_KEPT = 1024  # indices of minishards
_BATCH = 1 << 16  # positions looked up at a time
_ABSENT = (0, 0)

Index = Mapping[int, tuple[int, int]]  # chunk id -> first byte and one past the last, in the shard


@dataclass(frozen=True)
class Sharding:
    """How chunk ids are spread over shards, as the scale of a volume says."""

    preshift_bits: int
    is_hashed: bool
    minishard_bits: int
    shard_bits: int
    gzipped_index: bool
    gzipped_data: bool

    def places(self, ids: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Shard and minishard of each id."""
        hashed = ids >> np.uint64(self.preshift_bits)
        if self.is_hashed:
            hashed = murmur_hash(hashed)
        minishard = hashed & np.uint64((1 << self.minishard_bits) - 1)
        shard = (hashed >> np.uint64(self.minishard_bits)) & np.uint64((1 << self.shard_bits) - 1)
        return shard, minishard

    def object_name(self, shard: int) -> str:
        return f"{shard:0{-(-self.shard_bits // 4)}x}.shard"


def read_sharding(value: Any, where: str) -> Sharding:
    """Check what a scale says of its shards.

    Raises:
        VolumeError: naming the field.
    """
    if not isinstance(value, dict) or value.get("@type") != "neuroglancer_uint64_sharded_v1":
        raise VolumeError(f"sharding of {where} is not neuroglancer_uint64_sharded_v1; write it again in that format.")
    preshift, minishard, shard = (_bits(value, f"{name}_bits", where) for name in ("preshift", "minishard", "shard"))
    if minishard > 20 or minishard + shard > 64:
        raise VolumeError(
            f"sharding of {where} has {minishard} minishard bits and {shard} shard bits; at most 20 and 64 together are read."
        )
    hashes, encodings = ("identity", "murmurhash3_x86_128"), ("raw", "gzip")
    chosen = {
        "hash": (value.get("hash"), hashes),
        "minishard_index_encoding": (value.get("minishard_index_encoding", "raw"), encodings),
        "data_encoding": (value.get("data_encoding", "raw"), encodings),
    }
    for name, (found, allowed) in chosen.items():
        if found not in allowed:
            raise VolumeError(f"sharding.{name} of {where} is {str(found)[:40]!r}; {' and '.join(allowed)} are read.")
    return Sharding(
        preshift_bits=preshift,
        minishard_bits=minishard,
        shard_bits=shard,
        is_hashed=value["hash"] != "identity",
        gzipped_index=chosen["minishard_index_encoding"][0] == "gzip",
        gzipped_data=chosen["data_encoding"][0] == "gzip",
    )


def _bits(value: Mapping[str, Any], name: str, where: str) -> int:
    found = value.get(name)
    if type(found) is not int or not 0 <= found <= 64:
        raise VolumeError(f"sharding.{name} of {where} is {str(found)[:20]}; it must be 0 to 64.")
    return found


class ShardedChunks:
    """Chunks that lie in shards below ``folder``.

    Args:
        store: that holds them.
        folder: of the scale.
        sharding: of its ids.
        grid_shape: chunks along x, y, z.
        max_chunk_bytes: that a chunk may have, unpacked.
        url: of the image, for messages.
    """

    def __init__(self, store: Store, folder: str, sharding: Sharding, grid_shape: Shape, max_chunk_bytes: int, url: str) -> None:
        self._store, self._folder, self._sharding, self._grid_shape = store, folder, sharding, grid_shape
        self._max_chunk_bytes, self._url = max_chunk_bytes, url
        self._indices: OrderedDict[tuple[int, int], Index] = OrderedDict()
        self._lock = Lock()

    @cached_property
    def _listing(self) -> dict[str, StoredObject]:
        return {entry.key.removeprefix(f"{self._folder}/"): entry for entry in self._store.list(self._folder)}

    def name(self, position: Shape) -> str:
        number = int(self._ids([position])[0])
        shard, _ = self._sharding.places(np.array([number], np.uint64))
        return f"{number} of {self._folder}/{self._sharding.object_name(int(shard[0]))}"

    def fetch(self, positions: Sequence[Shape]) -> Iterator[bytes | None]:
        ids = self._ids(positions)
        every = zip(ids.tolist(), *(part.tolist() for part in self._sharding.places(ids)), strict=True)
        places = [tuple(place) for place in every]
        yield from in_parallel(self._fetch, places, self._store)

    def _fetch(self, place: Shape) -> bytes | None:
        number, shard, minishard = place
        first, last = self._index(shard, minishard).get(number, _ABSENT)
        if last <= first:
            return None
        key = self._sharding.object_name(shard)
        name = f"{number} of {self._folder}/{key}"
        if last - first > self._max_chunk_bytes:
            raise ChunkError(f"chunk {name} corrupt: {self._url}: it has {last - first} bytes; restore it from the original.")
        data = read_listed(self._store, f"{self._folder}/{key}", name, self._url, first, last - first)
        if len(data) != last - first:
            raise ChunkError(f"chunk {name} corrupt: {len(data)} of {last - first} bytes in {self._url}; the shard is truncated.")
        return unzipped(data, self._max_chunk_bytes, name, self._url) if self._sharding.gzipped_data else data

    def absent(self, ranges: Ranges) -> tuple[str, ...]:
        check_count(ranges, self._url)
        for key, entry in self._listing.items():
            if entry.size_bytes == 0 and key.endswith(".shard"):
                raise ChunkError(empty_message(f"{self._folder}/{key}", self._url))
        found: list[str] = []
        positions = itertools.product(*ranges)
        while batch := list(itertools.islice(positions, _BATCH)):
            ids = self._ids(batch)
            shards, minishards = (part.tolist() for part in self._sharding.places(ids))
            wanted = dict.fromkeys(zip(shards, minishards, strict=True))
            indices = dict(zip(wanted, in_parallel(self._index_at, list(wanted), self._store), strict=True))
            for number, *place in zip(ids.tolist(), shards, minishards, strict=True):
                first, last = indices[tuple(place)].get(number, _ABSENT)
                if last <= first:
                    found.append(f"{number} of {self._folder}/{self._sharding.object_name(place[0])}")
                    if len(found) == MAX_NAMED:
                        return tuple(found)
        return tuple(found)

    def fingerprint(self) -> str:
        return listing_hash(self._listing)

    def _ids(self, positions: Sequence[Shape]) -> NDArray[np.uint64]:
        return morton_codes(np.asarray(positions, dtype=np.uint64)[:, :3], self._grid_shape)

    def _index_at(self, place: Shape) -> Index:
        return self._index(*place)

    def _index(self, shard: int, minishard: int) -> Index:
        """Where the chunks of a minishard lie; those used last are kept."""
        with self._lock:
            known = self._indices.get((shard, minishard))
            if known is not None:
                self._indices.move_to_end((shard, minishard))
                return known
        index = self._read_index(shard, minishard)
        with self._lock:
            self._indices[shard, minishard] = index
            if len(self._indices) > _KEPT:
                self._indices.popitem(last=False)
        return index

    def _read_index(self, shard: int, minishard: int) -> Index:
        key = self._sharding.object_name(shard)
        entry, name = self._listing.get(key), f"{self._folder}/{key}"
        if entry is None:
            return {}
        if entry.size_bytes == 0:
            raise ChunkError(empty_message(name, self._url))
        start = 16 << self._sharding.minishard_bits
        bounds = np.frombuffer(self._part(key, 16 * minishard, 16), dtype="<u8")
        first, last = (start + int(value) for value in bounds)
        if first == last:
            return {}
        if not start <= first < last <= entry.size_bytes or last - first > MAX_MINISHARD_BYTES:
            raise self._damaged(
                name, f"the index of minishard {minishard} is said to lie at {first} to {last} of {entry.size_bytes} bytes"
            )
        data = self._part(key, first, last - first)
        if self._sharding.gzipped_index:
            data = unzipped(data, MAX_MINISHARD_BYTES, name, self._url)
        if len(data) % 24:
            raise self._damaged(name, f"the index of minishard {minishard} has {len(data)} bytes, which is no multiple of 24")
        numbers, gaps, sizes = np.frombuffer(data, dtype="<u8").reshape(3, -1)
        ids = np.cumsum(numbers, dtype=np.uint64)
        ends = np.cumsum(gaps + sizes, dtype=np.uint64) + np.uint64(start)
        if ends.size and int(ends.max()) > entry.size_bytes:
            raise self._damaged(name, f"a chunk ends at byte {int(ends.max())} of {entry.size_bytes}")
        starts = ends - sizes
        return dict(zip(ids.tolist(), zip(starts.tolist(), ends.tolist(), strict=True), strict=True))

    def _part(self, key: str, start: int, size_bytes: int) -> bytes:
        name = f"{self._folder}/{key}"
        data = read_listed(self._store, name, name, self._url, start, size_bytes)
        if len(data) != size_bytes:
            raise self._damaged(name, f"it ends after {start + len(data)} bytes")
        return data

    def _damaged(self, name: str, reason: str) -> ChunkError:
        return ChunkError(f"chunk {name} corrupt: {self._url}: {reason}; restore it from the original.")


def unzipped(data: bytes, limit_bytes: int, name: str, url: str) -> bytes:
    """Gzip data unpacked.

    Raises:
        ChunkError: if it is none, cut short, or larger than ``limit_bytes``.
    """
    stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        plain = stream.decompress(data, limit_bytes + 1)
    except zlib.error as error:
        raise ChunkError(f"chunk {name} corrupt: gzip: {url}: {error}; restore it from the original.") from None
    if not stream.eof or len(plain) > limit_bytes:
        what = "it is cut short" if len(plain) <= limit_bytes else f"it has more than {limit_bytes} bytes"
        raise ChunkError(f"chunk {name} corrupt: gzip: {url}: {what}; restore it from the original.")
    return plain


def morton_codes(positions: NDArray[np.uint64], grid_shape: Shape) -> NDArray[np.uint64]:
    """Chunk ids: the bits of x, y and z take turns, x first; an axis that has no more bits is left out.

    Args:
        positions: of shape (N, 3).
        grid_shape: chunks along each axis.
    """
    codes = np.zeros(len(positions), dtype=np.uint64)
    rank = 0
    for bit in range(max((count - 1).bit_length() for count in grid_shape)):
        for axis, count in enumerate(grid_shape):
            if (1 << bit) < count:
                codes |= ((positions[:, axis] >> np.uint64(bit)) & np.uint64(1)) << np.uint64(rank)
                rank += 1
    return codes


def murmur_hash(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The low 64 bits of MurmurHash3_x86_128 (Appleby, public domain) of each value's 8 bytes, seed 0."""
    low, high = (values & np.uint64(0xFFFFFFFF)).astype(np.uint32), (values >> np.uint64(32)).astype(np.uint32)
    c1, c2, c3 = np.uint32(0x239B961B), np.uint32(0xAB0E9789), np.uint32(0x38B34AE5)
    zeros = np.zeros_like(low)
    h1, h2 = _turned(low * c1, 15) * c2, _turned(high * c2, 16) * c3
    states = [state ^ np.uint32(8) for state in (h1, h2, zeros, zeros)]
    states = [_finished(state) for state in _mixed(states)]
    h1, h2, *_ = _mixed(states)
    return h1.astype(np.uint64) | (h2.astype(np.uint64) << np.uint64(32))


def _mixed(states: list[NDArray[np.uint32]]) -> list[NDArray[np.uint32]]:
    first = states[0] + states[1] + states[2] + states[3]
    return [first, *(state + first for state in states[1:])]


def _turned(values: NDArray[np.uint32], count: int) -> NDArray[np.uint32]:
    return (values << np.uint32(count)) | (values >> np.uint32(32 - count))


def _finished(values: NDArray[np.uint32]) -> NDArray[np.uint32]:
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, None)):
        values = values ^ (values >> np.uint32(shift))
        if factor is not None:
            values = values * np.uint32(factor)
    return values

"""Voxels of one Zarr array (version 2 or 3) as a volume; a chunk that is absent or damaged is an error, never a silent fill."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.storage import WrapperStore

from unet_core.errors import ChunkError, VolumeError
from unet_core.geometry import Box, Shape
from unet_core.store import Store, StoredObject
from unet_core.volumes.protocol import LaidOut, Layout, check_inside
from unet_core.volumes.zarr_metadata import ArrayMetadata

Missing = Literal["error", "fill"]


class _GuardedStore(WrapperStore[Any]):
    """Raises where zarr-python would read fill values: for absent, empty and oversized objects."""

    def __init__(self, store: Any, guard: _Guard) -> None:
        super().__init__(store)
        self._guard = guard

    def _with_store(self, store: Any) -> _GuardedStore:
        return type(self)(store, self._guard)

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        if key.rpartition("/")[2] in ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata"):
            return await self._store.get(key, prototype, byte_range)
        try:
            value = await self._store.get(key, prototype, byte_range)
        except (IsADirectoryError, NotADirectoryError):
            value = None
        if value is None:
            value = await self._ask_again(key, prototype, byte_range)
        self._guard.check(key, None if value is None else value.as_numpy_array(), whole=byte_range is None)
        return value

    async def _ask_again(self, key: str, prototype: Any, byte_range: Any) -> Any:
        """A key of the listing that was not found may be a passing fault of the store."""
        if self._guard.is_listed(key):
            for pause in (0.2, 1.0):
                await asyncio.sleep(pause)
                try:
                    value = await self._store.get(key, prototype, byte_range)
                except (IsADirectoryError, NotADirectoryError):
                    return None
                if value is not None:
                    return value
        return None


class _Guard:
    """What the chunks of one array must look like."""

    def __init__(
        self, url: str, path: str, metadata: ArrayMetadata, listing: Mapping[str, StoredObject], missing: Missing
    ) -> None:
        self.url, self.path, self.metadata, self.listing, self.missing = url, path, metadata, listing, missing

    def is_listed(self, key: str) -> bool:
        return self._relative(key) in self.listing

    def _relative(self, key: str) -> str:
        return key.removeprefix(f"{self.path}/") if self.path else key

    def check(self, key: str, data: NDArray[np.uint8] | None, whole: bool) -> None:
        name = self._relative(key)
        if data is None:
            if self.missing == "fill" and name not in self.listing:
                return
            raise ChunkError(missing_message(name, self.url, any(known.startswith(f"{name}/") for known in self.listing)))
        if whole and data.size == 0:
            raise ChunkError(f"chunk {name} is empty in {self.url}; restore it, or delete it and use --missing fill.")
        if whole and not self.metadata.is_sharded:
            size = _declared_size(self.metadata.compressor, data[:16].tobytes())
            if size is not None and size > self.metadata.chunk_bytes:
                raise ChunkError(
                    f"decoded size exceeds declared {self.metadata.chunk_bytes} bytes: chunk {name} in {self.url} would give {size}."
                )


def missing_message(name: str, url: str, is_folder: bool = False) -> str:
    place = " (a directory is in its place)" if is_folder else ""
    return f"chunk {name} is missing{place} in {url}; use --missing fill to read absent chunks as background."


def _declared_size(compressor: str | None, head: bytes) -> int | None:
    """Decoded size that a frame announces in its first bytes, where its format does."""
    if compressor == "blosc" and len(head) >= 8:
        return int.from_bytes(head[4:8], "little")
    if compressor == "zstd" and head[:4] == b"\x28\xb5\x2f\xfd" and len(head) >= 14:
        single, flag, dictionary = head[4] >> 5 & 1, head[4] >> 6, head[4] & 3
        start = 5 + (0 if single else 1) + (0, 1, 2, 4)[dictionary]
        width = (1 if single else 0, 2, 4, 8)[flag]
        return int.from_bytes(head[start : start + width], "little") + (256 if width == 2 else 0) if width else None
    return None


class ZarrVolume(LaidOut):
    """One Zarr array at one time point.

    Args:
        store: whose root holds the array at ``path``.
        path: of the array below the store's root, "" for the root.
        metadata: checked.
        disk_axes: name of each stored dimension, e.g. ``tczyx`` or ``yxc``.
        layout: what to report.
        time: index along ``t``.
        channels: indices along ``c``, of those that ``layout`` has.
        missing: what absent chunks mean.
        extra_fingerprint: hashes of metadata beside the array's own.
    """

    def __init__(
        self,
        store: Store,
        path: str,
        metadata: ArrayMetadata,
        disk_axes: str,
        layout: Layout,
        time: int,
        channels: tuple[int, ...],
        missing: Missing,
        extra_fingerprint: Mapping[str, str],
    ) -> None:
        self.layout = layout
        self._store, self._path, self._metadata, self._disk_axes = store, path, metadata, disk_axes
        self._time, self._channels, self._missing, self._extra = time, channels, missing, dict(extra_fingerprint)

    @cached_property
    def _listing(self) -> dict[str, StoredObject]:
        start = f"{self._path}/" if self._path else ""
        return {entry.key.removeprefix(start): entry for entry in self._store.list(self._path)}

    @cached_property
    def _array(self) -> zarr.Array[Any]:
        guard = _Guard(self.url, self._path, self._metadata, self._listing, self._missing)
        array = zarr.open_array(_GuardedStore(self._store.as_zarr(read_only=True), guard), path=self._path, mode="r")
        if array.shape != self._metadata.shape:
            raise VolumeError(f"{self.url} changed while it was opened: shape {array.shape}, was {self._metadata.shape}.")
        return array

    def read(self, box: Box) -> NDArray[Any]:
        check_inside(self, box)
        first, last = self._channels[0], self._channels[-1] + 1
        if self._channels == tuple(range(first, last)):
            return self._read(box, slice(first, last))
        return np.concatenate([self._read(box, slice(channel, channel + 1)) for channel in self._channels])

    def _read(self, box: Box, channels: slice) -> NDArray[Any]:
        chosen: dict[str, Any] = {"t": self._time, "c": channels}
        chosen.update(zip(self.spatial_axes, box.slices(), strict=True))
        selection = tuple(chosen[axis] for axis in self._disk_axes)
        try:
            values = np.asarray(self._array[selection])
        except ChunkError:
            raise
        except PermissionError as error:
            raise ChunkError(
                f"permission denied: {error.filename or self.url}; a chunk that cannot be read is never filled."
            ) from error
        except Exception as error:  # codecs raise every kind; the chunk at fault is looked for and named
            raise self._culprit(selection, error) from error
        kept = [axis for axis in self._disk_axes if axis != "t"]
        values = values.transpose([kept.index(axis) for axis in self.axes])
        values = np.ascontiguousarray(values, dtype=self.dtype)
        return values if self.axes.startswith("c") else values[None]

    def _culprit(self, selection: tuple[Any, ...], error: Exception) -> ChunkError:
        """The error of the first stored object of ``selection`` that does not decode, by its key."""
        ranges = []
        for part, size, step in zip(selection, self._metadata.shape, self._metadata.object_shape, strict=True):
            first, last = (part, part + 1) if isinstance(part, int) else part.indices(size)[:2]
            ranges.append(range(first // step, -(-last // step)))
        for position in itertools.product(*ranges):
            region = tuple(
                slice(number * step, min((number + 1) * step, size))
                for number, step, size in zip(position, self._metadata.object_shape, self._metadata.shape, strict=True)
            )
            try:
                self._array[region]
            except ChunkError as known:
                return known
            except Exception as cause:
                return ChunkError(_damage(self._metadata, self._metadata.key(position), self.url, cause))
        return ChunkError(f"{self.url} cannot be read: {type(error).__name__}: {error}.")

    def fingerprint(self) -> dict[str, str]:
        listed = [f"{key} {entry.size_bytes} {entry.tag}" for key, entry in sorted(self._listing.items())]
        return {"chunks": hashlib.sha256("\n".join(listed).encode()).hexdigest(), **self._extra}

    def missing_chunks(self, box: Box | None = None) -> tuple[str, ...]:
        whole = Box.from_shape(self.spatial_shape)
        box = whole if box is None else box.intersect(whole)
        wanted = {axis: range(first, last) for axis, first, last in zip(self.spatial_axes, box.start, box.stop, strict=True)}
        wanted |= {"t": range(self._time, self._time + 1)}
        ranges: list[list[int]] = []
        for axis, step in zip(self._disk_axes, self._metadata.object_shape, strict=True):
            if axis == "c":
                ranges.append(sorted({channel // step for channel in self._channels}))
            else:
                ranges.append(list(range(wanted[axis].start // step, -(-wanted[axis].stop // step))))
        keys = (self._metadata.key(position) for position in itertools.product(*ranges))
        return tuple(key for key in keys if key not in self._listing)


def _damage(metadata: ArrayMetadata, key: str, url: str, cause: Exception) -> str:
    text = " ".join(str(cause).split())[:160]
    if "checksum" in text.lower() or "crc" in text.lower():
        return f"checksum mismatch: chunk {key} of {url} ({text}); restore it from the original."
    codec = metadata.compressor or ("sharding" if metadata.is_sharded else "bytes")
    return f"chunk {key} corrupt: {codec}: {url}: {type(cause).__name__}: {text}; restore it from the original."


def metadata_hash(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def plain_axes(metadata: ArrayMetadata, where: str) -> str:
    """Names of the dimensions of an array that is no OME image: its own, else by their number.

    Raises:
        VolumeError: if the names are not axes, or the number is none that has a usual meaning.
    """
    if metadata.names:
        names = "".join(name.lower() for name in metadata.names)
        if (
            len(names) == len(metadata.names)
            and set(names) <= set("tczyx")
            and len(set(names)) == len(names)
            and names.endswith(("yx", "yxc"))
        ):
            return names
        raise VolumeError(f"axes: {', '.join(metadata.names)} of {where}; one of t c z y x each, ending in y x, are read.")
    shape = metadata.shape
    if len(shape) == 3 and shape[-1] in (3, 4) and metadata.dtype == np.uint8:
        return "yxc"
    usual = {2: "yx", 3: "zyx", 4: "czyx", 5: "tczyx"}
    if len(shape) not in usual:
        raise VolumeError(f"axes: {where} has {len(shape)} dims without names; 2 to 5 are read.")
    return usual[len(shape)]


def canonical(disk_axes: str, values: Shape) -> Shape:
    """Values of stored dimensions, in the order ``czyx``, without ``t``."""
    return tuple(values[disk_axes.index(axis)] for axis in "czyx" if axis in disk_axes)

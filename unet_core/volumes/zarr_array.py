"""Voxels of one Zarr array (version 2 or 3) as a volume; a chunk that is absent or damaged is an error, never a silent fill."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zarr.storage import StorePath

from unet_core.errors import ChunkError, UnetCoreError, VolumeError
from unet_core.geometry import Box, Shape
from unet_core.store import Store, StoredObject
from unet_core.volumes.protocol import LaidOut, Layout, check_inside
from unet_core.volumes.zarr_decode import open_checked
from unet_core.volumes.zarr_guard import GuardedStore, Missing, empty_message, finish_reads
from unet_core.volumes.zarr_metadata import ArrayMetadata

MAX_CHUNKS = 50_000_000  # whose listing would take hours, and the memory of a small machine
MAX_NAMED = 100_000


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

    Raises:
        VolumeError: if zarr-python refuses the metadata.
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

        where = "/".join(
            part for part in (store.url.rstrip("/"), path, "zarr.json" if metadata.zarr_format == 3 else ".zarray") if part
        )
        guarded = GuardedStore(store.as_zarr(read_only=True), self.url, path, lambda: self._listing, missing)
        self._array = open_checked(metadata.document, StorePath(guarded, path), where)

    @cached_property
    def _listing(self) -> dict[str, StoredObject]:
        start = f"{self._path}/" if self._path else ""
        return {entry.key.removeprefix(start): entry for entry in self._store.list(self._path)}

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
        _ = self._listing  # what is wrong with the folder is no chunk's fault
        try:
            values = np.asarray(self._array[selection])
        except Exception as error:  # codecs raise every kind; the chunk at fault is looked for and named
            finish_reads()
            if isinstance(error, UnetCoreError):
                raise
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
                finish_reads()
                return ChunkError(_damage(self._metadata, self._metadata.key(position), self.url, cause))
        return ChunkError(
            f"{self.url} cannot be read: {type(error).__name__}: {error}; try again, or restore it from the original."
        )

    def fingerprint(self) -> dict[str, str]:
        listed = [f"{key} {entry.size_bytes} {entry.tag}" for key, entry in sorted(self._listing.items())]
        return {"chunks": hashlib.sha256("\n".join(listed).encode()).hexdigest(), **self._extra}

    def missing_chunks(self, box: Box | None = None) -> tuple[str, ...]:
        """Keys of the stored chunks that meet ``box`` (everything unless told) and are absent; at most the first 100,000.

        Takes as long as ``box`` has chunks, or as the listing has objects, whichever are fewer.

        Raises:
            ChunkError: if one of them is there but empty: what it held is lost, and to fill it would hide that.
            VolumeError: if ``box`` has more chunks than can be listed.
        """
        whole = Box.from_shape(self.spatial_shape)
        box = whole if box is None else box.intersect(whole)
        wanted = {axis: range(first, last) for axis, first, last in zip(self.spatial_axes, box.start, box.stop, strict=True)}
        wanted |= {"t": range(self._time, self._time + 1)}
        ranges: list[Sequence[int]] = []
        for axis, step in zip(self._disk_axes, self._metadata.object_shape, strict=True):
            if axis == "c":
                ranges.append(sorted({channel // step for channel in self._channels}))
            else:
                ranges.append(range(wanted[axis].start // step, -(-wanted[axis].stop // step)))
        count = prod(len(numbers) for numbers in ranges)
        if count > MAX_CHUNKS:
            raise VolumeError(
                f"{self.url} of shape {self._metadata.shape} has {count} chunks here, {len(self._listing)} objects are stored; at most "
                f"{MAX_CHUNKS} are handled at once: choose a --roi or a coarser --level, or correct the shape in its metadata."
            )
        present = self._stored_within(ranges, count)
        for key in present:
            if self._listing[key].size_bytes == 0:
                raise ChunkError(empty_message(key, self.url))
        absent = (key for key in map(self._metadata.key, itertools.product(*ranges)) if key not in present)
        return tuple(itertools.islice(absent, min(MAX_NAMED, count - len(present))))

    def _stored_within(self, ranges: Sequence[Sequence[int]], count: int) -> set[str]:
        """Keys of the listing that lie in the box of ``count`` positions."""
        if count <= len(self._listing):
            keys = map(self._metadata.key, itertools.product(*ranges))
            return {key for key in keys if key in self._listing}
        found = set()
        for key in self._listing:
            position = self._metadata.position(key)
            if position is not None and all(number in numbers for number, numbers in zip(position, ranges, strict=True)):
                found.add(key)
        return found


def _damage(metadata: ArrayMetadata, key: str, url: str, cause: Exception) -> str:
    text = " ".join(str(cause).split())[:160]
    if "checksum" in text.lower() or "crc" in text.lower():
        return f"checksum mismatch: chunk {key} of {url} ({text}); restore it from the original."
    return f"chunk {key} corrupt: {metadata.compressor or 'no codec'}: {url}: {type(cause).__name__}: {text}; restore it from the original."


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
        shown = ", ".join(metadata.names)[:80]
        raise VolumeError(
            f"axes: {shown} of {where}; one of t c z y x each, ending in y x, are read: correct dimension_names, or leave them out."
        )
    axes = usual_axes(metadata.shape, metadata.dtype)
    if axes is None:
        raise VolumeError(
            f"axes: {where} has {len(metadata.shape)} dims without names; 2 to 5 are read: name them with dimension_names."
        )
    return axes


def usual_axes(shape: Shape, dtype: np.dtype[Any]) -> str | None:
    """What dimensions without names mean by their number; three or four unsigned values at the end are colours."""
    if len(shape) == 3 and shape[-1] in (3, 4) and dtype.kind == "u":
        return "yxc"
    return {2: "yx", 3: "zyx", 4: "czyx", 5: "tczyx"}.get(len(shape))


def canonical(disk_axes: str, values: Shape) -> Shape:
    """Values of stored dimensions, in the order ``czyx``, without ``t``."""
    return tuple(values[disk_axes.index(axis)] for axis in "czyx" if axis in disk_axes)

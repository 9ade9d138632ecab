"""Voxels of arrays whose chunks tensorstore decodes: it is handed the stored bytes, and sees no storage itself.

So reads are tried again, told about and refused as for Zarr, and an object store is found as for everything else.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import ChunkError, VolumeError
from unet_core.geometry import Box, Shape
from unet_core.volumes.protocol import LaidOut, Layout, check_inside
from unet_core.volumes.stored_chunks import StoredChunks
from unet_core.volumes.zarr_guard import missing_message

EXTRA = "precomputed"


@dataclass(frozen=True)
class Encoding:
    """How tensorstore reads chunks that lie in its memory.

    Args:
        driver: of tensorstore.
        documents: metadata that describe the array, by their key.
        disk_axes: names of the dimensions, in tensorstore's order.
        shape: along them.
        chunk_shape: likewise.
        origin: of the first voxel, in tensorstore's coordinates.
        extra: options of the driver.
    """

    driver: str
    documents: Mapping[str, bytes]
    disk_axes: str
    shape: Shape
    chunk_shape: Shape
    origin: Shape
    extra: Mapping[str, Any]


class TensorstoreVolume(LaidOut):
    """One array at one time point.

    Args:
        layout: what to report.
        encoding: of the chunks.
        chunks: by position along ``encoding.disk_axes``, axes that are never cut left out at the end.
        memory_key: of a chunk where tensorstore is to find it, by its position.
        time: index along ``t``.
        channels: indices along ``c``.
        missing: what absent chunks mean.
        hashes: of the metadata.
    """

    def __init__(
        self,
        layout: Layout,
        encoding: Encoding,
        chunks: StoredChunks,
        memory_key: Any,
        time: int,
        channels: tuple[int, ...],
        missing: Literal["error", "fill"],
        hashes: Mapping[str, str],
    ) -> None:
        self.layout = layout
        self._encoding, self._chunks, self._memory_key = encoding, chunks, memory_key
        self._time, self._channels, self._missing, self._hashes = time, channels, missing, dict(hashes)

    def read(self, box: Box) -> NDArray[Any]:
        check_inside(self, box)
        first, last = min(self._channels), max(self._channels) + 1
        inside = {"t": (self._time, self._time + 1), "c": (first, last)}
        inside |= {axis: (low, high) for axis, low, high in zip(self.spatial_axes, box.start, box.stop, strict=True)}
        region = [inside[axis] for axis in self._encoding.disk_axes]
        positions = list(itertools.product(*self._ranges(region)))
        stored: dict[Shape, bytes] = {}
        for position, data in zip(positions, self._chunks.fetch(positions), strict=True):
            if data is not None:
                stored[position] = data
            elif self._missing == "error":
                raise ChunkError(missing_message(self._chunks.name(position), self.url))
        try:
            values = self._decoded(stored, region)
        except ValueError as error:  # tensorstore's one error; the chunk at fault is looked for and named
            raise self._culprit(stored, error) from error
        axes = [axis for axis in self._encoding.disk_axes if axis != "t"]
        if "t" in self._encoding.disk_axes:
            values = values.take(0, axis=self._encoding.disk_axes.index("t"))
        if "c" not in axes:
            values, axes = values[None], ["c", *axes]
        values = values.transpose([axes.index(axis) for axis in "c" + self.spatial_axes])
        chosen = [channel - first for channel in self._channels]
        if chosen != list(range(last - first)):
            values = values[chosen]
        return np.ascontiguousarray(values, dtype=self.dtype)

    def _ranges(self, region: Sequence[tuple[int, int]]) -> list[range]:
        """Positions of the chunks that meet a region, along each axis of the disk."""
        steps = self._encoding.chunk_shape
        return [range(low // step, -(-high // step)) for (low, high), step in zip(region, steps, strict=True)]

    def _decoded(self, stored: Mapping[Shape, bytes], region: Sequence[tuple[int, int]]) -> NDArray[Any]:
        ts = load_tensorstore("image", self.url)
        context = ts.Context({"cache_pool": {"total_bytes_limit": 0}})
        memory = ts.KvStore.open({"driver": "memory"}, context=context).result()
        documents = {key: data for key, data in self._encoding.documents.items()}
        for key, data in itertools.chain(documents.items(), ((self._memory_key(at), data) for at, data in stored.items())):
            memory.write(key, data).result()
        spec = {"driver": self._encoding.driver, "kvstore": {"driver": "memory"}, **self._encoding.extra}
        array = ts.open(spec, context=context, open=True, read=True).result()
        window = tuple(
            slice(low + origin, high + origin) for (low, high), origin in zip(region, self._encoding.origin, strict=True)
        )
        values: NDArray[Any] = array[window].read(order="C").result()
        return values

    def _culprit(self, stored: Mapping[Shape, bytes], error: Exception) -> ChunkError:
        """The error of the first chunk that does not decode, by its name."""
        sizes = (self._encoding.shape, self._encoding.chunk_shape)
        for position, data in stored.items():
            region = [(at * step, min((at + 1) * step, size)) for at, size, step in zip(position, *sizes, strict=True)]
            try:
                self._decoded({position: data}, region)
            except ValueError as cause:
                error = cause
                text = " ".join(str(cause).split())[:160]
                return ChunkError(
                    f"chunk {self._chunks.name(position)} corrupt: {self.url}: {text}; restore it from the original."
                )
        return ChunkError(f"{self.url} cannot be read: {' '.join(str(error).split())[:200]}; restore it from the original.")

    def fingerprint(self) -> dict[str, str]:
        return {"chunks": self._chunks.fingerprint(), **self._hashes}

    def missing_chunks(self, box: Box | None = None) -> tuple[str, ...]:
        whole = Box.from_shape(self.spatial_shape)
        box = whole if box is None else box.intersect(whole)
        inside = {"t": (self._time, self._time + 1)} | {
            axis: (low, high) for axis, low, high in zip(self.spatial_axes, box.start, box.stop, strict=True)
        }
        ranges: list[Any] = []
        for axis, step in zip(self._encoding.disk_axes, self._encoding.chunk_shape, strict=True):
            if axis == "c":
                ranges.append(sorted({channel // step for channel in self._channels}))
            else:
                low, high = inside[axis]
                ranges.append(range(low // step, -(-high // step)))
        return () if prod(len(numbers) for numbers in ranges) == 0 else self._chunks.absent(ranges)


def load_tensorstore(what: str, url: str) -> Any:
    """The package, which not every installation has.

    Raises:
        VolumeError: saying how to install it.
    """
    try:
        import tensorstore
    except ImportError as error:
        raise VolumeError(
            f"{url} is {what}, which is read with tensorstore, and that is not installed ({error}); "
            f"install it: pip install 'unet-flows[{EXTRA}]'."
        ) from None
    return tensorstore

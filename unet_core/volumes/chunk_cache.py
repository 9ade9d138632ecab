"""Decoded chunks of an image that neighbouring blocks share: kept for a while, within a bound of bytes. Knows no format.

|....chunk....|....chunk....|....chunk....|
    |<------- one block ------->|
             |<------ the next one ------>|      reads two chunks of the first one again, without decoding them
"""

from __future__ import annotations

from collections import OrderedDict
from math import prod
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.geometry import Box, Shape, boxes_of, positions_in
from unet_core.volumes.protocol import LaidOut, Volume, check_inside
from unet_core.volumes.resampled import ResampledVolume

CACHE_BYTES = 256 << 20  # of decoded chunks that a process keeps, at most


class ChunkCache:
    """Reads boxes of a volume by whole chunks, and keeps those used last; threads take turns, so none is decoded twice.

    Args:
        volume: whose chunks are kept; not changed.
        limit_bytes: of what is kept; 0 keeps nothing, and every box is read straight from the volume.
    """

    def __init__(self, volume: Volume, limit_bytes: int) -> None:
        self.volume = volume
        self._limit = limit_bytes
        self._kept: OrderedDict[Shape, NDArray[Any]] = OrderedDict()  # chunks by their position, the one used last at the end
        self._bytes = 0
        self._lock = Lock()

    def read(self, box: Box) -> tuple[NDArray[Any], int]:
        """Voxels of ``box``, of shape (C, *box.shape), a copy; and how many bytes of voxels were decoded for them.

        Raises:
            VolumeError: as the volume's own ``read``; nothing of what failed is kept.
        """
        volume = self.volume
        check_inside(volume, box)
        cover = box.scale_down(volume.chunk_shape)
        if volume.layout.is_mapped:
            return volume.read(box), _bytes(volume, box)
        if self._limit < prod(volume.chunk_shape) * _voxel_bytes(volume):
            return volume.read(box), _bytes(volume, self._chunks(cover))
        out = np.empty((volume.channel_count, *box.shape), dtype=volume.dtype)
        with self._lock:
            absent = set()
            for position in positions_in(cover):
                chunk = self._kept.get(position)
                if chunk is None:
                    absent.add(position)
                    continue
                self._kept.move_to_end(position)
                _paste(out, box, chunk, self._chunks(Box.from_shape((1,) * box.ndim, position)))
            decoded = 0
            for region in boxes_of(absent):  # one read of many chunks is faster than many of one
                place = self._chunks(region)
                values = volume.read(place)
                decoded += values.nbytes
                _paste(out, box, values, place)
                for position in positions_in(region):
                    self._keep(position, values, place)
        return out, decoded

    def _chunks(self, region: Box) -> Box:
        """The voxels of a box of chunks."""
        return region.scale_up(self.volume.chunk_shape).intersect(Box.from_shape(self.volume.spatial_shape))

    def _keep(self, position: Shape, values: NDArray[Any], place: Box) -> None:
        own = self._chunks(Box.from_shape((1,) * len(position), position))
        inside: Any = (slice(None), *own.shift(tuple(-first for first in place.start)).slices())
        # A copy: a view would keep all of ``values`` alive.
        self._kept[position] = chunk = values if own == place else values[inside].copy()
        self._bytes += chunk.nbytes
        while self._bytes > self._limit:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes


class CachedVolume(LaidOut):
    """A volume read through a cache, that counts.

    Args:
        cache: of the volume; may be shared by several of these.
    """

    def __init__(self, cache: ChunkCache) -> None:
        self.layout = cache.volume.layout
        self.decoded_bytes = 0
        self._cache = cache

    def read(self, box: Box) -> NDArray[Any]:
        values, decoded = self._cache.read(box)
        self.decoded_bytes += decoded
        return values

    def fingerprint(self) -> dict[str, str]:
        return self._cache.volume.fingerprint()

    def missing_chunks(self, box: Box | None = None) -> tuple[str, ...]:
        return self._cache.volume.missing_chunks(box)


def cache_bytes(volume: Volume, shape: Shape) -> int:
    """How large the cache of a volume should be: as the chunks of one layer of blocks, so that the next layer finds what it shares.

    Args:
        volume: to be read; 0 if nothing of it is decoded.
        shape: what one block reads, over the last spatial axes. At most ``CACHE_BYTES``: then the next layer decodes again what it
            shares, and the blocks of one layer still share among themselves.
    """
    if isinstance(volume, ResampledVolume):  # whose source is cached
        return cache_bytes(volume.source, volume.source_shape(shape))
    if volume.layout.is_mapped:
        return 0
    layer = prod(_whole_chunks(volume, shape)[:1] + volume.spatial_shape[1 - len(shape) :])
    return min(CACHE_BYTES, layer * _voxel_bytes(volume))


def reading_bytes(volume: Volume, shape: Shape) -> int:
    """Bytes that reading a box of ``shape`` (over the last spatial axes) needs at most beside what is kept: the box, and its chunks."""
    if isinstance(volume, ResampledVolume):
        slab = reading_bytes(volume.source, volume.slab_shape(shape))
        return prod(shape) * _voxel_bytes(volume) + slab + volume.working_bytes(shape)
    chunks = 0 if volume.layout.is_mapped else prod(_whole_chunks(volume, shape))
    return (prod(shape) + chunks) * _voxel_bytes(volume)


def _whole_chunks(volume: Volume, shape: Shape) -> Shape:
    """The largest shape that the chunks of a box of ``shape`` can have."""
    sizes = zip(shape, volume.chunk_shape[-len(shape) :], volume.spatial_shape[-len(shape) :], strict=True)
    return tuple(min(((size - 1) // chunk + 2) * chunk, whole) for size, chunk, whole in sizes)


def _voxel_bytes(volume: Volume) -> int:
    return volume.channel_count * volume.dtype.itemsize


def _bytes(volume: Volume, box: Box) -> int:
    return box.voxel_count * _voxel_bytes(volume)


def _paste(out: NDArray[Any], box: Box, values: NDArray[Any], place: Box) -> None:
    """Copy what two boxes share from ``values`` of one, ``place``, to ``out`` of the other, ``box``."""
    shared = box.intersect(place)
    target, origin = (shared.shift(tuple(-first for first in around.start)).slices() for around in (box, place))
    out[(slice(None), *target)] = values[(slice(None), *origin)]

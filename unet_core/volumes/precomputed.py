"""Neuroglancer precomputed volumes, sharded or not: images and segmentations. Chunks are decoded by tensorstore.

Format: Neuroglancer's "precomputed volume format". Its axes are x, y, z and channel, its lengths nanometres.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from unet_core.errors import ChunkError, VolumeError
from unet_core.geometry import Shape
from unet_core.store import Store, open_store
from unet_core.volumes.precomputed_shards import ShardedChunks, Sharding, read_sharding, unzipped
from unet_core.volumes.protocol import Layout, Level, Selection, Volume, choose_channels
from unet_core.volumes.stored_chunks import ObjectChunks, StoredChunks
from unet_core.volumes.tensorstore_array import Encoding, TensorstoreVolume, load_tensorstore
from unet_core.volumes.zarr_array import metadata_hash
from unet_core.volumes.zarr_codecs import REWRITE, check_sizes
from unet_core.volumes.zarr_metadata import MAX_CHUNK_BYTES, read_document
from unet_core.volumes.zarr_nodes import group_path

INFO = "info"
_TYPES = {*(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)), "float32"}
_ENCODINGS = ("raw", "jpeg", "png", "compressed_segmentation")
_MAX_OFFSET = 1 << 40
_GZIP = b"\x1f\x8b\x08"
_UM = 1e-3  # of a nanometre


@dataclass(frozen=True)
class Scale:
    """One resolution: sizes in voxels and lengths in nanometre, along x, y, z.

    Args:
        key: of its folder.
        size: of the image.
        offset: of the first voxel, in voxels.
        resolution: of a voxel.
        chunk_shape: of the first of its chunkings.
        encoding: of the chunks.
        sharding: None if each chunk is an object.
        document: as written.
    """

    key: str
    size: Shape
    offset: Shape
    resolution: tuple[float, ...]
    chunk_shape: Shape
    encoding: str
    sharding: Sharding | None
    document: Mapping[str, Any]

    def corner(self, position: Shape) -> list[tuple[int, int]]:
        """First voxel of a chunk and one past its last, along each axis."""
        bounds = zip(self.offset, position, self.chunk_shape, self.size, strict=True)
        return [(first + at * step, first + min((at + 1) * step, size)) for first, at, step, size in bounds]


def open_precomputed(url: str, selection: Selection) -> Volume:
    """Open one scale of a volume as ``zyx``, or ``czyx`` if it has several channels; the finest scale is level 0.

    ``voxel_offset`` becomes the translation. Level k of a pyramid is moved by half of what its voxels are larger, as OME-Zarr states
    centres where this format states corners.

    Raises:
        VolumeError: naming the field of ``info`` that is wrong or not read.
    """
    load_tensorstore("a Neuroglancer precomputed volume", url)
    store = open_store(url)
    where = f"{url.rstrip('/')}/{INFO}"
    document = read_document(store, INFO)
    if document is None or not isinstance(document.get("scales"), list):
        raise VolumeError(f"{where} lists no scales; point to the folder of a volume.")
    if selection.series or selection.time:
        raise VolumeError(f"{url} is a single image; leave --series and --time away.")
    name = str(document.get("data_type")).lower()
    if name not in _TYPES:
        raise VolumeError(f"unsupported data_type {str(name)[:40]!r}: {where}; {', '.join(sorted(_TYPES))} are read.")
    (count,) = check_sizes([document.get("num_channels")], "num_channels", where, smallest=1)
    scales = [_scale(entry, number, where) for number, entry in enumerate(document["scales"])]
    if not scales:
        raise VolumeError(f"{where} lists no scales; {REWRITE}.")
    if selection.level >= len(scales):
        raise VolumeError(f"level {selection.level} of {url} does not exist; it has levels 0 to {len(scales) - 1}.")
    channels = choose_channels(selection.channels, count, url)
    scale, dtype = scales[selection.level], np.dtype(name)
    raw_bytes = prod(scale.chunk_shape) * count * dtype.itemsize
    if raw_bytes > MAX_CHUNK_BYTES:
        raise VolumeError(
            f"chunk larger than max_chunk_bytes: {raw_bytes} bytes against {MAX_CHUNK_BYTES} in {where}; write it again with smaller chunks."
        )
    return TensorstoreVolume(
        _layout(url, scales, selection.level, dtype, channels if count > 1 else None),
        _encoding(document, scale, count),
        _chunks(store, scale, count * dtype.itemsize, url),
        lambda position: f"voxels/{_key(scale, position)}",
        0,
        channels,
        selection.missing,
        {"metadata": metadata_hash({"data_type": name, "num_channels": count, "scale": scale.document})},
    )


def _layout(url: str, scales: Sequence[Scale], level: int, dtype: np.dtype[Any], channels: Shape | None) -> Layout:
    scale, lead = scales[level], () if channels is None else (len(channels),)
    finest = scales[0].resolution
    corner = [first * step + (step - fine) / 2 for first, step, fine in zip(scale.offset, scale.resolution, finest, strict=True)]

    def size_um(entry: Scale) -> tuple[float, ...]:
        return tuple(step * _UM for step in reversed(entry.resolution))

    return Layout(
        url=url,
        level=level,
        axes="zyx" if channels is None else "czyx",
        shape=lead + scale.size[::-1],
        dtype=dtype,
        voxel_size=size_um(scale),
        scale=scale.resolution[::-1],
        unit="nanometer",
        translation=tuple(reversed(corner)),
        levels=tuple(Level(number, lead + entry.size[::-1], size_um(entry)) for number, entry in enumerate(scales)),
        chunk_shape=scale.chunk_shape[::-1],
    )


def _encoding(document: Mapping[str, Any], scale: Scale, count: int) -> Encoding:
    """How tensorstore sees the chunks: as a volume of one scale, without shards."""
    alone = {key: value for key, value in scale.document.items() if key not in ("sharding", "hidden")}
    alone |= {"key": "voxels", "chunk_sizes": [list(scale.chunk_shape)]}
    info = {
        "@type": "neuroglancer_multiscale_volume",
        "type": document.get("type", "image"),
        "data_type": str(document["data_type"]).lower(),
        "num_channels": count,
        "scales": [alone],
    }
    return Encoding(
        driver="neuroglancer_precomputed",
        documents={INFO: json.dumps(info).encode()},
        disk_axes="xyzc",
        shape=(*scale.size, count),
        chunk_shape=(*scale.chunk_shape, count),
        origin=(*scale.offset, 0),
        extra={"scale_index": 0},
    )


def _key(scale: Scale, position: Shape) -> str:
    return "_".join(f"{first}-{last}" for first, last in scale.corner(position[:3]))


def _chunks(store: Store, scale: Scale, voxel_bytes: int, url: str) -> StoredChunks:
    if scale.sharding is None:
        return _PlainChunks(store, scale, voxel_bytes, url)
    grid = tuple(-(-size // step) for size, step in zip(scale.size, scale.chunk_shape, strict=True))
    return ShardedChunks(store, scale.key, scale.sharding, grid, _most_bytes(scale, voxel_bytes), url)


def _most_bytes(scale: Scale, voxel_bytes: int) -> int:
    """That an encoded chunk may have: encodings that gain nothing add some."""
    return 2 * prod(scale.chunk_shape) * voxel_bytes + (1 << 20)


class _PlainChunks(ObjectChunks):
    """One object a chunk; some programs store them gzipped, as ``NAME.gz`` or without saying so."""

    def __init__(self, store: Store, scale: Scale, voxel_bytes: int, url: str) -> None:
        super().__init__(store, scale.key, lambda position: _key(scale, position), url, ("", ".gz"))
        self._scale, self._voxel_bytes, self._volume_url = scale, voxel_bytes, url

    def _fetch(self, position: Shape) -> bytes | None:
        data = super()._fetch(position)
        # jpeg and png begin with other marks, a compressed segmentation with a small number. A raw chunk may begin so, but it is no gzip
        # data with a checksum that fits and the size of the chunk.
        if data is None or not data.startswith(_GZIP):
            return data
        most, name = _most_bytes(self._scale, self._voxel_bytes), self.name(position)
        if self._scale.encoding != "raw":
            return unzipped(data, most, name, self._volume_url)
        raw_bytes = prod(last - first for first, last in self._scale.corner(position[:3])) * self._voxel_bytes
        try:
            plain = unzipped(data, most, name, self._volume_url)
        except ChunkError:
            if len(data) != raw_bytes:
                raise
            return data
        return plain if len(plain) == raw_bytes or len(data) != raw_bytes else data


def _scale(entry: Any, number: int, where: str) -> Scale:
    place = f"scale {number} of {where}"
    if not isinstance(entry, dict):
        raise VolumeError(f"{place} must be an object; {REWRITE}.")
    size = check_sizes(entry.get("size"), "size", place, smallest=1)
    chunkings = entry.get("chunk_sizes")
    if not isinstance(chunkings, list) or not chunkings:
        raise VolumeError(f"chunk_sizes of {place} lists no shape; {REWRITE}.")
    chunk_shape = check_sizes(chunkings[0], "chunk_sizes", place, smallest=1)
    offset: Any = entry.get("voxel_offset", [0, 0, 0])
    resolution: Any = entry.get("resolution")
    lengths = {"size": size, "chunk_sizes": chunk_shape, "voxel_offset": offset, "resolution": resolution}
    for name, value in lengths.items():
        if not isinstance(value, list | tuple) or len(value) != 3:
            raise VolumeError(f"{name} of {place} is {str(value)[:40]}, it must have three numbers; {REWRITE}.")
    if any(type(value) is not int or abs(value) > _MAX_OFFSET for value in offset):
        raise VolumeError(f"voxel_offset of {place} is {str(offset)[:60]}, it must be whole numbers up to 2**40; {REWRITE}.")
    if not all(type(value) in (int, float) and math.isfinite(value) and value > 0 for value in resolution):
        raise VolumeError(f"voxel size must be > 0: resolution {str(resolution)[:60]} of {place}; correct it.")
    encoding = entry.get("encoding")
    if encoding not in _ENCODINGS:
        raise VolumeError(
            f"encoding {str(encoding)[:40]!r} of {place} is not known; {', '.join(_ENCODINGS)} are read: write it again with one of them."
        )
    sharding = entry.get("sharding")
    return Scale(
        key=group_path(entry.get("key"), f"scale {number}", where),
        size=size,
        offset=tuple(offset),
        resolution=tuple(float(value) for value in resolution),
        chunk_shape=chunk_shape,
        encoding=encoding,
        sharding=None if sharding is None else read_sharding(sharding, place),
        document=entry,
    )

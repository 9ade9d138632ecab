"""Metadata of Zarr arrays and groups, checked before zarr-python sees it: its own errors name neither path nor reason.

Knows no voxels. Limits keep hostile or damaged metadata from allocating memory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from unet_core.errors import VolumeError
from unet_core.geometry import Shape
from unet_core.store import Store

MAX_METADATA_BYTES = 1 << 20
MAX_CHUNK_BYTES = 512 << 20
MAX_DEPTH = 64
MAX_AXES = 6

_V3_CODECS = {"bytes", "transpose", "zstd", "gzip", "blosc", "crc32c", "sharding_indexed"}
_V2_COMPRESSORS = {"zstd", "blosc", "gzip", "zlib", "lz4", "bz2", "lzma"}
_V2_FILTERS = {"delta", "shuffle", "crc32", "adler32", "fixedscaleoffset"}
_CODE_RUNNERS = {"pickle", "json2", "msgpack2", "vlen-utf8", "vlen-array", "vlen-bytes"}
_V3_TYPES = {"bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)), "float16", "float32", "float64"}


@dataclass(frozen=True)
class ArrayMetadata:
    """What a Zarr array says of itself.

    Args:
        zarr_format: 2 or 3.
        shape: of the array.
        chunk_shape: that one decode gives.
        object_shape: that one stored object covers: a shard, or a chunk without sharding.
        dtype: native byte order.
        names: of the dimensions, or None.
        attributes: of the user.
        compressor: name of the outermost codec, or None.
        separator: between the indices of a key.
        prefix: of a key, "c" or "".
    """

    zarr_format: int
    shape: Shape
    chunk_shape: Shape
    object_shape: Shape
    dtype: np.dtype[Any]
    names: tuple[str, ...] | None
    attributes: Mapping[str, Any]
    compressor: str | None
    separator: str
    prefix: str

    @property
    def is_sharded(self) -> bool:
        return self.chunk_shape != self.object_shape

    def key(self, position: Shape) -> str:
        """Key of the stored object at ``position`` in the grid of objects, relative to the array."""
        parts = ([self.prefix] if self.prefix else []) + [str(number) for number in position]
        return self.separator.join(parts)

    @property
    def chunk_bytes(self) -> int:
        return prod(self.chunk_shape) * self.dtype.itemsize


def read_document(store: Store, key: str) -> dict[str, Any]:
    """A JSON object of metadata.

    Raises:
        VolumeError: if it is empty, too large, too deep, not JSON, or not an object.
    """
    where = f"{store.url.rstrip('/')}/{key}"
    data = store.get(key)
    if not data.strip():
        raise VolumeError(f"metadata is empty: {where}.")
    if len(data) > MAX_METADATA_BYTES:
        raise VolumeError(f"metadata larger than the 1 MiB limit: {where} has {len(data)} bytes.")
    try:
        value = json.loads(data)
    except json.JSONDecodeError as error:
        raise VolumeError(f"metadata is not valid JSON at {error.lineno}:{error.colno}: {where}.") from None
    except UnicodeDecodeError:
        raise VolumeError(f"metadata is not valid JSON at 1:1: {where} is not text.") from None
    except RecursionError:
        raise VolumeError(f"metadata nested too deep: {where}.") from None
    if not isinstance(value, dict):
        raise VolumeError(f"metadata must be an object: {where} holds a {type(value).__name__}.")
    if _depth(value) > MAX_DEPTH:
        raise VolumeError(f"metadata nested too deep: {where}.")
    return value


def _depth(value: Any) -> int:
    depth, layer = 0, [value]
    while layer and depth <= MAX_DEPTH:
        depth += 1
        layer = [
            child
            for node in layer
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
    return depth


def array_metadata(document: Mapping[str, Any], attributes: Mapping[str, Any], where: str) -> ArrayMetadata:
    """Check the metadata of an array.

    Args:
        document: ``zarr.json`` or ``.zarray``.
        attributes: of the user.
        where: URL, for messages.

    Raises:
        VolumeError: naming the field and its value.
    """
    version = document.get("zarr_format")
    if version == 3:
        return _version3(document, where)
    if version == 2:
        return _version2(document, attributes, where)
    raise VolumeError(f"unsupported zarr_format {version!r}: {where}; versions 2 and 3 are read.")


def _version3(document: Mapping[str, Any], where: str) -> ArrayMetadata:
    shape = _sizes(document.get("shape"), "shape", where, smallest=0)
    grid = document.get("chunk_grid")
    if not isinstance(grid, dict) or grid.get("name") != "regular":
        raise VolumeError(f"chunk_grid of {where} is not regular; regular grids are read.")
    object_shape = _sizes(_configuration(grid).get("chunk_shape"), "chunk_shape", where, smallest=1)
    data_type = document.get("data_type")
    if not isinstance(data_type, str) or data_type not in _V3_TYPES:
        raise VolumeError(f"unsupported data_type {data_type!r}: {where}; integers, floats and bool are read.")
    codecs = _codec_list(document.get("codecs"), where)
    chunk_shape = object_shape
    if codecs and codecs[0][0] == "sharding_indexed":
        inner = codecs[0][1]
        chunk_shape = _sizes(inner.get("chunk_shape"), "chunk_shape", where, smallest=1)
        if len(chunk_shape) != len(object_shape) or any(a % b for a, b in zip(object_shape, chunk_shape, strict=False)):
            raise VolumeError(f"shard {object_shape} of {where} is not a multiple of its chunk {chunk_shape}.")
        _codec_list(inner.get("codecs"), where)
        _codec_list(inner.get("index_codecs", []), where)
    encoding = document.get("chunk_key_encoding", {"name": "default"})
    name, settings = (encoding.get("name"), _configuration(encoding)) if isinstance(encoding, dict) else (encoding, {})
    if name not in ("default", "v2"):
        raise VolumeError(f"chunk_key_encoding {name!r} of {where} is not known; default and v2 are read.")
    separator = settings.get("separator", "/" if name == "default" else ".")
    names = document.get("dimension_names")
    if names is not None and (not isinstance(names, list) or len(names) != len(shape)):
        raise VolumeError(f"axes: dimension_names of {where} is {names!r} for {len(shape)} dims.")
    attributes = document.get("attributes") or {}
    known = tuple(names) if names and all(isinstance(entry, str) for entry in names) else None
    outer = codecs[-1][0] if codecs and codecs[0][0] != "sharding_indexed" else None
    return _checked(
        ArrayMetadata(
            3,
            shape,
            chunk_shape,
            object_shape,
            np.dtype(data_type),
            known,
            attributes,
            outer,
            separator,
            "c" if name == "default" else "",
        ),
        where,
    )


def _version2(document: Mapping[str, Any], attributes: Mapping[str, Any], where: str) -> ArrayMetadata:
    shape = _sizes(document.get("shape"), "shape", where, smallest=0)
    chunk_shape = _sizes(document.get("chunks"), "chunk_shape", where, smallest=1)
    stated = document.get("dtype")
    try:
        dtype = np.dtype(stated) if isinstance(stated, str) else None
    except TypeError:
        dtype = None
    if dtype is None or dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise VolumeError(
            f"unsupported data_type {str(stated)[:40]!r}: {where}; need an integer or float type that float32 holds exactly, or --cast."
        )
    compressor = document.get("compressor")
    for codec, allowed in [(compressor, _V2_COMPRESSORS), *((entry, _V2_FILTERS) for entry in document.get("filters") or [])]:
        if codec is not None:
            _check_codec(codec.get("id") if isinstance(codec, dict) else codec, allowed, where)
    separator = document.get("dimension_separator", ".")
    if separator not in (".", "/"):
        raise VolumeError(f"dimension_separator {separator!r} of {where} is not known; '.' and '/' are read.")
    names = attributes.get("_ARRAY_DIMENSIONS")
    known = tuple(names) if isinstance(names, list) and len(names) == len(shape) else None
    name = compressor.get("id") if isinstance(compressor, dict) else None
    return _checked(
        ArrayMetadata(2, shape, chunk_shape, chunk_shape, dtype.newbyteorder("="), known, attributes, name, separator, ""), where
    )


def _checked(metadata: ArrayMetadata, where: str) -> ArrayMetadata:
    if len(metadata.object_shape) != len(metadata.shape):
        raise VolumeError(f"chunk_shape has {len(metadata.object_shape)} dims, shape {len(metadata.shape)}: {where}.")
    if len(metadata.shape) > MAX_AXES:
        raise VolumeError(f"{where} has {len(metadata.shape)} dims; at most {MAX_AXES} are read.")
    if 0 in metadata.shape:
        raise VolumeError(f"array is empty: {where} has shape {metadata.shape}.")
    if metadata.chunk_bytes > MAX_CHUNK_BYTES:
        raise VolumeError(
            f"chunk larger than max_chunk_bytes: {metadata.chunk_bytes} bytes against {MAX_CHUNK_BYTES} in {where}."
        )
    return metadata


def _sizes(value: Any, name: str, where: str, smallest: int) -> Shape:
    if not isinstance(value, list) or not value or any(type(size) is not int for size in value):
        raise VolumeError(f"{name} must be integers: {where} has {str(value)[:60]}.")
    for axis, size in enumerate(value):
        if size < smallest:
            raise VolumeError(f"{name}[{axis}] = {size}: {where}; it must be at least {smallest}.")
    return tuple(value)


def _configuration(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    found = entry.get("configuration", {})
    return found if isinstance(found, dict) else {}


def _codec_list(value: Any, where: str) -> list[tuple[str, Mapping[str, Any]]]:
    if not isinstance(value, list):
        raise VolumeError(f"codecs of {where} must be a list, it is {str(value)[:40]!r}.")
    result = []
    for entry in value:
        name = entry.get("name") if isinstance(entry, dict) else entry
        _check_codec(name, _V3_CODECS, where)
        result.append((str(name), _configuration(entry) if isinstance(entry, dict) else {}))
    return result


def _check_codec(name: Any, allowed: set[str], where: str) -> None:
    bare = str(name).removeprefix("numcodecs.")
    if bare in _CODE_RUNNERS:
        raise VolumeError(f"codec '{bare}' refused: executes code or decodes objects, in {where}.")
    if name not in allowed:
        raise VolumeError(f"codec '{str(name)[:40]}' not allowed in {where}; {', '.join(sorted(allowed))} are.")

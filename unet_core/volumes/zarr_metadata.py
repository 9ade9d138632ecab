"""Metadata of Zarr arrays and groups, checked before zarr-python sees it: its own errors name neither path nor reason.

Knows no voxels. Limits keep hostile or damaged metadata from allocating memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from unet_core.errors import VolumeError
from unet_core.geometry import Shape
from unet_core.store import Store
from unet_core.volumes.zarr_codecs import REWRITE, check_sizes, check_version2, check_version3

MAX_METADATA_BYTES = 1 << 20
MAX_CHUNK_BYTES = 512 << 20
MAX_DEPTH = 64
MAX_AXES = 6

_RESTORE = "restore it from the original, or " + REWRITE
_V2_TYPE = re.compile(r"[<>|](b1|[iu][1248]|f[248])")

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
        document: that says all this, as written.
        compressor: name of the codec that is undone first, or None.
        separator: between the indices of a key.
        prefix: of a key, "c" or "".
    """

    zarr_format: int
    shape: Shape
    chunk_shape: Shape
    object_shape: Shape
    dtype: np.dtype[Any]
    names: tuple[str, ...] | None
    document: Mapping[str, Any]
    compressor: str | None
    separator: str
    prefix: str

    def key(self, position: Shape) -> str:
        """Key of the stored object at ``position`` in the grid of objects, relative to the array."""
        parts = ([self.prefix] if self.prefix else []) + [str(number) for number in position]
        return self.separator.join(parts)

    def position(self, key: str) -> Shape | None:
        """The position whose key this is, or None if it is no key of a stored chunk."""
        parts = key.split(self.separator)
        if self.prefix:
            parts = parts[1:]
        if len(parts) != len(self.shape) or not all(part.isdecimal() and len(part) < 20 for part in parts):
            return None
        position = tuple(int(part) for part in parts)
        return position if self.key(position) == key else None

    @property
    def chunk_bytes(self) -> int:
        return prod(self.chunk_shape) * self.dtype.itemsize


def read_document(store: Store, key: str) -> dict[str, Any] | None:
    """A JSON object of metadata, or None if there is no such file.

    Raises:
        VolumeError: if it is empty, too large, too deep, not JSON, or not an object.
    """
    where = f"{store.url.rstrip('/')}/{key}"
    try:
        data = store.get(key)
    except FileNotFoundError:
        return None
    if not data.strip():
        raise VolumeError(f"metadata is empty: {where}; {_RESTORE}.")
    if len(data) > MAX_METADATA_BYTES:
        raise VolumeError(
            f"metadata larger than the 1 MiB limit: {where} has {len(data)} bytes; move what is no metadata out of it."
        )
    try:
        value = json.loads(data)
    except json.JSONDecodeError as error:
        raise VolumeError(f"metadata is not valid JSON at {error.lineno}:{error.colno}: {where}; {_RESTORE}.") from None
    except UnicodeDecodeError:
        raise VolumeError(f"metadata is not valid JSON at 1:1: {where} is not text; {_RESTORE}.") from None
    except ValueError:
        raise VolumeError(f"metadata is not valid JSON: {where} holds a number of thousands of digits; {_RESTORE}.") from None
    except RecursionError:
        raise VolumeError(f"metadata nested too deep: {where}; {_RESTORE}.") from None
    if not isinstance(value, dict):
        raise VolumeError(f"metadata must be an object: {where} holds a {type(value).__name__}; {_RESTORE}.")
    if _depth(value) > MAX_DEPTH:
        raise VolumeError(f"metadata nested too deep: {where}, deeper than {MAX_DEPTH} levels; {_RESTORE}.")
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
    if type(version) is not int or version not in (2, 3):
        raise VolumeError(f"unsupported zarr_format {repr(version)[:60]}: {where}; 2 and 3 are read, {REWRITE}.")
    return _version3(document, where) if version == 3 else _version2(document, attributes, where)


def _version3(document: Mapping[str, Any], where: str) -> ArrayMetadata:
    shape = check_sizes(document.get("shape"), "shape", where, smallest=0)
    grid = document.get("chunk_grid")
    if not isinstance(grid, dict) or grid.get("name") != "regular":
        raise VolumeError(f"chunk_grid of {where} is not regular; {REWRITE}, with equal chunks.")
    object_shape = check_sizes(_configuration(grid).get("chunk_shape"), "chunk_shape", where, smallest=1)
    data_type = document.get("data_type")
    if not isinstance(data_type, str) or data_type not in _V3_TYPES:
        raise VolumeError(f"unsupported data_type {repr(data_type)[:60]}: {where}; write it again as integers, floats or bool.")
    chunk_shape, codec = check_version3(document.get("codecs"), object_shape, where)
    encoding = document.get("chunk_key_encoding", {"name": "default"})
    name, settings = (encoding.get("name"), _configuration(encoding)) if isinstance(encoding, dict) else (encoding, {})
    separator = settings.get("separator", "/" if name == "default" else ".")
    if name not in ("default", "v2") or separator not in ("/", "."):
        raise VolumeError(f"chunk_key_encoding {str(encoding)[:60]} of {where} is not known; default and v2 are read, {REWRITE}.")
    names = document.get("dimension_names")
    if names is not None and (not isinstance(names, list) or len(names) != len(shape)):
        raise VolumeError(f"axes: dimension_names of {where} is {repr(names)[:60]} for {len(shape)} dims; name each, or none.")
    known = tuple(names) if names and all(isinstance(entry, str) for entry in names) else None
    return _checked(
        ArrayMetadata(
            3,
            shape,
            chunk_shape,
            object_shape,
            np.dtype(data_type),
            known,
            document,
            codec,
            separator,
            "c" if name == "default" else "",
        ),
        where,
    )


def _version2(document: Mapping[str, Any], attributes: Mapping[str, Any], where: str) -> ArrayMetadata:
    shape = check_sizes(document.get("shape"), "shape", where, smallest=0)
    chunk_shape = check_sizes(document.get("chunks"), "chunk_shape", where, smallest=1)
    stated = document.get("dtype")
    if not isinstance(stated, str) or not _V2_TYPE.fullmatch(stated):
        raise VolumeError(
            f"unsupported data_type {str(stated)[:40]!r}: {where}; need an integer or float type that float32 holds exactly, or --cast."
        )
    dtype = np.dtype(stated)
    compressor = check_version2(document.get("compressor"), document.get("filters"), where)
    separator = document.get("dimension_separator", ".")
    if separator not in (".", "/"):
        raise VolumeError(
            f"dimension_separator {str(separator)[:40]!r} of {where} is not known; '.' and '/' are read, {REWRITE}."
        )
    names = attributes.get("_ARRAY_DIMENSIONS")
    are_names = isinstance(names, list) and all(isinstance(name, str) for name in names)
    known = tuple(names) if names and are_names and len(names) == len(shape) else None
    return _checked(
        ArrayMetadata(2, shape, chunk_shape, chunk_shape, dtype.newbyteorder("="), known, document, compressor, separator, ""),
        where,
    )


def _checked(metadata: ArrayMetadata, where: str) -> ArrayMetadata:
    if len(metadata.object_shape) != len(metadata.shape):
        raise VolumeError(f"chunk_shape has {len(metadata.object_shape)} dims, shape {len(metadata.shape)}: {where}; {REWRITE}.")
    if len(metadata.shape) > MAX_AXES:
        raise VolumeError(f"{where} has {len(metadata.shape)} dims; at most {MAX_AXES} are read, store it as several arrays.")
    if 0 in metadata.shape:
        raise VolumeError(f"array is empty: {where} has shape {metadata.shape}; {REWRITE}.")
    if metadata.chunk_bytes > MAX_CHUNK_BYTES:
        raise VolumeError(
            f"chunk larger than max_chunk_bytes: {metadata.chunk_bytes} bytes against {MAX_CHUNK_BYTES} in {where}; "
            "write it again with smaller chunks."
        )
    return metadata


def _configuration(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    found = entry.get("configuration", {})
    return found if isinstance(found, dict) else {}

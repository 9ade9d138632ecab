"""Which codecs a Zarr array may name, at every level of nesting. Decodes nothing.

A codec that is not on the list is refused before zarr-python looks it up: some run code, and none beyond these has been tried.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from unet_core.errors import VolumeError
from unet_core.geometry import Shape

MAX_INDEX_BYTES = 64 << 20  # of one shard, read and held whole
REWRITE = "write it again with the tool that made it"

_V3_CODECS = {"bytes", "transpose", "zstd", "gzip", "blosc", "crc32c", "sharding_indexed"}
_INDEX_CODECS = {"bytes", "crc32c"}
_V2_COMPRESSORS = {"zstd", "blosc", "gzip", "zlib", "lz4", "bz2", "lzma"}
_V2_FILTERS = {"delta", "shuffle", "crc32", "adler32", "fixedscaleoffset"}
_CODE_RUNNERS = {"pickle", "json2", "msgpack2", "vlen-utf8", "vlen-array", "vlen-bytes"}


def check_version3(value: Any, chunk_shape: Shape, where: str) -> tuple[Shape, str]:
    """Check the ``codecs`` of an array, those of its shards, and those of shards in them.

    Args:
        value: as written.
        chunk_shape: that one stored object covers.
        where: URL, for messages.

    Returns:
        The shape that one decode gives, and the name of the codec that is undone first.
    """
    entries = _named(value, _V3_CODECS, "name", where)
    if not entries:
        raise VolumeError(f"codecs of {where} is empty, it must turn voxels into bytes; {REWRITE}.")
    for number, (name, settings) in enumerate(entries):
        if name == "sharding_indexed":
            inner = check_sizes(settings.get("chunk_shape"), "chunk_shape", where, smallest=1)
            # Behind a transpose the sizes come in another order, which zarr-python checks.
            if len(inner) != len(chunk_shape) or (number == 0 and any(a % b for a, b in zip(chunk_shape, inner, strict=True))):
                raise VolumeError(f"shard {chunk_shape} of {where} is not a multiple of its chunk {inner}; {REWRITE}.")
            if 16 * prod(chunk_shape) // prod(inner) > MAX_INDEX_BYTES:
                raise VolumeError(
                    f"shard {chunk_shape} of {where} holds {prod(chunk_shape) // prod(inner)} chunks, its index would be larger "
                    f"than {MAX_INDEX_BYTES >> 20} MiB; write it again with larger chunks."
                )
            if "index_codecs" in settings:
                _check_index(_named(settings["index_codecs"], _INDEX_CODECS, "name", where), where)
            decoded, _ = check_version3(settings.get("codecs"), inner, where)
            if len(entries) == 1:  # other codecs around a shard need all of it for any voxel
                chunk_shape = decoded
    return chunk_shape, entries[-1][0]


def check_version2(compressor: Any, filters: Any, where: str) -> str | None:
    """Check ``compressor`` and ``filters`` of an array; the name of the compressor."""
    _named([] if filters is None else filters, _V2_FILTERS, "id", where)
    return None if compressor is None else _named([compressor], _V2_COMPRESSORS, "id", where)[0][0]


def check_sizes(value: Any, name: str, where: str, smallest: int) -> Shape:
    """A list of integers within the bounds of what can be addressed."""
    if not isinstance(value, list) or not value or any(type(size) is not int for size in value):
        raise VolumeError(f"{name} must be integers: {where} has {str(value)[:60]}; {REWRITE}.")
    for axis, size in enumerate(value):
        if not smallest <= size < 1 << 63:
            raise VolumeError(f"{name}[{axis}] = {str(size)[:40]}: {where}; it must be at least {smallest} and below 2^63.")
    return tuple(value)


def _check_index(codecs: list[tuple[str, Mapping[str, Any]]], where: str) -> None:
    # zarr-python looks at them when it reads the first shard, and the shard would then be blamed.
    if [name for name, _ in codecs] not in (["bytes"], ["bytes", "crc32c"]) or codecs[0][1].get("endian") not in (
        "little",
        "big",
    ):
        raise VolumeError(f"index_codecs of {where} must be bytes with an endian, and crc32c or nothing after it; {REWRITE}.")


def _named(value: Any, allowed: set[str], key: str, where: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Name and settings of each entry of a list of codecs."""
    if not isinstance(value, list):
        raise VolumeError(f"codecs of {where} must be a list, it is {str(value)[:40]!r}; {REWRITE}.")
    result: list[tuple[str, Mapping[str, Any]]] = []
    for entry in value:
        name = entry.get(key) if isinstance(entry, dict) else entry
        settings = entry.get("configuration", {}) if isinstance(entry, dict) else {}
        bare = str(name).removeprefix("numcodecs.")[:40]
        if bare in _CODE_RUNNERS:
            raise VolumeError(f"codec '{bare}' refused: executes code or decodes objects, in {where}; write it again without.")
        if not isinstance(name, str) or name not in allowed or not isinstance(settings, dict):
            raise VolumeError(f"codec '{bare}' not allowed in {where}; write it again with {', '.join(sorted(allowed))}.")
        result.append((name, settings))
    return result

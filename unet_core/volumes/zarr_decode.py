"""Zarr arrays whose chunks cannot decode to more than they declare. Nothing here knows of boxes or of missing chunks.

Every compressor, also those inside shards, is wrapped: it stops as soon as the declared size is passed (stream formats, zstd),
or looks at the sizes in the header before it decodes (blosc, lz4).
"""

from __future__ import annotations

import asyncio
import bz2
import copy
import lzma
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import imagecodecs
import numcodecs
import zarr
from numcodecs.abc import Codec as Numcodec
from zarr.abc.codec import BytesBytesCodec, Codec
from zarr.codecs import BloscCodec, BytesCodec, GzipCodec, ShardingCodec, ZstdCodec
from zarr.storage import StorePath

from unet_core.errors import VolumeError
from unet_core.volumes.zarr_codecs import REWRITE

# Checksums and widening filters (delta from 1 to 8 bytes) come between compressor and voxels, as do the indices of shards.
_BEHIND_FILTERS = 8, 64

_Decode = Callable[[Any, int], Any]


class DecodeError(ValueError):
    """Stored bytes that are not what they should be; says which of their numbers is at fault."""


def open_checked(document: Mapping[str, Any], store_path: StorePath, where: str) -> zarr.Array[Any]:
    """The array that ``document`` describes, with its compressors bounded; reads nothing.

    Args:
        document: ``zarr.json`` or ``.zarray``, already checked against our limits.
        store_path: where its chunks lie.
        where: URL of the document, for messages.

    Raises:
        VolumeError: if zarr-python refuses the document.
    """
    # zarr-python says this at every read of a shard inside other codecs, to those who chose the codecs; we did not.
    warnings.filterwarnings("ignore", message="Combining a `sharding_indexed` codec")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # A dict of metadata is what zarr-python itself passes on here; reading it again could give another one.
            opened: Any = zarr.AsyncArray(copy.deepcopy(dict(document)), store_path)  # type: ignore[call-overload]
            metadata = opened.metadata
            if metadata.zarr_format == 3:
                metadata = replace(metadata, codecs=_bounded(metadata.codecs))
            elif metadata.compressor is not None:
                metadata = replace(metadata, compressor=_BoundedCompressor(metadata))
            return zarr.Array(zarr.AsyncArray(metadata, store_path))
    except Exception as error:  # zarr-python and numcodecs refuse metadata by every kind of exception
        text = " ".join(str(error).split())[:200].rstrip(".")
        raise VolumeError(f"metadata is refused by zarr-python: {where}: {type(error).__name__}: {text}; {REWRITE}.") from error


def _bounded(codecs: tuple[Codec, ...]) -> tuple[Codec, ...]:
    """``codecs`` with each compressor bounded, those inside shards too."""
    result: list[Codec] = []
    for codec in codecs:
        if isinstance(codec, ShardingCodec):
            codec = replace(codec, codecs=_bounded(codec.codecs))
        elif isinstance(codec, ZstdCodec | GzipCodec | BloscCodec):
            name = str(codec.to_dict()["name"])
            exact = isinstance(result[-1] if result else None, BytesCodec)
            codec = _BoundedCodec(codec, name, exact)
        result.append(codec)
    return tuple(result)


@dataclass(frozen=True)
class _BoundedCodec(BytesBytesCodec):
    """A compressor of Zarr version 3.

    Args:
        codec: the compressor.
        name: of it.
        exact: whether it holds the bytes of voxels, and nothing else.
    """

    codec: BytesBytesCodec
    name: str
    exact: bool
    is_fixed_size = False

    async def _decode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        declared = prod(chunk_spec.shape) * chunk_spec.dtype.to_native_dtype().itemsize
        decoder = _decoder(numcodecs.get_codec({"id": self.name}))
        data = await asyncio.to_thread(_decode, decoder, chunk_bytes.as_numpy_array(), declared, self.exact)
        return chunk_spec.prototype.buffer.from_bytes(data)

    def to_dict(self) -> dict[str, Any]:
        return self.codec.to_dict()

    def compute_encoded_size(self, input_byte_length: int, _chunk_spec: Any) -> int:
        return self.codec.compute_encoded_size(input_byte_length, _chunk_spec)


class _BoundedCompressor(Numcodec):  # type: ignore[misc]
    """The compressor of an array of Zarr version 2."""

    codec_id = "unet-bounded"  # never written; zarr-python asks the class for one

    def __init__(self, metadata: Any) -> None:
        self._codec = metadata.compressor
        self._decoder = _decoder(self._codec)
        self._declared = prod(metadata.chunks) * metadata.dtype.to_native_dtype().itemsize
        self._exact = not metadata.filters

    def decode(self, buf: Any, out: Any = None) -> Any:
        return _decode(self._decoder, buf, self._declared, self._exact)

    def encode(self, buf: Any) -> Any:
        return self._codec.encode(buf)

    def get_config(self) -> Any:
        return self._codec.get_config()


def _decode(decoder: _Decode, data: Any, declared: int, exact: bool) -> Any:
    factor, more = (1, 0) if exact else _BEHIND_FILTERS
    limit = factor * declared + more
    try:
        decoded = decoder(memoryview(data).cast("B"), limit)
    except _Larger:
        decoded = None
    if decoded is None or len(memoryview(decoded).cast("B")) > limit:
        raise DecodeError(f"decoded size exceeds declared {declared} bytes")
    return decoded


class _Larger(Exception):
    """Decoding would pass the limit."""


def _decoder(codec: Any) -> _Decode:
    """How a compressor decodes at most so many bytes; its settings are tried at once."""
    streams: dict[str, Callable[[], Any]] = {
        "gzip": lambda: zlib.decompressobj(31),
        "zlib": lambda: zlib.decompressobj(15),
        "bz2": bz2.BZ2Decompressor,
        "lzma": lambda: lzma.LZMADecompressor(format=codec.format, filters=codec.filters),
    }
    name = codec.codec_id
    if name in streams:
        streams[name]()
        return lambda data, limit: _stream(streams[name], data, limit)
    if name == "zstd":
        return _zstd

    def after_header(data: memoryview, limit: int) -> Any:
        _check_header(name, data, limit)
        return codec.decode(data)

    return after_header


def _stream(start: Callable[[], Any], data: memoryview | bytes, limit: int) -> bytes:
    """Decode one stream after another, as their formats allow, and stop one byte above ``limit``."""
    parts, size = [], 0
    while len(data):
        stream = start()
        parts.append(stream.decompress(data, limit + 1 - size))
        size += len(parts[-1])
        if size > limit:
            raise _Larger
        if not stream.eof:
            raise DecodeError("the compressed data end before their end mark")
        data = stream.unused_data.lstrip(b"\0")  # zeros may pad what follows
    return b"".join(parts)


def _zstd(data: memoryview, limit: int) -> bytes:
    # numcodecs grows its buffer without bound when a frame does not state its size, or another frame follows.
    try:
        return bytes(imagecodecs.zstd_decode(bytes(data), out=limit))
    except imagecodecs.ZstdError as error:
        if "too small" in str(error):
            raise _Larger from None
        raise


def _check_header(name: str, data: memoryview, limit: int) -> None:
    """Compare the sizes that a header states: blosc and lz4 trust them, and blosc reads beyond the end of what there is."""
    if len(data) < (16 if name == "blosc" else 4):
        raise DecodeError(f"{len(data)} bytes are too few for a header")
    if int.from_bytes(data[4:8] if name == "blosc" else data[:4], "little") > limit:
        raise _Larger
    if name == "blosc" and (stated := int.from_bytes(data[12:16], "little")) != len(data):
        raise DecodeError(f"its header states {stated} bytes, there are {len(data)}")

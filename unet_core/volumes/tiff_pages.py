"""Voxels of one page of a TIFF file: mapped where they lie plainly, else decoded tile by tile or strip by strip."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from threading import Lock
from typing import Any, Literal

import numpy as np
import tifffile
from numpy.typing import NDArray

from unet_core.errors import ChunkError, VolumeError
from unet_core.geometry import Box
from unet_core.volumes.range_file import RangeFile

MAX_SEGMENT_BYTES = 512 << 20
_BAND_BYTES = 1 << 20
_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _PALETTE, _SEPARATED, _YCBCR = 0, 1, 2, 3, 5, 6
_PLAIN_CODECS = {1, 5, 8, 32773, 32946, 34925, 34926, 50000}  # none, LZW, deflate, packbits, LZMA, zstd: colours stay as stored


def check_page(keyframe: Any, is_imagej: bool, url: str) -> None:
    """Refuse pages whose values are not intensities that can be read box by box.

    Raises:
        VolumeError: naming what is stored.
    """
    if keyframe.dtype is None or keyframe.dtype.kind not in "biuf":
        raise VolumeError(f"unsupported data type {keyframe.dtype} in {url}; integers and floats are read.")
    compression = int(keyframe.compression)
    name = getattr(keyframe.compression, "name", str(compression))
    if compression != 1 and compression not in tifffile.TIFF.DECOMPRESSORS:
        raise VolumeError(f"compression {name} of {url} is not known; write it again with deflate, LZW, JPEG or none.")
    if min(segment_shape(keyframe)) < 1:
        raise VolumeError(f"{url} has tiles of {segment_shape(keyframe)} voxels; the file is damaged, write it again.")
    if keyframe.imagedepth > 1 or keyframe.tiledepth > 1:
        raise VolumeError(f"{url} has tiles of {keyframe.tiledepth} sections; write one page a section.")
    photometric = int(keyframe.photometric)
    readable = (
        photometric in (_MIN_IS_BLACK, _RGB, _SEPARATED)
        or (photometric == _MIN_IS_WHITE and keyframe.dtype.kind in "bu")
        or (photometric == _PALETTE and is_imagej)  # a look-up table for display; the index is the intensity
        or (photometric == _YCBCR and compression not in _PLAIN_CODECS)  # the codec gives RGB
    )
    if not readable:
        colours = getattr(keyframe.photometric, "name", str(photometric))
        raise VolumeError(f"{url} stores colours as {colours}; convert it to gray values or RGB.")
    if not keyframe.is_final:
        height, width = segment_shape(keyframe)
        across, down = -(-keyframe.imagewidth // width), -(-keyframe.imagelength // height)
        needed = across * down * (keyframe.samplesperpixel if keyframe.planarconfig == 2 else 1)
        if len(keyframe.databytecounts) < needed:
            raise VolumeError(
                f"{url} needs {needed} tiles and lists {len(keyframe.databytecounts)}; the file is damaged, write it again."
            )
        if height * width * keyframe.dtype.itemsize * keyframe.samplesperpixel > MAX_SEGMENT_BYTES:
            raise VolumeError(
                f"chunk larger than max_chunk_bytes: {url} is compressed in pieces of {height} x {width} voxels, limit "
                f"{MAX_SEGMENT_BYTES >> 20} MiB; write it in tiles."
            )


def segment_shape(keyframe: Any) -> tuple[int, int]:
    """Rows and columns of a tile or strip."""
    if keyframe.is_tiled:
        return int(keyframe.tilelength), int(keyframe.tilewidth)
    return int(min(keyframe.rowsperstrip, keyframe.imagelength)), int(keyframe.imagewidth)


def bands(keyframe: Any) -> tuple[int, int]:
    """Rows and columns of what is read at a time of voxels that lie plainly on an object store: about a megabyte of whole rows."""
    row_bytes = keyframe.imagewidth * keyframe.samplesperpixel * keyframe.dtype.itemsize
    return int(min(max(1, _BAND_BYTES // row_bytes), keyframe.imagelength)), int(keyframe.imagewidth)


def is_plain(page: Any) -> bool:
    """Whether all voxels of a page lie in the file one after the other, as they are; a sparse page says so too, and has none."""
    return bool(page.is_final) and all(page.databytecounts)


def absent_segments(page: Any, plane: Box) -> list[int]:
    """Tiles or strips of one page that ``plane`` needs and the file does not have, ascending."""
    keyframe = page.keyframe
    wanted = np.asarray(list(_segments(keyframe, plane)))
    return [int(index) for index in wanted[np.asarray(page.databytecounts)[wanted] == 0]]


def _segments(keyframe: Any, plane: Box) -> Iterator[int]:
    """Numbers of the segments that meet ``plane``, those of the first sample first."""
    height, width = segment_shape(keyframe)
    across, down = -(-keyframe.imagewidth // width), -(-keyframe.imagelength // height)
    separate = keyframe.samplesperpixel if keyframe.planarconfig == 2 else 1
    rows = range(plane.start[0] // height, -(-plane.stop[0] // height))
    columns = range(plane.start[1] // width, -(-plane.stop[1] // width))
    for part, row, column in itertools.product(range(separate), rows, columns):
        yield (part * down + row) * across + column


def map_planes(page: Any, offset: int, count: int, url: str) -> NDArray[Any]:
    """Uncompressed planes that lie one after the other from ``offset`` on, (count, S, Y, X), not read yet.

    Raises:
        VolumeError: if the file is too short for them.
    """
    keyframe = page.keyframe
    samples, shape = keyframe.samplesperpixel, (keyframe.imagelength, keyframe.imagewidth)
    separate = keyframe.planarconfig == 2
    stored = (count, samples, *shape) if separate else (count, *shape, samples)
    dtype = np.dtype(keyframe.dtype).newbyteorder(page.parent.byteorder)
    try:
        mapped: NDArray[Any] = np.memmap(page.parent.filehandle.path, dtype, "r", offset, stored)
    except (ValueError, OSError) as error:
        raise VolumeError(f"{url} is not a readable TIFF: {error}; the file is truncated.") from error
    return mapped if separate else np.moveaxis(mapped, -1, 1)


def read_rows(page: Any, offset: int, number: int, plane: Box, ranges: RangeFile, url: str) -> NDArray[Any]:
    """Voxels of ``plane`` of the ``number``-th of the uncompressed planes that begin at ``offset``, (S, *plane.shape), as they lie there.

    Raises:
        ChunkError: if the file is too short for them.
    """
    keyframe = page.keyframe
    samples, height, width = int(keyframe.samplesperpixel), int(keyframe.imagelength), int(keyframe.imagewidth)
    dtype = np.dtype(keyframe.dtype).newbyteorder(page.parent.byteorder)
    parts, voxel = (samples, 1) if keyframe.planarconfig == 2 else (1, samples)
    lines = itertools.product(range(parts), range(plane.start[0], plane.stop[0]))
    size = plane.shape[1] * voxel * dtype.itemsize
    places = [
        (offset + (((number * parts + part) * height + row) * width + plane.start[1]) * voxel * dtype.itemsize, size)
        for part, row in lines
    ]
    data = b"".join(ranges.read_places(places))
    if len(data) != size * len(places):
        raise ChunkError(
            f"chunk page {number} corrupt: {len(data)} of {size * len(places)} bytes in {url}; the file is truncated."
        )
    values = np.frombuffer(data, dtype).reshape(parts, *plane.shape, voxel)
    return values[..., 0] if parts > 1 or voxel == 1 else np.moveaxis(values[0], -1, 0)


def read_page(
    page: Any,
    number: int,
    plane: Box,
    missing: Literal["error", "fill"],
    url: str,
    lock: Lock,
    ranges: RangeFile | None = None,
) -> NDArray[Any]:
    """Voxels of ``plane`` on one page, (S, *plane.shape), in native byte order.

    Args:
        page: of tifffile; may lie in another file than the first page.
        number: of the page, for messages.
        plane: box over y and x.
        missing: what absent tiles mean.
        url: for messages.
        lock: around the file, which has one position for all threads.
        ranges: the file, if it lies on an object store.

    Raises:
        ChunkError: naming the tile or strip that is missing or damaged.
    """
    keyframe = page.keyframe
    if is_plain(page) and ranges is not None:
        found = read_rows(page, page.dataoffsets[0], 0, plane, ranges, url)
        values = np.array(found, dtype=keyframe.dtype.newbyteorder("="))
    elif is_plain(page):
        try:
            found = map_planes(page, page.dataoffsets[0], 1, url)[0]
        except VolumeError as error:
            raise ChunkError(f"chunk page {number} corrupt: {error}") from error
        values = np.array(found[(slice(None), *plane.slices())], dtype=keyframe.dtype.newbyteorder("="))
    else:
        values = _read_segments(page, number, plane, missing, url, lock, ranges)
    if keyframe.photometric == _MIN_IS_WHITE:
        values = ~values if values.dtype.kind == "b" else np.iinfo(values.dtype).max - values
    return values


def _read_segments(
    page: Any, number: int, plane: Box, missing: str, url: str, lock: Lock, ranges: RangeFile | None
) -> NDArray[Any]:
    keyframe = page.keyframe
    samples = keyframe.samplesperpixel
    out = np.zeros((samples, *plane.shape), dtype=keyframe.dtype.newbyteorder("="))
    separate = keyframe.planarconfig == 2 and samples > 1
    indices = list(_segments(keyframe, plane))
    stored = _fetched(page, indices, number, missing, url, lock, ranges)
    for index, data in zip(indices, stored, strict=True):
        if data is None:
            continue
        values, position, shape = _decode(page, data, index, number, url)
        tile = Box((position[2], position[3]), (position[2] + shape[1], position[3] + shape[2]))
        shared = tile.intersect(plane)
        inner = shared.shift((-tile.start[0], -tile.start[1])).slices()
        target = shared.shift((-plane.start[0], -plane.start[1])).slices()
        part = slice(position[0], position[0] + 1) if separate else slice(None)
        out[(part, *target)] = np.moveaxis(values[0][inner], -1, 0)
    return out


def _fetched(
    page: Any, indices: list[int], number: int, missing: str, url: str, lock: Lock, ranges: RangeFile | None
) -> Iterator[bytes | None]:
    """Stored bytes of segments, in their order; those on an object store all at once."""
    if ranges is None:
        for index in indices:
            with lock:
                data = stored_segment(page, index, number, missing, url)
            yield data
        return
    for index in indices:
        _check_present(page, index, number, missing, url)
    places = [(int(page.dataoffsets[index]), int(page.databytecounts[index])) for index in indices]
    for index, (_, size), data in zip(indices, places, ranges.read_places(places), strict=True):
        _check_whole(data, size, index, number, url)
        yield data if size else None


def _check_present(page: Any, index: int, number: int, missing: str, url: str) -> None:
    if page.databytecounts[index] == 0 and missing == "error":
        raise ChunkError(f"chunk tile {index} of page {number} is missing in {url}; use --missing fill to read it as background.")


def _check_whole(data: bytes, size: int, index: int, number: int, url: str) -> None:
    if len(data) != size:
        raise ChunkError(
            f"chunk tile {index} of page {number} corrupt: {len(data)} of {size} bytes in {url}; the file is truncated."
        )


def stored_segment(page: Any, index: int, number: int, missing: str, url: str) -> bytes | None:
    """Stored bytes of a segment; None for one that may be filled."""
    _check_present(page, index, number, missing, url)
    if page.databytecounts[index] == 0:
        return None
    size, file = page.databytecounts[index], page.parent.filehandle
    if file.closed:
        file.open()  # tifffile closes the other files of a set
    file.seek(page.dataoffsets[index])
    data: bytes = file.read(size)
    _check_whole(data, size, index, number, url)
    return data


def _decode(page: Any, data: bytes, index: int, number: int, url: str) -> tuple[Any, Any, Any]:
    keyframe = page.keyframe
    try:
        values, position, shape = keyframe.decode(data, index, jpegtables=page.jpegtables)
        if values is None:
            raise ValueError("it decodes to nothing")
    except Exception as error:  # codecs raise every kind
        text = " ".join(str(error).split())
        raise ChunkError(
            f"chunk tile {index} of page {number} corrupt: {keyframe.compression.name}: {url}: {text}; restore it from the original."
        ) from error
    return values, position, shape

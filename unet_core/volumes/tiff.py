"""TIFF, OME-TIFF, ImageJ TIFF and Aperio SVS as volumes, tile by tile, through tifffile and imagecodecs."""

from __future__ import annotations

import itertools
import threading
from functools import cached_property
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from unet_core.errors import ChunkError, VolumeError
from unet_core.geometry import Box, Shape
from unet_core.store import local_path
from unet_core.volumes.protocol import LaidOut, Layout, Level, Selection, Volume, check_inside, choose_channels, choose_time
from unet_core.volumes.single_file import fingerprint
from unet_core.volumes.tiff_scale import voxel_size_of

MAX_SEGMENT_BYTES = 512 << 20
# tifffile's letters: S samples, I and Q and R unnamed sequences (taken as sections when they are the only one).
_MEANING = {"T": "t", "C": "c", "S": "c", "Z": "z", "Y": "y", "X": "x", "I": "z", "Q": "z", "R": "z"}


def open_tiff(url: str, selection: Selection) -> Volume:
    """Open a TIFF file.

    Raises:
        VolumeError: if it cannot be read, or holds several images and none is named.
    """
    path, level, series = local_path(url), selection.level, selection.series
    try:
        file = tifffile.TiffFile(path)
        every = file.series
    except PermissionError:
        raise VolumeError(f"permission denied: {url}.") from None
    except Exception as error:  # tifffile raises every kind on damaged files
        raise VolumeError(f"{url} is not a readable TIFF: {type(error).__name__}: {error}.") from error
    if not every:
        raise VolumeError(f"{url} holds no image.")
    if len(every) > 1 and series is None and not file.is_svs:
        names = "; ".join(
            f"--series {number}: {entry.name or 'unnamed'} {entry.shape}" for number, entry in enumerate(every[:12])
        )
        raise VolumeError(f"{url} holds {len(every)} images: {names}; choose one.")
    if not 0 <= (series or 0) < len(every):
        raise VolumeError(f"series {series} of {url} does not exist; it holds {len(every)}.")
    chosen = every[series or 0]
    if level >= len(chosen.levels):
        raise VolumeError(f"level {level} of {url} does not exist; it has levels 0 to {len(chosen.levels) - 1}.")
    return TiffVolume(url, file, series or 0, selection)


class TiffVolume(LaidOut):
    """One level of one series of a TIFF file; only the tiles or strips that meet a box are read."""

    def __init__(self, url: str, file: tifffile.TiffFile, number: int, selection: Selection) -> None:
        series, level = file.series[number], selection.level
        self._file, self._series, self._missing = file, series.levels[level], selection.missing
        self._lock = threading.Lock()
        self._file_axes = _axes(self._series.axes, self._series.shape, url)
        self._time = choose_time(selection.time, self._size("t"), url)
        self._channels = choose_channels(selection.channels, self._size("c"), url)
        keyframe = self._series.keyframe
        if keyframe.dtype is None or keyframe.dtype.kind not in "biuf":
            raise VolumeError(f"unsupported data type {keyframe.dtype} in {url}; integers and floats are read.")
        segment = _segment_shape(keyframe)
        if int(np.prod(segment)) * keyframe.dtype.itemsize * keyframe.samplesperpixel > MAX_SEGMENT_BYTES:
            raise VolumeError(f"chunk larger than max_chunk_bytes: a tile of {segment} in {url}.")
        axes = "".join(axis for axis in "czyx" if axis in self._file_axes)
        finest = voxel_size_of(file, number, axes.removeprefix("c"), url)
        shapes = [_canonical(_axes(entry.axes, entry.shape, url), entry.shape) for entry in series.levels]
        count = len(axes.removeprefix("c"))

        def size(shape: Shape) -> tuple[float, ...] | None:
            if finest is None:
                return None
            pairs = zip(finest, shapes[0][-count:], shape[-count:], strict=True)
            return tuple(step * (whole / part) for step, whole, part in pairs)

        here = size(shapes[level])
        lead = (len(self._channels),) * (len(axes) - count)
        self.layout = Layout(
            url=url,
            level=level,
            axes=axes,
            shape=lead + shapes[level][-count:],
            dtype=keyframe.dtype.newbyteorder("="),
            voxel_size=here,
            scale=here or (1.0,) * count,
            unit="micrometer" if here else None,
            translation=(0.0,) * count,
            levels=tuple(Level(number, lead + shape[-count:], size(shape)) for number, shape in enumerate(shapes)),
            chunk_shape=((1,) if "z" in axes else ()) + segment,
        )

    def _size(self, axis: str) -> int:
        return int(self._series.shape[self._file_axes.index(axis)]) if axis in self._file_axes else 1

    def read(self, box: Box) -> NDArray[Any]:
        check_inside(self, box)
        spatial = dict(zip(self.spatial_axes, box.slices(), strict=True))
        sections = range(spatial["z"].start, spatial["z"].stop) if "z" in spatial else range(1)
        out = np.zeros((self.channel_count, len(sections), *box.shape[-2:]), dtype=self.dtype)
        plane = Box(box.start[-2:], box.stop[-2:])
        samples = "S" in self._series.axes
        for row, z in enumerate(sections):
            if samples:
                out[:, row] = self._read_page(self._page({"t": self._time, "z": z}), plane)[list(self._channels)]
            else:
                for number, channel in enumerate(self._channels):
                    out[number, row] = self._read_page(self._page({"t": self._time, "z": z, "c": channel}), plane)[0]
        return out if "z" in spatial else out[:, 0]

    def _page(self, position: dict[str, int]) -> int:
        """Number of the page that holds a plane: the leading axes in C order."""
        number = 0
        for letter, axis, size in zip(self._series.axes, self._file_axes, self._series.shape, strict=True):
            if letter not in "YXS":
                number = number * int(size) + position[axis]
        return number

    @cached_property
    def _mapped(self) -> NDArray[Any] | None:
        """Uncompressed planes that follow one page without pages of their own (large ImageJ stacks)."""
        planes = int(
            np.prod([size for letter, size in zip(self._series.axes, self._series.shape, strict=True) if letter not in "YXS"])
        )
        if self._series.dataoffset is None or len(self._series.pages) >= planes:
            return None
        height, width = self._size("y"), self._size("x")
        byte_order = self._file.byteorder + self._series.dtype.char
        return np.memmap(self._file.filehandle.path, byte_order, "r", self._series.dataoffset, (planes, height, width))

    def _read_page(self, number: int, plane: Box) -> NDArray[Any]:
        if self._mapped is not None:
            return np.array(self._mapped[number][plane.slices()])[None]
        page: Any = self._series.pages[number]
        if page is None:
            raise ChunkError(f"chunk page {number} is missing in {self.url}; the file is incomplete.")
        keyframe: Any = page.keyframe
        samples = keyframe.samplesperpixel
        out = np.zeros((samples, *plane.shape), dtype=self.dtype)
        height, width = _segment_shape(keyframe)
        across, down = -(-keyframe.imagewidth // width), -(-keyframe.imagelength // height)
        separate = samples if keyframe.planarconfig == 2 and samples > 1 else 1
        rows = range(plane.start[0] // height, -(-plane.stop[0] // height))
        columns = range(plane.start[1] // width, -(-plane.stop[1] // width))
        wanted = [
            (part * down + row) * across + column for part, row, column in itertools.product(range(separate), rows, columns)
        ]
        for index, data in self._segments(page, number, wanted):
            values, position, shape = self._decode(keyframe, data, index, number)
            if values is None:
                continue
            part = position[0]
            tile = Box((position[2], position[3]), (position[2] + shape[1], position[3] + shape[2]))
            shared = tile.intersect(plane)
            inner = shared.shift((-tile.start[0], -tile.start[1])).slices()
            target = shared.shift((-plane.start[0], -plane.start[1])).slices()
            piece = np.moveaxis(values[0][inner], -1, 0)
            out[(slice(part, part + 1) if separate > 1 else slice(None), *target)] = piece
        return out

    def _segments(self, page: Any, number: int, wanted: list[int]) -> list[tuple[int, bytes | None]]:
        """Stored bytes of segments; None for one that may be filled."""
        found: list[tuple[int, bytes | None]] = []
        with self._lock:
            for index in wanted:
                if index >= len(page.databytecounts) or page.databytecounts[index] == 0:
                    if self._missing == "error":
                        raise ChunkError(
                            f"chunk tile {index} of page {number} is missing in {self.url}; use --missing fill to read it as background."
                        )
                    found.append((index, None))
                    continue
                size = page.databytecounts[index]
                self._file.filehandle.seek(page.dataoffsets[index])
                data = self._file.filehandle.read(size)
                if len(data) != size:
                    raise ChunkError(
                        f"chunk tile {index} of page {number} corrupt: {len(data)} of {size} bytes in {self.url}; the file is truncated."
                    )
                found.append((index, data))
        return found

    def _decode(self, keyframe: Any, data: bytes | None, index: int, number: int) -> tuple[Any, Any, Any]:
        try:
            return keyframe.decode(data, index, jpegtables=keyframe.jpegtables)
        except Exception as error:  # codecs raise every kind
            raise ChunkError(
                f"chunk tile {index} of page {number} corrupt: {keyframe.compression.name}: {self.url}: {error}; restore it from the original."
            ) from error

    def fingerprint(self) -> dict[str, str]:
        return fingerprint(local_path(self.url))


def _axes(letters: str, shape: Shape, url: str) -> str:
    """Our name of each dimension of a series."""
    axes = "".join(_MEANING.get(letter, "?") for letter in letters)
    if "?" in axes or len(set(axes)) != len(axes) or not axes.replace("c", "").endswith("yx"):
        raise VolumeError(f"axes: {url} has {letters} {tuple(shape)}; one of each of T C Z Y X (or S) is read.")
    return axes


def _canonical(axes: str, shape: Shape) -> Shape:
    return tuple(int(shape[axes.index(axis)]) for axis in "czyx" if axis in axes)


def _segment_shape(keyframe: Any) -> tuple[int, int]:
    if keyframe.is_tiled:
        return int(keyframe.tilelength), int(keyframe.tilewidth)
    return int(min(keyframe.rowsperstrip, keyframe.imagelength)), int(keyframe.imagewidth)

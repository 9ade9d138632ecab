"""TIFF, OME-TIFF, ImageJ TIFF and Aperio SVS as volumes: which page holds which plane. Pages are read in tiff_pages."""

from __future__ import annotations

import hashlib
import itertools
import logging
import threading
from math import prod
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import tifffile
from numpy.typing import NDArray

from unet_core.errors import ChunkError, InputError, VolumeError
from unet_core.geometry import Box, Shape
from unet_core.store import is_remote, local_path
from unet_core.volumes.protocol import (
    Channel,
    LaidOut,
    Layout,
    Level,
    Selection,
    Volume,
    check_inside,
    choose_channels,
    choose_time,
    name_channels,
    rgb_channels,
)
from unet_core.volumes.range_file import RangeFile, open_object
from unet_core.volumes.single_file import fingerprint
from unet_core.volumes.tiff_pages import (
    absent_segments,
    bands,
    check_page,
    is_plain,
    map_planes,
    read_page,
    read_rows,
    segment_shape,
)
from unet_core.volumes.tiff_scale import channel_names, voxel_size_of

# tifffile's letters: S samples, I and Q and R unnamed sequences (taken as sections when they are the only one).
_MEANING = {"T": "t", "C": "c", "S": "c", "Z": "z", "Y": "y", "X": "x", "I": "z", "Q": "z", "R": "z"}


def open_tiff(url: str, selection: Selection) -> Volume:
    """Open a TIFF file.

    Raises:
        VolumeError: if it cannot be read, or holds several images and none is named.
    """
    level, series = selection.level, selection.series
    ranges = open_object(url) if is_remote(url) else None
    name = None if ranges is None else url.rpartition("/")[2]
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it logs of damaged files is told by the errors here
    try:
        file = tifffile.TiffFile(local_path(url) if ranges is None else cast("IO[bytes]", ranges), name=name)
        every = file.series
    except PermissionError:
        raise VolumeError(f"permission denied: {url}.") from None
    except InputError:  # of the object store
        raise
    except Exception as error:  # tifffile raises every kind on damaged files
        raise VolumeError(f"{url} is not a readable TIFF: {type(error).__name__}: {error}.") from error
    if not every:
        raise VolumeError(f"{url} holds no image; it is cut short or damaged, copy it again from its original.")
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
    return TiffVolume(url, file, series or 0, selection, ranges)


class TiffVolume(LaidOut):
    """One level of one series of a TIFF file; only the tiles or strips that meet a box are read.

    Args:
        ranges: the file, if it lies on an object store.
    """

    def __init__(
        self, url: str, file: tifffile.TiffFile, number: int, selection: Selection, ranges: RangeFile | None = None
    ) -> None:
        series, level = file.series[number], selection.level
        self._file, self._series, self._missing = file, series.levels[level], selection.missing
        self._lock, self._ranges = threading.Lock(), ranges
        self._file_axes = _axes(self._series.axes, self._series.shape, url)
        self._time = choose_time(selection.time, self._size("t"), url)
        self._channels = choose_channels(selection.channels, self._size("c"), url)
        keyframe = self._series.keyframe
        check_page(keyframe, file.is_imagej, url)
        self._in_page = _in_page(self._series, url)
        sizes = zip(self._series.axes, self._series.shape, strict=True)
        planes = prod(size for letter, size in sizes if letter not in self._in_page)
        # Large stacks of ImageJ have one page; their other planes follow it.
        self._offset = self._series.dataoffset if len(self._series.pages) < planes else None
        self._mapped = None if self._offset is None or ranges else map_planes(keyframe, self._offset, planes, url)
        lies_plainly = self._offset is not None or is_plain(keyframe)
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
            dtype=np.dtype(keyframe.dtype).newbyteorder("="),
            voxel_size=here,
            scale=here or (1.0,) * count,
            unit="micrometer" if here else None,
            # Of the first voxel's centre: it lies in the middle of the finest ones that it stands for.
            translation=tuple(
                step / 2 * (1 - part / whole)
                for step, whole, part in zip(here or (1.0,) * count, shapes[0][-count:], shapes[level][-count:], strict=True)
            ),
            levels=tuple(Level(number, lead + shape[-count:], size(shape)) for number, shape in enumerate(shapes)),
            chunk_shape=((1,) if "z" in axes else ()) + (bands(keyframe) if lies_plainly and ranges else segment_shape(keyframe)),
            is_mapped=lies_plainly and ranges is None,
            channels=_named_channels(file, number, self._size("c"), self._channels, url) if "c" in axes else (),
        )

    def _size(self, axis: str) -> int:
        return int(self._series.shape[self._file_axes.index(axis)]) if axis in self._file_axes else 1

    @property
    def _channels_in_page(self) -> bool:
        return len(self._in_page) > 2

    def read(self, box: Box) -> NDArray[Any]:
        check_inside(self, box)
        spatial = dict(zip(self.spatial_axes, box.slices(), strict=True))
        sections = range(spatial["z"].start, spatial["z"].stop) if "z" in spatial else range(1)
        out = np.zeros((self.channel_count, len(sections), *box.shape[-2:]), dtype=self.dtype)
        plane = Box(box.start[-2:], box.stop[-2:])
        samples = self._channels_in_page
        for row, z in enumerate(sections):
            if samples:
                out[:, row] = self._read_plane({"t": self._time, "z": z}, plane)[list(self._channels)]
            else:
                for number, channel in enumerate(self._channels):
                    out[number, row] = self._read_plane({"t": self._time, "z": z, "c": channel}, plane)[0]
        return out if "z" in spatial else out[:, 0]

    def _read_plane(self, position: dict[str, int], plane: Box) -> NDArray[Any]:
        """Samples of one plane, (S, *plane.shape)."""
        number = self._number(position)
        if self._mapped is not None:
            return np.array(self._mapped[number][(slice(None), *plane.slices())])
        if self._offset is not None and self._ranges is not None:
            return read_rows(self._series.keyframe, self._offset, number, plane, self._ranges, self.url)
        page = self._series.pages[number]
        if page is None:
            raise ChunkError(f"chunk page {number} is missing in {self.url}; the file is incomplete.")
        return read_page(page, number, plane, self._missing, self.url, self._lock, self._ranges)

    def _number(self, position: dict[str, int]) -> int:
        """Planes are numbered by the leading axes in C order."""
        number = 0
        for letter, axis, size in zip(self._series.axes, self._file_axes, self._series.shape, strict=True):
            if letter not in self._in_page:
                number = number * int(size) + position[axis]
        return number

    def missing_chunks(self, box: Box | None = None) -> tuple[str, ...]:
        whole = Box.from_shape(self.spatial_shape)
        box = whole if box is None else box.intersect(whole)
        if self._offset is not None or box.is_empty:
            return ()
        sections = range(box.start[0], box.stop[0]) if "z" in self.spatial_axes else range(1)
        channels = (0,) if self._channels_in_page else self._channels
        found: list[str] = []
        for channel, z in itertools.product(channels, sections):
            number = self._number({"t": self._time, "z": z, "c": channel})
            page = self._series.pages[number]
            if page is None:
                found.append(f"page {number}")
            elif not is_plain(page):
                segments = absent_segments(page, Box(box.start[-2:], box.stop[-2:]))
                found += [f"tile {index} of page {number}" for index in segments]
        return tuple(found)

    def fingerprint(self) -> dict[str, str]:
        """Of the file, and of the others over which its planes are spread."""
        if self._ranges is not None:
            return {"size": str(self._ranges.entry.size_bytes), "tag": self._ranges.entry.tag}
        paths = {local_path(self.url).resolve()}
        if "FileName=" in (self._file.ome_metadata or ""):
            paths |= {Path(page.parent.filehandle.path).resolve() for page in self._series.pages if page is not None}
        if len(paths) == 1:
            return fingerprint(local_path(self.url))
        every = "\n".join(f"{path.name} {sorted(fingerprint(path).items())}" for path in sorted(paths))
        return {"files": hashlib.sha256(every.encode()).hexdigest()}


def _named_channels(file: tifffile.TiffFile, number: int, count: int, chosen: tuple[int, ...], url: str) -> tuple[Channel, ...]:
    """What the channels are called: by OME-XML, or the colours of RGB."""
    if file.is_ome:
        names, colors = channel_names(file, number, url)
        if len(names) == count:
            return name_channels(names, colors, chosen)
    return rgb_channels(count, chosen) if int(file.series[number].keyframe.photometric) in (2, 6) else ()


def _in_page(series: tifffile.TiffPageSeries, url: str) -> str:
    """Letters of the axes that lie inside each page; samples of a page may be called C by the series."""
    samples = int(series.keyframe.samplesperpixel)
    if samples == 1 or "S" in series.axes:
        return "YXS" if "S" in series.axes else "YX"
    if "C" not in series.axes or series.shape[series.axes.index("C")] != samples:
        raise VolumeError(
            f"axes: {url} has {series.axes} {tuple(series.shape)}, but each of its pages holds {samples} samples; "
            "save it with one channel a page."
        )
    return "YXC"


def _axes(letters: str, shape: Shape, url: str) -> str:
    """Our name of each dimension of a series."""
    axes = "".join(_MEANING.get(letter, "?") for letter in letters)
    if "?" in axes or len(set(axes)) != len(axes) or not axes.replace("c", "").endswith("yx"):
        raise VolumeError(f"axes: {url} has {letters} {tuple(shape)}; one of each of T C Z Y X (or S) is read.")
    return axes


def _canonical(axes: str, shape: Shape) -> Shape:
    return tuple(int(shape[axes.index(axis)]) for axis in "czyx" if axis in axes)

"""What an opened image offers, whatever its format. Knows no format.

Axes are a subset of ``czyx`` in that order; boxes are over the spatial axes, in voxels of the opened level.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import VolumeError
from unet_core.geometry import Box, Shape

MAX_NAME = 200  # letters of a channel's name that are kept


@dataclass(frozen=True)
class Level:
    """One resolution of an image: number (0 the finest), shape along its axes, voxel size in micrometre or None."""

    index: int
    shape: Shape
    voxel_size: tuple[float, ...] | None


@dataclass(frozen=True)
class Selection:
    """What of a file is meant.

    Args:
        level: resolution, 0 the finest.
        series: which image of a file that holds several; None if it must hold one.
        time: which time point; None if there must be one.
        channels: which channels, in this order; None for all.
        missing: what absent chunks mean: an error when they are read, or background.
    """

    level: int = 0
    series: int | None = None
    time: int | None = None
    channels: tuple[int, ...] | None = None
    missing: Literal["error", "fill"] = "error"


@dataclass(frozen=True)
class Channel:
    """What a channel is called, and its colour for display as six hexadecimal digits, or None."""

    name: str
    color: str | None = None


@dataclass(frozen=True)
class Layout:
    """What is known of an image without reading a voxel.

    Args:
        url: of the image.
        level: which resolution was opened.
        axes: subset of ``czyx``.
        shape: along ``axes``.
        dtype: of the voxels, native byte order.
        voxel_size: along the spatial axes in micrometre; None when the image does not say it.
        scale: as written in the file, along the spatial axes, in ``unit``.
        unit: as written, or None.
        translation: of the first voxel's centre, along the spatial axes, in ``unit``.
        levels: every resolution, the finest first.
        chunk_shape: voxels along the spatial axes that one decode reads.
        is_mapped: whether nothing is decoded: the voxels lie plainly in memory or in a file, and a part of them costs that part.
        channels: names of those that were opened, in their order; empty when the image does not say them.
    """

    url: str
    level: int
    axes: str
    shape: Shape
    dtype: np.dtype[Any]
    voxel_size: tuple[float, ...] | None
    scale: tuple[float, ...]
    unit: str | None
    translation: tuple[float, ...]
    levels: tuple[Level, ...]
    chunk_shape: Shape
    is_mapped: bool = False
    channels: tuple[Channel, ...] = ()


class Volume(Protocol):
    """An image opened at one resolution; nothing is held in memory but what is asked for."""

    layout: Layout

    @property
    def url(self) -> str: ...
    @property
    def level(self) -> int: ...
    @property
    def axes(self) -> str: ...
    @property
    def shape(self) -> Shape: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def voxel_size(self) -> tuple[float, ...] | None: ...
    @property
    def scale(self) -> tuple[float, ...]: ...
    @property
    def unit(self) -> str | None: ...
    @property
    def translation(self) -> tuple[float, ...]: ...
    @property
    def levels(self) -> tuple[Level, ...]: ...
    @property
    def chunk_shape(self) -> Shape: ...
    @property
    def spatial_axes(self) -> str: ...
    @property
    def spatial_shape(self) -> Shape: ...
    @property
    def channel_count(self) -> int: ...

    def read(self, box: Box) -> NDArray[Any]:
        """Voxels of ``box``, which lies inside the volume, of shape (C, *box.shape); C is 1 without a channel axis."""

    def to_dask(self) -> Any:
        """The whole level as a lazy dask array of ``shape``."""

    def fingerprint(self) -> dict[str, str]:
        """Hashes that change when metadata or voxels do."""

    def missing_chunks(self, box: Box | None = None) -> tuple[str, ...]:
        """Keys of the stored chunks that meet ``box`` (everything unless told) and are absent; the first of them, if there are very many.

        Raises:
            ChunkError: if one is there but empty.
        """


class LaidOut:
    """The properties of ``Volume`` that follow from its layout, and lazy dask arrays from ``read``."""

    layout: Layout

    @property
    def url(self) -> str:
        return self.layout.url

    @property
    def level(self) -> int:
        return self.layout.level

    @property
    def axes(self) -> str:
        return self.layout.axes

    @property
    def shape(self) -> Shape:
        return self.layout.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.layout.dtype

    @property
    def voxel_size(self) -> tuple[float, ...] | None:
        return self.layout.voxel_size

    @property
    def scale(self) -> tuple[float, ...]:
        return self.layout.scale

    @property
    def unit(self) -> str | None:
        return self.layout.unit

    @property
    def translation(self) -> tuple[float, ...]:
        return self.layout.translation

    @property
    def levels(self) -> tuple[Level, ...]:
        return self.layout.levels

    @property
    def chunk_shape(self) -> Shape:
        return self.layout.chunk_shape

    @property
    def spatial_axes(self) -> str:
        return self.axes.removeprefix("c")

    @property
    def spatial_shape(self) -> Shape:
        return self.shape[-len(self.spatial_axes) :]

    @property
    def channel_count(self) -> int:
        return self.shape[0] if self.axes.startswith("c") else 1

    def read(self, box: Box) -> NDArray[Any]:
        raise NotImplementedError

    def missing_chunks(self, box: Box | None = None) -> tuple[str, ...]:
        return ()

    def to_dask(self) -> Any:
        """The whole level as a lazy dask array of ``shape``; each of its chunks is one ``read``."""
        import dask.array

        has_channels = self.axes.startswith("c")
        block = tuple(max(size, 1) * max(1, 512 // max(size, 1)) for size in self.chunk_shape)
        spatial = dask.array.core.normalize_chunks(block, self.spatial_shape)
        chunks = ((self.channel_count,), *spatial) if has_channels else spatial

        def load(block_info: Any = None) -> NDArray[Any]:
            location = block_info[None]["array-location"][-len(self.spatial_axes) :]
            values = self.read(Box(tuple(first for first, _ in location), tuple(last for _, last in location)))
            return values if has_channels else values[0]

        return dask.array.map_blocks(load, chunks=chunks, dtype=self.dtype, meta=np.empty((0,) * len(self.shape), self.dtype))


def choose_time(time: int | None, count: int, url: str) -> int:
    """The time point to read.

    Raises:
        VolumeError: if there are several and none is named, or the named one does not exist.
    """
    if time is None and count > 1:
        raise VolumeError(
            f"{url} has {count} time points; choose one with --time 0 to {count - 1}; each gets an output of its own."
        )
    if time is not None and not 0 <= time < count:
        raise VolumeError(f"time point {time} of {url} does not exist; it has {count}.")
    return time or 0


def choose_channels(channels: tuple[int, ...] | None, count: int, url: str) -> tuple[int, ...]:
    """The channels to read, in the order asked for.

    Args:
        channels: numbers from 0, or None for all.
        count: that the image has; 1 without a channel axis.

    Raises:
        VolumeError: if one does not exist.
    """
    chosen = tuple(range(count)) if channels is None else channels
    if count == 1 and chosen != (0,):
        asked = f"channel{'s' if len(chosen) > 1 else ''} {', '.join(map(str, chosen))}"
        raise VolumeError(f"{asked} of {url}: it has one, number 0; leave the choice of channels (--channels) out.")
    for channel in chosen:
        if not 0 <= channel < count:
            raise VolumeError(f"channel {channel} of {url} does not exist; it has channels 0 to {count - 1}.")
    return chosen


def name_channels(names: Sequence[str | None], colors: Sequence[str | None], chosen: tuple[int, ...]) -> tuple[Channel, ...]:
    """Names of the chosen channels; empty unless each of the image's has one.

    Args:
        names: of all channels of the image, as written.
        colors: of each, as six hexadecimal digits, or None.
        chosen: which are read, in their order.
    """
    if not names or max(chosen) >= len(names) or not all(name and name.isprintable() for name in names):
        return ()
    known = [color if color and re.fullmatch("[0-9A-Fa-f]{6}", color) else None for color in colors]
    return tuple(Channel(str(names[number])[:MAX_NAME], known[number]) for number in chosen)


def rgb_channels(count: int, chosen: tuple[int, ...]) -> tuple[Channel, ...]:
    """Names of colours that are stored as red, green, blue and perhaps alpha."""
    if count not in (3, 4):
        return ()
    every = (Channel("red", "FF0000"), Channel("green", "00FF00"), Channel("blue", "0000FF"), Channel("alpha", "FFFFFF"))
    return tuple(every[number] for number in chosen)


def check_inside(volume: LaidOut | Volume, box: Box) -> None:
    """Refuse a box that is not inside the volume.

    Raises:
        VolumeError: naming both; boxes that hang over are for ``read_reflected``.
    """
    if box.ndim != len(volume.spatial_shape) or not Box.from_shape(volume.spatial_shape).contains(box):
        raise VolumeError(
            f"Box {box} does not lie inside {volume.url}, which has {volume.spatial_shape} voxels ({volume.spatial_axes})."
        )


def check_intensity_dtype(volume: Volume, cast: bool) -> None:
    """Refuse intensities that float32 does not hold exactly.

    Raises:
        VolumeError: unless ``cast`` allows it.
    """
    kind, size = volume.dtype.kind, volume.dtype.itemsize
    exact = kind == "b" or (kind in "iu" and size <= 2) or (kind == "f" and size <= 4)
    if not exact and not cast:
        raise VolumeError(
            f"need an integer or float type that float32 holds exactly, or --cast; got {volume.dtype} in {volume.url}."
        )

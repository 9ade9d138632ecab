"""Whole-slide images of other makers than Aperio, through OpenSlide: NDPI, MRXS, SCN, BIF, DICOM and more. SVS is read as TIFF.

OpenSlide gives red, green, blue and how much of a voxel was scanned. What was not (MRXS stores fields of view that hold tissue) has
the background colour that the slide states, or white.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import ChunkError, VolumeError
from unet_core.geometry import BlockGrid, Box, Shape
from unet_core.store import local_path
from unet_core.volumes.protocol import (
    LaidOut,
    Layout,
    Level,
    Selection,
    Volume,
    check_inside,
    choose_channels,
    rgb_channels,
)
from unet_core.volumes.single_file import fingerprint

CHUNK_SIDE = 512  # about which a chunk is, in whole tiles of the slide
_MOST_TILE = 4096
_LEFT_TO_TIFFFILE = (None, "aperio", "generic-tiff")
_WHITE = "FFFFFF"


def slide_vendor(path: Path) -> str | None:
    """Whose format a file has, if it is a slide that is to be read here; None for all others, also where OpenSlide cannot be loaded."""
    try:
        import openslide
    except (ImportError, OSError):
        return None
    vendor = openslide.OpenSlide.detect_format(str(path))
    return None if vendor in _LEFT_TO_TIFFFILE else vendor


def open_slide(url: str, selection: Selection) -> Volume:
    """Open a slide at one of its levels as ``cyx``, red, green and blue.

    Raises:
        VolumeError: if OpenSlide cannot read it, with its reason.
    """
    import openslide

    if selection.series or selection.time:
        raise VolumeError(f"{url} is a single slide; leave --series and --time away.")
    path = local_path(url)
    try:
        slide = openslide.OpenSlide(str(path))
    except PermissionError:
        raise VolumeError(f"permission denied: {url}.") from None
    except (openslide.OpenSlideError, OSError) as error:
        raise VolumeError(
            f"{url} is not a readable slide: {' '.join(str(error).split())[:300]}; copy it again from its original."
        ) from error
    return SlideVolume(url, path, slide, selection)


class SlideVolume(LaidOut):
    """One level of a slide, read in chunks at fixed positions, so that a voxel has one value however it is asked for.

    On levels that are not a whole number of times coarser than the finest, OpenSlide places each chunk within half a voxel of the finest.
    """

    def __init__(self, url: str, path: Path, slide: Any, selection: Selection) -> None:
        sizes: list[Shape] = [(int(height), int(width)) for width, height in slide.level_dimensions]
        level = selection.level
        if level >= len(sizes):
            raise VolumeError(f"level {level} of {url} does not exist; it has levels 0 to {len(sizes) - 1}.")
        self._path, self._slide, self._downsample = path, slide, float(slide.level_downsamples[level])
        self._channels = choose_channels(selection.channels, 3, url)
        background = str(slide.properties.get("openslide.background-color", _WHITE)).rjust(6, "0")
        self._background = np.array(list(bytes.fromhex(background)), dtype=np.uint16)
        finest = _voxel_size(slide.properties)

        def size(shape: Shape) -> tuple[float, ...] | None:
            return finest and tuple(step * (whole / part) for step, whole, part in zip(finest, sizes[0], shape, strict=True))

        here, lead = size(sizes[level]), (len(self._channels),)
        self.layout = Layout(
            url=url,
            level=level,
            axes="cyx",
            shape=lead + sizes[level],
            dtype=np.dtype(np.uint8),
            voxel_size=here,
            scale=here or (1.0, 1.0),
            unit="micrometer" if here else None,
            # Of the first voxel's centre: it lies in the middle of the finest ones that it stands for.
            translation=tuple(
                step / 2 * (1 - part / whole)
                for step, whole, part in zip(here or (1.0, 1.0), sizes[0], sizes[level], strict=True)
            ),
            levels=tuple(Level(number, lead + shape, size(shape)) for number, shape in enumerate(sizes)),
            chunk_shape=_chunk_shape(slide.properties, level),
            channels=rgb_channels(3, self._channels),
        )

    def read(self, box: Box) -> NDArray[Any]:
        check_inside(self, box)
        out = np.empty((self.channel_count, *box.shape), dtype=np.uint8)
        grid = BlockGrid(self.spatial_shape, self.chunk_shape)
        for number in grid.touching(box):
            chunk = grid.block(number)
            shared = chunk.intersect(box)
            values = self._read_chunk(chunk)[(slice(None), *shared.shift(tuple(-first for first in chunk.start)).slices())]
            out[(slice(None), *shared.shift(tuple(-first for first in box.start)).slices())] = values
        return out

    def _read_chunk(self, chunk: Box) -> NDArray[np.uint8]:
        location = [round(first * self._downsample) for first in chunk.start]
        height, width = chunk.shape
        with _reading(f"chunk {chunk} of level {self.level} corrupt: {self.url}"):
            picture = self._slide.read_region((location[1], location[0]), self.level, (width, height))
        values = np.asarray(picture)  # (Y, X, RGBA)
        alpha = values[..., 3:].astype(np.uint16)
        colours = values[..., :3]
        if not (alpha == 255).all():
            colours = ((colours * alpha + self._background * (255 - alpha) + 127) // 255).astype(np.uint8)
        return np.moveaxis(colours, -1, 0)[list(self._channels)]

    def fingerprint(self) -> dict[str, str]:
        """Of the file, and of the others beside it that slides of several files have."""
        others = sorted(_companions(self._path))
        if not others:
            return fingerprint(self._path)
        listed = [f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in others]
        return {**fingerprint(self._path), "files": hashlib.sha256("\n".join(listed).encode()).hexdigest()}


@contextmanager
def _reading(what: str) -> Iterator[None]:
    import openslide

    try:
        yield
    except openslide.OpenSlideError as error:
        raise ChunkError(f"{what}: {' '.join(str(error).split())[:200]}; restore it from the original.") from error


def _companions(path: Path) -> Iterator[Path]:
    """Other files of a slide: the folder of an MRXS, and the other instances of a DICOM series."""
    if path.suffix.lower() == ".mrxs":
        yield from (entry for entry in path.with_suffix("").iterdir() if entry.is_file())
    elif path.suffix.lower() == ".dcm" or not path.suffix:
        with path.open("rb") as file:
            if not is_dicom(file.read(132)):
                return
        yield from (entry for entry in path.parent.iterdir() if entry.is_file() and entry.suffix == path.suffix)


def is_dicom(head: bytes) -> bool:
    return head[128:132] == b"DICM"


def _voxel_size(properties: Any) -> tuple[float, float] | None:
    """Micrometre along y and x of the finest level."""
    try:
        found = float(properties["openslide.mpp-y"]), float(properties["openslide.mpp-x"])
    except (KeyError, ValueError):
        return None
    return found if all(math.isfinite(step) and step > 0 for step in found) else None


def _chunk_shape(properties: Any, level: int) -> Shape:
    """Whole tiles of the slide, about ``CHUNK_SIDE`` voxels; tiles that are as large as pages count as none."""
    sides = []
    for name in ("height", "width"):
        text = str(properties.get(f"openslide.level[{level}].tile-{name}", ""))
        tile = int(text) if text.isdecimal() else 0
        sides.append(tile * max(1, CHUNK_SIDE // tile) if 0 < tile <= _MOST_TILE else CHUNK_SIDE)
    return tuple(sides)

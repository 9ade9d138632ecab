"""A label image as pyramidal OME-TIFF: BigTIFF, tiled, compressed, written plane by plane while a few chunks are in memory.

Pages hold one section each, the chunks that are read several. What is read is compressed at once and waits on the disk until its
page is written. Coarser levels are those of the output; OME-TIFF has them in y and x only, so that a section shows the coarse one
that it lies in. Format: OME-TIFF 6 (docs.openmicroscopy.org/ome-model), sub-resolutions in SubIFDs.
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from unet_core.errors import JobError
from unet_core.exports.naming import objects_of
from unet_core.geometry import BlockGrid, Box
from unet_core.plan import ImagePlan
from unet_core.result import Result
from unet_core.volumes import Volume

if TYPE_CHECKING:
    from unet_core.exports.exporting import Options

_TILE = 512
_LEVEL = 6


def write_ome_tiff(result: Result, image: ImagePlan, path: Path, name: str, options: Options) -> dict[str, Any]:
    """Write every level of a label image.

    Args:
        result: complete.
        image: the instances (written as uint32, since OME-TIFF has no larger integers), or another label image.
        path: of the new file.
        name: that it will have.
        options: none is heeded.

    Returns:
        Shape, type and number of levels.

    Raises:
        JobError: if an id does not fit.
    """
    dtype = np.dtype(image.dtype)
    if image.kind == "instances":
        largest = int(objects_of(result, measurements=False).label.max(initial=0))
        if largest >= 2**32:
            raise JobError(f"OME-TIFF holds ids up to {2**32 - 1}, this image has {largest}; export it as precomputed.")
        dtype = np.dtype(np.uint32)
    volumes = [result.volume(image.path, level) for level in range(len(result.plan.levels))]
    finest = volumes[0]
    sections = finest.shape[0] if "z" in finest.axes else 1
    with tempfile.TemporaryFile(dir=path.parent) as waiting, tifffile.TiffWriter(path, bigtiff=True, ome=True) as file:
        for volume in volumes:
            is_first = volume is finest
            file.write(
                _tiles(volume, dtype, sections, waiting),
                shape=(*((sections,) if "z" in finest.axes else ()), *volume.shape[-2:]),
                dtype=dtype,
                tile=(_TILE, _TILE),
                compression="zlib",
                photometric="minisblack",
                subifds=len(volumes) - 1 if is_first else None,
                subfiletype=0 if is_first else 1,
                metadata=_metadata(volume, image.path) if is_first else None,
                software="unet-flows",
                datetime=None,
            )
    return {"shape": list(finest.shape), "dtype": str(dtype), "levels": len(volumes)}


def _metadata(volume: Volume, name: str) -> dict[str, Any]:
    sizes: dict[str, Any] = {"axes": volume.axes.upper(), "Name": name}
    for axis, step in zip(volume.axes, volume.voxel_size or (), strict=False):
        sizes |= {f"PhysicalSize{axis.upper()}": step, f"PhysicalSize{axis.upper()}Unit": "µm"}
    return sizes


def _tiles(volume: Volume, dtype: np.dtype[Any], sections: int, waiting: IO[bytes]) -> Iterator[bytes]:
    """Compressed tiles of a level, those of one section after another, as often as the finest level has sections."""
    grid = BlockGrid(volume.shape[-2:], (_TILE, _TILE))
    if "z" not in volume.axes:
        for box in grid.blocks():
            yield _compressed(volume.read(box)[0], dtype)
        return
    own, depth = volume.shape[0], volume.chunk_shape[0]
    for first in range(0, own, depth):
        stop = min(first + depth, own)
        waiting.seek(0)
        places = np.zeros((stop - first, grid.block_count, 2), dtype=np.int64)
        for index, box in enumerate(grid.blocks()):
            for number, section in enumerate(volume.read(Box((first, *box.start), (stop, *box.stop)))[0]):
                places[number, index] = waiting.tell(), waiting.write(_compressed(section, dtype))
        for section in range(sections):
            coarse = section * own // sections
            if first <= coarse < stop:
                for place, size in places[coarse - first].tolist():
                    waiting.seek(place)
                    yield waiting.read(size)


def _compressed(values: NDArray[Any], dtype: np.dtype[Any]) -> bytes:
    tile = np.zeros((_TILE, _TILE), dtype=dtype)
    tile[: values.shape[0], : values.shape[1]] = values
    return zlib.compress(tile.tobytes(), _LEVEL)

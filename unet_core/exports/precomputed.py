"""A label image as Neuroglancer precomputed segmentation: sharded, compressed, all levels, with properties of its segments.

Written by tensorstore, one shard after another. Format: github.com/google/neuroglancer, src/datasource/precomputed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import JobError
from unet_core.exports.segment_properties import segment_properties
from unet_core.geometry import BlockGrid, Box, Shape
from unet_core.plan import ImagePlan
from unet_core.result import Result
from unet_core.volumes import Volume

if TYPE_CHECKING:
    from unet_core.exports.exporting import Options

try:
    import tensorstore
except ImportError:
    raise JobError(
        "The format precomputed needs tensorstore, which is not installed; pip install 'unet-flows[precomputed]'."
    ) from None

_PROPERTIES = "segment_properties"
_CHUNK = {1: (512, 512, 1), 3: (64, 64, 64)}  # x, y, z; of one section, of several
_SHARD = {1: (2048, 2048, 1), 3: (256, 256, 256)}
_NM = 1000.0  # in a micrometre


def write_precomputed(result: Result, image: ImagePlan, path: Path, name: str, options: Options) -> dict[str, Any]:
    """Write every level of a label image, and what is known of its segments.

    Args:
        result: complete.
        image: the instances, or another label image.
        path: of the new folder.
        name: that it will have.
        options: measurements are heeded.

    Returns:
        Levels, segments, their number properties, and notes on what the format cannot say.
    """
    levels = range(len(result.plan.levels))
    notes: list[str] = []
    origin: Shape | None = None
    finest = result.volume(image.path)
    for level in levels:
        volume = result.volume(image.path, level)
        if origin is None:
            origin = _origin(volume, notes)
        _write_level(volume, level, path, _coarser(origin, finest, volume, notes))
    properties, count, numbers = segment_properties(result, image, options.measurements)
    (path / _PROPERTIES).mkdir()
    (path / _PROPERTIES / "info").write_bytes(properties)
    info = json.loads((path / "info").read_bytes()) | {_PROPERTIES: _PROPERTIES}
    (path / "info").write_text(json.dumps(info))
    return {"levels": len(levels), "segments": count, "properties": numbers, "notes": notes}


def _write_level(volume: Volume, level: int, path: Path, origin: Shape) -> None:
    size = _xyz(volume.spatial_shape, 1)
    flat = 1 if size[2] == 1 else 3
    store: Any = tensorstore.open(
        {
            "driver": "neuroglancer_precomputed",
            "kvstore": {"driver": "file", "path": f"{path}/"},
            "multiscale_metadata": {"type": "segmentation", "data_type": "uint64", "num_channels": 1},
            "scale_metadata": {
                "key": str(level),
                "resolution": list(_resolution(volume)),
                "size": list(size),
                "voxel_offset": list(origin),
                "encoding": "compressed_segmentation",
                "compressed_segmentation_block_size": [8, 8, 1 if flat == 1 else 8],
            },
            "schema": {
                "chunk_layout": {
                    "read_chunk": {"shape_soft_constraint": [*_CHUNK[flat], 1]},
                    "write_chunk": {"shape_soft_constraint": [*_SHARD[flat], 1]},
                }
            },
            "create": True,
            "open": True,
        }
    ).result()
    shard = tuple(int(extent) for extent in store.chunk_layout.write_chunk.shape[:3])
    for box, values in _shards(volume, size, shard):
        if values.any():
            store[(*box.shift(origin).slices(), 0)].write(values).result()


def _shards(volume: Volume, size: Shape, shard: Shape) -> Iterator[tuple[Box, NDArray[Any]]]:
    """Boxes of whole shards along x, y and z, and their voxels."""
    for box in BlockGrid(size, shard).blocks():
        own = Box(*(ends[::-1][-len(volume.spatial_shape) :] for ends in (box.start, box.stop)))
        values = volume.read(own)[0].reshape(box.shape[::-1])
        yield box, values.transpose().astype(np.uint64, copy=False)


def _xyz(values: tuple[Any, ...], lacking: Any) -> tuple[Any, ...]:
    """Values along (z,) y, x in the order x, y, z."""
    return (*values[::-1], lacking)[:3]


def _resolution(volume: Volume) -> tuple[float, ...]:
    """Nanometres along x, y and z; a single section is as thick as its voxels are wide, and an unknown length is a nanometre."""
    if volume.voxel_size is None:
        return tuple(step / volume.scale[-1] for step in _xyz(volume.scale, volume.scale[-1]))
    return tuple(round(step * _NM, 9) for step in _xyz(volume.voxel_size, volume.voxel_size[-1]))


def _origin(volume: Volume, notes: list[str]) -> Shape:
    """Whole voxels before the first one, along x, y and z."""
    if volume.voxel_size is None:
        notes.append("the voxel size is not known; the format wants one, and nanometres are stated")
    exact = [move / step for move, step in zip(volume.translation, volume.scale, strict=True)]
    origin = tuple(int(np.floor(value + 0.5)) for value in exact)
    if any(abs(value - whole) > 0.01 for value, whole in zip(exact, origin, strict=True)):
        told = ", ".join(f"{axis} {value - whole:+.2f}" for axis, value, whole in zip(volume.axes, exact, origin, strict=True))
        notes.append(f"the format places whole voxels only; these lie off by a fraction of one ({told})")
    return _xyz(origin, 0)


def _coarser(origin: Shape, finest: Volume, volume: Volume, notes: list[str]) -> Shape:
    """The origin in voxels of a coarser level."""
    factor = _xyz(tuple(round(here / there) for here, there in zip(volume.scale, finest.scale, strict=True)), 1)
    if any(first % step for first, step in zip(origin, factor, strict=True)):
        notes.append(f"level {volume.level} lies off by less than one of its voxels: it begins at no whole one")
    return tuple(first // step for first, step in zip(origin, factor, strict=True))

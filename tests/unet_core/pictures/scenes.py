"""Scenes over arrays in memory, whose reads are counted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.downsampling import downsample
from unet_core.geometry import BlockGrid, Box, Shape
from unet_core.pictures import Scene, ShownClass
from unet_core.volumes.array import ArrayVolume

CLASSES = (ShownClass("one", 1, "#ff0000", "labels/classes"), ShownClass("two", 2, "#0000ff", "labels/classes"))


@dataclass
class Counted(ArrayVolume):
    """Remembers how many voxels were read at once, and in all."""

    array: NDArray[Any]
    axes_: str
    reads: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(self.array, self.axes_)

    def read(self, box: Box) -> NDArray[Any]:
        self.reads.append(box.voxel_count)
        return super().read(box)


def scene_of(
    image: NDArray[Any] | tuple[NDArray[Any], ...],
    labels: NDArray[Any],
    block_shape: Shape,
    factors: tuple[Shape, ...] | None = None,
    ids: NDArray[Any] | None = None,
    undone: tuple[int, ...] = (),
) -> Scene:
    """A scene of an image (C, ...), or levels of it, and labels (...); coarser levels of these are made as an output has them."""
    axes = "zyx"[-labels.ndim :]
    factors = factors or ((1,) * labels.ndim,)
    stored = {("labels/classes", n): downsample(labels, factor, "labels") for n, factor in enumerate(factors)}
    if ids is not None:
        stored["labels/instances", 0] = ids
    volumes = {key: Counted(values, axes) for key, values in stored.items()}
    levels = image if isinstance(image, tuple) else (image,)
    grid = BlockGrid(labels.shape, block_shape)
    done = np.ones(grid.block_count, dtype=bool)
    done[list(undone)] = False
    return Scene(
        axes=axes,
        shape=labels.shape,
        spacing=(1.0,) * labels.ndim,
        classes=CLASSES,
        factors=factors,
        open_labels=lambda path, level: volumes[path, level],
        ids_path=None if ids is None else "labels/instances",
        ids_of="labels/classes",
        sources=tuple(Counted(level, f"c{axes}") for level in levels),
        dtype=levels[0].dtype,
        done=done.reshape(grid.counts),
        grid=grid,
    )

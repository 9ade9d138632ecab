"""An image in memory, as a volume: for tests, notebooks, and formats that are decoded whole."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import VolumeError
from unet_core.geometry import Box
from unet_core.volumes.protocol import LaidOut, Layout, Level, check_inside


class ArrayVolume(LaidOut):
    """A numpy array as a volume.

    Args:
        array: of ``len(axes)`` dimensions; not copied.
        axes: subset of ``czyx`` in that order.
        voxel_size: along the spatial axes in micrometre, or None.
        url: for messages.
    """

    def __init__(
        self, array: NDArray[Any], axes: str = "yx", voxel_size: tuple[float, ...] | None = None, url: str = "memory"
    ) -> None:
        if axes not in ("yx", "zyx", "cyx", "czyx") or array.ndim != len(axes):
            raise VolumeError(f"axes: '{axes}' for {array.ndim} dims; use yx, zyx, cyx or czyx with one letter a dimension.")
        self._array = array
        spatial = len(axes.removeprefix("c"))
        self.layout = Layout(
            url=url,
            level=0,
            axes=axes,
            shape=array.shape,
            dtype=array.dtype,
            voxel_size=voxel_size,
            scale=voxel_size or (1.0,) * spatial,
            unit="micrometer" if voxel_size else None,
            translation=(0.0,) * spatial,
            levels=(Level(0, array.shape, voxel_size),),
            chunk_shape=array.shape[-spatial:],
            is_mapped=True,
        )

    def read(self, box: Box) -> NDArray[Any]:
        check_inside(self, box)
        values = self._array[(slice(None),) * (self._array.ndim - box.ndim) + box.slices()]
        return np.array(values if self.axes.startswith("c") else values[None])

    def fingerprint(self) -> dict[str, str]:
        return {"content": hashlib.sha256(np.ascontiguousarray(self._array).tobytes()).hexdigest()}

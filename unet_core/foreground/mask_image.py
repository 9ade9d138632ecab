"""A mask as an image of any format and resolution: what is not 0 is foreground. Read as blocks ask for it, never whole if it is large."""

from __future__ import annotations

import hashlib
from math import ceil, floor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import VolumeError
from unet_core.geometry import Box, Shape
from unet_core.inputs import Source
from unet_core.plan import canonical_json
from unet_core.volumes import Volume, open_volume
from unet_core.volumes.chunk_cache import CachedVolume, ChunkCache, cache_bytes

KEPT_VOXELS = 1 << 26  # of a mask that is read at once
LENGTH_TOLERANCE = 0.03  # of the extent; voxel sizes are often rounded


class MaskImage:
    """Foreground where an image that covers the same extent is not 0.

    Args:
        volume: of the mask; one channel.
        shape: of the image, spatial.
        voxel_size: of the image in micrometre, if known.

    Raises:
        VolumeError: if the mask does not cover the image's extent, with both shapes.
    """

    kind = "image"

    def __init__(self, volume: Volume, shape: Shape, voxel_size: tuple[float, ...] | None) -> None:
        self.source = volume.url
        self.sha256 = hashlib.sha256(canonical_json(volume.fingerprint())).hexdigest()
        self.scale = scale_of(volume, shape, voxel_size)
        self._shape = volume.spatial_shape[-len(shape) :]
        self.facts: dict[str, Any] = {"shape": list(self._shape)}
        self._lead = len(volume.spatial_shape) - len(shape)
        # What is read of a mask for a block is smaller than the block, unless the mask is finer than the image.
        self._volume = CachedVolume(ChunkCache(volume, cache_bytes(volume, volume.chunk_shape)))
        self._whole = self._values(Box.from_shape(self._shape)) if np.prod(self._shape) <= KEPT_VOXELS else None

    def touches(self, box: Box) -> bool:
        start = (floor(first / step) for first, step in zip(box.start, self.scale, strict=True))
        stop = (ceil(last / step) for last, step in zip(box.stop, self.scale, strict=True))
        inside = Box(tuple(start), tuple(stop)).intersect(Box.from_shape(self._shape))
        return bool((self._values(inside) if self._whole is None else self._whole[inside.slices()]).any())

    def _values(self, box: Box) -> NDArray[np.bool_]:
        values = self._volume.read(Box((0,) * self._lead + box.start, (1,) * self._lead + box.stop))
        return np.asarray(values != 0).reshape(box.shape)


def open_mask_image(url: str, source: Source, voxel_size: tuple[float, ...] | None) -> MaskImage:
    """The mask at a URL, of the extent of an image.

    Raises:
        VolumeError: if it cannot be opened, has several channels, or another extent.
    """
    volume = open_volume(url, missing="fill")  # absent chunks of a label image are background
    if volume.channel_count != 1:
        raise VolumeError(
            f"Mask {url} has {volume.channel_count} channels; give an image of one, in which 0 is background and anything else foreground."
        )
    return MaskImage(volume, source.spatial_shape, voxel_size)


def scale_of(volume: Volume, shape: Shape, voxel_size: tuple[float, ...] | None) -> tuple[float, ...]:
    """Voxels of an image that one voxel of its mask covers, along each axis of the image.

    A mask covers the image if both have the same extent, to one voxel of the mask: in micrometre where both state their voxel size, else
    at one scale for all axes; or with as many sections as the image.

    Raises:
        VolumeError: if it does not, with both values.
    """
    sizes, lead = volume.spatial_shape, len(volume.spatial_shape) - len(shape)
    if lead < 0 or any(size != 1 for size in sizes[:lead]):
        raise VolumeError(
            f"Mask {volume.url} has {sizes} voxels ({volume.spatial_axes}), the image {shape}; give a mask of the same axes."
        )
    own = sizes[lead:]
    if volume.voxel_size and voxel_size:
        stated = volume.voxel_size[lead:]
        lengths = zip(own, stated, shape, voxel_size, strict=True)
        if any(abs(part * step - whole * size) > step + LENGTH_TOLERANCE * whole * size for part, step, whole, size in lengths):
            raise VolumeError(
                f"Mask {volume.url} covers {_um(own, stated)}, the image {_um(shape, voxel_size)}; give a mask of the same extent, or "
                "correct its voxel size."
            )
    elif not _has_one_scale(own, shape):
        raise VolumeError(
            f"Mask {volume.url} has {own} voxels, the image {shape}, which is not the same extent at any scale; give a mask that covers "
            "the whole image and nothing else."
        )
    return tuple(whole / part for whole, part in zip(shape, own, strict=True))


def _has_one_scale(own: Shape, shape: Shape) -> bool:
    """Whether the sides of one shape are those of another at some scale; those of levels are rounded up or down."""
    if len(shape) == 3 and own[0] == shape[0]:
        own, shape = own[1:], shape[1:]
    scales = [whole / part for whole, part in zip(shape, own, strict=True)]
    return any(
        all(abs(part * scale - whole) <= max(scale, 1) for part, whole in zip(own, shape, strict=True)) for scale in scales
    )


def _um(shape: Shape, voxel_size: tuple[float, ...]) -> str:
    return " x ".join(f"{size * step:.4g}" for size, step in zip(shape, voxel_size, strict=True)) + " um"

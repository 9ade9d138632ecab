"""The volume that a job means: opened, at the resolution of the model, with the axes the network works on. Reads no voxel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import VolumeError
from unet_core.geometry import Box
from unet_core.volumes import Volume, check_intensity_dtype, open_volume

if TYPE_CHECKING:
    from unet_core.job import SegmentationJob
    from unet_core.model_package import ModelDescription

LEVEL_TOLERANCE = 0.1  # a level whose voxels differ by less than this from the model's is taken
_UNIT_UM = {"micrometer": 1.0, "nanometer": 1e-3, "millimeter": 1e3, "meter": 1e6, "angstrom": 1e-4, "centimeter": 1e4}


@dataclass(frozen=True)
class Input:
    """A volume with the geometry that the plan works in.

    Args:
        volume: the opened image at the chosen level.
        axes: spatial axes that the network sees; a z axis of one section is left out for 2D networks.
        voxel_size: along ``axes`` in micrometre, or None when unknown.
        scale: what the output states, along ``axes``, in ``unit``.
        translation: likewise.
        unit: of both, or None.
    """

    volume: Volume
    axes: str
    voxel_size: tuple[float, ...] | None
    scale: tuple[float, ...]
    translation: tuple[float, ...]
    unit: str | None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.volume.spatial_shape[-len(self.axes) :]

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def channel_count(self) -> int:
        return self.volume.channel_count

    def missing_chunks(self, box: Box) -> tuple[str, ...]:
        """Keys of absent chunks of the image that ``box``, which may hang over, meets; its mirrored part needs no others."""
        lead = len(self.volume.spatial_axes) - len(self.axes)
        return self.volume.missing_chunks(Box((0,) * lead + box.start, (1,) * lead + box.stop))

    def read(self, box: Box) -> NDArray[Any]:
        """Voxels of ``box`` (over ``axes``), of shape (C, *box.shape)."""
        if len(self.axes) == len(self.volume.spatial_axes):
            return self.volume.read(box)
        section: NDArray[Any] = self.volume.read(Box((0, *box.start), (1, *box.stop)))[:, 0]
        return section


def open_input(job: SegmentationJob, model: ModelDescription, dims: int) -> Input:
    """Open the job's image at the level that fits the model.

    Args:
        job: what the user asked.
        model: what it was trained on.
        dims: spatial axes of its network.

    Raises:
        VolumeError: if the image does not fit the model, with both values and what to do.
    """
    level = choose_level(job, model, dims)
    volume = open_volume(job.image, level, series=job.series, time=job.time, missing=job.missing)
    axes = _network_axes(volume, dims, model.name)
    if volume.channel_count != len(model.input_channels):
        raise VolumeError(
            f"model wants {len(model.input_channels)} channels ({', '.join(model.input_channels)}), image has {volume.channel_count}: "
            f"{job.image}; choose a model for this kind of image."
        )
    check_intensity_dtype(volume, job.cast)
    if min(volume.shape) < 1:
        raise VolumeError(f"array is empty: {job.image} has shape {volume.shape}.")
    if job.missing == "error" and (missing := volume.missing_chunks()):
        raise VolumeError(
            f"chunk {missing[0]} is missing ({len(missing)} in all) in {job.image}; use --missing fill to read absent chunks as background."
        )
    keep = len(axes)
    stated = _stated_voxel_size(job, volume)
    if stated is not None:
        size = stated[-keep:]
        translation = _in_um(volume.translation, volume.unit)[-keep:] if volume.voxel_size else (0.0,) * keep
        return Input(volume, axes, size, size, translation, "micrometer")
    return Input(volume, axes, None, volume.scale[-keep:], volume.translation[-keep:], volume.unit)


def choose_level(job: SegmentationJob, model: ModelDescription, dims: int) -> int:
    """The level whose voxel size is within 10 % of the model's, or the one that the job names.

    Raises:
        VolumeError: if none fits, or the image does not say its voxel size while the model needs one.
    """
    volume = open_volume(job.image, job.level or 0, series=job.series, time=job.time, missing=job.missing)
    if job.level is not None or model.voxel_size_um == "unknown":
        return job.level or 0
    wanted = model.voxel_size_um
    finest = _stated_voxel_size(job, volume)
    if finest is None:
        raise VolumeError(
            f"Model '{model.name}' was trained at {_um(wanted)}, {job.image} does not say its voxel size; "
            "state it with --voxel-size, or choose with --level."
        )
    sizes: list[tuple[float, ...]] = []
    base = volume.levels[0].shape
    for entry in volume.levels:
        size = tuple(
            step * whole / part
            for step, whole, part in zip(
                finest[-dims:], _spatial(volume, base)[-dims:], _spatial(volume, entry.shape)[-dims:], strict=True
            )
        )
        if all(abs(have / want - 1) <= LEVEL_TOLERANCE for have, want in zip(size, wanted, strict=True)):
            return entry.index
        sizes.append(size)
    have = "; ".join(f"level {index}: {_um(size)}" for index, size in enumerate(sizes))
    raise VolumeError(
        f"Model '{model.name}' was trained at {_um(wanted)}, {job.image} has {have}; no level is within 10 %: "
        "choose one with --level, or correct the image's voxel size with --voxel-size."
    )


def _stated_voxel_size(job: SegmentationJob, volume: Volume) -> tuple[float, ...] | None:
    """Voxel size of the opened level in micrometre: the user's word (of level 0, scaled), else the image's."""
    if job.voxel_size_um is None:
        return volume.voxel_size
    spatial = volume.spatial_axes
    if len(job.voxel_size_um) != len(spatial):
        raise VolumeError(
            f"--voxel-size has {len(job.voxel_size_um)} numbers, the image has the axes {spatial}; give one an axis."
        )
    whole, part = _spatial(volume, volume.levels[0].shape), volume.spatial_shape
    return tuple(step * round(a / b, 6) for step, a, b in zip(job.voxel_size_um, whole, part, strict=True))


def _spatial(volume: Volume, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[-len(volume.spatial_axes) :]


def _network_axes(volume: Volume, dims: int, model_name: str) -> str:
    axes = volume.spatial_axes
    if len(axes) == dims:
        return axes
    if dims == 2 and volume.spatial_shape[0] == 1:
        return axes[1:]
    raise VolumeError(
        f"Model '{model_name}' works in {dims}D, the image has the axes {axes} with {volume.spatial_shape} voxels; "
        f"choose a {len(axes)}D model" + (" or an image of one section." if dims == 2 else ".")
    )


def _in_um(values: tuple[float, ...], unit: str | None) -> tuple[float, ...]:
    return tuple(value * _UNIT_UM.get(unit or "", 1.0) for value in values)


def _um(size: tuple[float, ...]) -> str:
    return " x ".join(f"{step:.4g}" for step in size) + " um"


def percentiles(source: Input, low: float, high: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Percentiles of each channel over the whole image, or over every n-th region of an image of more than 2**27 voxels.

    The regions follow from shape and chunks alone, so that planning again gives the same numbers.
    """
    from unet_core.geometry import BlockGrid

    limit = 1 << 27
    side = 2048 if len(source.axes) == 2 else 160
    grid = BlockGrid(source.shape, tuple(min(side, size) for size in source.shape))
    step = max(1, -(-Box.from_shape(source.shape).voxel_count // limit))
    parts = [source.read(grid.block(index)).reshape(source.channel_count, -1) for index in range(0, grid.block_count, step)]
    values = np.concatenate(parts, axis=1)
    found = np.percentile(values.astype(np.float32, copy=False) if values.dtype.kind == "f" else values, [low, high], axis=1)
    return found[0].astype(np.float64), found[1].astype(np.float64)

"""The volume that a job means: opened, at the resolution of the model, with the axes of the result. Reads no voxel."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from unet_core.errors import ResumeError, VolumeError
from unet_core.geometry import Box, Shape
from unet_core.resampling import finest_that_suffices, in_um, resample
from unet_core.volumes import Volume, check_intensity_dtype, open_volume
from unet_core.volumes.reflect import folded
from unet_core.volumes.resampled import ResampledVolume
from unet_core.wording import counted

if TYPE_CHECKING:
    from unet_core.job import SegmentationJob
    from unet_core.model_package import ModelDescription
    from unet_core.plan import Plan

LEVEL_TOLERANCE = 0.1  # a level whose voxels differ by less than this from the model's is taken


@dataclass(frozen=True)
class Source:
    """A volume as it is segmented.

    Args:
        volume: the opened image at the chosen level.
        axes: spatial axes of the result. A 2D network sees the sections of a stack one after another, all axes but the first; the z
            axis of a single section is left out.
    """

    volume: Volume
    axes: str

    @property
    def spatial_shape(self) -> Shape:
        return self.volume.spatial_shape[-len(self.axes) :]

    @property
    def stored(self) -> Volume:
        """The volume whose voxels are read: the image's own, also where they are resampled."""
        return self.volume.source if isinstance(self.volume, ResampledVolume) else self.volume

    def over(self, stored: Volume) -> Source:
        """The same, read through another volume of the stored voxels, such as a cached one."""
        return Source(self.volume.over(stored) if isinstance(self.volume, ResampledVolume) else stored, self.axes)

    @property
    def channel_count(self) -> int:
        return self.volume.channel_count

    def missing_chunks(self, box: Box) -> tuple[str, ...]:
        """Keys of absent chunks of the image that ``box``, which may hang over, needs, its mirrored part included."""
        return self.volume.missing_chunks(self._in_volume(folded(box, self.spatial_shape)))

    def read(self, box: Box) -> NDArray[Any]:
        """Voxels of ``box`` (over ``axes``), of shape (C, *box.shape)."""
        values = self.volume.read(self._in_volume(box))
        return values.reshape(len(values), *box.shape)

    def _in_volume(self, box: Box) -> Box:
        lead = len(self.volume.spatial_axes) - len(self.axes)
        return Box((0,) * lead + box.start, (1,) * lead + box.stop)


@dataclass(frozen=True)
class Input:
    """A source with the lengths that the output states.

    Args:
        source: what is read.
        voxel_size: along the source's axes in micrometre, or None when one of them is unknown.
        seen_voxel_size: likewise along the network's axes.
        scale: what the output states, along the source's axes, in ``unit``.
        translation: likewise.
        unit: of both, or None.
    """

    source: Source
    voxel_size: tuple[float, ...] | None
    seen_voxel_size: tuple[float, ...] | None
    scale: tuple[float, ...]
    translation: tuple[float, ...]
    unit: str | None


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
    volume = _open(job, level)
    axes = _axes(volume, dims, model.name)
    if volume.channel_count != len(model.input_channels):
        wanted = len(model.input_channels)
        remedy = "choose a model for this kind of image"
        have = f"image has {volume.channel_count}"
        if job.channels is not None:
            have, remedy = f"--channels names {len(job.channels)} of the image", f"name {wanted}"
        elif volume.channel_count > wanted:
            remedy = f"choose which with --channels, e.g. --channels {','.join(str(number) for number in range(wanted))}"
        raise VolumeError(
            f"model wants {counted(wanted, 'channel')} ({', '.join(model.input_channels)}), {have}: {job.image}; {remedy}."
        )
    check_intensity_dtype(volume, job.cast)
    check_trained_dtype(volume, model)
    keep = len(axes)
    stated = _stated_voxel_size(job, volume, dims)
    if job.resample:
        wanted_size = _size_to_resample_to(job, model, stated)
        assert stated is not None
        volume = resample(volume, stated, wanted_size)
        stated = stated[: -len(wanted_size)] + wanted_size
    source = Source(volume, axes)
    seen = stated and stated[-dims:]
    if stated is not None and len(stated) == len(volume.spatial_axes):
        size = stated[-keep:]
        # What is measured in voxels stays, also where the user says another voxel size than the image.
        moved = zip(volume.translation, volume.scale, stated, strict=True)
        translation = tuple(move / step * size for move, step, size in moved)[-keep:]
        return Input(source, size, seen, size, translation, "micrometer")
    return Input(source, None, seen, volume.scale[-keep:], volume.translation[-keep:], volume.unit)


def check_trained_dtype(volume: Volume, model: ModelDescription) -> None:
    """Refuse another type of intensities than a fixed normalisation was made for: 16 bits look saturated to a model of 8."""
    trained = model.normalisation.dtype if model.normalisation.kind == "fixed" else None
    if trained is not None and volume.dtype != trained:
        raise VolumeError(
            f"Model '{model.name}' was trained on {trained} intensities and subtracts fixed numbers, {volume.url} has {volume.dtype}; "
            f"convert the image to {trained}, or choose a model that normalises by the image."
        )


def reopen(image_url: str, plan: Plan) -> Source:
    """Open the image of a plan again, as it was planned.

    Raises:
        ResumeError: if it is no longer what it was.
    """
    planned = plan.input
    volume = open_volume(
        image_url,
        planned.level,
        series=planned.series,
        time=planned.time,
        channels=planned.channels,
        missing=planned.missing,
    )
    if volume.fingerprint() != planned.fingerprint or volume.shape != planned.shape:
        raise ResumeError(f"Image {image_url} has changed since it was planned; start again with a new output.")
    if plan.resample is not None:
        volume = ResampledVolume(volume, tuple(Fraction(above, below) for above, below in plan.resample))
    return Source(volume, plan.spatial_axes)


def _size_to_resample_to(job: SegmentationJob, model: ModelDescription, stated: tuple[float, ...] | None) -> tuple[float, ...]:
    """The model's voxel size.

    Raises:
        VolumeError: if it, or that of the image, is not known.
    """
    if model.voxel_size_um == "unknown":
        raise VolumeError(
            f"Model '{model.name}' does not state its voxel size, so that --resample has nothing to resample to; leave it out."
        )
    if stated is None:
        raise VolumeError(
            f"--resample needs the voxel size of {job.image}, which does not say it; state that of level 0 with --voxel-size."
        )
    return model.voxel_size_um


def choose_level(job: SegmentationJob, model: ModelDescription, dims: int) -> int:
    """The level whose voxel size is within 10 % of the model's, or the one that the job names.

    Raises:
        VolumeError: if none fits, or the image does not say its voxel size while the model needs one.
    """
    volume = _open(job, job.level or 0)
    if job.level is not None or model.voxel_size_um == "unknown":
        return job.level or 0
    if job.resample:
        sizes_um = _level_sizes(job, volume, dims)
        _size_to_resample_to(job, model, sizes_um[0])
        return finest_that_suffices(sizes_um, model.voxel_size_um, LEVEL_TOLERANCE)
    wanted = model.voxel_size_um
    finest = _stated_voxel_size(job, volume, dims)
    if finest is None:
        raise VolumeError(
            f"Model '{model.name}' was trained at {in_um(wanted)}, {job.image} does not say its voxel size; "
            "state it with --voxel-size, or choose with --level."
        )
    for entry, size in zip(volume.levels, _level_sizes(job, volume, dims), strict=True):
        if size is not None and all(
            abs(have / want - 1) <= LEVEL_TOLERANCE for have, want in zip(size[-dims:], wanted, strict=True)
        ):
            return entry.index
    sizes = ((entry.index, size) for entry, size in zip(volume.levels, _level_sizes(job, volume, dims), strict=True))
    have = "; ".join(f"level {index}: {in_um(size[-dims:]) if size else 'unknown'}" for index, size in sizes)
    raise VolumeError(
        f"Model '{model.name}' was trained at {in_um(wanted)}, {job.image} has {have}; no level is within 10 %: "
        "choose one with --level, correct the image's voxel size with --voxel-size, or have it resampled with --resample."
    )


def _open(job: SegmentationJob, level: int) -> Volume:
    return open_volume(job.image, level, series=job.series, time=job.time, channels=job.channels, missing=job.missing)


def _stated_voxel_size(job: SegmentationJob, volume: Volume, dims: int) -> tuple[float, ...] | None:
    """Voxel size of the opened level in micrometre: the user's word, else the image's."""
    return _level_sizes(job, volume, dims)[volume.level if volume.level < len(volume.levels) else 0]


def _level_sizes(job: SegmentationJob, volume: Volume, dims: int) -> list[tuple[float, ...] | None]:
    """Voxel size of every level in micrometre: as the image states it, or the user's word for level 0, coarsened as the image is.

    For a 2D network the user may leave out the distance of sections, if it is not known.

    Raises:
        VolumeError: if the user's word has another number of axes than the image.
    """
    stated = [entry.voxel_size for entry in volume.levels]
    if job.voxel_size_um is None:
        return stated
    spatial, count = volume.spatial_axes, len(job.voxel_size_um)
    if count not in (len(spatial), min(dims, len(spatial))):
        raise VolumeError(f"--voxel-size has {counted(count, 'number')}, the image has the axes {spatial}; give one an axis.")
    base, sizes = stated[0], []
    for entry, own in zip(volume.levels, stated, strict=True):
        shapes = zip(_spatial(volume, volume.levels[0].shape), _spatial(volume, entry.shape), strict=True)
        known = base is not None and own is not None
        factors = [b / a for a, b in zip(base, own, strict=True)] if known else [whole / part for whole, part in shapes]  # type: ignore[arg-type]
        sizes.append(tuple(step * factor for step, factor in zip(job.voxel_size_um, factors[-count:], strict=True)))
    return list(sizes)


def _spatial(volume: Volume, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[-len(volume.spatial_axes) :]


def _axes(volume: Volume, dims: int, model_name: str) -> str:
    axes = volume.spatial_axes
    if len(axes) < dims:
        raise VolumeError(
            f"Model '{model_name}' works in {dims}D, the image has the axes {axes} with {volume.spatial_shape} voxels; "
            f"choose a {len(axes)}D model."
        )
    return axes[1:] if len(axes) > dims and volume.spatial_shape[0] == 1 else axes

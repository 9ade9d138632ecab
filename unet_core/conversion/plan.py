"""What a conversion writes, as immutable JSON with an id: levels, shards, names, lengths. Reads no voxel."""

from __future__ import annotations

import hashlib
from functools import cached_property
from math import prod

from pydantic import BaseModel, ConfigDict, Field

from unet_core.block_shapes import chunk_shape_for, fit_block_shape
from unet_core.conversion.job import ConversionJob, LevelMethod
from unet_core.errors import JobError, VolumeError
from unet_core.geometry import BlockGrid, Shape
from unet_core.ome_documents import Ngff
from unet_core.plan import InputPlan, LevelPlan, canonical_json, pyramid
from unet_core.shards import ShardLayout
from unet_core.volumes import Volume
from unet_core.volumes.chunk_cache import CACHE_BYTES

SCHEMA = 1
# Tried in this order: the first whose blocks decode nothing of the source twice, as far as its cache reaches.
SHARD_SHAPES: dict[tuple[str, int], tuple[Shape, ...]] = {
    ("0.5", 2): ((2048, 2048), (1024, 1024), (512, 512), (256, 256)),
    ("0.5", 3): ((128, 256, 256), (64, 256, 256), (32, 512, 512), (16, 512, 512), (8, 512, 512), (4, 512, 512), (1, 1024, 1024)),
    ("0.4", 2): ((512, 512), (256, 256)),
    ("0.4", 3): ((64, 128, 128), (32, 128, 128), (16, 256, 256), (8, 256, 256), (4, 256, 256), (1, 512, 512)),
}
MAX_BLOCK_BYTES = 32 << 20  # of all channels of a block, where a smaller shape exists
_NEARLY_ONCE = 1.5
_THIN = 32  # sections of a block, from which on its chunks are those of a volume and not of a stack
_ANISOTROPIC = 2.0


class ChannelPlan(BaseModel):
    """What the target calls a channel, and its colour if the source has one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    color: str | None


class ConversionPlan(BaseModel):
    """Everything that decides the bytes of a conversion.

    Args:
        input: the source, by content; where it lies is not part of the plan.
        method: that makes coarser levels.
        levels: of the target.
        shard_shape: of a stored object, of one channel, along the spatial axes.
        chunk_shape: of its chunks; equal to it in version 0.4.
        channels: names, if the source has them; never more than there are channels.
        channel_count: None without a channel axis.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_number: int = Field(default=SCHEMA, alias="schema")
    input: InputPlan
    ngff: Ngff
    method: LevelMethod
    levels: tuple[LevelPlan, ...] = Field(min_length=1)
    shard_shape: Shape
    chunk_shape: Shape
    channel_count: int | None
    channels: tuple[ChannelPlan, ...]
    spatial_axes: str
    scale: tuple[float, ...]
    translation: tuple[float, ...]
    unit: str | None

    @cached_property
    def id(self) -> str:
        return hashlib.sha256(self.canonical()).hexdigest()

    def canonical(self) -> bytes:
        """The plan as stored."""
        return canonical_json(self.model_dump(mode="json", by_alias=True))

    def grid(self, level: int) -> BlockGrid:
        """The blocks of a level, each with all channels; one object a channel."""
        return BlockGrid(self.levels[level].shape, self.shard_shape)

    def layout(self, level: int) -> ShardLayout:
        """How the array of a level is stored."""
        has_channels = self.channel_count is not None
        lead = (1,) * has_channels
        return ShardLayout(
            shape=((self.channel_count,) if self.channel_count is not None else ()) + self.levels[level].shape,
            shard_shape=lead + self.shard_shape,
            chunk_shape=None if self.ngff == "0.4" else lead + self.chunk_shape,
            dtype=self.input.dtype,
            axes="c" * has_channels + self.spatial_axes,
        )


def stage_name(level: int) -> str:
    """Of the records of a level's blocks."""
    return f"convert-{level}"


def plan_conversion(job: ConversionJob, volume: Volume) -> ConversionPlan:
    """The plan of a conversion; nothing is written.

    Raises:
        InputError: if the options do not fit the source.
    """
    scale, translation, unit, voxel_size = _lengths(job, volume)
    shard_shape, chunk_shape = _shapes(volume, job.ngff, voxel_size)
    has_channels = volume.axes.startswith("c")
    return ConversionPlan(
        input=InputPlan(
            level=volume.level,
            series=job.series or 0,
            time=job.time or 0,
            channels=job.channels,
            axes=volume.axes,
            shape=volume.shape,
            dtype=str(volume.dtype),
            missing=job.missing,
            fingerprint=volume.fingerprint(),
        ),
        ngff=job.ngff,
        method=_method(job, volume),
        levels=pyramid(volume.spatial_shape, voxel_size),
        shard_shape=shard_shape,
        chunk_shape=chunk_shape,
        channel_count=volume.channel_count if has_channels else None,
        channels=tuple(ChannelPlan(name=channel.name, color=channel.color) for channel in volume.layout.channels),
        spatial_axes=volume.spatial_axes,
        scale=scale,
        translation=translation,
        unit=unit,
    )


def _lengths(
    job: ConversionJob, volume: Volume
) -> tuple[tuple[float, ...], tuple[float, ...], str | None, tuple[float, ...] | None]:
    """Scale, translation and unit to state, and the voxel size in micrometre."""
    stated = job.voxel_size_um
    if stated is None:
        return volume.scale, volume.translation, volume.unit, volume.voxel_size
    if len(stated) != len(volume.spatial_axes):
        raise VolumeError(
            f"--voxel-size has {len(stated)} numbers, {job.source} has the axes {volume.spatial_axes}; give one an axis."
        )
    # What is measured in voxels stays.
    moved = zip(volume.translation, volume.scale, stated, strict=True)
    return stated, tuple(move / step * size for move, step, size in moved), "micrometer", stated


def _method(job: ConversionJob, volume: Volume) -> LevelMethod:
    kind, size = volume.dtype.kind, volume.dtype.itemsize
    if kind == "b":
        return "mode"
    if kind in "iu" and size > 2 and job.levels_by is None:
        raise JobError(
            f"{job.source} has {volume.dtype} voxels, which may be ids or intensities; say how coarser levels are made: "
            "--levels-by mode keeps ids, --levels-by mean averages intensities."
        )
    if kind in "iu" and size > 4 and job.levels_by == "mean":
        raise JobError(
            f"--levels-by is mean, {job.source} has {volume.dtype} voxels, whose sums are too large; use --levels-by mode."
        )
    return job.levels_by or "mean"


def _shapes(volume: Volume, ngff: Ngff, voxel_size: tuple[float, ...] | None) -> tuple[Shape, Shape]:
    """Shapes of shards and chunks: the first usual shard that is small enough, and whose blocks decode hardly anything of the source
    twice; else the one that decodes least."""
    shape, voxel_bytes = volume.spatial_shape, volume.channel_count * volume.dtype.itemsize
    usual = SHARD_SHAPES[ngff, len(shape)]
    small = [block for block in usual if prod(block) * voxel_bytes <= MAX_BLOCK_BYTES] or [usual[-1]]
    costs = [_decoded(volume, block, voxel_bytes) for block in small]
    block = small[next((index for index, cost in enumerate(costs) if cost <= _NEARLY_ONCE), costs.index(min(costs)))]
    if ngff == "0.4":
        return block, block
    is_flat = voxel_size is not None and voxel_size[0] > _ANISOTROPIC * min(voxel_size[1:])
    chunk = chunk_shape_for(block, by_section=len(shape) == 3 and (block[0] < _THIN or is_flat))
    return fit_block_shape(block, shape, chunk), chunk


def _decoded(volume: Volume, block: Shape, voxel_bytes: int) -> float:
    """How often each voxel of the source is decoded when blocks of this shape are read in their order."""
    if volume.layout.is_mapped:
        return 1.0
    sizes = list(zip(block, volume.chunk_shape, volume.spatial_shape, strict=True))
    touched = [min(((size - 1) // chunk + 1 + (size % chunk > 0)) * chunk, max(whole, 1)) for size, chunk, whole in sizes]
    layer = touched[0] * prod(volume.spatial_shape[1:]) * voxel_bytes
    if layer <= CACHE_BYTES:
        return 1.0
    return prod(touched) / prod(min(size, whole) for size, _, whole in sizes)

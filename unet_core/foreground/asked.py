"""The masks of a job, opened on its image, and the blocks that they leave."""

from __future__ import annotations

from math import ceil

from unet_core.foreground.blocks import Foreground, blocks_with_foreground
from unet_core.foreground.mask_image import open_mask_image
from unet_core.foreground.tissue import CELL_UM, CELL_VOXELS, Tissue
from unet_core.geometry import BlockGrid, Box, Shape
from unet_core.inputs import Input
from unet_core.job import SegmentationJob
from unet_core.ledger import MaskRecord
from unet_core.store import absolute
from unet_core.volumes import open_volume


def apply_masks(
    job: SegmentationJob, opened: Input, block_shape: Shape, wanted: list[Box]
) -> tuple[list[Box], tuple[MaskRecord, ...]]:
    """The regions that are left of those that a job wants, in whole blocks, and what its masks did.

    Args:
        job: with masks or without.
        opened: its image.
        block_shape: of the plan.
        wanted: regions; empty for the whole image.

    Raises:
        VolumeError: if a mask cannot be read, does not cover the image, or leaves nothing of it.
    """
    masks = _masks_of(job, opened)
    if not masks:
        return wanted, ()
    shape = opened.source.spatial_shape
    left, chosen = blocks_with_foreground(masks, BlockGrid(shape, block_shape), wanted)
    records = tuple(
        MaskRecord(
            kind=one.foreground.kind,
            source=absolute(one.foreground.source),
            sha256=one.foreground.sha256,
            scale=one.foreground.scale,
            grown=one.grown,
            skipped=one.skipped,
            facts=one.foreground.facts,
        )
        for one in chosen
    )
    return (left if any(one.skipped for one in chosen) else wanted), records


def _masks_of(job: SegmentationJob, opened: Input) -> list[Foreground]:
    masks: list[Foreground] = []
    source = opened.source
    if job.mask is not None:
        from unet_core.foreground.outlines import is_outlines, read_outlines

        if is_outlines(job.mask):
            finest = source.volume.levels[0].shape[-len(source.axes) :]
            masks.append(read_outlines(job.mask, source.spatial_shape, finest))
        else:
            masks.append(open_mask_image(job.mask, source, opened.voxel_size))
    if job.tissue:
        masks.append(_tissue(job, opened))
    return masks


def _tissue(job: SegmentationJob, opened: Input) -> Tissue:
    """Found on the coarsest level whose voxels are no larger than a cell."""
    volume = opened.source.volume
    side = CELL_VOXELS if opened.voxel_size is None else max(1, round(CELL_UM / opened.voxel_size[-1]))
    steps = [_steps(volume.shape, level.shape) for level in volume.levels]
    level = max((number for number, step in enumerate(steps) if max(step) <= side), default=0)
    found = open_volume(job.image, level, series=job.series, time=job.time, channels=job.channels, missing=job.missing)
    return Tissue(found, steps[level], max(1, ceil(side / max(steps[level]))))


def _steps(shape: Shape, other: Shape) -> tuple[float, ...]:
    return tuple(size / part for size, part in zip(shape[-2:], other[-2:], strict=True))

"""From job to plan: image, model and memory looked at once, before anything is written or computed."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from unet_core import inputs, output, sampling
from unet_core.errors import MemoryBudgetError, VolumeError
from unet_core.geometry import Box, Shape
from unet_core.job import SegmentationJob, check_places, parse_box
from unet_core.ledger import Request
from unet_core.memory import peak_bytes
from unet_core.model_package import FixedNormalisation, ImageNormalisation, ModelPackage, load_model, model_url
from unet_core.normalisation import Normalisation, from_percentiles
from unet_core.places import check_size
from unet_core.plan import (
    FootprintPlan,
    InputPlan,
    LabelName,
    ModelPlan,
    Plan,
    check_block_shape,
    chunk_shape_for,
    fit_block_shape,
    pyramid,
)
from unet_core.predict import resolve_device
from unet_core.rules import trace
from unet_core.store import absolute

BLOCK_SIZES = {2: (1024, 512, 256, 128), 3: (128, 96, 64, 32)}  # tried in this order until one fits the memory
GIB = 1 << 30
MAX_AMPLIFICATION = 4  # voxels read for each written, above which the user is warned


@dataclass(frozen=True)
class Planned:
    """A plan with what the plan leaves out: who asked for which blocks where, and what it will cost."""

    plan: Plan
    request: Request
    memory_bytes: int
    warnings: tuple[str, ...]

    def facts(self) -> dict[str, Any]:
        """What a person wants to know before starting it."""
        plan = self.plan
        finest = plan.stages[0]
        read, write = Box.from_shape(plan.footprint.read_shape).voxel_count, Box.from_shape(plan.block_shape).voxel_count
        return {
            "plan": plan.id,
            "image": f"{self.request.image}, level {plan.input.level}, {plan.input.axes} {plan.input.shape} {plan.input.dtype}",
            "voxel_size": f"{plan.scale} {plan.unit}" if plan.unit else "unknown",
            "model": f"{plan.model.name}, {plan.model.kind}: {', '.join(entry.name for entry in plan.model.classes)}",
            "blocks": f"{finest.grid.block_count} of {plan.block_shape} voxels"
            + (" (a region of them)" if self.request.roi else ""),
            "margin": f"{plan.footprint.before} before, {plan.footprint.after} after; stride {plan.footprint.stride}",
            "reads": f"{plan.footprint.read_shape} voxels a block, {read / write:.2f} x what it writes",
            "exact": plan.exact,
            "precision": f"{plan.precision}, {plan.threads} threads, on {self.request.device}",
            "memory": f"{self.memory_bytes / GIB:.2f} GiB a worker, projected",
            "disk": f"{plan.raw_bytes / GIB:.3f} GiB at most, before compression",
            "levels": len(plan.levels),
            "warnings": list(self.warnings),
        }


def resolve(job: SegmentationJob) -> Planned:
    """The plan of a job, its request, the memory it needs, and warnings; nothing is written.

    Raises:
        InputError: in one of its kinds, if the job cannot be run as asked.
    """
    check_places(job)  # a job may come from anywhere, also from a form in a browser
    device = resolve_device(job.device)
    package = load_model(job.model)
    opened = inputs.open_input(job, package.description, package.dims)
    source, volume = opened.source, opened.source.volume
    shape = source.spatial_shape
    block_shape, memory = _block_shape(job, package, shape)
    wanted = [parse_box(text, shape) for text in job.roi]
    regions = wanted or [Box.from_shape(shape)]
    check_size(job.output, 2 * sum(box.voxel_count for box in regions))  # at least, and before absurdly many chunks are listed
    read = [_read_region(package, block_shape, box, shape) for box in regions]
    absent = _check_readable(source, read, job)
    description, head = package.description, package.description.heads[0]
    classes = tuple(LabelName(**entry.model_dump()) for entry in description.classes)
    kind = "regions" if head.kind == "regions" else "classes"
    plan = Plan(
        input=InputPlan(
            level=volume.level,
            series=job.series or 0,
            time=job.time or 0,
            channels=job.channels if "c" in volume.axes else None,
            axes=volume.axes,
            shape=volume.shape,
            dtype=str(volume.dtype),
            missing=job.missing,
            fingerprint=volume.fingerprint(),
        ),
        model=ModelPlan(
            name=description.name,
            sha256=package.sha256,
            head=head.name,
            kind=kind,
            classes=classes,
            normalisation=_normalisation(package, source),
        ),
        footprint=FootprintPlan(
            before=package.footprint.before,
            after=package.footprint.after,
            stride=package.footprint.stride,
            skip=package.footprint.skip,
            read_shape=package.footprint.read_box(Box.from_shape(block_shape)).shape,
        ),
        precision=job.precision,
        threads=job.threads,
        ngff=job.ngff,
        block_shape=block_shape,
        chunk_shape=chunk_shape_for(block_shape),
        levels=pyramid(shape, opened.voxel_size),
        images=output.images_of(kind, classes, job.probabilities),
        spatial_axes=source.axes,
        scale=opened.scale,
        translation=opened.translation,
        unit=opened.unit,
    )
    request = Request(
        plan=plan.id,
        image=absolute(job.image),
        model=absolute(model_url(job.model)),
        device=device,
        roi=tuple(sorted((box.start, box.stop) for box in wanted)) or None,
    )
    warnings = []
    amplification = prod(plan.footprint.read_shape) / prod(block_shape)
    if amplification > MAX_AMPLIFICATION:
        warnings.append(
            f"A block of {block_shape} voxels reads {plan.footprint.read_shape}, {amplification:.1f} times what it writes; larger blocks "
            "(--block-shape, --memory-gib) compute less twice."
        )
    if absent:
        warnings.append(
            f"{len(absent)} absent chunks are read as background: {', '.join(absent[:5])}{' ...' if len(absent) > 5 else ''}."
        )
    if description.voxel_size_um == "unknown":
        warnings.append(f"Model '{description.name}' does not state its voxel size; level {volume.level} was taken as it is.")
    return Planned(plan, request, memory, tuple(warnings))


def _read_region(package: ModelPackage, block_shape: Shape, wanted: Box, image_shape: Shape) -> Box:
    """What the blocks that touch ``wanted`` read together; hangs over the image at its edges."""
    blocks = wanted.scale_down(block_shape).scale_up(block_shape)
    last = Box(tuple(stop - size for stop, size in zip(blocks.stop, block_shape, strict=True)), blocks.stop)
    read = package.footprint.read_box(last.intersect(Box.from_shape(image_shape)))
    return Box(tuple(first - before for first, before in zip(blocks.start, package.footprint.before, strict=True)), read.stop)


def _check_readable(source: inputs.Source, regions: list[Box], job: SegmentationJob) -> tuple[str, ...]:
    """Refuse an image with damaged chunks, or absent ones unless the job fills them; keys of those."""
    absent = tuple(dict.fromkeys(key for region in regions for key in source.missing_chunks(region)))
    if absent and job.missing == "error":
        raise VolumeError(
            f"chunk {absent[0]} is missing ({len(absent)} in all) in {job.image}; use --missing fill to read absent chunks as background."
        )
    sampling.check_chunks(source, regions)
    return absent


def _block_shape(job: SegmentationJob, package: ModelPackage, image_shape: Shape) -> tuple[Shape, int]:
    """The block shape asked for, or the largest usual one that fits the memory; with the bytes a block needs."""
    stride, dims = package.footprint.stride, package.dims
    allowance = int(job.memory_gib * GIB)
    traced = trace(package.network)
    if job.block_shape is not None:
        check_block_shape(job.block_shape, stride)
        candidates = [job.block_shape]
    else:
        candidates = [tuple(-(-size // step) * step for step in stride) for size in BLOCK_SIZES[dims]]
    needed = 0
    for candidate in candidates:
        shape = fit_block_shape(candidate, image_shape, stride)
        read = package.footprint.read_box(Box.from_shape(shape)).shape
        needed = peak_bytes(traced, (len(package.description.input_channels), *read), 2 if job.precision == "bfloat16" else 4)
        if needed <= allowance:
            return shape, needed
    raise MemoryBudgetError(
        f"A block of {shape} voxels (reading {read}) needs {needed / GIB:.1f} GiB, the worker may use {job.memory_gib:.1f} GiB; "
        "use a smaller --block-shape, or allow more with --memory-gib."
    )


def _normalisation(package: ModelPackage, source: inputs.Source) -> Normalisation:
    stated = package.description.normalisation
    if isinstance(stated, FixedNormalisation):
        return Normalisation(offset=stated.offset, scale=stated.scale)
    if isinstance(stated, ImageNormalisation):
        return from_percentiles(*sampling.percentiles(source, stated.low, stated.high))
    return Normalisation(offset=(0.0,) * source.channel_count, scale=(1.0,) * source.channel_count)

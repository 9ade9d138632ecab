"""From job to plan: image, model and memory looked at once, before anything is written or computed."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from unet_core import inputs, output, sampling
from unet_core.blocks import BLOCK_SIZES, choose_blocks, input_bytes, voxel_bytes
from unet_core.errors import FootprintError, JobError, VolumeError
from unet_core.foreign.opaque_network import OpaqueNetwork
from unet_core.geometry import Box, Shape
from unet_core.job import SegmentationJob, check_places, parse_box
from unet_core.ledger import Request
from unet_core.memory import GIB
from unet_core.model_package import ModelPackage, load_model, model_url
from unet_core.operations import Trace
from unet_core.places import check_size
from unet_core.plan import (
    FootprintPlan,
    ImagePlan,
    InputPlan,
    LabelName,
    ModelPlan,
    Plan,
    chunk_shape_for,
    fit_block_shape,
    pyramid,
)
from unet_core.predict import check_precision, resolve_device
from unet_core.rules import refusal
from unet_core.store import absolute
from unet_core.tiles import choose_block_shape, choose_tile_shape

MAX_AMPLIFICATION = 4  # voxels read for each written, above which the user is warned


@dataclass(frozen=True)
class Planned:
    """A plan with what the plan leaves out: who asked for which blocks where, and what it will cost.

    ``whole_box`` names the layers that look at a whole tile, in plans that are not exact.
    """

    plan: Plan
    request: Request
    memory_bytes: int
    warnings: tuple[str, ...]
    whole_box: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """What a person wants to know before starting it."""
        plan = self.plan
        finest = plan.stages[0]
        read, write = Box.from_shape(plan.footprint.read_shape).voxel_count, Box.from_shape(plan.pass_shape).voxel_count
        return {
            "plan": plan.id,
            "image": f"{self.request.image}, level {plan.input.level}, {plan.input.axes} {plan.input.shape} {plan.input.dtype}",
            "voxel_size": f"{plan.scale} {plan.unit}" if plan.unit else "unknown",
            "model": f"{plan.model.name}, {plan.model.kind}: {', '.join(entry.name for entry in plan.model.classes)}",
            "blocks": f"{finest.grid.block_count} of {plan.block_shape} voxels"
            + (" (a region of them)" if self.request.roi else ""),
            "margin": f"{plan.footprint.before} before, {plan.footprint.after} after; stride {plan.footprint.stride}",
            "reads": f"{plan.footprint.read_shape} voxels a {'tile' if plan.tile_shape else 'block'}, {read / write:.2f} x what it writes",
            "exact": plan.exact,
            **({"tiles": f"{plan.tile_shape} voxels, seen whole by {', '.join(self.whole_box)}"} if plan.tile_shape else {}),
            **(
                {
                    "strips": f"{plan.strip} {'rows' if len(plan.block_shape) == 2 else 'sections'} along {plan.spatial_axes[0]} at a time"
                }
                if plan.strip
                else {"strips": f"none; whole {'tiles' if plan.tile_shape else 'blocks'} at once"}
            ),
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
    check_precision(job.precision, device)
    package = load_model(job.model, job.trust_model)
    _check_approximate(job, package)
    opened = inputs.open_input(job, package.description, package.dims)
    source, volume = opened.source, opened.source.volume
    shape = source.spatial_shape
    description, head = package.description, package.description.heads[0]
    classes = tuple(LabelName(**entry.model_dump()) for entry in description.classes)
    kind: Literal["classes", "regions"] = "regions" if head.kind == "regions" else "classes"
    images = output.images_of(kind, classes, job.probabilities)
    tile_shape: Shape | None = None
    strip: int | None = None
    if package.whole_box:
        most = output.images_of(kind, classes, "float32")
        block_shape, tile_shape, memory = _whole_tiles(job, package, source, images, most)
    else:
        block_shape, strip, memory = choose_blocks(job, package, source, images, device)
    wanted = [parse_box(text, shape) for text in job.roi]
    regions = wanted or [Box.from_shape(shape)]
    check_size(job.output, 2 * sum(box.voxel_count for box in regions))  # at least, and before absurdly many chunks are listed
    read = [_read_region(package, block_shape, tile_shape, box, shape) for box in regions]
    absent = _check_readable(source, read, job)
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
            normalisation=sampling.resolve_normalisation(description.normalisation, source),
        ),
        footprint=FootprintPlan(
            before=package.footprint.before,
            after=package.footprint.after,
            stride=package.footprint.stride,
            skip=package.footprint.skip,
            read_shape=package.footprint.read_box(Box.from_shape(tile_shape or block_shape)).shape,
        ),
        precision=job.precision,
        threads=job.threads,
        exact=_exactness(package),
        ngff=job.ngff,
        block_shape=block_shape,
        tile_shape=tile_shape,
        strip=strip,
        chunk_shape=chunk_shape_for(block_shape),
        levels=pyramid(shape, opened.voxel_size),
        images=images,
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
        trust_model=job.trust_model,
        roi=tuple(sorted((box.start, box.stop) for box in wanted)) or None,
    )
    warnings = [package.network.why_unproven] if isinstance(package.network, OpaqueNetwork) else []
    amplification = prod(plan.footprint.read_shape) / prod(plan.pass_shape)
    if amplification > MAX_AMPLIFICATION:
        part = "tile" if tile_shape else "block"
        warnings.append(
            f"A {part} of {plan.pass_shape} voxels reads {plan.footprint.read_shape}, {amplification:.1f} times what it writes; larger "
            f"{part}s (--{part}-shape, --memory-gib) compute less twice."
        )
    warnings += _exactness_warnings(job, package, tile_shape)
    if absent:
        warnings.append(
            f"{len(absent)} absent chunks are read as background: {', '.join(absent[:5])}{' ...' if len(absent) > 5 else ''}."
        )
    if description.voxel_size_um == "unknown":
        warnings.append(f"Model '{description.name}' does not state its voxel size; level {volume.level} was taken as it is.")
    return Planned(plan, request, memory, tuple(warnings), package.whole_box)


def _check_approximate(job: SegmentationJob, package: ModelPackage) -> None:
    """Refuse a model that is not exact unless the job allows it, and tiles where there are none."""
    if package.whole_box and not job.approximate:
        raise FootprintError(f"Model '{package.description.name}': {refusal(package.whole_box)}")
    if job.tile_shape is not None and not job.approximate:
        raise JobError(f"--tile-shape is {job.tile_shape}, but only --approximate runs in tiles; use --block-shape, or both.")
    if package.whole_box and job.strip:
        raise JobError(f"--strip is {job.strip}, but layers of the model look at whole tiles; leave it out, or use --strip 0.")
    if job.approximate and isinstance(package.network, OpaqueNetwork):
        raise JobError(
            f"Model '{package.description.name}' is TorchScript, whose layers are not read: whether any looks at the whole box is not known, "
            "so it cannot run in tiles; leave out --approximate."
        )


def _exactness(package: ModelPackage) -> bool | Literal["unproven"]:
    return "unproven" if isinstance(package.network, OpaqueNetwork) else not package.whole_box


def _exactness_warnings(job: SegmentationJob, package: ModelPackage, tile_shape: Shape | None) -> list[str]:
    name, layers = package.description.name, package.whole_box
    if tile_shape is None:
        return [f"Model '{name}' is exact without --approximate, and runs so; there are no tiles."] if job.approximate else []
    listed = ", ".join(layers[:5]) + (f" and {len(layers) - 5} more" if len(layers) > 5 else "")
    return [
        f"Layers {listed} look at a whole tile of {tile_shape} voxels and its margin, so the result depends on the tiles (not on blocks "
        "or workers); see the seam score."
    ]


def _whole_tiles(
    job: SegmentationJob, package: ModelPackage, source: inputs.Source, images: tuple[ImagePlan, ...], most: tuple[ImagePlan, ...]
) -> tuple[Shape, Shape, int]:
    """Block shape and tile shape, and the bytes that one tile, the finished block around it and the blocks beside it need.

    Args:
        images: that the job keeps.
        most: that any job of this model would keep.
    """
    # Tiles decide the result, and are chosen by what blocks of the usual size read, whatever size the job asks for.
    usual = fit_block_shape((BLOCK_SIZES[package.dims][0],) * package.dims, source.spatial_shape, package.footprint.stride)
    kept = input_bytes(source, package.footprint.read_box(Box.from_shape(usual)).shape)
    allowance = int(job.memory_gib * GIB) - kept
    traced = package.traced
    assert isinstance(traced, Trace)  # what is opaque names no layers
    element_bytes = 2 if job.precision == "bfloat16" else 4
    tile_shape, needed = choose_tile_shape(
        job.tile_shape,
        traced,
        package.footprint,
        source.spatial_shape,
        len(package.description.input_channels),
        element_bytes,
        voxel_bytes(most),
        allowance,
    )
    block_shape, finished = choose_block_shape(
        job.block_shape,
        BLOCK_SIZES[package.dims],
        tile_shape,
        package.footprint.stride,
        source.spatial_shape,
        voxel_bytes(images),
        allowance - needed,
    )
    kept = max(kept, input_bytes(source, package.footprint.read_box(Box.from_shape(block_shape)).shape))
    return block_shape, tile_shape, kept + needed + finished


def _read_region(package: ModelPackage, block_shape: Shape, tile_shape: Shape | None, wanted: Box, image_shape: Shape) -> Box:
    """What the blocks that touch ``wanted`` read together; hangs over the image at its edges."""
    blocks, whole = wanted.scale_down(block_shape).scale_up(block_shape), Box.from_shape(image_shape)
    if tile_shape is None:
        last = Box(tuple(stop - size for stop, size in zip(blocks.stop, block_shape, strict=True)), blocks.stop).intersect(whole)
    else:  # tiles are read whole
        stops = blocks.intersect(whole).scale_down(tile_shape).scale_up(tile_shape).stop
        last = Box(tuple(stop - size for stop, size in zip(stops, tile_shape, strict=True)), stops)
    read = package.footprint.read_box(last)
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

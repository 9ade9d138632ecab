"""From job to plan: image, model and memory looked at once, before anything is written or computed."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from unet_core import inputs, output, sampling
from unet_core.attachment.place import Attachment, plan_attachment
from unet_core.block_shapes import chunk_shape_for
from unet_core.blocks import BLOCK_SIZES, choose_blocks, deep_chunks, input_bytes, objects_bytes, stacked_shapes, voxel_bytes
from unet_core.completion import Asked, asked_of
from unet_core.ensemble import Ensemble, check_alike
from unet_core.errors import VolumeError
from unet_core.foreground.asked import apply_masks
from unet_core.foreign.opaque_network import OpaqueNetwork
from unet_core.geometry import Box, Shape
from unet_core.instances_plan import InstancesPlan
from unet_core.job import SegmentationJob, check_places, parse_box
from unet_core.ledger import Request
from unet_core.memory import GIB
from unet_core.model_package import load_model, model_url
from unet_core.pass_memory import PassMemory
from unet_core.passes import around, read_box_of
from unet_core.places import check_size
from unet_core.plan import (
    MEASURE,
    FootprintPlan,
    ImagePlan,
    InputPlan,
    LabelName,
    ModelPlan,
    Plan,
    pyramid,
)
from unet_core.planning_checks import check_approximate, check_symmetries, labels_of, plan_instances
from unet_core.predict import check_precision, resolve_device
from unet_core.resampling import resampled_words, resampling_of, resampling_warnings
from unet_core.sections import thinner
from unet_core.store import absolute
from unet_core.tiles import choose_block_shape, choose_tile_shape
from unet_core.wording import counted

MAX_AMPLIFICATION = 4  # voxels read for each written, above which the user is warned


@dataclass(frozen=True)
class Planned:
    """A plan with what the plan leaves out: who asked for which blocks where, and what it will cost.

    ``attachment`` is where in the image the labels go as well. ``asked`` tells the job from others.
    ``whole_box`` names the layers that look at a whole tile, in plans that are not exact.
    """

    plan: Plan
    request: Request
    memory_bytes: int
    warnings: tuple[str, ...]
    whole_box: tuple[str, ...] = ()
    attachment: Attachment | None = None
    asked: Asked | None = None

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
            **({"resampled": resampled_words(plan)} if plan.resample else {}),
            **_averaging(plan),
            **({"sections": f"2D model, section by section: {finest.shape[0]} sections along z"} if plan.by_section else {}),
            "blocks": f"{finest.grid.block_count} of {plan.block_shape} voxels"
            + ("" if self.request.masks else self._wanted_blocks()),
            **({"foreground": _foreground(self)} if self.request.masks else {}),
            "margin": f"{plan.footprint.before} before, {plan.footprint.after} after; stride {plan.footprint.stride}",
            "reads": f"{plan.footprint.read_shape} voxels a {'tile' if plan.tile_shape else 'block'}, {read / write:.2f} x what it writes",
            "exact": plan.exact,
            **({"tiles": f"{plan.tile_shape} voxels, seen whole by {', '.join(self.whole_box)}"} if plan.tile_shape else {}),
            **(
                {
                    "strips": f"{plan.strip} {'rows' if len(plan.network_axes) == 2 else 'sections'} along {plan.network_axes[0]} at a time"
                }
                if plan.strip
                else {"strips": f"none; whole {'tiles' if plan.tile_shape else 'blocks'} at once"}
            ),
            **_instances(plan),
            **({"attach": ", ".join(self.attachment.urls(plan))} if self.attachment else {}),
            "precision": f"{plan.precision}, {counted(plan.threads, 'thread')}, on {self.request.device}",
            "memory": f"{self.memory_bytes / GIB:.2f} GiB a worker, projected",
            "disk": f"{plan.raw_bytes / GIB:.3f} GiB at most, before compression",
            "levels": len(plan.levels),
            **{name: value for name in ("owner", "project") if (value := getattr(self.request, name))},
            "warnings": list(self.warnings),
        }

    def _wanted_blocks(self) -> str:
        """How many blocks a region touches, if one is named."""
        if self.request.roi is None:
            return ""
        grid = self.plan.stages[0].grid
        wanted = {index for start, stop in self.request.roi for index in grid.touching(Box(start, stop))}
        return f"; {len(wanted)} wanted, those that touch --roi"


def resolve(job: SegmentationJob, device: str | None = None) -> Planned:
    """The plan of a job, its request, the memory it needs, and warnings; nothing is written.

    Args:
        job: as asked.
        device: of workers on other machines, taken at its word; None for what the job's device means on this one.

    Raises:
        InputError: in one of its kinds, if the job cannot be run as asked.
    """
    check_places(job)  # a job may come from anywhere, also from a form in a browser
    device = device or resolve_device(job.device)
    check_precision(job.precision, device)
    ensemble = Ensemble(tuple(load_model(model, job.trust_model) for model in job.models), job.symmetries)
    check_alike(ensemble.packages)
    asked = asked_of(job, [package.sha256 for package in ensemble.packages])  # before the image is looked at
    description = ensemble.description
    head, kind = labels_of(ensemble)
    check_approximate(job, ensemble)
    opened = inputs.open_input(job, description, ensemble.dims)
    check_symmetries(job, description, opened.seen_voxel_size)
    source, volume = opened.source, opened.source.volume
    for package in ensemble.packages[1:]:
        inputs.check_trained_dtype(volume, package.description)
    shape = source.spatial_shape
    lead = len(shape) - ensemble.dims  # 1 in a stack that is seen section by section: nothing lies around a section along z
    classes = tuple(LabelName(**entry.model_dump()) for entry in description.classes)
    images = output.images_of(kind, classes, job.probabilities, description.other_heads, bool(lead), job.instances != "none")
    instances = plan_instances(job, description, images, classes, opened.scale, shape)
    tile_shape: Shape | None = None
    strip: int | None = None
    if ensemble.whole_box:
        most = output.images_of(kind, classes, "float32", description.other_heads)
        block_shape, tile_shape, memory = _whole_tiles(job, ensemble, source, images, most, instances)
    else:
        block_shape, strip, memory = choose_blocks(job, ensemble, source, images, device, instances)
    wanted = [parse_box(text, shape) for text in job.roi]
    regions = wanted or [Box.from_shape(shape)]
    check_size(job.output, 2 * sum(box.voxel_count for box in regions))  # at least, and before absurdly many chunks are listed
    wanted, masks = apply_masks(job, opened, block_shape, wanted)
    regions = wanted or regions
    read = [_read_region(ensemble, block_shape, tile_shape, box, shape) for box in regions]
    absent = _check_readable(source, read, job)
    models = tuple(
        ModelPlan(
            name=package.description.name,
            sha256=package.sha256,
            head=head.name,
            kind=kind,
            classes=classes,
            normalisation=sampling.resolve_normalisation(package.description.normalisation, source),
        )
        for package in ensemble.packages
    )
    before, after = ensemble.margin
    plan = Plan(
        input=InputPlan(
            level=volume.level,
            series=job.series or 0,
            time=job.time or 0,
            channels=job.channels if "c" in volume.axes else None,
            axes=volume.axes,
            shape=source.stored.shape,
            dtype=str(volume.dtype),
            missing=job.missing,
            fingerprint=volume.fingerprint(),
        ),
        model=models[0],
        further_models=models[1:],
        symmetries=job.symmetries,
        by_section=bool(lead),
        footprint=FootprintPlan(
            before=(0,) * lead + before,
            after=(0,) * lead + after,
            stride=(1,) * lead + ensemble.stride,
            skip=(0,) * lead + ensemble.skip,
            read_shape=read_box_of(ensemble.passes, Box.from_shape(tile_shape or block_shape), shape).shape,
        ),
        precision=job.precision,
        threads=job.threads,
        resample=resampling_of(volume),
        exact=_exactness(ensemble),
        ngff=job.ngff,
        block_shape=block_shape,
        tile_shape=tile_shape,
        strip=strip,
        chunk_shape=chunk_shape_for(block_shape, bool(lead)),
        levels=pyramid(shape, opened.voxel_size),
        images=images,
        instances=instances,
        measure=MEASURE if instances and job.measure else None,
        spatial_axes=source.axes,
        scale=opened.scale,
        translation=opened.translation,
        unit=opened.unit,
    )
    request = Request(
        plan=plan.id,
        image=absolute(job.image),
        model=absolute(model_url(job.model)),
        further_models=tuple(absolute(model_url(model)) for model in job.further_models),
        device=device,
        trust_model=job.trust_model,
        roi=tuple(sorted((box.start, box.stop) for box in wanted)) or None,
        masks=masks,
        owner=job.owner,
        project=job.project,
    )
    warnings = [package.network.why_unproven for package in ensemble.packages if isinstance(package.network, OpaqueNetwork)]
    amplification = prod(plan.footprint.read_shape) / prod(plan.pass_shape)
    if amplification > MAX_AMPLIFICATION:
        part = "tile" if tile_shape else "block"
        warnings.append(
            f"A {part} of {plan.pass_shape} voxels reads {plan.footprint.read_shape}, {amplification:.1f} times what it writes; larger "
            f"{part}s (--{part}-shape, --memory-gib) compute less twice."
        )
    warnings += _exactness_warnings(job, ensemble, tile_shape)
    if lead:
        warnings += deep_chunks(source, block_shape) + _normalised_together(ensemble)
    if absent:
        warnings.append(
            f"{len(absent)} absent chunks are read as background: {', '.join(absent[:5])}{' ...' if len(absent) > 5 else ''}."
        )
    if description.voxel_size_um == "unknown":
        warnings.append(
            f"Model '{description.name}' does not state its voxel size; level {volume.level} was taken as it is; --level takes another."
        )
    warnings += resampling_warnings(job, plan)
    return Planned(plan, request, memory, tuple(warnings), ensemble.whole_box, plan_attachment(job, volume), asked)


def _foreground(planned: Planned) -> str:
    """What masks leave."""
    grid, boxes = planned.plan.stages[0].grid, [Box(*bounds) for bounds in planned.request.roi or ()]
    count = len({index for box in boxes for index in grid.touching(box)}) if boxes else grid.block_count
    return f"{count} blocks to compute; {'; '.join(mask.sentence() for mask in planned.request.masks)}"


def _instances(plan: Plan) -> dict[str, str]:
    """How objects get ids, if they do."""
    if plan.instances is None:
        return {}
    asked = plan.instances
    text = f"{asked.method} of {asked.labels}, connectivity {asked.connectivity}, from {asked.min_voxels} voxels on"
    if asked.depth is not None:
        text += f"; hills rise {asked.depth:.4g}" + (
            f", distances to {asked.reach:.4g}" if asked.reach else f", of {asked.heights or '/'}"
        )
        text += f"; blocks read {asked.halo} voxels around"
    if asked.tile is not None:
        text += f"; mutex watersheds of {asked.heights} in tiles of {asked.tile} voxels, which decide the result"
    return {"instances": text + (", measured" if plan.measure else "")}


def _averaging(plan: Plan) -> dict[str, str]:
    """What is averaged, if anything is: what a voxel costs grows with the passes."""
    if plan.pass_count == 1:
        return {}
    count = len(plan.models)
    models = (
        f"{count} models ({', '.join(f'{model.name} {model.sha256[:12]}' for model in plan.models)})" if count > 1 else "1 model"
    )
    symmetries = f", {plan.pass_count // count} symmetries of the square ({plan.symmetries})" if plan.symmetries != "none" else ""
    return {"averaging": f"mean probability of {plan.pass_count} passes: {models}{symmetries}"}


def _exactness(ensemble: Ensemble) -> bool | Literal["unproven"]:
    opaque = any(isinstance(package.network, OpaqueNetwork) for package in ensemble.packages)
    return False if ensemble.whole_box else "unproven" if opaque else True


def _exactness_warnings(job: SegmentationJob, ensemble: Ensemble, tile_shape: Shape | None) -> list[str]:
    names, layers = " and ".join(package.description.name for package in ensemble.packages), ensemble.whole_box
    if tile_shape is None:
        return [f"Model '{names}' is exact without --approximate, and runs so; there are no tiles."] if job.approximate else []
    listed = ", ".join(layers[:5]) + (f" and {len(layers) - 5} more" if len(layers) > 5 else "")
    return [
        f"Layers {listed} look at a whole tile of {tile_shape} voxels and its margin, so the result depends on the tiles (not on blocks "
        "or workers); see the seam score."
    ]


def _normalised_together(ensemble: Ensemble) -> list[str]:
    """A warning where a stack is normalised as one image: who trained on sections as images of their own saw each by its own numbers."""
    together = [
        f"'{package.description.name}'"
        for package in ensemble.packages
        if package.description.normalisation.kind in ("image", "moments")
    ]
    if not together:
        return []
    return [
        f"Model {' and '.join(together)} normalises by the intensities of the image: here those of the whole stack, the same for all sections; "
        "where sections differ in contrast, that is not what each of them alone would get."
    ]


def _whole_tiles(
    job: SegmentationJob,
    ensemble: Ensemble,
    source: inputs.Source,
    images: tuple[ImagePlan, ...],
    most: tuple[ImagePlan, ...],
    instances: InstancesPlan | None,
) -> tuple[Shape, Shape, int]:
    """Block shape and tile shape, and the bytes that one tile, the finished block around it and the blocks beside it need.

    Args:
        images: that the job keeps.
        most: that any job of this model would keep.
        instances: that are made of them.
    """
    dims, shape, passes = ensemble.dims, source.spatial_shape, ensemble.passes
    lead = (1,) * (len(shape) - dims)
    sizes = [(size,) * dims for size in BLOCK_SIZES[dims]]
    usual = stacked_shapes(sizes, shape, ensemble)
    # Tiles decide the result, and are chosen by what blocks of the usual size read, whatever size the job asks for.
    kept = input_bytes(source, read_box_of(passes, Box.from_shape(usual[0]), shape).shape)
    allowance = int(job.memory_gib * GIB) - kept
    memory = PassMemory(ensemble, shape[-dims:], job.precision)

    def network_bytes(tile: Shape) -> int:
        averaging = memory.readout_bytes(most, tile, None) if len(passes) > 1 else 0
        return memory.network_bytes(tile, None) + averaging

    seen, needed = choose_tile_shape(job.tile_shape, ensemble.stride, shape[-dims:], network_bytes, voxel_bytes(most), allowance)
    tile_shape, stride = lead + seen, lead + ensemble.stride
    usual = [thin for block in usual for thin in thinner(block)] if lead else sizes

    def finished_bytes(block: Shape) -> int:
        finished = prod(block) * voxel_bytes(images)
        if instances is None:
            return finished
        read = read_box_of(passes, Box.from_shape(block), shape).shape
        return max(
            finished, objects_bytes(memory, source, images, block, read, instances, job.measure) - kept - needed
        )  # after the passes, not beside them

    block_shape, finished = choose_block_shape(
        job.block_shape, usual, tile_shape, stride, shape, finished_bytes, allowance - needed
    )
    kept = max(kept, input_bytes(source, read_box_of(passes, Box.from_shape(block_shape), shape).shape))
    return block_shape, tile_shape, kept + needed + finished


def _read_region(ensemble: Ensemble, block_shape: Shape, tile_shape: Shape | None, wanted: Box, image_shape: Shape) -> Box:
    """What the blocks that touch ``wanted`` read together; hangs over the image at its edges."""
    blocks, whole = wanted.scale_down(block_shape).scale_up(block_shape), Box.from_shape(image_shape)
    if tile_shape is not None:  # tiles are read whole
        blocks = blocks.intersect(whole).scale_down(tile_shape).scale_up(tile_shape)
    step = tile_shape or block_shape
    last = Box(tuple(stop - size for stop, size in zip(blocks.stop, step, strict=True)), blocks.stop)
    ends = [Box.from_shape(step, blocks.start), last]
    if tile_shape is None:
        ends = [box.intersect(whole) for box in ends]
    return around(tuple(read_box_of(ensemble.passes, box, image_shape) for box in ends))


def _check_readable(source: inputs.Source, regions: list[Box], job: SegmentationJob) -> tuple[str, ...]:
    """Refuse an image with damaged chunks, or absent ones unless the job fills them; keys of those."""
    absent = tuple(dict.fromkeys(key for region in regions for key in source.missing_chunks(region)))
    if absent and job.missing == "error":
        raise VolumeError(
            f"chunk {absent[0]} is missing ({len(absent)} in all) in {job.image}; use --missing fill to read absent chunks as background."
        )
    sampling.check_chunks(source, regions)
    return absent

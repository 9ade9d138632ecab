"""What an output and its records say, as plain numbers and words: the part of a report that programs read. Draws nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import unet_core
from unet_core.report.objects import ObjectFacts, object_facts, voxel_size_um
from unet_core.report.opened import Opened
from unet_core.seams import Seam, without_faces
from unet_core.store import redacted

SCHEMA = 1
LISTED = 20  # entries of a list that may be very long


@dataclass(frozen=True)
class Told:
    """What a run knows and its output does not record; all of it may be missing.

    Args:
        seconds: wall time of the last run.
        failures: of it, one sentence each.
        warnings: likewise.
        seams: by axis; None where they were not measured.
    """

    seconds: float | None = None
    failures: Sequence[str] = ()
    warnings: Sequence[str] = ()
    seams: Mapping[str, Seam] | None = None


@dataclass(frozen=True)
class ClassFacts:
    """One class: its voxels, their share of all that were computed, and area or volume in um^2 or um^3 if known."""

    name: str
    value: int
    color: str
    voxels: int
    share: float
    size_um: float | None


@dataclass(frozen=True)
class StageFacts:
    """One stage of the run.

    Args:
        name: of the plan.
        kind: what its units do.
        done: units with a record.
        wanted: by the request.
        voxels: of the units that are done.
        seconds: of all workers together, by phase; ``wait`` is no work.
        work_seconds: their sum without waiting.
    """

    name: str
    kind: str
    done: int
    wanted: int
    voxels: int
    seconds: dict[str, float]
    work_seconds: float


@dataclass(frozen=True)
class AuditFacts:
    """What is known of the stored bytes.

    Args:
        is_complete: whether the audit passed: every object was read back and had the sha256 of its record.
        units_done: of all stages.
        units_wanted: likewise.
        stored_objects: that the records name; those of background alone are not stored.
        stored_bytes: of them.
        sha256: of the lines ``KEY SHA256`` of all of them, sorted: one number for the whole result.
    """

    is_complete: bool
    units_done: int
    units_wanted: int
    stored_objects: int
    stored_bytes: int
    sha256: str


@dataclass(frozen=True)
class SkippedFacts:
    """What the result does not hold, or what was filled in.

    Args:
        roi: boxes that were asked for, as text, the first of many; empty for everything, and where masks tell which.
        masks: what each mask left out, in a sentence.
        unwanted_blocks: of the finest level, outside of them.
        unwanted_voxels: likewise.
        undone_blocks: of the finest level, wanted and without a record.
        undone_boxes: the first of them, as text.
        missing_chunks: of the image, that were read as background.
        missing_keys: the first of them.
        failures: of the last run, if they were told.
    """

    roi: tuple[str, ...]
    masks: tuple[str, ...]
    unwanted_blocks: int
    unwanted_voxels: int
    undone_blocks: int
    undone_boxes: tuple[str, ...]
    missing_chunks: int
    missing_keys: tuple[str, ...]
    failures: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """Everything that a report says in numbers and words.

    Args:
        state: ``complete``, or ``unfinished``.
        output: URL.
        image: where it lies, and what was taken of it.
        models: by content.
        plan: its id, the options that decide the result, and whose it is.
        shape: of the finest level, in voxels.
        axes: of it.
        voxel_size_um: along the axes; None if unknown.
        computed_voxels: of the finest level.
        computed_um: their area or volume.
        classes: of the result.
        objects: by class; None where objects have no ids.
        stages: of the run.
        seconds: wall time of the last run, if it was told.
        hardware: classes of it that computed the result.
        software: versions that did; several where it was resumed with others.
        seams: by axis; None where they were not measured.
        audit: of the stored bytes.
        skipped: what is not there.
        warnings: that the reader of the numbers should know.
        written_by: version of this program.
    """

    state: str
    output: str
    image: dict[str, Any]
    models: tuple[dict[str, Any], ...]
    plan: dict[str, Any]
    shape: tuple[int, ...]
    axes: str
    voxel_size_um: tuple[float, ...] | None
    computed_voxels: int
    computed_um: float | None
    classes: tuple[ClassFacts, ...]
    objects: tuple[ObjectFacts, ...] | None
    stages: tuple[StageFacts, ...]
    seconds: float | None
    hardware: tuple[str, ...]
    software: tuple[dict[str, str], ...]
    seams: Mapping[str, Seam] | None
    audit: AuditFacts
    skipped: SkippedFacts
    warnings: tuple[str, ...]
    written_by: str
    schema: int = SCHEMA

    @property
    def seam_lines(self) -> tuple[tuple[str, bool | None], ...]:
        """What is said of seams, each with whether they show; nothing where they were not measured."""
        if self.seams is None:
            return ()
        if not self.seams:
            return ((without_faces(self.stages[0].done), None),)
        return tuple((seam.sentence(axis), seam.is_seen) for axis, seam in self.seams.items())


def gather_facts(opened: Opened, told: Told | None = None) -> Facts:
    """Count what the records of an output say; reads no voxel."""
    told = told or Told()
    plan, computed, voxel_um = opened.plan, opened.segmented.voxels, voxel_size_um(opened)
    software = set().union(*(stage.software for stage in opened.recorded.values()))
    hardware = tuple(sorted(set().union(*(stage.hardware for stage in opened.recorded.values()))))
    return Facts(
        state=opened.result.status.state,
        output=redacted(opened.result.url),
        image=_image(opened),
        models=tuple(_model(model.model_dump(mode="json")) for model in plan.models),
        plan=_plan(opened),
        shape=plan.levels[0].shape,
        axes=plan.spatial_axes,
        voxel_size_um=plan.scale if voxel_um is not None else None,
        computed_voxels=computed,
        computed_um=None if voxel_um is None else computed * voxel_um,
        classes=_classes(opened, computed, voxel_um),
        objects=object_facts(opened),
        stages=tuple(_stage(opened, number) for number in range(len(plan.stages))),
        seconds=told.seconds,
        hardware=hardware,
        software=tuple(dict(versions) for versions in sorted(software)),
        seams=told.seams,
        audit=_audit(opened),
        skipped=_skipped(opened, told.failures),
        warnings=(*told.warnings, *(text for text in _warnings(opened, hardware) if text not in told.warnings)),
        written_by=f"unet-flows {unet_core.__version__}",
    )


def _image(opened: Opened) -> dict[str, Any]:
    planned = opened.plan.input.model_dump(mode="json")
    return {"url": redacted(opened.image)} | planned


def _model(planned: dict[str, Any]) -> dict[str, Any]:
    return {name: planned[name] for name in ("name", "sha256", "head", "kind", "normalisation")}


def _plan(opened: Opened) -> dict[str, Any]:
    plan = opened.plan
    return {
        "id": plan.id,
        "numerics": plan.numerics,
        "exact": plan.exact,
        "precision": plan.precision,
        "threads": plan.threads,
        "block_shape": plan.block_shape,
        "tile_shape": plan.tile_shape,
        "strip": plan.strip,
        "margin": {"before": plan.footprint.before, "after": plan.footprint.after, "stride": plan.footprint.stride},
        "by_section": plan.by_section,
        "symmetries": plan.symmetries,
        "passes": plan.pass_count,
        "probabilities": next((image.dtype for image in plan.images if image.kind == "probabilities"), "none"),
        "instances": plan.instances and plan.instances.model_dump(mode="json"),
        "levels": len(plan.levels),
        "ngff": plan.ngff,
        "device": opened.request.device,
        "owner": opened.request.owner,
        "project": opened.request.project,
    }


def _classes(opened: Opened, computed: int, voxel_um: float | None) -> tuple[ClassFacts, ...]:
    found = []
    for entry in opened.plan.model.classes:
        voxels = opened.segmented.label_voxels[str(entry.value)]
        size = None if voxel_um is None else voxels * voxel_um
        found.append(ClassFacts(entry.name, entry.value, entry.color, voxels, voxels / computed if computed else 0.0, size))
    return tuple(found)


def _stage(opened: Opened, number: int) -> StageFacts:
    stage = opened.plan.stages[number]
    recorded = opened.recorded[stage.name]
    done, wanted = opened.result.status.stages[stage.name]
    return StageFacts(stage.name, stage.kind, done, wanted, recorded.voxels, recorded.seconds, recorded.work_seconds)


def _audit(opened: Opened) -> AuditFacts:
    hashed, lines = hashlib.sha256(), sorted(line for stage in opened.recorded.values() for line in stage.lines)
    for line in lines:
        hashed.update(line)
    stages = opened.result.status.stages.values()
    return AuditFacts(
        is_complete=opened.result.status.state == "complete",
        units_done=sum(done for done, _ in stages),
        units_wanted=sum(wanted for _, wanted in stages),
        stored_objects=len(lines),
        stored_bytes=sum(stage.stored_bytes for stage in opened.recorded.values()),
        sha256=hashed.hexdigest(),
    )


def _skipped(opened: Opened, failures: Sequence[str]) -> SkippedFacts:
    unwanted = list(opened.result.unwanted_blocks())
    undone = list(opened.undone_blocks())
    missing = list(opened.segmented.missing_chunks)
    return SkippedFacts(
        roi=() if opened.request.masks else tuple(_box_text(*box) for box in (opened.request.roi or ())[:LISTED]),
        masks=tuple(mask.sentence() for mask in opened.request.masks),
        unwanted_blocks=len(unwanted),
        unwanted_voxels=sum(box.voxel_count for box in unwanted),
        undone_blocks=len(undone),
        undone_boxes=tuple(_box_text(box.start, box.stop) for box in undone[:LISTED]),
        missing_chunks=len(missing),
        missing_keys=tuple(missing[:LISTED]),
        failures=tuple(failures[:LISTED]),
    )


def _box_text(start: Sequence[int], stop: Sequence[int]) -> str:
    return ",".join(f"{first}:{last}" for first, last in zip(start, stop, strict=True))


def _warnings(opened: Opened, hardware: tuple[str, ...]) -> list[str]:
    """What the numbers alone do not say."""
    plan, found = opened.plan, []
    if len(hardware) > 1:
        found.append(
            f"Blocks were computed on {len(hardware)} classes of hardware ({', '.join(hardware)}), which differ in last bits."
        )
    if plan.exact is False:
        found.append(
            f"The result depends on the tiles of {plan.tile_shape} voxels that the network saw, not on blocks or workers."
        )
    if plan.exact == "unproven":
        found.append("The margin of the network was measured or stated, not derived: a lower bound.")
    if voxel_size_um(opened) is None:
        found.append("The voxel size is unknown, so that areas, volumes and densities are not given.")
    return found

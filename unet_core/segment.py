"""From job to result: ``run(job)`` is the serial loop that every other way of running must equal.

job -> plan -> output created -> units (read, predict, encode, commit, record) -> audit -> complete
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from math import isfinite, prod
from typing import Any

import numpy as np

from unet_core import ledger
from unet_core.agenda import Agenda
from unet_core.attachment.copying import attach
from unet_core.audit import audit, withdraw_damaged
from unet_core.completion import write_completion
from unet_core.errors import BlockError, UnetCoreError
from unet_core.job import SegmentationJob
from unet_core.ledger import Record, Request
from unet_core.measure import TABLE_KEY
from unet_core.outcome import count_instances, label_voxels, mark_of
from unet_core.pipeline import run_ready
from unet_core.places import check_writable
from unet_core.plan import Plan
from unet_core.planning import Planned, resolve
from unet_core.result import Result, Status, open_result, read_status
from unet_core.resume import check_output, prepare, remaining_units, wanted_records, wanted_units
from unet_core.seams import Seam, measure_seams
from unet_core.store import open_store

__all__ = [
    "Result",
    "RunSummary",
    "Status",
    "check_output",
    "finish",
    "open_result",
    "plan_run",
    "prepare",
    "read_status",
    "remaining_units",
    "run",
]


@dataclass(frozen=True)
class RunSummary:
    """What a run did and what its output holds.

    Args:
        status: ``complete`` (the audit passed), or ``partial`` (blocks failed; see ``failures``).
        output: URL.
        plan: id.
        blocks: wanted by the request.
        computed: of these in this run; the others were found in the ledger.
        skipped: what each mask of this run left out, in a sentence.
        attached: URLs of the label images that were copied into the image.
        voxels: segmented in this run.
        read_amplification: bytes of voxels decoded for each byte of the image that this run segmented; None if it segmented nothing.
        seconds: wall time of this run.
        label_voxels: voxels by class name, over the whole request.
        area_um: area or volume by class name; None where the voxel size is unknown.
        area_unit: of these, um^2 or um^3.
        instances: by class name, of a complete result that has ids; None else.
        table: key of the table of instances in the output; None likewise.
        failures: one sentence for each failed unit.
        models: names.
        passes: that were averaged; one for each model and symmetry.
        warnings: what the user should know about the result.
        hardware: classes that computed it.
        seams: score by axis, of complete results that are not exact.
    """

    status: str
    output: str
    plan: str
    blocks: int
    computed: int
    voxels: int
    read_amplification: float | None
    seconds: float
    label_voxels: dict[str, int]
    area_um: dict[str, float] | None
    area_unit: str
    instances: dict[str, int] | None = None
    skipped: list[str] = field(default_factory=list)
    attached: list[str] = field(default_factory=list)
    table: str | None = None
    models: list[str] = field(default_factory=list)
    passes: int = 1
    failures: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    hardware: list[str] = field(default_factory=list)
    seams: dict[str, Seam] = field(default_factory=dict)

    @property
    def voxels_per_second(self) -> float:
        return self.voxels / self.seconds if self.seconds > 0 else 0.0

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"voxels_per_second": round(self.voxels_per_second, 1)}


def plan_run(job: SegmentationJob) -> Plan:
    """Resolve a job against its image and model; nothing is written.

    Raises:
        InputError: in one of its kinds, if the job cannot be run as asked.
    """
    return resolve(job).plan


def run(job: SegmentationJob, on_record: Callable[[Record], None] | None = None) -> RunSummary:
    """Segment an image in this process, its blocks in their order, each coarser one as soon as those under it are there: the reference
    for every other way of running.

    Killed at any moment and called again, it goes on where it was and ends in the same bytes.

    Args:
        job: image, model, output and options.
        on_record: called after each committed unit.

    Returns:
        Summary with status ``complete``, or ``partial`` if blocks failed.

    Raises:
        InputError: before any work, if the job cannot be run as asked; nothing has been written then.
    """
    began = time.perf_counter()
    check_writable(job.output)
    planned = resolve(job)
    request = prepare(planned, job.output)
    store = open_store(job.output)
    computed: list[Record] = []
    failures: list[str] = []
    plan = planned.plan
    agenda = Agenda(plan.stages, {stage.name: remaining_units(store, plan, request, stage) for stage in plan.stages})
    for outcome in run_ready(job.output, request.key, agenda):
        if isinstance(outcome, BlockError):
            failures.append(str(outcome))
            continue
        computed.append(outcome)
        if on_record:
            on_record(outcome)
    return finish(planned, request, job.output, computed, failures, time.perf_counter() - began)


def finish(
    planned: Planned, request: Request, output_url: str, computed: Iterable[Record], failures: list[str], seconds: float
) -> RunSummary:
    """Audit the output and say ``complete`` if nothing is missing and every object has its recorded hash.

    Args:
        computed: records of this run.
        failures: of this run; with any, the run is ``partial`` and nothing is marked.
        seconds: wall time so far.

    Raises:
        LedgerError: if the ledger and the stored objects disagree although nothing failed; what is damaged then counts as
            not done, and the next run computes it again.
    """
    plan, store = planned.plan, open_store(output_url)
    records = [record for stage in plan.stages for record in wanted_records(store, plan, request, stage)]
    store.delete(ledger.COMPLETE_KEY)
    store.delete_leftovers()  # of workers that were killed and replaced while this run went on
    segmented = [record for record in records if record.stage == plan.stages[0].name]
    counts, instances = label_voxels(plan, segmented), None
    if failures:  # nothing is marked, but what is damaged is to be computed again too
        failures = failures + [text for _, text in withdraw_damaged(store, plan, records)]
    else:
        audit(store, plan, request, records, withdraw=True)
        instances = count_instances(store, plan, request)
        write_completion(store, mark_of(planned, request, len(records), counts, instances))
    attached: list[str] = []
    if planned.attachment and not failures:
        attached = attach(planned.attachment, output_url, plan, request)
    fresh = [record for record in computed if record.stage == plan.stages[0].name]
    seams, unmeasured = _seams(output_url) if plan.exact is not True and not failures else ({}, [])
    size = 1.0
    for step in plan.scale:
        size *= step
    return RunSummary(
        status="partial" if failures else "complete",
        output=output_url,
        plan=plan.id,
        blocks=len(list(wanted_units(plan, request, plan.stages[0]))),
        computed=len(fresh),
        voxels=sum(record.voxels for record in fresh),
        read_amplification=_amplification(plan, fresh),
        seconds=seconds,
        label_voxels=counts,
        area_um={name: count * size for name, count in counts.items()} if plan.unit == "micrometer" and isfinite(size) else None,
        area_unit="um^3" if len(plan.scale) == 3 else "um^2",
        instances=instances,
        skipped=[mask.sentence() for mask in planned.request.masks],
        attached=attached,
        table=None if failures or plan.measure is None else TABLE_KEY,
        models=[model.name for model in plan.models],
        passes=plan.pass_count,
        failures=failures,
        warnings=[*planned.warnings, *_asked_before(planned.request, request), *_mixed(segmented), *unmeasured],
        hardware=sorted({record.hardware for record in segmented}),
        seams=seams,
    )


def _amplification(plan: Plan, segmented: list[Record]) -> float | None:
    """Margins of neighbouring blocks overlap, and chunks do not end where blocks do: what is decoded more than once shows here."""
    channels = len(plan.input.channels) if plan.input.channels else plan.input.shape[0] if "c" in plan.input.axes else 1
    voxels = sum(record.voxels for record in segmented) * prod(above / below for above, below in plan.resample or ())
    needed = voxels * channels * np.dtype(plan.input.dtype).itemsize
    return round(sum(record.decoded_bytes for record in segmented) / needed, 3) if needed else None


def _seams(output_url: str) -> tuple[dict[str, Seam], list[str]]:
    """The seam score of a complete output, or a warning: it says how good the result is, not whether it is there."""
    try:
        return measure_seams(output_url), []
    except (UnetCoreError, OSError) as error:
        return {}, [f"seam score not measured: {error}; 'unet seams {output_url}' measures it."]


def _asked_before(asked: Request, request: Request) -> list[str]:
    """A warning if a mask leaves out less than it says, since an earlier run of the output wanted more."""
    if not asked.masks or asked.id == request.id:
        return []
    return ["Earlier runs of this output asked for blocks that a mask of this one skips; they stay wanted."]


def _mixed(records: list[Record]) -> list[str]:
    """A warning if more than one class of hardware computed the result."""
    classes = sorted({record.hardware for record in records})
    if len(classes) < 2:
        return []
    return [f"Blocks were computed on {len(classes)} classes of hardware ({', '.join(classes)}), which differ in last bits."]

"""From job to result: ``run(job)`` is the serial loop that every other way of running must equal.

job -> plan -> output created -> units (read, predict, encode, commit, record) -> audit -> complete
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from math import isfinite, prod
from typing import Any

import numpy as np

from unet_core import ledger
from unet_core.agenda import Agenda
from unet_core.attachment.copying import attach
from unet_core.audit import audit, read_back, records_of, withdraw_damaged
from unet_core.completion import write_completion, write_failures
from unet_core.errors import BlockError, UnetCoreError
from unet_core.job import SegmentationJob
from unet_core.lease import Claim, HeldLease, check_free, fence, hold
from unet_core.ledger import Record, Request
from unet_core.measure import TABLE_KEY
from unet_core.outcome import count_instances, label_voxels, mark_of
from unet_core.packing import Packer
from unet_core.pipeline import run_ready
from unet_core.places import check_writable
from unet_core.plan import Plan
from unet_core.planning import Planned, resolve
from unet_core.result import Result, Status, open_result, read_status
from unet_core.resume import check_output, prepare, remaining_units, wanted_numbers
from unet_core.seams import Seam, measure_seams
from unet_core.stages import SEGMENT_STAGE
from unet_core.store import open_store
from unet_core.tally import Tally

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
        status: ``complete`` (the audit passed), or ``partial`` (blocks failed, see ``failures``, or a budget ended, see ``stopped``).
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
        failures: one sentence for each failed unit, of the first thousand.
        failed: how many there are.
        models: names.
        passes: that were averaged; one for each model and symmetry.
        warnings: what the user should know about the result.
        hardware: classes that computed it.
        seams: score by axis, of complete results that are not exact.
        stopped: why units are left although none of them failed, in a sentence.
        left: units of all stages that are not done then.
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
    failed: int = 0
    warnings: list[str] = field(default_factory=list)
    hardware: list[str] = field(default_factory=list)
    seams: dict[str, Seam] = field(default_factory=dict)
    stopped: str | None = None
    left: int = 0

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


def run(job: SegmentationJob, on_record: Callable[[Record], None] | None = None, claim: Claim | None = None) -> RunSummary:
    """Segment an image in this process, its blocks in their order, each coarser one as soon as those under it are there: the reference
    for every other way of running.

    Killed at any moment and called again, it goes on where it was and ends in the same bytes.

    Args:
        job: image, model, output and options.
        on_record: called after each committed unit.
        claim: how to ask for the output, which no other run may write meanwhile.

    Returns:
        Summary with status ``complete``, or ``partial`` if blocks failed.

    Raises:
        InputError: before any work, if the job cannot be run as asked; nothing has been written then.
    """
    began = time.perf_counter()
    check_writable(job.output)
    claim = claim or Claim()
    check_free(job.output, claim)
    planned = resolve(job)
    check_output(planned, job.output)
    with hold(job.output, claim) as lease:
        return _run(planned, job, lease, on_record, began)


def _run(
    planned: Planned, job: SegmentationJob, lease: HeldLease, on_record: Callable[[Record], None] | None, began: float
) -> RunSummary:
    request = prepare(planned, job.output, lease.generation)
    store = open_store(job.output)
    computed, plan = Tally(), planned.plan
    remaining = {stage.name: remaining_units(store, plan, request, stage) for stage in plan.stages}
    with Packer(store, plan.id, remaining, request.generation) as packer:
        for outcome in run_ready(job.output, request.key, Agenda(plan.stages, remaining, packer.committed, lease.check)):
            if isinstance(outcome, BlockError):
                computed.fail(str(outcome))
                continue
            computed.add(outcome)
            if on_record:
                on_record(outcome)
    computed.notes += packer.problems
    return finish(planned, request, job.output, computed, time.perf_counter() - began)


def finish(
    planned: Planned, request: Request, output_url: str, computed: Tally, seconds: float, held_back: str = ""
) -> RunSummary:
    """Audit the output and say ``complete`` if nothing is missing and every object has its recorded hash.

    Args:
        computed: units of this run; if any failed, the run is ``partial`` and nothing is marked.
        seconds: wall time so far.
        held_back: why units may have been left undone on purpose; if some are, the run is ``partial`` too.

    Raises:
        LedgerError: if the ledger and the stored objects disagree although nothing failed; what is damaged then counts as
            not done, and the next run computes it again.
        LeaseLostError: if another run has taken over the output.
    """
    plan, store = planned.plan, open_store(output_url)
    fence(store, request.generation)
    store.delete(ledger.COMPLETE_KEY)
    store.delete_leftovers()  # of workers that were killed and replaced while this run went on
    records, instances, failures = records_of(store, plan, request), None, replace(computed, failures=[*computed.failures])
    left = sum(len(remaining_units(store, plan, request, stage)) for stage in plan.stages) if held_back else 0
    is_partial = bool(failures.failed or left)
    if is_partial:  # nothing is marked, but what is damaged is to be computed again too
        found = read_back(store, plan, request, records)
        fence(store, request.generation)  # reading took its time
        withdraw_damaged(store, plan, found.damaged)
        for damage in found.damaged:
            failures.fail(damage.text)
        write_failures(store, request, failures.failed, failures.failures)
        stored = found.tally
    else:
        stored = audit(store, plan, request, records, withdraw=True)
        instances = count_instances(store, plan, request)
        fence(store, request.generation)  # the audit took its time
        write_completion(store, mark_of(planned, request, stored.total, label_voxels(plan, stored), instances))
    counts = label_voxels(plan, stored)
    attached: list[str] = []
    if planned.attachment and not is_partial:
        attached = attach(planned.attachment, output_url, plan, request)
    seams, unmeasured = _seams(output_url) if plan.exact is not True and not is_partial else ({}, [])
    size = 1.0
    for step in plan.scale:
        size *= step
    return RunSummary(
        status="partial" if is_partial else "complete",
        output=output_url,
        plan=plan.id,
        blocks=len(wanted_numbers(plan, request, plan.stages[0])),
        computed=computed.units[SEGMENT_STAGE],
        voxels=computed.voxels[SEGMENT_STAGE],
        read_amplification=_amplification(plan, computed),
        seconds=seconds,
        label_voxels=counts,
        area_um={name: count * size for name, count in counts.items()} if plan.unit == "micrometer" and isfinite(size) else None,
        area_unit="um^3" if len(plan.scale) == 3 else "um^2",
        instances=instances,
        skipped=[mask.sentence() for mask in planned.request.masks],
        attached=attached,
        table=None if is_partial or plan.measure is None else TABLE_KEY,
        models=[model.name for model in plan.models],
        passes=plan.pass_count,
        failures=failures.failures,
        failed=failures.failed,
        warnings=[*planned.warnings, *_asked_before(planned.request, request), *_mixed(stored), *unmeasured, *computed.notes],
        hardware=sorted(stored.hardware),
        seams=seams,
        stopped=f"{held_back}; {left} units are left, run again with a larger --budget to go on." if left else None,
        left=left,
    )


def _amplification(plan: Plan, computed: Tally) -> float | None:
    """Margins of neighbouring blocks overlap, and chunks do not end where blocks do: what is decoded more than once shows here."""
    channels = len(plan.input.channels) if plan.input.channels else plan.input.shape[0] if "c" in plan.input.axes else 1
    voxels = computed.voxels[SEGMENT_STAGE] * prod(above / below for above, below in plan.resample or ())
    needed = voxels * channels * np.dtype(plan.input.dtype).itemsize
    return round(computed.decoded_bytes[SEGMENT_STAGE] / needed, 3) if needed else None


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


def _mixed(stored: Tally) -> list[str]:
    """A warning if more than one class of hardware computed the result."""
    classes = sorted(stored.hardware)
    if len(classes) < 2:
        return []
    return [f"Blocks were computed on {len(classes)} classes of hardware ({', '.join(classes)}), which differ in last bits."]

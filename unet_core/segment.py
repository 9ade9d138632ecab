"""From job to result: ``run(job)`` is the serial loop that every other way of running must equal.

job -> plan -> output created -> units (read, predict, encode, commit, record) -> audit -> complete
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from unet_core import ledger, output
from unet_core.errors import BlockError, LedgerError, ResumeError
from unet_core.geometry import Box
from unet_core.job import SegmentationJob
from unet_core.ledger import Record, Request
from unet_core.plan import Plan, Stage, canonical_json, first_difference
from unet_core.planning import Planned, resolve
from unet_core.store import Store, open_store
from unet_core.volumes import Volume, open_volume
from unet_core.worker import run_unit


@dataclass(frozen=True)
class RunSummary:
    """What a run did and what its output holds.

    Args:
        status: ``complete`` (the audit passed), or ``partial`` (blocks failed; see ``failures``).
        output: URL.
        plan: id.
        blocks: wanted by the request.
        computed: of these in this run; the others were found in the ledger.
        voxels: segmented in this run.
        seconds: wall time of this run.
        label_voxels: voxels by class name, over the whole request.
        area_um: area or volume by class name; None where the voxel size is unknown.
        area_unit: of these, um^2 or um^3.
        failures: one sentence for each failed unit.
        warnings: what the user should know about the result.
        hardware: classes that computed it.
    """

    status: str
    output: str
    plan: str
    blocks: int
    computed: int
    voxels: int
    seconds: float
    label_voxels: dict[str, int]
    area_um: dict[str, float] | None
    area_unit: str
    failures: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    hardware: list[str] = field(default_factory=list)

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
    """Segment an image in this process, one block after the other: the reference for every other way of running.

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
    planned = resolve(job)
    request = prepare(planned, job.output)
    store = open_store(job.output)
    computed: list[Record] = []
    failures: list[str] = []
    for stage in planned.plan.stages:
        for index in remaining_units(store, planned.plan, request, stage):
            try:
                record = run_unit(job.output, request.id, stage.name, index)
            except BlockError as error:
                failures.append(str(error))
                continue
            computed.append(record)
            if on_record:
                on_record(record)
        if failures:
            break  # a coarser level would show holes as background
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
        LedgerError: if the ledger and the stored objects disagree although nothing failed.
    """
    plan, store = planned.plan, open_store(output_url)
    records = [record for stage in plan.stages for record in _wanted_records(store, plan, request, stage)]
    store.delete(ledger.COMPLETE_KEY)
    if not failures:
        audit(store, plan, request, records)
        mark = {"schema": 1, "plan": plan.id, "request": request.id, "units": len(records)}
        store.put(ledger.COMPLETE_KEY, canonical_json(mark))
    segmented = [record for record in records if record.stage == plan.stages[0].name]
    fresh = [record for record in computed if record.stage == plan.stages[0].name]
    counts = {
        entry.name: sum(record.label_voxels.get(str(entry.value), 0) for record in segmented) for entry in plan.model.classes
    }
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
        seconds=seconds,
        label_voxels=counts,
        area_um={name: count * size for name, count in counts.items()} if plan.unit == "micrometer" else None,
        area_unit="um^3" if len(plan.scale) == 3 else "um^2",
        failures=failures,
        warnings=list(planned.warnings),
        hardware=sorted({record.hardware for record in segmented}),
    )


def audit(store: Store, plan: Plan, request: Request, records: list[Record]) -> None:
    """Check that every wanted unit has a record and every record its objects, by hash.

    Raises:
        LedgerError: listing the first differences; there is no completion mark then.
    """
    have = {(record.stage, record.index) for record in records}
    missing = [
        f"{stage.name} block {index} has no record"
        for stage in plan.stages
        for index in wanted_units(plan, request, stage)
        if (stage.name, index) not in have
    ]
    wrong = missing + ledger.faults(store, records)
    if wrong:
        raise LedgerError(
            f"Audit of {store.url} found {len(wrong)} faults: {'; '.join(wrong[:5])}. Remove the ledger records of these blocks and run again."
        )


def _wanted_records(store: Store, plan: Plan, request: Request, stage: Stage) -> list[Record]:
    records = ledger.read_records(store, stage.name, plan.id, None if stage.level == 0 else request.id)
    return [records[index] for index in wanted_units(plan, request, stage) if index in records]


def check_output(planned: Planned, output_url: str) -> bool:
    """Whether the output holds a run of this very plan, to be taken up; reads only.

    Raises:
        ResumeError: if it holds something else; the message names the first field that differs.
    """
    store = open_store(output_url)
    existing = ledger.read_json(store, ledger.PLAN_KEY)
    if existing is None:
        _refuse_foreign(store, output_url)
        return False
    difference = first_difference(existing, planned.plan.model_dump(mode="json", by_alias=True))
    if difference:
        name, old, new = difference
        raise ResumeError(
            f"Output {output_url} was begun with another {name}: {_short(old)} then, {_short(new)} now; give a new output, or the old option."
        )
    return True


def prepare(planned: Planned, output_url: str) -> Request:
    """Create the output, or take up the one that this plan began; the request that now holds.

    Raises:
        ResumeError: if the output holds something else.
    """
    store = open_store(output_url)
    while not check_output(planned, output_url):
        store.put_if_absent(ledger.PLAN_KEY, planned.plan.canonical())
    store.delete_leftovers()
    request = _grown(ledger.read_json(store, ledger.REQUEST_KEY), planned.request)
    complete = ledger.read_json(store, ledger.COMPLETE_KEY)
    if complete is not None and complete.get("request") != request.id:
        store.delete(ledger.COMPLETE_KEY)
    output.create_output(store, planned.plan)
    store.put(ledger.REQUEST_KEY, ledger.to_bytes(request))
    return request


def _refuse_foreign(store: Store, output_url: str) -> None:
    names = store.child_names()
    if names and names != (ledger.FOLDER,):
        raise ResumeError(
            f"Output {output_url} exists and was not made by this program (it holds {', '.join(names[:3])}); give a new folder."
        )


def _grown(earlier: dict[str, Any] | None, wanted: Request) -> Request:
    """The union of what was wanted before and what is wanted now."""
    if earlier is None or earlier.get("plan") != wanted.plan:
        return wanted
    before = Request.model_validate(earlier)
    if before.roi is None or wanted.roi is None:
        return wanted.model_copy(update={"roi": None})
    return wanted.model_copy(update={"roi": tuple(sorted({*before.roi, *wanted.roi}))})


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def wanted_units(plan: Plan, request: Request, stage: Stage) -> Iterator[int]:
    """Numbers of the units of a stage that the request needs, ascending."""
    if request.roi is None:
        yield from range(stage.grid.block_count)
        return
    chosen: set[int] = set()
    finest = plan.stages[0].grid
    blocks = {index for start, stop in request.roi for index in finest.touching(Box(start, stop))}
    for index in blocks:
        box = finest.block(index)
        for level in plan.levels[1 : stage.level + 1]:
            box = box.scale_down(level.factor)
        chosen.update(stage.grid.touching(box))
    yield from sorted(chosen)


def remaining_units(store: Store, plan: Plan, request: Request, stage: Stage) -> list[int]:
    """Units of a stage that the request needs and the ledger lacks; coarser levels are redone for another request."""
    done = ledger.read_records(store, stage.name, plan.id, None if stage.level == 0 else request.id)
    return [index for index in wanted_units(plan, request, stage) if index not in done]


@dataclass(frozen=True)
class Status:
    """Where a run stands, from the output alone.

    Args:
        state: ``complete``, or ``unfinished``.
        stages: name to (units done, units wanted).
    """

    state: str
    plan: str
    model: str
    stages: dict[str, tuple[int, int]]


def read_status(output_url: str) -> Status:
    """Read plan, request and ledger of an output.

    Raises:
        ResumeError: if it is not an output of this program.
    """
    store = open_store(output_url)
    plan, request = ledger.read_plan(store), ledger.read_request(store)
    complete = ledger.read_json(store, ledger.COMPLETE_KEY)
    stages = {}
    for stage in plan.stages:
        wanted = len(list(wanted_units(plan, request, stage)))
        stages[stage.name] = (len(_wanted_records(store, plan, request, stage)), wanted)
    done = complete is not None and complete.get("request") == request.id
    return Status("complete" if done else "unfinished", plan.id, plan.model.name, stages)


@dataclass(frozen=True)
class Result:
    """A finished or partly finished output, to look into."""

    url: str
    plan: Plan
    status: Status

    def volume(self, name: str = "labels/classes", level: int = 0) -> Volume:
        """One of the output's images ("" is the root) at one level."""
        return open_volume(
            f"{self.url.rstrip('/')}/{name}".rstrip("/"), level, missing="fill"
        )  # shards of background are not stored

    def to_dask(self, name: str = "labels/classes", level: int = 0) -> Any:
        """The same as a lazy dask array."""
        return self.volume(name, level).to_dask()


def open_result(url: str) -> Result:
    """Open an output of ``run``.

    Raises:
        ResumeError: if it is not an output of this program.
    """
    return Result(url, ledger.read_plan(open_store(url)), read_status(url))

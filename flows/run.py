"""A segmentation on a cluster, without Prefect: plan, output, units of all stages as they become ready, audit."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flows.clusters import Workers, check_cluster, check_reachable, device_elsewhere, open_cluster, worker_bounds
from flows.dispatch import run_units
from flows.metrics_file import Metered, MetricsFile, open_meter
from flows.progress import Progress, Snapshot
from unet_core.agenda import Agenda
from unet_core.budget import Capped, Purse
from unet_core.errors import MemoryBudgetError
from unet_core.job import SegmentationJob
from unet_core.lease import Claim, HeldLease, check_free, hold
from unet_core.ledger import Record, Request
from unet_core.packing import Packer
from unet_core.places import check_writable
from unet_core.planning import Planned, resolve
from unet_core.prices import Budget
from unet_core.segment import RunSummary, check_output, finish, prepare, remaining_units
from unet_core.spending import every_record
from unet_core.store import absolute, open_store
from unet_core.tally import Tally
from unet_core.wording import counted

Runner = Callable[[str | None, Agenda, Tally], None]


@dataclass(frozen=True)
class Prepared:
    """A run whose output exists: what is left to do, by stage."""

    planned: Planned
    request: Request
    output: str
    lease: HeldLease
    remaining: dict[str, NDArray[np.int64]]

    @property
    def total(self) -> int:
        return sum(len(indices) for indices in self.remaining.values())


def check_job(job: SegmentationJob, cluster: str, workers: Workers, claim: Claim | None = None) -> Planned:
    """Plan the job and refuse what cannot work, an unreachable cluster included; nothing is written.

    Raises:
        InputError: in one of its kinds.
    """
    check_cluster(cluster, workers)
    check_writable(job.output)
    check_free(job.output, claim)
    planned = plan_job(job, cluster, workers)
    check_reachable(cluster, planned.request.device)
    return planned


def plan_job(job: SegmentationJob, cluster: str, workers: Workers) -> Planned:
    """The same for a cluster that is known to be there."""
    check_writable(job.output)
    planned = resolve(job, device_elsewhere(cluster, job.device))
    check_output(planned, job.output)
    check_memory(planned, cluster, workers)
    return planned


def check_memory(planned: Planned, cluster: str, workers: Workers) -> None:
    """Refuse more workers than this machine has memory for.

    Raises:
        MemoryBudgetError: with both numbers.
    """
    if planned.request.device != "cpu" or cluster not in ("local", "serial"):
        return
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    count = worker_bounds(workers)[1] if cluster == "local" else 1
    if count * planned.memory_bytes > available:
        raise MemoryBudgetError(
            f"block needs {planned.memory_bytes / 2**30:.1f} GiB in each of {counted(count, 'worker')}, this machine has "
            f"{available / 2**30:.1f} GiB; use fewer --workers or a smaller --block-shape."
        )


@contextmanager
def prepared_run(job: SegmentationJob, cluster: str, workers: Workers, claim: Claim | None = None) -> Iterator[Prepared]:
    """Plan the job, refuse what cannot work, create or take up the output, and hold it while the context lasts.

    Raises:
        InputError: in one of its kinds, if the job cannot be run as asked, or another run holds the output.
    """
    claim = claim or Claim()
    with taken_up(check_job(job, cluster, workers, claim), job.output, claim) as prepared:
        yield prepared


@contextmanager
def taken_up(planned: Planned, output: str, claim: Claim | None = None) -> Iterator[Prepared]:
    """The same for a plan that was made."""
    with hold(output, claim) as lease:
        yield _take_up(planned, output, lease)


def _take_up(planned: Planned, output: str, lease: HeldLease) -> Prepared:
    request = prepare(planned, output, lease.generation)
    store = open_store(output)
    remaining = {stage.name: remaining_units(store, planned.plan, request, stage) for stage in planned.plan.stages}
    return Prepared(planned, request, absolute(output), lease, remaining)


def gpu_count(device: str) -> int:
    """GPUs of this machine that a run on ``device`` may use."""
    if not device.startswith("cuda"):
        return 0
    import torch

    return torch.cuda.device_count()


def open_purse(prepared: Prepared, budget: Budget | None) -> Purse | None:
    """A budget with what the output took so far; None for none."""
    if budget is None:
        return None
    purse = Purse(budget)
    purse.know(every_record(open_store(prepared.output), prepared.planned.plan))
    return purse


def run_stages(
    prepared: Prepared,
    cluster: str,
    workers: Workers,
    run_units: Runner,
    purse: Purse | None = None,
    meter: MetricsFile | None = None,
) -> RunSummary:
    """Run what is left of all stages, and audit.

    Args:
        run_units: computes the units of an agenda, given the scheduler's address, and counts them and what failed.
        purse: that limits which units are begun.
        meter: told how it ended.
    """
    began, computed = time.perf_counter(), Tally()
    with meter or nullcontext():
        if prepared.total and not (purse and purse.is_stopped):
            plan, gpus = prepared.planned.plan, gpu_count(prepared.request.device)
            with (
                Packer(open_store(prepared.output), plan.id, prepared.remaining, prepared.request.generation) as packer,
                open_cluster(cluster, workers, gpus, prepared.planned.memory_bytes) as scheduler,
            ):
                run_units(scheduler, Agenda(plan.stages, prepared.remaining, packer.committed, prepared.lease.check), computed)
            computed.notes += packer.problems
        if meter and meter.problem:
            computed.notes.append(meter.problem)
        held_back = purse.sentence() if purse and purse.is_stopped else ""
        seconds = time.perf_counter() - began
        summary = finish(prepared.planned, prepared.request, prepared.output, computed, seconds, held_back)
        if meter:
            meter.end("complete" if summary.status == "complete" else "partial", summary.failed)
        return summary


def segment_on_cluster(
    job: SegmentationJob,
    cluster: str = "local",
    workers: Workers = 2,
    show: Callable[[Snapshot], None] = lambda snapshot: None,
    budget: Budget | None = None,
    claim: Claim | None = None,
    metrics: str | None = None,
) -> RunSummary:
    """Segment an image on dask workers; Prefect is not imported.

    Args:
        job: image, model, output and options.
        cluster: see ``open_cluster``.
        workers: processes that are started: a number, or "FEWEST..MOST".
        show: called with the progress, at most once a second.
        budget: that the output may take, earlier runs included; the run ends ``partial`` before it would be passed.
        claim: how to ask for the output, which no other run may write meanwhile.
        metrics: file for the numbers of the run, in ``.prom`` or ``.json``.
    """
    with prepared_run(job, cluster, workers, claim) as prepared:
        return _segment(prepared, cluster, workers, show, open_purse(prepared, budget), open_meter(metrics, prepared))


def _segment(
    prepared: Prepared,
    cluster: str,
    workers: Workers,
    show: Callable[[Snapshot], None],
    purse: Purse | None,
    meter: MetricsFile | None,
) -> RunSummary:
    progress = Metered(Progress(prepared.total, show), meter)

    def run_all(scheduler: str | None, agenda: Agenda, computed: Tally) -> None:
        def note(record: Record) -> None:
            computed.add(record)
            progress.add(record)
            if purse:
                purse.add(prepared.output, record)

        units = Capped(agenda, purse, prepared.output)
        run_units(scheduler, prepared.output, prepared.request.key, units, note, computed.fail)

    return run_stages(prepared, cluster, workers, run_all, purse, meter)

"""A few blocks of a job on its own cluster, into a place that is removed again: what the whole would take. Knows dask, not Prefect."""

from __future__ import annotations

import shutil
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from flows.clusters import Workers, open_cluster, worker_bounds
from flows.dispatch import run_units
from flows.run import gpu_count
from unet_core.agenda import Agenda, UnitId
from unet_core.errors import JobError, LedgerError
from unet_core.ledger import Record
from unet_core.planning import Planned
from unet_core.segment import finish, prepare, remaining_units
from unet_core.store import TRIAL_PREFIX, is_remote, local_path, open_store, this_writer
from unet_core.tally import Tally
from unet_core.trial import (
    FEWEST_BLOCKS,
    MOST_SECONDS,
    Estimate,
    Tried,
    choose_blocks,
    estimate,
    peak_memory,
)

_MOST_WARMING = 8  # blocks that warm workers up
_LONGEST_WAIT = 60  # seconds, for workers that a queue starts


@dataclass(frozen=True)
class Trial:
    """What a trial found.

    Args:
        estimate: of what is left of the job; None if nothing is.
        seconds: that it took.
        workers: that worked.
        peak_bytes: of main memory, the most that one worker had.
        gpu_bytes: of the GPU, likewise.
    """

    estimate: Estimate | None
    seconds: float
    workers: int
    peak_bytes: int = 0
    gpu_bytes: int = 0


class _Timed:
    """Units that are no longer handed out after a while, once enough were."""

    def __init__(self, agenda: Agenda, finest: str, enough: int) -> None:
        self._agenda, self._finest, self._enough = agenda, finest, enough
        self._ends = time.monotonic() + MOST_SECONDS
        self._taken = 0

    def take(self) -> UnitId | None:
        if self._taken >= self._enough and time.monotonic() > self._ends:
            return self._agenda.take_unlocked()  # what is made of blocks that are there
        unit = self._agenda.take()
        self._taken += unit is not None and unit[0] == self._finest
        return unit

    def committed(self, stage: str, index: int) -> None:
        self._agenda.committed(stage, index)


def try_blocks(planned: Planned, output: str, cluster: str, workers: Workers, count: int, began: float) -> Trial:
    """Segment a sample of blocks as the job would, and remove them.

    Args:
        planned: the job.
        output: where it would write; the trial writes beside it.
        cluster: that the job would run on.
        workers: likewise.
        count: blocks to measure, beside those that warm up the workers.
        began: when the command began, by ``time.perf_counter``.

    Raises:
        JobError: if ``count`` is too small.
        LedgerError: if blocks failed.
    """
    if not FEWEST_BLOCKS <= count <= 1000:
        raise JobError(f"--measure is {count}; give {FEWEST_BLOCKS} to 1000 blocks.")
    plan, store = planned.plan, open_store(output)
    left = {stage.name: remaining_units(store, plan, planned.request, stage).tolist() for stage in plan.stages}
    finest = plan.stages[0]
    if not left[finest.name]:
        return Trial(None, 0.0, worker_bounds(workers)[1])
    with (
        _temporary(output) as place,
        open_cluster(cluster, workers, gpu_count(planned.request.device), planned.memory_bytes) as scheduler,
    ):
        several = _worker_count(scheduler, 1 if "://" in cluster else worker_bounds(workers)[0])
        warming = min(several, _MOST_WARMING)
        chosen = choose_blocks(finest.grid, left[finest.name], count + warming)
        boxes = (finest.grid.block(index) for index in chosen)
        request = planned.request.model_copy(update={"roi": tuple(sorted((box.start, box.stop) for box in boxes)), "masks": ()})
        asked = replace(planned, request=request, attachment=None, asked=None)
        request = prepare(asked, place)
        units = {stage.name: remaining_units(open_store(place), plan, request, stage) for stage in plan.stages}
        agenda = _Timed(Agenda(plan.stages, units | {finest.name: chosen}), finest.name, FEWEST_BLOCKS + warming)
        arrived: list[tuple[float, Record]] = []
        failed: list[str] = []

        def note(record: Record) -> None:
            arrived.append((time.perf_counter(), record))

        run_units(scheduler, place, request.key, agenda, note, failed.append)
        if failed:
            raise LedgerError(f"The trial failed: {failed[0]}")
        peaks = _peaks(scheduler)
        records = [record for _, record in arrived]
        audited = time.perf_counter()
        finish(asked, request, place, Tally(), 0.0, "trial")
        audit = (time.perf_counter() - audited) / len(records)
        ending = time.perf_counter()
    ended, done = time.perf_counter(), Counter(record.stage for record in records)
    kept = records if done[finest.name] == len(left[finest.name]) else _without_first(records, warming)
    usual = [record.work_seconds for record in kept if record.stage == finest.name]
    first = next(moment for moment, record in arrived if record.stage == finest.name)
    start = max(0.0, first - began - sum(usual) / len(usual)) + (ended - ending)
    tried = Tried(kept, done, start, audit, several)
    most = (max(values) for values in zip(*peaks, strict=True))
    return Trial(estimate(plan, left, tried), ended - began, several, *most)


def _without_first(records: list[Record], count: int) -> list[Record]:
    """Without the first of each stage, in which workers load what it needs; of stages with few units all."""
    done, seen, kept = Counter(record.stage for record in records), Counter[str](), []
    for record in records:
        seen[record.stage] += 1
        if seen[record.stage] > count or done[record.stage] <= count:
            kept.append(record)
    return kept


@contextmanager
def _temporary(output: str) -> Iterator[str]:
    """A place beside an output that is gone afterwards."""
    parent, _, _ = (output if is_remote(output) else str(local_path(output).absolute())).rstrip("/").rpartition("/")
    if not is_remote(output):
        folder = local_path(parent or "/")
        while not folder.is_dir():
            folder = folder.parent
        parent = str(folder)
    place = f"{parent.rstrip('/')}/{TRIAL_PREFIX}{this_writer()}-{uuid.uuid4().hex}"
    try:
        yield place
    finally:
        if is_remote(place):
            store = open_store(place)
            for entry in list(store.list()):
                store.delete(entry.key)
        else:
            shutil.rmtree(local_path(place), ignore_errors=True)


def _worker_count(scheduler: str | None, expected: int) -> int:
    """Workers that are there, once as many are as are expected, or after a while."""
    if scheduler is None:
        return 1
    from distributed import Client

    with Client(scheduler, set_as_default=False, timeout="30s") as client:
        client.wait_for_workers(1)
        with suppress(TimeoutError):
            client.wait_for_workers(expected, timeout=_LONGEST_WAIT)
        return max(1, len(client.scheduler_info(n_workers=-1)["workers"]))


def _peaks(scheduler: str | None) -> list[tuple[int, int]]:
    """What each worker had at most, of main memory and of its GPU."""
    if scheduler is None:
        return [peak_memory()]
    from distributed import Client

    with Client(scheduler, set_as_default=False, timeout="30s") as client:
        return list(client.run(peak_memory).values())

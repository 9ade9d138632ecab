"""The window of futures on a real scheduler: it follows the workers that are there, and nothing of what has ended is kept."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from distributed import Future, KilledWorker, Scheduler, SpecCluster, Worker, get_worker

from flows import dispatch
from unet_core.agenda import Agenda
from unet_core.ledger import REQUEST_KEY, Record, Request, to_bytes
from unet_core.stages import stages_of
from unet_core.store import open_store
from unet_core.tally import MOST_TOLD, Tally

begun: set[str] = set()  # addresses of workers that have begun a block
enough = threading.Event()  # so many have


def record_of(stage: str, index: int, hardware: str = "") -> Record:
    return Record(
        plan="p", request="r", stage=stage, index=index, objects=(), voxels=4, seconds={"predict": 1.0}, hardware=hardware, software={}
    )  # fmt: skip


def wait_for_three(output_url: str, request_key: str, stage: str, index: int) -> Record:
    """A block that ends once three workers have begun one."""
    begun.add(get_worker().address)
    if len(begun) == 3:
        enough.set()
    assert enough.wait(20)
    return record_of(stage, index, get_worker().address)


def at_once(output_url: str, request_key: str, stage: str, index: int) -> Record:
    return record_of(stage, index)


@pytest.fixture
def cluster() -> Iterator[SpecCluster]:
    """A scheduler without workers."""
    options = {"host": "127.0.0.1", "port": 0, "dashboard": False, "dashboard_address": "127.0.0.1:0"}
    with SpecCluster(workers={}, scheduler={"cls": Scheduler, "options": options}, silence_logs="CRITICAL") as started:
        yield started


def join(cluster: SpecCluster) -> Worker:
    """A worker of one thread, in this process."""

    async def start() -> Worker:
        return await Worker(cluster.scheduler_address, nthreads=1, host="127.0.0.1", dashboard_address="127.0.0.1:0")

    started: Worker = cluster.sync(start)
    return started


class Counted:
    """Units of an agenda, and how many of them are in flight at most."""

    def __init__(self, count: int) -> None:
        self.agenda = Agenda(stages_of([((count,), (1,))], (1,), has_instances=False), {"segment": range(count)})
        self.flying = self.most = 0

    def take(self) -> Any:
        unit = self.agenda.take()
        self.flying += unit is not None
        self.most = max(self.most, self.flying)
        return unit

    def committed(self, stage: str, index: int) -> None:
        self.flying -= 1
        self.agenda.committed(stage, index)


def run(
    cluster: SpecCluster, units: Any, work: Callable[..., Record], monkeypatch: pytest.MonkeyPatch, output: Path
) -> tuple[threading.Thread, Tally]:
    open_store(str(output)).put(REQUEST_KEY, to_bytes(Request(plan="p", image="i", model="m", device="cpu", roi=None)))
    monkeypatch.setattr(dispatch, "run_told", work)
    monkeypatch.setattr(dispatch, "REFRESH_SECONDS", 0.2)
    tally = Tally()
    arguments = (cluster.scheduler_address, str(output), "key", units, tally.add, tally.fail)
    thread = threading.Thread(target=dispatch.run_units, args=arguments, daemon=True)
    thread.start()
    return thread, tally


def test_workers_that_join_get_blocks_before_any_has_ended(
    cluster: SpecCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begun.clear()
    enough.clear()
    units, workers = Counted(40), []
    thread, tally = run(cluster, units, wait_for_three, monkeypatch, tmp_path)  # no worker: what is in flight waits for the first
    time.sleep(0.5)
    for _ in range(3):
        workers.append(join(cluster))
        time.sleep(0.5)
    thread.join(30)
    assert tally.units == {"segment": 40}
    assert len(tally.hardware) == 3
    assert dispatch.WINDOW_PER_THREAD < units.most <= 3 * dispatch.WINDOW_PER_THREAD
    cluster.sync(lambda: asyncio.gather(*(worker.close() for worker in workers)))


def test_nothing_is_kept_of_blocks_that_have_ended(cluster: SpecCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    worker, units = join(cluster), Counted(300)
    thread, tally = run(cluster, units, at_once, monkeypatch, tmp_path)
    seen = 0
    while thread.is_alive():
        seen = max(seen, len(cluster.scheduler.tasks))
        time.sleep(0.005)
    assert tally.total == 300
    assert units.most == dispatch.WINDOW_PER_THREAD
    assert seen <= 20  # released ones are forgotten a moment later
    assert not cluster.scheduler.tasks
    cluster.sync(worker.close)


def blamed_unless_alone(output_url: str, request_key: str, stage: str, index: int) -> Record:
    key = get_worker().get_current_task()
    if "-alone-" not in key:
        raise KilledWorker(key, SimpleNamespace(address=get_worker().address), 1)
    return record_of(stage, index)


def test_a_block_whose_worker_dies_after_it_ended_alone_is_waited_for(
    cluster: SpecCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    workers, true = [join(cluster)], dispatch._next_ended

    def next_ended(completed: Any) -> list[Future]:
        ended = true(completed)
        if ended and "-alone-" in ended[0].key and len(workers) == 1:
            cluster.sync(workers[0].close)  # with what it held, before it is asked
            while ended[0].status == "finished":
                time.sleep(0.01)
            workers.append(join(cluster))
        return ended

    monkeypatch.setattr(dispatch, "_next_ended", next_ended)
    thread, tally = run(cluster, Counted(1), blamed_unless_alone, monkeypatch, tmp_path)
    thread.join(30)
    assert (tally.units, tally.failed, len(workers)) == ({"segment": 1}, 0, 2)
    cluster.sync(workers[1].close)


def test_a_tally_counts_all_and_keeps_few() -> None:
    one, other = Tally(), Tally()
    for index in range(MOST_TOLD):
        one.fail(f"block {index}")
        other.fail(f"block {MOST_TOLD + index}")
        other.add(record_of("segment", index, "cpu"))
    one.merge(other)
    assert (one.failed, len(one.failures), one.failures[-1]) == (2 * MOST_TOLD, MOST_TOLD, f"block {MOST_TOLD - 1}")
    assert (one.total, one.voxels["segment"], one.work_seconds, one.hardware) == (MOST_TOLD, 4 * MOST_TOLD, MOST_TOLD, {"cpu"})


def test_a_flow_run_has_few_task_runs_however_many_blocks() -> None:
    """Its batches, two at a time as in the flow, of a run with all stages; the same number for any size above a few hundred blocks."""
    from flows.segment import BATCH_COUNT, CONCURRENT_BATCHES, SMALLEST_BATCH

    levels = [((200 >> level, 160 >> level), ((2, 2) if level else (1, 1))) for level in range(4)]
    stages = stages_of(levels, (4, 4), has_instances=True, has_table=True)
    counts = {stage.name: stage.grid.block_count for stage in stages}
    agenda, running, batches, done = Agenda(stages, {name: range(count) for name, count in counts.items()}), list[Any](), 0, 0
    while True:
        while len(running) < CONCURRENT_BATCHES and (
            batch := agenda.batch(lambda stage: max(SMALLEST_BATCH, -(-counts[stage] // BATCH_COUNT)))
        ):
            running.append(batch)
            batches += 1
        if not running:
            break
        for batch in list(running):
            if unit := batch.take():
                done += 1
                batch.committed(*unit)
            else:
                running.remove(batch)
    assert done == sum(counts.values()) > 8000
    assert batches <= 3 * BATCH_COUNT

"""One run per output: real processes that are started at once, killed, stopped and woken, on a disk and on a server of objects."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.unet_core.test_ledger import flip
from unet_core import ledger, owner
from unet_core.errors import LeaseHeldError, LeaseLostError
from unet_core.job import SegmentationJob, make_job
from unet_core.lease import Claim, Lease, check_free, fence, find_holder, find_newest, hold
from unet_core.ledger import read_records
from unet_core.owner import this_owner
from unet_core.planning import resolve
from unet_core.segment import finish, open_result, read_status, run
from unet_core.store import open_store
from unet_core.tally import Tally
from unet_core.verify import verify

Maker = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[2]
ROUNDS, THREADS = 50, 10


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A folder of this disk, or of a server of objects."""
    if request.param == "disk":
        yield str(tmp_path / "out")
        return
    yield f"{request.getfixturevalue('serial_bucket')}/out"


def names(url: str) -> tuple[str, ...]:
    return open_store(url).child_names(".unet/lease")


def lease_of(url: str) -> Lease:
    seen = find_newest(open_store(url))
    assert seen is not None
    assert seen.lease is not None
    return seen.lease


def contend(url: str, barriers: list[Any], results: Any) -> None:
    """Try to hold one output after the other together with another process; in several threads, since most of it is waiting."""

    def rounds(thread: int) -> None:
        for number in range(thread, ROUNDS, THREADS):
            barriers[thread].wait(60)
            try:
                with hold(f"{url}/{number}", Claim(lease_seconds=3.0)) as held:
                    barriers[thread].wait(60)  # nobody lets go before the other has tried
                    held.check()
                    results.put((number, held.generation, ""))
            except LeaseHeldError as error:
                results.put((number, 0, str(error)))
                barriers[thread].wait(60)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(rounds, range(THREADS)))


@pytest.mark.slow
@pytest.mark.parametrize("place", ["disk", "objects"], indirect=True)
def test_of_runs_that_begin_at_once_one_gets_the_output(place: str) -> None:
    processes, context = 2, multiprocessing.get_context("spawn")
    barriers, results = [context.Barrier(processes) for _ in range(THREADS)], context.Queue()
    children = [context.Process(target=contend, args=(place, barriers, results)) for _ in range(processes)]
    for child in children:
        child.start()
    found = [results.get(timeout=120) for _ in range(processes * ROUNDS)]
    for child in children:
        child.join(30)
    for number in range(ROUNDS):
        owners = [entry for entry in found if entry[0] == number and entry[1]]
        refused = [entry for entry in found if entry[0] == number and not entry[1]]
        assert [entry[1] for entry in owners] == [1], number  # one, of the first generation
        assert len(refused) == processes - 1
        assert all("two runs never write one output" in entry[2] for entry in refused)
        assert names(f"{place}/{number}") == ("00000001.json",)


@pytest.mark.parametrize("place", ["disk", "objects"], indirect=True)
def test_holders_that_come_one_after_the_other_count_up_and_leave_one_object(place: str) -> None:
    for generation in (1, 2, 3):
        with hold(place) as held:
            assert held.generation == generation
            assert find_holder(open_store(place)) == lease_of(place)
        assert find_holder(open_store(place)) is None
        assert names(place) == (f"0000000{generation}.json",)


def test_many_threads_that_take_turns_are_never_inside_together(tmp_path: Path) -> None:
    inside, generations = threading.Lock(), []

    def work(number: int) -> None:
        while True:
            try:
                with hold(str(tmp_path), Claim(lease_seconds=0.3)) as held:
                    assert inside.acquire(blocking=False)
                    generations.append(held.generation)
                    time.sleep(0.02)
                    inside.release()
                return
            except LeaseHeldError:
                time.sleep(0.01)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert generations == sorted(set(generations))
    assert len(generations) == 6


HOLDER = """
import sys, time
from unet_core.errors import LeaseLostError
from unet_core.lease import Claim, hold
with hold(sys.argv[1], Claim(lease_seconds=float(sys.argv[2]))) as held:
    print("held", flush=True)
    while True:
        time.sleep(0.05)
        held.check()
"""


def start_holder(url: str, seconds: float) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLDER, url, str(seconds)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    return child


def test_a_second_run_is_told_whose_the_output_is_and_what_to_do(tmp_path: Path) -> None:
    child, told = start_holder(str(tmp_path), 1.0), list[str]()
    lease = lease_of(str(tmp_path))
    assert (lease.owner.pid, lease.owner.host) == (child.pid, this_owner().host)
    began = time.monotonic()
    with pytest.raises(LeaseHeldError) as error, hold(str(tmp_path), Claim(tell=told.append)):
        pass
    assert time.monotonic() - began < 1.0  # as soon as the counter moves
    who = f"{tmp_path} is held by {lease.owner.user} on {lease.owner.host} (process {child.pid}) since {lease.since}"
    assert str(error.value).startswith(f"Output {who}; two runs never write one output. Let it end, or stop it;")
    assert told == [f"{who}; looking for at most 1 s whether that is still at work."]
    child.kill()
    child.wait()


def test_a_killed_holder_of_this_machine_is_dead_at_once(tmp_path: Path) -> None:
    child = start_holder(str(tmp_path), 600.0)
    child.kill()  # and not waited for: a zombie is no holder
    while owner.process_start(child.pid) is not None:
        time.sleep(0.01)
    began = time.monotonic()
    with hold(str(tmp_path)) as held:
        assert held.generation == 2
    assert time.monotonic() - began < 2.0
    child.wait()


def test_a_process_that_got_the_number_of_a_dead_one_is_no_holder(tmp_path: Path) -> None:
    with hold(str(tmp_path)):
        lease = lease_of(str(tmp_path))
    reused = lease.model_copy(update={"released": False, "owner": lease.owner.model_copy(update={"started": "1"})})
    open_store(str(tmp_path)).put(".unet/lease/00000001.json", reused.to_bytes())
    check_free(str(tmp_path), Claim(tell=pytest.fail))


def foreign(**changes: Any) -> Lease:
    """A lease of a process of another machine."""
    elsewhere = this_owner().model_copy(update={"host": "node7", "machine": "node7 boot", "user": "ada"})
    return Lease(generation=1, seconds=0.6, since="then", owner=elsewhere).model_copy(update=changes)


def test_a_holder_of_another_machine_is_dead_when_its_counter_stands_still(tmp_path: Path) -> None:
    open_store(str(tmp_path)).put(".unet/lease/00000001.json", foreign().to_bytes())
    told: list[str] = []
    began = time.monotonic()
    with hold(str(tmp_path), Claim(lease_seconds=60, tell=told.append)) as held:
        assert 0.6 <= time.monotonic() - began < 3.0  # as long as the holder's own lease says, not the observer's
        assert held.generation == 2
    assert told == [
        f"{tmp_path} is held by ada on node7 (process {os.getpid()}) since then; "
        "looking for at most 1 s whether that is still at work."
    ]
    open_store(str(tmp_path)).put(".unet/lease/00000003.json", foreign(generation=3).to_bytes())
    claim = Claim(tell=told.append)
    check_free(str(tmp_path), claim)
    with hold(str(tmp_path), claim):  # what was seen once is not waited for again
        assert len(told) == 2


def test_a_flow_run_takes_over_from_itself_at_once_and_from_no_other(tmp_path: Path) -> None:
    lease = foreign(owner=foreign().owner.model_copy(update={"run": "run-1"}), seconds=600.0)
    open_store(str(tmp_path)).put(".unet/lease/00000001.json", lease.to_bytes())
    told: list[str] = []
    check_free(str(tmp_path), Claim(run="run-1", tell=told.append))
    assert not told
    with pytest.raises(StopIteration):
        check_free(str(tmp_path), Claim(run="run-2", tell=lambda text: next(iter(()))))  # it would wait


@pytest.mark.parametrize("data", [b"", b"[]", b'{"generation": 1}', b"\xff\x00", b"{" * 100_000])
def test_a_damaged_lease_is_named_and_waited_for(data: bytes, tmp_path: Path) -> None:
    open_store(str(tmp_path)).put(".unet/lease/00000004.json", data)
    told: list[str] = []
    with hold(str(tmp_path), Claim(lease_seconds=0.3, tell=told.append)) as held:
        assert held.generation == 5
    assert ".unet/lease/00000004.json is damaged" in told[0]
    assert names(str(tmp_path)) == ("00000005.json",)


def test_a_folder_in_the_place_of_a_lease_is_passed(tmp_path: Path) -> None:
    (tmp_path / ".unet/lease/00000001.json").mkdir(parents=True)
    with hold(str(tmp_path), Claim(lease_seconds=0.3)) as held:
        assert held.generation == 2


def test_a_wall_clock_that_is_wrong_by_an_hour_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither does the one that holds an output lose it, nor does a dead one keep it."""
    real = time.time
    for number, skew in enumerate((3600.0, -3600.0)):
        url = str(tmp_path / str(number))
        child = start_holder(url, 1.0)
        monkeypatch.setattr(time, "time", lambda skew=skew: real() + skew)
        old = real() + skew
        for path in (tmp_path / str(number)).rglob("*.json"):
            os.utime(path, (old, old))
        with pytest.raises(LeaseHeldError):
            check_free(url)
        child.kill()
        child.wait()
        check_free(url, Claim(tell=pytest.fail))
        monkeypatch.setattr(time, "time", real)


def test_a_holder_that_was_stopped_too_long_notices_when_it_wakes(tmp_path: Path) -> None:
    child = start_holder(str(tmp_path), 0.9)
    os.kill(child.pid, signal.SIGSTOP)
    with hold(str(tmp_path), Claim(lease_seconds=0.9)) as held:
        os.kill(child.pid, signal.SIGCONT)
        _, err = child.communicate(timeout=20)
        assert child.returncode == 1
        assert "LeaseLostError" in err
        assert f"is held by {lease_of(str(tmp_path)).sentence()}: it was taken over from this run" in err
        time.sleep(0.5)
        held.check()
        assert names(str(tmp_path)) == ("00000002.json",)


def test_a_lease_that_is_deleted_by_hand_is_put_back(tmp_path: Path) -> None:
    with hold(str(tmp_path), Claim(lease_seconds=0.3)) as held:
        open_store(str(tmp_path)).delete(".unet/lease/00000001.json")
        deadline = time.monotonic() + 10
        while not names(str(tmp_path)) and time.monotonic() < deadline:
            time.sleep(0.02)
        held.check()
    assert lease_of(str(tmp_path)).released


def test_what_is_fenced_is_refused_to_an_older_generation_alone(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    fence(store, 3)  # nobody ever held it
    store.put(".unet/lease/00000003.json", foreign(generation=3).to_bytes())
    for generation in (0, 3):
        fence(store, generation)
    with pytest.raises(LeaseLostError, match="is held by ada on node7"):
        fence(store, 2)


@pytest.fixture
def job(make_model: Maker, make_image: Maker, tmp_path: Path) -> SegmentationJob:
    fields = {"image": str(make_image((100, 90))), "model": str(make_model(levels=2))}
    return make_job(**fields, output=str(tmp_path / "out"), block_shape=(32, 32), instances="components")


def test_records_carry_the_generation_and_each_run_lets_go(job: SegmentationJob) -> None:
    calls = 0

    def stop(record: ledger.Record) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(job, stop)
    assert find_holder(open_store(job.output)) is None
    run(job, claim=Claim(tell=pytest.fail))
    plan, store = open_result(job.output).plan, open_store(job.output)
    records = read_records(store, "segment", plan.id)
    assert {records[index].generation for index in records} == {1, 2}
    assert ledger.read_request(store).generation == 2
    assert names(job.output) == ("00000002.json",)


def test_a_held_output_is_neither_planned_nor_repaired(job: SegmentationJob, monkeypatch: pytest.MonkeyPatch) -> None:
    run(job)
    before = {path: path.read_bytes() for path in Path(job.output).rglob("*") if path.is_file() and "lease" not in path.parts}
    monkeypatch.setattr("unet_core.segment.resolve", lambda job: pytest.fail("it was planned"))
    child = start_holder(job.output, 1.0)
    with pytest.raises(LeaseHeldError):
        run(job)
    with pytest.raises(LeaseHeldError):
        verify(job.output, repair=True)
    assert verify(job.output).state == "intact"
    child.kill()
    child.wait()
    assert verify(job.output, repair=True).state == "intact"
    assert {path: path.read_bytes() for path in before} == before


def test_a_run_that_lost_its_output_marks_nothing_complete(job: SegmentationJob) -> None:
    """The other one takes over behind its back as the last block is committed, before the audit."""
    store, taken = open_store(job.output), []

    def take(record: ledger.Record) -> None:
        if record.stage == "instances-level-1" or record.stage == "table":
            taken.append(record)
            store.put(".unet/lease/00000002.json", foreign(generation=2).to_bytes())

    with pytest.raises(LeaseLostError, match="is held by ada on node7"):
        run(job, take)
    assert taken
    assert read_status(job.output).state == "unfinished"
    assert run(job).status == "complete"


def test_later_stages_are_left_to_the_run_that_holds_the_output(job: SegmentationJob) -> None:
    store = open_store(job.output)

    def take(record: ledger.Record) -> None:
        if record.stage == "segment":
            store.put(".unet/lease/00000002.json", foreign(generation=2).to_bytes())

    with pytest.raises(LeaseLostError):
        run(job, take)
    plan = open_result(job.output).plan
    assert not read_records(store, "join", plan.id)
    assert not list(store.list(".unet/attempts"))  # nor does it blame blocks in the other one's output


@pytest.mark.parametrize("how", ["complete", "partial", "repair"])
def test_a_run_that_lost_its_output_while_it_read_it_back_withdraws_nothing(
    how: str, job: SegmentationJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it found damaged may be what the other one has computed again meanwhile."""
    run(job)
    store, plan, request = open_store(job.output), open_result(job.output).plan, ledger.read_request(open_store(job.output))
    flip(Path(job.output) / "labels/classes/0/c/1/1")
    before = read_records(store, "segment", plan.id)
    faults = ledger.faults

    def find_late(*read: Any) -> Any:
        store.put(".unet/lease/00000009.json", foreign(generation=9).to_bytes())
        return faults(*read)

    monkeypatch.setattr(ledger, "faults", find_late)
    end = partial(finish, resolve(job), request, job.output, Tally(failed=how == "partial"), 0.0)
    with pytest.raises(LeaseLostError):
        verify(job.output, repair=True) if how == "repair" else end()
    assert read_records(store, "segment", plan.id) == before
    assert not store.exists(ledger.FAILURES_KEY)


STALE = """
import sys
from unet_core.job import make_job
from unet_core.lease import Claim
from unet_core.segment import run
import json, time
fields = json.loads(sys.argv[1])
run(make_job(**fields), lambda record: (print(record.index, flush=True), time.sleep(0.1)), Claim(lease_seconds=0.9))
"""


@pytest.mark.slow
def test_a_stale_run_that_wakes_ends_with_an_error_and_the_bytes_are_those_of_one_run(
    job: SegmentationJob, tmp_path: Path
) -> None:
    from tests.unet_core.test_segment import digest

    fields = job.model_dump(mode="json", exclude_defaults=True)
    child = subprocess.Popen(
        [sys.executable, "-c", STALE, json.dumps(fields)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    for _ in range(3):
        child.stdout.readline()
    os.kill(child.pid, signal.SIGSTOP)
    told: list[str] = []

    def wake(record: ledger.Record) -> None:
        if record.index == 5 and record.stage == "segment":
            os.kill(child.pid, signal.SIGCONT)
            child.wait(30)

    assert run(job, wake, Claim(tell=told.append)).status == "complete"
    assert len(told) == 1
    assert child.returncode == 1
    assert "LeaseLostError" in child.communicate()[1]
    alone = job.model_copy(update={"output": str(tmp_path / "alone")})
    run(alone)
    assert digest(Path(job.output)) == digest(Path(alone.output))
    assert read_status(job.output).state == "complete"

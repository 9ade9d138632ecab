"""Units in flight: one is read and one committed while another has the device; what is shared is decoded once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from zarr.storage import LocalStore

from tests.unet_core.test_segment import digest
from unet_core import ledger, pipeline, seen_values, worker
from unet_core.errors import BlockError
from unet_core.job import SegmentationJob, make_job
from unet_core.ledger import Record
from unet_core.planning import resolve
from unet_core.segment import prepare, run

Maker = Callable[..., Path]
SECONDS = 30.0  # after which what is waited for does not come


@pytest.fixture
def job(make_model: Maker, make_image: Maker, tmp_path: Path) -> SegmentationJob:
    image, model = make_image((75, 93), chunks=(20, 32)), make_model(levels=2)
    return make_job(image=str(image), output=str(tmp_path / "out"), model=str(model), block_shape=(26, 48))


def one_by_one(output: str, key: str, stage: str, indices: range) -> list[Record | BlockError]:
    return [worker.run_unit(output, key, stage, index) for index in indices]


def in_threads(output: str, key: str, stage: str, indices: range) -> list[Record | BlockError]:
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda index: worker.run_unit(output, key, stage, index), indices))


def test_probabilities_are_made_with_the_planned_threads(job: SegmentationJob, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    readout = seen_values.readout

    def watched(*arguments: Any) -> Any:
        seen.append(torch.get_num_threads())
        return readout(*arguments)

    monkeypatch.setattr(seen_values, "readout", watched)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        run(job)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}


@pytest.mark.parametrize("way", [pipeline.run_units, in_threads, one_by_one])
def test_a_block_is_read_and_another_committed_while_one_has_the_device(
    way: Any, job: SegmentationJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Block 0 holds the device until block 1 is read, and its commit ends only when another block has the device."""
    read, computing = threading.Event(), threading.Event()
    met = []
    true_read, true_predict, true_commit = worker._read, worker.predict_block, ledger.commit
    patience = 0.1 if way is one_by_one else SECONDS

    def reading(unit: worker.Unit, box: Any) -> Any:
        image = true_read(unit, box)
        if unit.index == 1:
            read.set()
        return image

    def predicting(unit: worker.Unit) -> Any:
        if unit.index == 0:
            met.append(read.wait(patience))
        elif unit.index == 1:
            computing.set()
        return true_predict(unit)

    def committing(store: Any, shards: dict[str, Any]) -> Any:
        if any(key.endswith("/c/0/0") for key in shards):
            met.append(computing.wait(patience))
        return true_commit(store, shards)

    monkeypatch.setattr(worker, "_read", reading)
    monkeypatch.setattr(worker, "predict_block", predicting)
    monkeypatch.setattr(ledger, "commit", committing)
    request = prepare(resolve(job), job.output)
    records = list(way(job.output, request.key, "segment", range(6)))
    assert [record.index for record in records] == list(range(6))
    assert met == ([False, False] if way is one_by_one else [True, True])


@pytest.mark.parametrize("locked", [True, False])
def test_one_network_runs_at_a_time_and_waiting_for_it_is_no_work(
    locked: bool, job: SegmentationJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the lock two blocks meet at the barrier."""
    if not locked:
        monkeypatch.setattr(worker, "_DEVICE", nullcontext())
    barrier, met, opened = threading.Barrier(2), [], []
    true_predict, true_load = worker.predict_block, worker.load_predictor

    def predicting(unit: worker.Unit) -> Any:
        try:
            met.append(barrier.wait(0.3 if locked else SECONDS))
        except threading.BrokenBarrierError:
            time.sleep(0.01)
        return true_predict(unit)

    monkeypatch.setattr(worker, "predict_block", predicting)
    monkeypatch.setattr(
        worker, "load_predictor", lambda *arguments, **options: opened.append(1) or true_load(*arguments, **options)
    )
    request = prepare(resolve(job), job.output)
    began = time.perf_counter()
    with ThreadPoolExecutor(4) as pool:
        records = list(pool.map(lambda index: worker.run_unit(job.output, request.key, "segment", index), range(4)))
    elapsed = time.perf_counter() - began
    assert bool(met) is not locked
    assert len(opened) == 1
    if locked:
        assert sum(record.seconds["predict"] for record in records) < elapsed
        assert max(record.seconds["wait"] for record in records) > 0.3
        worked = [sum(record.seconds.values()) - record.seconds["wait"] for record in records]
        assert [record.work_seconds for record in records] == pytest.approx(worked)


def test_many_threads_hold_no_more_blocks_than_memory_is_planned_for(
    job: SegmentationJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, held, most = threading.Lock(), set[int](), [0]
    true_read, true_commit = worker._read, worker._commit

    def reading(unit: worker.Unit, box: Any) -> Any:
        with lock:
            held.add(unit.index)
            most[0] = max(most[0], len(held))
        time.sleep(0.02)
        return true_read(unit, box)

    def committing(unit: worker.Unit) -> Record:
        record = true_commit(unit)
        with lock:
            held.remove(unit.index)
        return record

    monkeypatch.setattr(worker, "_read", reading)
    monkeypatch.setattr(worker, "_commit", committing)
    request = prepare(resolve(job), job.output)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda index: worker.run_unit(job.output, request.key, "segment", index), range(6)))
    assert most == [2]


def test_threads_give_the_bytes_of_the_serial_run(job: SegmentationJob, tmp_path: Path) -> None:
    other = job.model_copy(update={"output": str(tmp_path / "other")})
    seen: list[tuple[int, int]] = []
    run(job, lambda record: seen.append((threading.get_ident(), record.index)))
    assert seen == [(threading.get_ident(), index) for index in range(6)]  # in this thread, in their order
    request = prepare(resolve(other), other.output)
    in_threads(other.output, request.key, "segment", range(6))
    assert run(other).computed == 0
    assert digest(tmp_path / "other") == digest(tmp_path / "out")


@pytest.mark.parametrize("phase", ["_read", "predict_block", "_commit"])
def test_a_block_that_fails_in_any_phase_leaves_the_others(
    phase: str, job: SegmentationJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = getattr(worker, phase)

    def failing(unit: worker.Unit, *arguments: Any) -> Any:
        if unit.index in (0, 3, 5):
            raise OSError(f"no more of {unit.index}")
        return true(unit, *arguments)

    monkeypatch.setattr(worker, phase, failing)
    summary = run(job)
    assert (summary.status, summary.computed) == ("partial", 3)
    assert [text.partition(":")[0].partition(" (")[0] for text in summary.failures] == [f"segment block {n}" for n in (0, 3, 5)]
    assert all("OSError: no more of" in text for text in summary.failures)


def test_an_interrupt_ends_the_run_within_the_blocks_in_flight(job: SegmentationJob, tmp_path: Path) -> None:
    def interrupt(record: Record) -> None:
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        run(job, interrupt)
    assert len(list((tmp_path / "out/.unet/ledger/segment").iterdir())) <= 3
    assert threading.active_count() <= before + 2  # zarr keeps threads of its own
    assert run(job).status == "complete"


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize(
    ("dims", "side", "chunk", "block", "most"), [(2, 1024, 128, 256, 1.25), (3, 128, 32, 64, 1.5)], ids=["2d", "3d"]
)
def test_little_is_decoded_twice(
    kept: bool, dims: int, side: int, chunk: int, block: int, most: float,
    make_model: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Margins of 92 and 44 voxels around blocks of 256 and 64; without a cache the same run decodes far more."""
    if not kept:
        monkeypatch.setattr(worker, "cache_bytes", lambda volume, shape: 0)
    data = np.random.default_rng(0).integers(0, 255, (side,) * dims, dtype=np.uint8)
    zarr.create_array(tmp_path / "i.zarr", data=data, chunks=(chunk,) * dims)
    model = make_model(network="unet" if dims == 2 else "unet3d", base=1, levels=5 if dims == 2 else 4, dims=dims)
    job = make_job(image=str(tmp_path / "i.zarr"), output=str(tmp_path / "out"), model=str(model), block_shape=(block,) * dims)
    request = prepare(resolve(job), job.output)
    decoded: list[str] = []
    true_get = LocalStore.get

    async def get(self: Any, key: str, *arguments: Any) -> Any:
        if "i.zarr" in str(self) and "c/" in key:
            decoded.append(key)
        return await true_get(self, key, *arguments)

    monkeypatch.setattr(LocalStore, "get", get)
    for outcome in pipeline.run_units(job.output, request.key, "segment", range((side // block) ** dims)):
        assert isinstance(outcome, Record)
    amplification = len(decoded) * chunk**dims / side**dims
    assert (amplification <= most) is kept, f"decoded {amplification:.2f} times"
    records = ledger.read_records(worker.open_store(job.output), "segment", request.plan)
    assert sum(record.decoded_bytes for record in records.values()) == len(decoded) * chunk**dims


def test_the_summary_says_how_often_a_byte_was_decoded(job: SegmentationJob) -> None:
    found = run(job).as_json()["read_amplification"]
    assert 1.0 <= found < 1.1
    assert run(job).as_json()["read_amplification"] is None

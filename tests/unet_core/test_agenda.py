"""The order of units: each once, none before what it reads, coarser ones as early as can be, and none above a block that failed."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaozarrs
import zarr
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import textured
from tests.unet_core.test_segment import digest
from unet_core import agenda as agenda_module
from unet_core import ledger
from unet_core.agenda import Agenda, Units
from unet_core.job import SegmentationJob, make_job
from unet_core.ledger import Record
from unet_core.plan import pyramid
from unet_core.segment import open_result, run
from unet_core.stages import Stage, made_from, reached, read_box, source_of, stages_of
from unet_core.store import open_store
from unet_core.volumes import open_volume

Maker = Callable[..., Path]
Unit = tuple[str, int]


def stages_for(sizes: list[tuple[int, int]], has_instances: bool) -> tuple[Stage, ...]:
    shape, block_shape = zip(*sizes, strict=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unet_core.plan.SMALLEST_LEVEL", 5)
        levels = pyramid(shape, None)
    return stages_of([(level.shape, level.factor) for level in levels], block_shape, has_instances, has_instances)


def sources_by_brute_force(stages: tuple[Stage, ...]) -> dict[Unit, set[Unit]]:
    """All units that each unit is made from, by what is withdrawn with each."""
    found: dict[Unit, set[Unit]] = {(stage.name, index): set() for stage in stages for index in range(stage.grid.block_count)}
    for unit in found:
        for made in made_from(stages, *unit):
            if made != unit:
                found[made].add(unit)
    return found


shapes = st.lists(st.tuples(st.integers(1, 23), st.integers(2, 9)), min_size=2, max_size=3)


@given(shapes)
def test_what_reads_a_unit_is_what_is_made_from_it(sizes: list[tuple[int, int]]) -> None:
    stages = stages_for(sizes, has_instances=True)
    for stage in stages:
        source = source_of(stages, stage)
        if source is None or read_box(stage, 0) is None:
            continue
        reads = {
            (index, number) for number in range(stage.grid.block_count) for index in source.grid.touching(read_box(stage, number))
        }
        made = {
            (index, number)
            for index in range(source.grid.block_count)
            for number in stage.grid.touching(reached(source.grid.block(index), stage))
        }
        assert reads == made


def simulate(
    agenda: Agenda, stages: tuple[Stage, ...], done: set[Unit], failing: set[Unit], seed: int, batches: bool
) -> set[Unit]:
    """Work on several units at once, which end in any order; the units that were handed out."""
    random = np.random.default_rng(seed)
    sources, committed, seen = sources_by_brute_force(stages), set(done), set[Unit]()
    workers: list[Units] = [] if batches else [agenda]
    flying: list[tuple[Units, Unit]] = []
    while True:
        if batches and len(workers) < 2 and (batch := agenda.batch(lambda stage: 3)):
            workers.append(batch)
        for worker in workers:
            while len(flying) < 5 and (unit := worker.take()):
                assert unit not in seen | done
                assert sources[unit] <= committed, f"{unit} before {sources[unit] - committed}"
                seen.add(unit)
                flying.append((worker, unit))
        if not flying:
            return seen
        worker, unit = flying.pop(int(random.integers(len(flying))))
        if unit not in failing:
            committed.add(unit)
            worker.committed(*unit)
        # A batch that has nothing in flight and nothing to take has ended, whatever another one may still unlock.
        if batches and worker not in [other for other, _ in flying]:
            if unit := worker.take():
                assert sources[unit] <= committed
                seen.add(unit)
                flying.append((worker, unit))
            else:
                workers.remove(worker)


@given(shapes, st.booleans(), st.booleans(), st.integers(0, 10**6), st.integers(0, 20), st.integers(0, 3))
def test_every_unit_is_handed_out_once_and_after_all_that_it_is_made_from(
    sizes: list[tuple[int, int]], has_instances: bool, batches: bool, seed: int, before: int, failed: int
) -> None:
    """In any order of ending, resumed after any number of units, with blocks that fail; what is never handed out is what they spoil."""
    stages = stages_for(sizes, has_instances)
    sources, random = sources_by_brute_force(stages), np.random.default_rng(seed)
    done: set[Unit] = set()
    for _ in range(before):  # a run that was stopped
        ready = [unit for unit in sources if unit not in done and sources[unit] <= done]
        done |= {ready[int(random.integers(len(ready)))]} if ready else set()
    left = [unit for unit in sources if unit not in done]
    failing = {left[int(random.integers(len(left)))] for _ in range(failed) if left}
    remaining = {stage.name: [index for name, index in left if name == stage.name] for stage in stages}
    seen = simulate(Agenda(stages, remaining), stages, done, failing, seed, batches)
    assert seen == {unit for unit in left if not sources[unit] & failing}


@given(shapes, st.integers(0, 10**6))
def test_what_waits_at_the_beginning_is_told_of_all_units_at_once(sizes: list[tuple[int, int]], seed: int) -> None:
    stages, random = stages_for(sizes, has_instances=True), np.random.default_rng(seed)
    remaining = {stage.name: np.flatnonzero(random.random(stage.grid.block_count) < 0.2) for stage in stages}
    agenda = Agenda(stages, remaining)
    for stage in stages:
        expected = [agenda._waits(stage.name, index) for index in range(stage.grid.block_count)]
        assert agenda._waiting(stage.name).tolist() == expected


def test_a_million_units_take_a_second_and_few_bytes_each() -> None:
    """Counted in CPU time; 1.33 million units with the coarser levels, and as many again with instances and their tables."""
    levels = [((4000 >> level, 4000 >> level), ((2, 2) if level else (1, 1))) for level in range(4)]
    stages = stages_of(levels, (4, 4), has_instances=True, has_table=True)
    remaining = {stage.name: np.arange(stage.grid.block_count) for stage in stages}
    tracemalloc.start()
    began = time.process_time()
    agenda = Agenda(stages, remaining)
    seconds, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(map(len, remaining.values())) > 4_000_000
    assert agenda.take() == ("segment", 0)
    assert peak < 150 << 20
    assert seconds < 5


@pytest.mark.parametrize("mutant", ["parts see their own block only", "nobody waits"])
def test_a_unit_that_does_not_wait_is_noticed(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if mutant == "nobody waits":
        monkeypatch.setattr(Agenda, "_waits", lambda self, name, index: False)
        monkeypatch.setattr(Agenda, "_waiting", lambda self, name: np.zeros(self._stages[name].grid.block_count, dtype=bool))
    else:
        monkeypatch.setattr(
            agenda_module,
            "read_box",
            lambda stage, index: read_box(stage, index) and stage.grid.block(index).scale_up(stage.factor),
        )
    stages = stages_for([(23, 5), (17, 6)], has_instances=True)
    remaining = {stage.name: range(stage.grid.block_count) for stage in stages}
    with pytest.raises(AssertionError, match="before"):
        simulate(Agenda(stages, remaining), stages, set(), set(), 1, batches=False)


def test_a_batch_is_consecutive_units_of_one_stage_and_what_they_unlock() -> None:
    stages = stages_of([((64, 64), (1, 1)), ((32, 32), (2, 2))], (16, 16), has_instances=False)
    agenda = Agenda(stages, {"segment": range(16), "level-1": range(4)})
    first, second = agenda.batch(lambda stage: 8), agenda.batch(lambda stage: 8)
    assert first
    assert second
    assert agenda.batch(lambda stage: 8) is None
    assert [(batch.stage, batch.first, batch.last) for batch in (first, second)] == [("segment", 0, 7), ("segment", 8, 15)]
    order = []
    while unit := first.take():
        order.append(unit)
        first.committed(*unit)
    segments = [("segment", index) for index in range(8)]
    assert order == [*segments[:6], ("level-1", 0), *segments[6:], ("level-1", 1)]


@pytest.fixture
def job(make_model: Maker, make_image: Maker, tmp_path: Path) -> SegmentationJob:
    """10 x 3 blocks, two coarser levels of 5 x 2 and 3 x 1."""
    return make_job(
        image=str(make_image((630, 150))), output=str(tmp_path / "out"), model=str(make_model(levels=2)), block_shape=(64, 64)
    )  # fmt: skip


def records_of(job: SegmentationJob, stage: str) -> dict[int, Record]:
    store = open_store(job.output)
    return ledger.read_records(store, stage, ledger.read_plan(store).id)


class Stop(Exception):
    pass


@pytest.mark.parametrize("ngff", ["0.5", "0.4"])
def test_a_run_stopped_halfway_can_be_viewed_at_every_level_where_it_has_been(
    ngff: Any, job: SegmentationJob, tmp_path: Path
) -> None:
    job = job.model_copy(update={"ngff": ngff})
    whole = job.model_copy(update={"output": str(tmp_path / "whole")})
    run(whole)
    seen: list[Record] = []

    def stop(record: Record) -> None:
        seen.append(record)
        if sum(one.stage == "segment" for one in seen) == 18:
            raise Stop

    with pytest.raises(Stop):
        run(job, stop)
    yaozarrs.validate_zarr_store(job.output)
    stages = open_result(job.output).plan.stages
    done = {stage.name: set(records_of(job, stage.name)) for stage in stages}
    assert 18 <= len(done["segment"]) <= 20
    assert len(done["level-1"]) >= 4
    assert len(done["level-2"]) >= 1
    for path in ("", "labels/classes"):
        for stage in stages:
            found = open_volume(f"{job.output}/{path}", stage.level, missing="fill")
            expected = open_volume(f"{whole.output}/{path}", stage.level, missing="fill")
            for index in range(stage.grid.block_count):
                box = stage.grid.block(index)
                values = found.read(box)
                assert index not in done[stage.name] or np.array_equal(values, expected.read(box))
                assert index in done[stage.name] or not values.any()
    assert run(job).status == "complete"
    assert digest(Path(job.output)) == digest(tmp_path / "whole")


def test_a_failed_block_keeps_only_what_is_made_from_it_from_being_made(make_model: Maker, tmp_path: Path) -> None:
    values = textured((630, 150)).astype(np.float32)
    values[380, 70] = np.nan
    zarr.create_array(tmp_path / "nan.zarr", data=values, chunks=(64, 64))
    model = str(make_model(levels=2))
    job = make_job(image=str(tmp_path / "nan.zarr"), output=str(tmp_path / "out"), model=model, block_shape=(64, 64))
    summary = run(job)
    assert summary.status == "partial"
    stages = open_result(job.output).plan.stages
    segmented = set(records_of(job, "segment"))
    lost = {unit for index in set(range(30)) - segmented for unit in made_from(stages, "segment", index)}
    for stage in stages:
        expected = {index for index in range(stage.grid.block_count) if (stage.name, index) not in lost}
        assert set(records_of(job, stage.name)) == expected
    assert 0 < len(records_of(job, "level-1")) < 10


def test_a_network_that_takes_no_time_leaves_nothing_undone(job: SegmentationJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a run is reading and writing; whatever ends first, every unit is done, and in an order that can be watched."""
    from unet_core import worker

    monkeypatch.setattr(
        worker,
        "predict_block",
        lambda unit: [np.ones(unit.stage.grid.block(unit.index).shape, "u1") for _ in unit.worker.plan.images],
    )
    order: list[Unit] = []
    summary = run(job.model_copy(update={"instances": "components"}), lambda record: order.append((record.stage, record.index)))
    assert summary.status == "complete"
    assert json.dumps(summary.instances) == '{"class 1": 1, "class 2": 0}'
    stages = open_result(job.output).plan.stages
    assert sorted(order) == sorted((stage.name, index) for stage in stages for index in range(stage.grid.block_count))
    assert order.index(("level-2", 0)) < order.index(("segment", 20))

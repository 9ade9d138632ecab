"""Measuring before running: which blocks are tried, what is said of the whole, and that nothing of it stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flows import trial_run
from tests.flows.test_cli import call
from tests.unet_core.test_budget import record
from unet_core.costs import sum_costs
from unet_core.geometry import BlockGrid
from unet_core.job import make_job
from unet_core.ledger import Record, StoredShard
from unet_core.planning import resolve
from unet_core.segment import run
from unet_core.store import open_store
from unet_core.trial import Tried, choose_blocks, estimate

Maker = Callable[..., Path]


def test_blocks_are_chosen_from_every_stratum_in_proportion_and_always_the_same() -> None:
    grid = BlockGrid((1000, 1010), (100, 100))  # 100 whole blocks, and 10 of 10 columns
    chosen = choose_blocks(grid, range(grid.block_count), 22)
    assert len(set(chosen)) == 22
    assert chosen == choose_blocks(grid, range(grid.block_count), 22)
    narrow = [index for index in chosen if grid.block(index).shape[1] == 10]
    assert len(narrow) in (0, 1)
    rows = {grid.coordinates(index)[0] for index in chosen}
    assert len(rows) == 10  # strewn over the image
    small = BlockGrid((150, 180), (100, 100))
    assert sorted(choose_blocks(small, range(4), 4)) == [0, 1, 2, 3]
    assert [small.block(index).shape for index in choose_blocks(small, range(4), 2)] == [(100, 100), (100, 80)]
    left = [3, 5, 7]
    assert sorted(choose_blocks(grid, left, 8)) == left


def tried(records: list[Record]) -> Tried:
    return Tried(records, {"segment": len(records)}, start_seconds=10.0, audit_seconds=0.0, workers=2)


@pytest.mark.parametrize("seed", range(3))
def test_the_estimate_of_a_population_whose_sum_is_known_is_within_its_interval(
    seed: int, make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    job = make_job(
        image=str(make_image((200, 215))), output=f"{tmp_path}/o", model=str(make_model(levels=2)), block_shape=(20, 20)
    )
    plan = resolve(job).plan
    finest, random = plan.stages[0], np.random.default_rng(seed)
    every = range(finest.grid.block_count)
    truth = {index: (3.0 if finest.grid.block(index).shape[1] == 20 else 2.0) * random.normal(1, 0.1) for index in every}
    inside = []
    for count in (6, 12, 40):
        records = [record(index, truth[index]) for index in choose_blocks(finest.grid, every, count)]
        found = estimate(plan, {finest.name: every}, tried(records)).work_seconds
        assert abs(found.value / sum(truth.values()) - 1) < 0.15
        inside.append(abs(found.value - sum(truth.values())) <= found.error)
    assert sum(inside) >= 2
    all_of_them = estimate(plan, {finest.name: every}, tried([record(index, truth[index]) for index in every]))
    assert all_of_them.work_seconds.value == pytest.approx(sum(truth.values()))
    assert all_of_them.work_seconds.error == 0
    assert all_of_them.wall_seconds.value == pytest.approx(10 + sum(truth.values()) / 2, rel=0.05)


def test_bytes_are_counted_as_they_are_stored(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    job = make_job(
        image=str(make_image((100, 100))), output=f"{tmp_path}/o", model=str(make_model(levels=2)), block_shape=(20, 20)
    )
    plan = resolve(job).plan
    shard = StoredShard(key="k", sha256="s", size_bytes=7, empty=False)
    records = [record(index, 1.0).model_copy(update={"objects": (shard, shard)}) for index in (0, 12, 24)]
    assert estimate(plan, {"segment": range(25)}, tried(records)).stored_bytes.value == 25 * 14


@pytest.mark.parametrize("cluster", [("serial",), ("local", "--workers", "2")], ids=["serial", "local"])
def test_a_measured_plan_tells_what_the_run_takes_and_leaves_nothing(
    cluster: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    make_model: Maker,
    make_image: Maker,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    output = folder / "not/yet/there.zarr"
    arguments = (make_image((300, 310)), output, "--model", make_model(base=8), "--block-shape", "48,48", "--instances",
                 "components", "--cluster", *cluster, "--price", "3600 EUR", "--json")  # fmt: skip
    code, out, err = call(monkeypatch, capsys, "plan", *arguments, "--measure", "6", "--budget", "1000h")
    assert code == 0, err
    said = json.loads(out.splitlines()[-1])
    found = said["measured"]
    assert list(folder.iterdir()) == []
    assert (found["blocks"], found["tried"], found["untried"]) == (49, 6, [])
    assert found["cost"]["value"] == pytest.approx(found["work_seconds"]["value"])
    assert found["peak_bytes"] > 50 << 20
    assert "enough" in said["budget"]
    code, out, _ = call(monkeypatch, capsys, "segment", *arguments)
    assert code == 0
    stored = sum_costs([str(output)]).total.spending.stored_bytes
    assert 0.5 < found["stored_bytes"]["value"] / stored < 2


def test_a_trial_on_a_bucket_leaves_no_object(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    bucket: str,
    make_model: Maker,
    make_image: Maker,
) -> None:
    common = (make_image((80, 90)), f"{bucket}/out.zarr", "--model", make_model(levels=2), "--block-shape", "32,32")
    code, out, err = call(monkeypatch, capsys, "plan", *common, "--cluster", "serial", "--measure")
    assert code == 0, err
    assert "9 of 9 blocks" in out
    assert list(open_store(bucket).list()) == []


def test_a_trial_that_fails_or_has_no_time_says_so_and_is_removed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    (tmp_path / "o").mkdir()
    image = make_image((200, 210))
    common = (image, tmp_path / "o/out", "--model", make_model(levels=2), "--block-shape", "32,32", "--cluster", "serial")
    for words in (("--measure", "2"), ("--measure", "1001")):
        code, _, err = call(monkeypatch, capsys, "plan", *common, *words)
        assert (code, "give 3 to 1000 blocks" in err) == (2, True)
    monkeypatch.setattr(trial_run, "MOST_SECONDS", 0.0)
    code, out, err = call(monkeypatch, capsys, "plan", *common, "--instances", "components", "--measure", "--json")
    found = json.loads(out.splitlines()[-1])
    assert code == 0, err
    assert found["measured"]["tried"] == 3
    assert "join" in found["measured"]["untried"]
    assert "join" in found["not_measured"]
    monkeypatch.setattr(trial_run, "run_units", lambda *rest: rest[-1]("segment block 0: no"))
    code, _, err = call(monkeypatch, capsys, "plan", *common, "--measure")
    assert (code, err) == (1, "unet: The trial failed: segment block 0: no\n")
    assert list((tmp_path / "o").iterdir()) == []


def test_a_job_of_a_run_that_is_complete_has_nothing_to_measure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    image, model = make_image((40, 50)), make_model(levels=2)
    run(make_job(image=str(image), output=f"{tmp_path}/o", model=str(model)))
    code, out, _ = call(monkeypatch, capsys, "plan", image, tmp_path / "o", "--model", model, "--measure", "--cluster", "serial")
    assert (code, "nothing, all blocks are there" in out) == (0, True)

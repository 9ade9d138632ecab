"""Damaged outputs: what can be made again is made again, what cannot is told in one sentence, nothing else is touched."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unet_core.test_segment import digest
from unet_core import ledger, worker
from unet_core.errors import InputError, JobError, LedgerError, ResumeError
from unet_core.job import SegmentationJob, make_job
from unet_core.planning import resolve
from unet_core.resume import is_wanted, wanted_units
from unet_core.segment import read_status, run
from unet_core.store import open_store

Maker = Callable[..., Path]


@pytest.fixture
def job(make_model: Maker, make_image: Maker, tmp_path: Path) -> SegmentationJob:
    """A finished run of 5 x 2 blocks and one coarser level of 3 x 1, and a copy of it beside."""
    made = make_job(image=str(make_image((300, 90))), output=str(tmp_path / "out"), model=str(make_model()), block_shape=(64, 64))
    assert run(made).status == "complete"
    shutil.copytree(tmp_path / "out", tmp_path / "undisturbed")
    return made


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def fill_in(path: Path) -> None:
    """An object where the ledger says there is none, or another one."""
    path.write_bytes(b"rubbish")


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink, fill_in])
@pytest.mark.parametrize("shard", ["labels/classes/0/c/3/1", "labels/classes/1/c/1/0", "0/c/0/0"])
def test_a_run_heals_damaged_shards_when_it_is_run_again(
    damage: Callable[[Path], None], shard: str, job: SegmentationJob, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    records = {path: path.stat().st_mtime_ns for path in (output / ".unet/ledger").rglob("*.json")}
    damage(output / shard)
    stage, index = ("level-1", 1) if "/1/c" in shard else ("segment", 7 if "3/1" in shard else 0)
    with pytest.raises(
        LedgerError, match=rf"Audit .*{shard}.* Run the same command once more; it computes {stage} block {index}"
    ):
        run(job)
    assert read_status(job.output).state == "unfinished"
    healed = run(job)
    assert (healed.status, healed.computed) == ("complete", int(stage == "segment"))
    assert digest(output) == digest(tmp_path / "undisturbed")
    again = {path for path in records if path.stat().st_mtime_ns != records[path]}
    made_from = {("segment", 7): "level-1/00000001", ("segment", 0): "level-1/00000000"}.get((stage, index))
    expected = {f"{stage}/{index:08d}"} | ({made_from} if made_from else set())
    assert {f"{path.parent.name}/{path.stem}" for path in again} == expected


def test_coarser_levels_made_from_a_hole_are_made_again(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    base = {
        "image": str(make_image((300, 90))), "output": str(tmp_path / "out"), "model": str(make_model()), "block_shape": (64, 64),
    }  # fmt: skip
    run(make_job(**base, roi=("0:64,0:64",)))
    (tmp_path / "out/labels/classes/0/c/0/0").unlink()
    summary = run(make_job(**base))  # the coarser level would be computed anew from the hole
    assert summary.status == "partial"
    assert any("labels/classes/0/c/0/0 is missing" in text for text in summary.failures)
    assert run(make_job(**base)).status == "complete"
    run(make_job(**(base | {"output": str(tmp_path / "undisturbed")})))
    assert digest(tmp_path / "out") == digest(tmp_path / "undisturbed")


@pytest.mark.parametrize("damage", ["flip", "delete", "passing"])
def test_a_coarser_level_is_never_made_from_a_damaged_one(
    damage: str, job: SegmentationJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard is damaged, or cannot be seen for a moment, between its commit and the coarser level."""
    other = job.model_copy(update={"output": str(tmp_path / "second")})
    shard, aside = tmp_path / "second/labels/classes/0/c/0/0", tmp_path / "aside"
    true = worker.downsample_block
    done = []

    def downsample(*arguments: Any) -> Any:
        if not done:
            done.append(shard.read_bytes())
            if damage == "flip":
                shard.write_bytes(bytes([done[0][0] ^ 1]) + done[0][1:])
            else:
                shard.rename(aside)
        try:
            return true(*arguments)
        finally:
            if damage == "passing" and aside.exists():
                aside.rename(shard)

    monkeypatch.setattr(worker, "downsample_block", downsample)
    first = run(other)
    assert first.status == ("complete" if damage == "passing" else "partial")  # what passes is over when it is tried again
    assert damage == "passing" or any("labels/classes/0/c/0/0" in text for text in first.failures)
    assert run(other).status == "complete"
    assert digest(tmp_path / "second") == digest(tmp_path / "undisturbed")


@pytest.mark.parametrize("passing", [True, False])
def test_a_coarser_level_is_never_made_where_a_record_is_missing(
    passing: bool, job: SegmentationJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = job.model_copy(update={"output": str(tmp_path / "second")})
    record, aside = tmp_path / "second" / ledger.record_key("segment", 0), tmp_path / "aside"
    true = worker.downsample_block

    def downsample(*arguments: Any) -> Any:
        if not aside.exists():
            record.rename(aside)
        try:
            return true(*arguments)
        finally:
            if passing and not record.exists():
                shutil.copy(aside, record)

    monkeypatch.setattr(worker, "downsample_block", downsample)
    assert run(other).status == ("complete" if passing else "partial")
    assert run(other).status == "complete"
    assert digest(tmp_path / "second") == digest(tmp_path / "undisturbed")


def test_what_is_checked_is_what_is_used(job: SegmentationJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(job.output)
    plan = ledger.read_plan(store)
    reads: list[str] = []
    true = type(store).get
    monkeypatch.setattr(type(store), "get", lambda self, key: reads.append(key) or true(self, key))
    unit = ledger.read_unit(store, plan, "segment", 0)
    assert unit
    assert sorted(reads) == sorted([ledger.record_key("segment", 0), *unit])


def test_a_unit_is_wanted_if_and_only_if_it_is_listed(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    base = {
        "image": str(make_image((700, 520))),
        "output": str(tmp_path / "o"),
        "model": str(make_model()),
        "block_shape": (64, 64),
        "instances": "components",
    }
    for roi in ((), ("0:1,0:1",), ("130:200,500:520", "690:700,0:64"), ("64:128,128:192", "128:192,64:128", "0:64,192:256")):
        planned = resolve(make_job(**base, roi=roi))
        for stage in planned.plan.stages:
            listed = list(wanted_units(planned.plan, planned.request, stage))
            told = [number for number in range(stage.grid.block_count) if is_wanted(planned.plan, planned.request, stage, number)]
            assert told == listed


def test_withdrawing_is_safe_to_be_killed(job: SegmentationJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = tmp_path / "out/labels/classes/0/c/0/0"
    shard.write_bytes(shard.read_bytes()[:-1])
    true = ledger.withdraw
    withdrawn: list[str] = []

    def withdraw(store: Any, plan: Any, stage: str, *indices: int) -> None:
        if withdrawn:
            raise KeyboardInterrupt
        withdrawn.append(stage)
        true(store, plan, stage, *indices)

    monkeypatch.setattr(ledger, "withdraw", withdraw)
    with pytest.raises(KeyboardInterrupt):
        run(job)
    monkeypatch.setattr(ledger, "withdraw", true)
    assert withdrawn != ["segment"]
    assert run(job).status == "partial"  # the coarser level is not made from the damaged one
    assert run(job).status == "complete"
    assert digest(tmp_path / "out") == digest(tmp_path / "undisturbed")


def test_what_reads_back_otherwise_is_not_recorded(job: SegmentationJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from unet_core.store import LocalStore

    true = LocalStore.put
    monkeypatch.setattr(LocalStore, "put", lambda self, key, data: true(self, key, data[:-1] if "/c/" in key else data))
    summary = run(job.model_copy(update={"output": str(tmp_path / "second")}))
    assert (summary.status, summary.computed) == ("partial", 0)
    assert "reads back with another sha256" in summary.failures[0]


@pytest.mark.parametrize("text", ["", "{}", "[1]", "{", "\udcff"])
@pytest.mark.parametrize("key", [ledger.REQUEST_KEY, ledger.COMPLETE_KEY])
def test_a_damaged_request_or_mark_loses_nothing(key: str, text: str, job: SegmentationJob, tmp_path: Path) -> None:
    (tmp_path / "out" / key).write_bytes(text.encode(errors="surrogateescape"))
    if key == ledger.COMPLETE_KEY:
        assert read_status(job.output).state == "unfinished"
    else:
        with pytest.raises(ResumeError, match="run the same command again"):
            read_status(job.output)
    summary = run(job)
    assert (summary.status, summary.computed) == ("complete", 0)
    assert read_status(job.output).state == "complete"
    assert digest(tmp_path / "out") == digest(tmp_path / "undisturbed")


@pytest.mark.parametrize("text", ["", "{}", "[1]", "{", '{"schema": 2}'])
def test_a_damaged_plan_is_told_in_a_sentence(text: str, job: SegmentationJob, tmp_path: Path) -> None:
    (tmp_path / "out" / ledger.PLAN_KEY).write_text(text)
    for attempt in (lambda: run(job), lambda: read_status(job.output)):
        with pytest.raises(
            ResumeError, match=r"^\.unet/plan\.json in .* is damaged, or of another release \([^\n]*\); restore it"
        ):
            attempt()
    assert digest(tmp_path / "out") == digest(tmp_path / "undisturbed")


@pytest.mark.parametrize(
    "key", ["zarr.json", "labels/classes/1/zarr.json", ledger.PLAN_KEY, ledger.REQUEST_KEY, ledger.COMPLETE_KEY]
)
def test_a_directory_in_the_place_of_a_file_is_named(key: str, job: SegmentationJob, tmp_path: Path) -> None:
    path = tmp_path / "out" / key
    path.unlink()
    path.mkdir()
    words = (
        f"{key} cannot be written .* a folder or file lies where the other should|{key} .Is a directory|not made by this program"
    )
    with pytest.raises(InputError, match=words) as told:
        run(job)
    assert "\n" not in str(told.value)


def test_an_output_that_is_a_file_is_refused_before_any_work(job: SegmentationJob, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("important")
    for place in ("file", "file/out"):
        with pytest.raises(JobError, match="is a file"):
            run(job.model_copy(update={"output": str(tmp_path / place), "image": "nothing.zarr"}))
        with pytest.raises(ResumeError, match="not an output of this program|Result not found"):
            read_status(str(tmp_path / place))
    assert (tmp_path / "file").read_text() == "important"


def test_an_absurd_output_is_refused_with_both_sizes(
    job: SegmentationJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unet_core import places

    monkeypatch.setattr(places, "MAX_OUTPUT_BYTES", 60_000)
    assert run(job).computed == 0  # what exists already is no longer a matter of size
    new = job.model_copy(update={"output": str(tmp_path / "new")})
    with pytest.raises(JobError, match="would be .* before compression; limit"):
        run(new)
    assert not (tmp_path / "new").exists()
    assert run(new.model_copy(update={"roi": ("0:64,0:64",)})).status == "complete"

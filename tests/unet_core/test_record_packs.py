"""Packed records count as single ones do, wherever packing is killed; what is damaged or withdrawn does not."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from moto.s3.models import s3_backends

from tests.unet_core.test_ledger import flip
from tests.unet_core.test_segment import digest
from unet_core import ledger, packing
from unet_core.audit import records_of
from unet_core.errors import LedgerError
from unet_core.job import SegmentationJob, make_job
from unet_core.ledger import Record, StoredShard
from unet_core.packing import Packer, pack_stage
from unet_core.record_packs import KEPT, UNITS, find_pack, pack_key, pack_records
from unet_core.record_reading import listed_records
from unet_core.segment import read_status, run
from unet_core.store import LocalStore, Store, open_store
from unet_core.verify import verify

Maker = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[2]
PLAN = "f" * 64


class Named:
    id = PLAN


def record_of(index: int, request: str = "r1", stage: str = "segment", plan: str = PLAN, size: int = 100) -> Record:
    shard = StoredShard(key=f"0/c/{index}", sha256=f"{index:064x}", size_bytes=size, empty=False)
    return Record(
        plan=plan, request=request, stage=stage, index=index, objects=(shard,), voxels=64, seconds={"predict": 0.25},
        hardware="cpu", software={"unet-flows": "1"},
    )  # fmt: skip


def write(store: Store, indices: Iterable[int], **fields: Any) -> None:
    with ThreadPoolExecutor(8) as writers:
        list(writers.map(lambda index: ledger.write_record(store, record_of(index, **fields)), indices))


def seen(store: Store) -> dict[str, Any]:
    """All ways to ask which records count."""
    found: dict[str, Any] = {}
    for request in (None, "r1", "r2"):
        records = ledger.read_records(store, "segment", PLAN, request)
        assert list(records) == sorted(records)
        assert ledger.recorded_units(store, "segment", PLAN, request).tolist() == list(records)
        for index in (0, 1, 2, 3, 39, 40, UNITS, UNITS + 1):
            assert ledger.read_record(store, Named(), "segment", index, request) == records.get(index)
        found[str(request)] = records
    return found


def names(store: Store) -> set[str]:
    return {entry.key.rpartition("/")[2] for entry in store.list(".unet/ledger/segment")}


class Killed(Exception):
    pass


class Dying:
    """A store that is gone after some changes."""

    def __init__(self, store: Store, changes: int) -> None:
        self._store, self._left = store, changes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def _change(self) -> None:
        if not self._left:
            raise Killed
        self._left -= 1

    def put_if_absent(self, key: str, data: bytes) -> bool:
        self._change()
        return self._store.put_if_absent(key, data)

    def delete(self, key: str) -> None:
        self._change()
        self._store.delete(key)

    def delete_all(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.delete(key)


def history(store: Store, step: int) -> None:
    """What happens to a ledger between two packings."""
    if step == 0:
        write(store, range(0, 40, 2))
    elif step == 1:  # more, some done again for another request, one withdrawn, one damaged, one of another plan
        write(store, range(1, 12, 2))
        write(store, (2, 4), request="r2")
        ledger.withdraw(store, Named(), "segment", 6)
        store.put(ledger.record_key("segment", 8), b'{"plan": "')
        write(store, (13,), plan="another")
    elif step == 2:
        write(store, (6, 2), size=200)
        ledger.withdraw(store, Named(), "segment", 1)
        ledger.withdraw(store, Named(), "segment", 39)  # which is not there


@pytest.mark.parametrize("step", [0, 1, 2])
def test_packing_may_be_killed_after_any_change_and_the_same_records_count(step: int, tmp_path: Path) -> None:
    changes = 0
    while True:
        store = open_store(str(tmp_path / f"{changes}"))
        for before in range(step):
            history(store, before)
            pack_records(store, PLAN, "segment", 0, range(45))
        history(store, step)
        expected = seen(store)
        assert len(expected["None"]) >= 20
        try:
            pack_records(Dying(store, changes), PLAN, "segment", 0, range(45))
            break
        except Killed:
            assert seen(store) == expected, f"after {changes} changes"
            if step == 1 and changes == 2:  # a unit withdrawn in between stays so
                ledger.withdraw(store, Named(), "segment", 3)
                expected = {name: {index: one for index, one in found.items() if index != 3} for name, found in expected.items()}
            pack_records(store, PLAN, "segment", 0, range(45))  # the run that goes on
            assert seen(store) == expected, f"after {changes} changes and packing again"
        changes += 1 if changes < 5 else 6
    assert seen(store) == expected
    assert changes >= 5
    foreign = {"00000013.json"} if step else set()
    assert names(store) - foreign in ({"pack-00000000-a"}, {"pack-00000000-b"})


def test_a_damaged_pack_counts_as_absent_and_is_replaced(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    write(store, [*range(40), UNITS + 1])
    pack_records(store, PLAN, "segment", 0, range(40))
    pack_records(store, PLAN, "segment", 1, [UNITS + 1])
    flip(tmp_path / pack_key("segment", 0, "a"))
    assert ledger.recorded_units(store, "segment", PLAN).tolist() == [UNITS + 1]
    assert list(ledger.read_records(store, "segment", PLAN)) == [UNITS + 1]
    assert ledger.read_record(store, Named(), "segment", 3) is None
    write(store, range(5, 9))
    pack_records(store, PLAN, "segment", 0, range(40))
    assert ledger.recorded_units(store, "segment", PLAN).tolist() == [5, 6, 7, 8, UNITS + 1]
    assert len(names(store)) == 2


def test_a_pack_of_another_plan_or_place_counts_as_absent(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    write(store, range(40))
    pack_records(store, PLAN, "segment", 0, range(40))
    assert find_pack(store, "0" * 64, "segment", 0) is None
    for stage, number in (("segment", 1), ("level-1", 0)):
        store.put(pack_key(stage, number, "a"), store.get(pack_key("segment", 0, "a")))
        assert find_pack(store, PLAN, stage, number) is None


def test_storage_that_gives_back_something_else_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path))
    write(store, range(40))
    true = LocalStore.get
    monkeypatch.setattr(LocalStore, "get", lambda self, key: true(self, key)[: -1 if "pack" in key else None])
    with pytest.raises(LedgerError, match="reads back otherwise than written"):
        pack_records(store, PLAN, "segment", 0, range(40))
    monkeypatch.undo()
    assert len(ledger.read_records(store, "segment", PLAN)) == 40


def test_records_that_are_packed_while_they_are_listed_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path))
    write(store, range(40))
    true = LocalStore.list

    def list_and_pack(self: LocalStore, prefix: str = "") -> Any:
        found = list(true(self, prefix))
        pack_records(store, PLAN, "segment", 0, range(40))
        return iter(found)

    for read in (ledger.read_records, ledger.recorded_units):
        monkeypatch.setattr(LocalStore, "list", list_and_pack)
        assert len(read(store, "segment", PLAN)) == 40
        monkeypatch.undo()
        write(store, range(20))


CHILD = """
import sys
from unet_core.record_packs import UNITS, pack_records
from unet_core.store import open_store
store = open_store(sys.argv[1])
for number in range(12):
    pack_records(store, sys.argv[2], "segment", number, range(number * UNITS, number * UNITS + 60))
"""


@pytest.mark.slow
def test_a_packing_process_that_is_killed_loses_nothing(tmp_path: Path) -> None:
    store, moments = open_store(str(tmp_path)), random.Random(5)
    indices = [number * UNITS + place for number in range(12) for place in range(60)]
    write(store, indices)
    kills = 0
    for _ in range(6):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path), PLAN], cwd=ROOT)
        begun = len(names(store))
        while child.poll() is None and len(names(store)) == begun:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.08))
        child.send_signal(signal.SIGKILL)
        kills += child.wait() == -signal.SIGKILL
        found = ledger.read_records(store, "segment", PLAN)
        assert {index: record_of(index) for index in indices} == found
        assert ledger.recorded_units(store, "segment", PLAN).tolist() == indices
        write(store, moments.sample(indices, 200))  # done again
    assert kills >= 3


@pytest.mark.slow
def test_a_ledger_of_more_objects_than_one_page_is_read_and_packed_on_s3(bucket: str) -> None:
    store = open_store(f"{bucket}/out")
    server = s3_backends["123456789012"]["aws"]  # of this process; 2,500 requests would take longer than the test
    for index in range(2500):
        server.put_object("bucket", f"out/{ledger.record_key('segment', index)}", ledger.to_bytes(record_of(index)))
    assert listed_records(store, "segment")[0].tolist() == list(range(2500))
    assert pack_stage(store, PLAN, "segment") == 2500
    assert names(store) == {"pack-00000000-a"}
    assert ledger.read_records(store, "segment", PLAN) == {index: record_of(index) for index in range(2500)}
    assert ledger.read_record(store, Named(), "segment", 2499) == record_of(2499)
    ledger.withdraw(store, Named(), "segment", 7)
    assert 7 not in ledger.recorded_units(store, "segment", PLAN)


def test_few_records_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path))
    write(store, range(40))
    assert pack_stage(store, PLAN, "segment") == 0
    assert len(names(store)) == 40


def test_a_unit_that_was_done_again_is_read_though_an_older_pack_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path))
    objects = ledger.commit(store, {"0/c/3": b"old"})
    record = record_of(3).model_copy(update={"objects": objects})
    ledger.write_record(store, record)
    pack_records(store, PLAN, "segment", 0, [3])
    assert ledger.read_unit(store, Named(), "segment", 3) == {"0/c/3": b"old"}
    ledger.withdraw(store, Named(), "segment", 3)
    assert ledger.read_unit(store, Named(), "segment", 3) is None
    again = record.model_copy(update={"objects": ledger.commit(store, {"0/c/3": b"new"})})
    ledger.write_record(store, again)
    with monkeypatch.context() as patch:
        patch.setattr(KEPT, "forget", lambda store: None)  # packed by another process
        pack_records(store, PLAN, "segment", 0, [3])
    assert KEPT.line(store, PLAN, "segment", None, 3)
    assert ledger.read_unit(store, Named(), "segment", 3) == {"0/c/3": b"new"}
    store.put("0/c/3", b"rot")
    with pytest.raises(LedgerError, match="another sha256"):
        ledger.read_unit(store, Named(), "segment", 3)


def test_a_unit_that_was_done_again_for_more_is_read_though_the_pack_that_is_kept_has_it_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A region grew, and the run for it was killed halfway: a pack then has units of both requests."""
    store = open_store(str(tmp_path))
    write(store, range(10))
    write(store, range(5), request="r2")
    pack_records(store, PLAN, "segment", 0, range(10))
    assert ledger.read_record(store, Named(), "segment", 3, "r2") == record_of(3, "r2")  # by a worker, which keeps the pack
    assert ledger.read_record(store, Named(), "segment", 7, "r2") is None
    write(store, range(5, 10), request="r2")
    with monkeypatch.context() as patch:
        patch.setattr(KEPT, "forget", lambda store: None)  # packed by another process
        pack_records(store, PLAN, "segment", 0, range(10))
    assert ledger.read_record(store, Named(), "segment", 7, "r2") == record_of(7, "r2")


def test_of_many_units_that_are_withdrawn_each_pack_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path))
    write(store, [*range(60), UNITS + 1, UNITS + 2])
    pack_records(store, PLAN, "segment", 0, range(50))
    read: list[str] = []
    true = LocalStore.get
    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "get", lambda self, key: read.append(key) or true(self, key))
        ledger.withdraw(store, Named(), "segment", *range(30, 70), UNITS + 2)
    assert read == [pack_key("segment", number, slot) for number in (0, 1) for slot in "ab"]
    assert list(seen(store)["None"]) == [*range(30), UNITS + 1]
    assert names(store) & {"00000049.json", "00000050.json"} == {"00000049.json"}


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pack however few records there are."""
    monkeypatch.setattr(packing, "LEAST_OF_STAGE", 1)
    monkeypatch.setattr(packing, "LEAST_OF_PACK", 1)


def job_of(make_model: Maker, make_image: Maker, output: Path) -> SegmentationJob:
    """5 x 2 blocks and a coarser level of 3 x 1."""
    return make_job(image=str(make_image((300, 90))), output=str(output), model=str(make_model()), block_shape=(64, 64))


def test_a_run_whose_ledger_is_packed_is_read_verified_repaired_and_taken_up_like_any_other(
    make_model: Maker, make_image: Maker, tmp_path: Path, eager: None
) -> None:
    job = job_of(make_model, make_image, tmp_path / "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "LEAST_OF_STAGE", 1000)
        run(job.model_copy(update={"output": str(tmp_path / "undisturbed")}))
    assert run(job).status == "complete"
    files = {path.name for path in (tmp_path / "out/.unet/ledger").rglob("*") if path.is_file()}
    assert files == {"pack-00000000-a"}
    assert digest(tmp_path / "out") == digest(tmp_path / "undisturbed")
    assert read_status(job.output) == read_status(str(tmp_path / "undisturbed"))
    found = verify(job.output)
    assert (found.state, found.units) == ("intact", (13, 13))
    assert run(job).computed == 0

    flip(tmp_path / "out/labels/classes/0/c/3/1")
    again = verify(job.output, repair=True).again
    assert again == ["segment block 7", "level-1 block 1"]
    assert read_status(job.output).stages == {"segment": (9, 10), "level-1": (2, 3)}
    assert run(job).computed == 1
    assert digest(tmp_path / "out") == digest(tmp_path / "undisturbed")

    pack = next((tmp_path / "out/.unet/ledger/segment").glob("pack-*"))
    flip(pack)  # what was done is done again, to the same bytes
    assert verify(job.output).state == "damaged"
    assert run(job).computed == 10
    assert digest(tmp_path / "out") == digest(tmp_path / "undisturbed")
    store = open_store(job.output)
    plan, request = ledger.read_plan(store), ledger.read_request(store)
    assert len(list(records_of(store, plan, request))) == 13


def test_a_pack_is_made_once_the_last_unit_of_its_range_is_committed(tmp_path: Path, eager: None) -> None:
    store, units = open_store(str(tmp_path)), np.arange(UNITS - 3, UNITS + 3)
    with Packer(store, PLAN, {"segment": units, "level-1": np.arange(0)}) as packer:
        for index in (UNITS - 1, UNITS, UNITS - 3, UNITS - 2):
            write(store, [index])
            packer.committed("segment", index)
        while not list((tmp_path / ".unet/ledger/segment").glob("pack-00000000-?")):
            time.sleep(0.01)
    assert names(store) == {"pack-00000000-a", f"{UNITS:08d}.json"}
    assert packer.problems == []


def test_a_store_that_cannot_be_packed_ends_no_run(tmp_path: Path, eager: None, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path))
    write(store, range(4))
    monkeypatch.setattr(LocalStore, "put_if_absent", lambda self, key, data: (_ for _ in ()).throw(OSError(28, "No space left")))
    with Packer(store, PLAN, {"segment": np.arange(4)}) as packer:
        for index in range(4):
            packer.committed("segment", index)
    assert len(packer.problems) == 1
    assert "No space left" in packer.problems[0]
    assert len(ledger.read_records(store, "segment", PLAN)) == 4

"""A run seen from outside says at every moment what reading the whole ledger says, and reads each record once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

from tests.conftest import textured
from unet_core import ledger
from unet_core.completion import find_failures
from unet_core.errors import ResumeError
from unet_core.following import Follower, Look
from unet_core.job import make_job
from unet_core.ledger import Record
from unet_core.pace import RECENT_SECONDS
from unet_core.record_packs import pack_records
from unet_core.segment import prepare, read_status, run
from unet_core.store import LocalStore, open_store

Maker = Callable[..., Path]


def test_every_look_of_a_run_equals_the_ledger_and_each_record_is_read_once(
    make_model: Maker, make_image: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = str(tmp_path / "out")
    job = make_job(
        image=str(make_image((43, 35))), output=output, model=str(make_model()), block_shape=(16, 16), instances="components"
    )
    looks: list[Look] = []
    read: list[str] = []
    followers: list[Follower] = []
    get = LocalStore.get

    def counting(store: LocalStore, key: str) -> bytes:
        if following and "/ledger/" in key:
            read.append(key)
        return get(store, key)

    following = False

    def look(record: Record) -> None:
        nonlocal following
        if record.index % 3:
            return
        followers.append(followers[0] if followers else Follower(output))
        following = True
        looks.append(followers[0].look())
        following = False
        assert looks[-1].stages == read_status(output).stages

    monkeypatch.setattr(LocalStore, "get", counting)
    run(job, look)
    following = True
    looks.append(followers[0].look())
    following = False
    assert [len(looks) > 8, looks[-1].state] == [True, "complete"]
    assert looks[-1].stages == read_status(output).stages
    assert sorted(read) == sorted(set(read))
    assert len(read) == looks[-1].done == looks[-1].wanted
    assert looks[-1].sentence() == "9 of 9 blocks segmented, 29 of 29 later steps, complete"


def test_what_is_withdrawn_damaged_or_wanted_more_is_seen(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    image, model, output = make_image((75, 49)), make_model(), str(tmp_path / "out")
    places = {"image": str(image), "output": output, "model": str(model), "block_shape": (16, 16)}
    run(make_job(**places, roi=("0:32,0:32",)))
    follower, store = Follower(output), open_store(output)
    assert follower.look().stages == {"segment": (4, 4)}
    ledger.withdraw(store, ledger.read_plan(store), "segment", 1)
    store.put(ledger.record_key("segment", 0), b"{")
    found = follower.look()
    assert found.stages["segment"] == (2, 4)
    assert found.stages == read_status(output).stages
    run(make_job(**places))
    assert follower.look().stages == read_status(output).stages
    assert follower.look().stages["segment"] == (20, 20)


def test_packing_changes_nothing_and_what_is_withdrawn_from_a_pack_is_seen(
    make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    output = str(tmp_path / "out")
    run(make_job(image=str(make_image((43, 35))), output=output, model=str(make_model()), block_shape=(16, 16)))
    clock = [0.0]
    follower, store, plan = Follower(output, lambda: clock[0]), open_store(output), ledger.read_plan(open_store(output))
    assert follower.look().stages["segment"] == (9, 9)
    assert pack_records(store, plan.id, "segment", 0, range(9)) == 9
    clock[0] += 1.0
    packed = follower.look()
    assert (packed.stages["segment"], packed.voxels_per_second) == ((9, 9), 0.0)
    ledger.withdraw(store, plan, "segment", 4)
    assert follower.look().stages["segment"] == (8, 9)
    assert Follower(output).look().stages == read_status(output).stages == follower.look().stages


def test_speed_and_time_left_are_those_of_the_last_minute(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    job = make_job(image=str(make_image((80, 48))), output=output, model=str(make_model()), block_shape=(16, 16))
    clock = [1000.0]
    looks: list[Look] = []
    followers: list[Follower] = []

    def look(record: Record) -> None:
        if not followers:
            followers.append(Follower(output, lambda: clock[0]))
        clock[0] += 10.0
        looks.append(followers[0].look())

    run(job, look)
    assert looks[0].voxels_per_second is None
    assert looks[3].voxels_per_second == pytest.approx(3 * 256 / 30)
    for number, found in enumerate(looks[1:], 1):
        window = max(0, number - 6)  # looks are 10 s apart
        blocks = found.stages["segment"][0] - looks[window].stages["segment"][0]
        assert found.voxels_per_second == pytest.approx(blocks * 256 / min(RECENT_SECONDS, 10 * number))
    assert looks[6].seconds_left is not None
    clock[0] += 100.0
    quiet = followers[0].look()
    assert (quiet.voxels_per_second, quiet.seconds_left, quiet.quiet_seconds) == (0.0, None, 100.0)


def test_a_run_that_ended_without_some_blocks_is_partial_until_the_next_one(make_model: Maker, tmp_path: Path) -> None:
    values = textured((40, 70)).astype(np.float32)
    values[20, 60] = np.nan
    zarr.create_array(tmp_path / "nan.zarr", data=values, chunks=(40, 70))
    output = str(tmp_path / "out")
    job = make_job(image=str(tmp_path / "nan.zarr"), output=output, model=str(make_model()), block_shape=(16, 16))
    summary = run(job)
    found = Follower(output).look()
    assert (found.state, list(found.failures)) == ("partial", summary.failures)
    assert f"ended without {len(summary.failures)} blocks" in found.sentence()
    from unet_core.planning import resolve

    request = prepare(resolve(job), output)
    assert find_failures(open_store(output), request) is None
    assert Follower(output).look().state == "unfinished"


def test_who_watches_from_before_a_run_is_taken_up_sees_its_end(make_model: Maker, tmp_path: Path) -> None:
    values = textured((40, 70)).astype(np.float32)
    values[20, 60] = np.nan
    zarr.create_array(tmp_path / "nan.zarr", data=values, chunks=(40, 70))
    output = str(tmp_path / "out")
    job = make_job(image=str(tmp_path / "nan.zarr"), output=output, model=str(make_model()), block_shape=(16, 16))

    def stop(record: Record) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(job, stop)
    follower = Follower(output)
    assert follower.look().state == "unfinished"
    assert run(job).status == "partial"
    assert follower.look().state == "partial"


def test_what_is_no_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match="check the path"):
        Follower(str(tmp_path / "none"))

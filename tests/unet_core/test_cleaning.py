"""What is removed is ours, was left behind, and is shown first; all else stays as it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.flows.test_archive import times
from tests.flows.test_cli import call
from tests.unet_core.test_segment import digest
from tests.unet_core.test_store import KILLED_BEFORE_THE_RENAME
from unet_core import cleaning, ledger
from unet_core.cleaning import find_leftovers, remove
from unet_core.errors import InputError
from unet_core.job import make_job
from unet_core.segment import run
from unet_core.store import TRIAL_PREFIX, open_store, this_writer

Maker = Callable[..., Path]


@pytest.fixture
def job_of(make_model: Maker, make_image: Maker, tmp_path: Path) -> Callable[..., Any]:
    image, model = str(make_image((290, 40))), str(make_model(levels=2))

    def make(output: str, **options: Any) -> Any:
        return make_job(
            image=image,
            output=output,
            model=model,
            block_shape=(32, 32),
            instances="components",
            probabilities="uint8",
            **options,
        )

    return make


def killed_put(folder: Path) -> list[Path]:
    """The temporary file of a put whose process was killed before its rename."""
    before = {*folder.rglob("*")}
    subprocess.run([sys.executable, "-c", KILLED_BEFORE_THE_RENAME, str(folder), "put"], env=os.environ | {"PYTHONPATH": "."})
    return [path for path in {*folder.rglob("*")} - before if path.name.endswith(".unet-part")]


def age(folder: Path, days: float) -> None:
    moment = time.time() - days * 86400
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, (moment, moment))


def test_parts_of_killed_puts_go_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], job_of: Callable[..., Any], tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    run(job_of(f"{runs}/a"))
    before = times(runs)
    parts = killed_put(runs / "a")  # which replaced the plan: put it back
    assert len(parts) == 1
    ours = runs / f".archive.json.{this_writer().partition('@')[0]}@999999999.{'0' * 32}.unet-part"
    ours.write_bytes(b"x" * 10)
    live = runs / "a/.unet" / f".key.{this_writer()}.{'1' * 32}.unet-part"
    live.touch()
    theirs = runs / ".notes.someone@1.unet-part"
    theirs.write_text("not ours")
    os.utime(theirs, (0, 0))
    code, out, _ = call(monkeypatch, capsys, "clean", runs, "--json")
    assert (code, json.loads(out.splitlines()[-1])["removed"]) == (0, 0)
    assert "nothing was removed (2 places" in out
    assert parts[0].exists()
    code, out, _ = call(monkeypatch, capsys, "clean", runs, "--yes", "--json")
    assert (code, json.loads(out.splitlines()[-1])["removed"]) == (0, 2)
    assert not parts[0].exists()
    assert not ours.exists()
    assert live.exists()
    assert theirs.exists()
    live.unlink()
    theirs.unlink()
    after = times(runs)
    assert {name for name in before | after if before.get(name) != after.get(name)} <= {
        str(runs / "a" / ledger.PLAN_KEY),
        str(runs / "a/0/c/0/0"),
    }
    assert find_leftovers(str(runs)).leftovers == ()


def test_partial_outputs_go_if_asked_for_and_old_with_what_is_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], job_of: Callable[..., Any], tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    for name in ("complete", "partial"):
        run(job_of(f"{runs}/{name}"))
    done = digest(runs / "complete")
    (runs / "partial" / ledger.COMPLETE_KEY).unlink()
    for name in ("notes.txt", "0/mine.txt", "labels/classes/0/c/mine.txt", "tables/mine.csv"):
        (runs / "partial" / name).write_text("mine")
    assert find_leftovers(str(runs)).leftovers == ()
    assert find_leftovers(str(runs), partial=True).leftovers == ()  # written just now
    age(runs, 8)
    assert find_leftovers(str(runs)).leftovers == ()
    (found,) = find_leftovers(str(runs), partial=True).leftovers
    assert (found.kind, found.url) == ("partial", f"{runs}/partial")
    assert find_leftovers(str(runs), partial=True, older_days=9).leftovers == ()
    (runs / "partial/.unet/ledger/segment/00000000.json").touch()
    assert not remove(found)  # somebody goes on with it
    age(runs, 8)
    code, out, _ = call(monkeypatch, capsys, "clean", runs, "--partial", "--yes")
    assert code == 0
    assert "partial output" in out
    assert "stays: 0/mine.txt, labels/classes/0/c/mine.txt, notes.txt, tables/mine.csv" in out
    left = sorted(path.relative_to(runs / "partial").as_posix() for path in (runs / "partial").rglob("*") if path.is_file())
    assert left == ["0/mine.txt", "labels/classes/0/c/mine.txt", "notes.txt", "tables/mine.csv"]
    assert digest(runs / "complete") == done


def test_a_removal_that_is_cut_off_leaves_an_output_that_resumes(job_of: Callable[..., Any], tmp_path: Path) -> None:
    job = job_of(f"{tmp_path}/runs/a")
    run(job)
    whole = digest(tmp_path / "runs/a")
    (tmp_path / "runs/a" / ledger.COMPLETE_KEY).unlink()
    (found,) = find_leftovers(f"{tmp_path}/runs", partial=True, older_days=0).leftovers
    assert found.others == ()  # all that a run with objects and probabilities leaves is known as ours
    for entry in sorted(found.objects, key=cleaning._order)[: len(found.objects) // 2]:
        open_store(found.url).delete(entry.key)
    assert run(job).status == "complete"
    assert digest(tmp_path / "runs/a") == whole
    (tmp_path / "runs/a" / ledger.COMPLETE_KEY).unlink()
    (found,) = find_leftovers(f"{tmp_path}/runs", partial=True, older_days=0).leftovers
    assert remove(found)
    assert not (tmp_path / "runs/a").exists()


def test_links_are_refused_and_not_followed(job_of: Callable[..., Any], tmp_path: Path) -> None:
    runs, elsewhere = tmp_path / "runs", tmp_path / "elsewhere"
    run(job_of(f"{elsewhere}/a"))
    run(job_of(f"{runs}/b"))
    for output in (elsewhere / "a", runs / "b"):
        (output / ledger.COMPLETE_KEY).unlink()
    os.symlink(elsewhere, runs / "link")
    os.symlink(elsewhere / "a/0", runs / "b/linked")
    before = times(elsewhere)
    found = find_leftovers(str(runs), partial=True, older_days=0)
    assert found.leftovers == ()
    assert len(found.notes) == 1
    assert "runs/b/linked is a symbolic link" in found.notes[0]
    with pytest.raises(InputError, match="is a symbolic link; name the folder itself"):
        find_leftovers(str(runs / "link"))
    assert times(elsewhere) == before


def test_trials_of_processes_that_are_gone_go(job_of: Callable[..., Any], tmp_path: Path) -> None:
    host = this_writer().partition("@")[0]
    names = [f"{TRIAL_PREFIX}{writer}-{'0' * 32}" for writer in (f"{host}@999999999", this_writer(), "elsewhere@1")]
    for name in names:
        run(job_of(f"{tmp_path}/runs/{name}"))
    found = find_leftovers(f"{tmp_path}/runs").leftovers
    assert [(one.kind, one.url) for one in found] == [("trial", f"{tmp_path}/runs/{names[0]}")]
    assert remove(found[0])
    assert sorted(os.listdir(tmp_path / "runs")) == sorted(names[1:])
    age(tmp_path / "runs" / names[2], 1)
    assert [one.url for one in find_leftovers(f"{tmp_path}/runs").leftovers] == [f"{tmp_path}/runs/{names[2]}"]


def test_a_trial_with_a_link_in_it_stays_and_stops_no_other(tmp_path: Path) -> None:
    names = [f"{TRIAL_PREFIX}host@999999999-{number:032x}" for number in range(2)]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "zarr.json").write_text("{}")
    age(tmp_path, 10)
    (tmp_path / names[0] / "link").symlink_to("/etc")
    found = find_leftovers(str(tmp_path))
    assert [one.url for one in found.leftovers] == [f"{tmp_path}/{names[1]}"]
    assert [f"{names[0]}/link is a symbolic link" in note for note in found.notes] == [True]


def test_partial_outputs_of_a_bucket(job_of: Callable[..., Any], bucket: str) -> None:
    for name in ("complete", "partial"):
        run(job_of(f"{bucket}/runs/{name}"))
    store = open_store(f"{bucket}/runs")
    store.delete(f"partial/{ledger.COMPLETE_KEY}")
    store.put("partial/notes.txt", b"mine")
    before = {entry.key for entry in store.list() if entry.key.startswith("complete/")}
    assert find_leftovers(f"{bucket}/runs", partial=True, older_days=1).leftovers == ()
    (found,) = find_leftovers(bucket, partial=True, older_days=0).leftovers
    assert found.others == ("notes.txt",)
    assert remove(found)
    assert {entry.key for entry in store.list()} == before | {"partial/notes.txt"}

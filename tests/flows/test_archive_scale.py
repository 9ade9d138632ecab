"""Archives of very many images: what is done for each of them is not done for all of them each time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flows import archive_commands, archive_run
from flows.archive_run import Board
from unet_core.archives.job import make_archive_job
from unet_core.archives.listing import Item
from unet_core.archives.preparing import PreparedArchive
from unet_core.archives.summary import find_summary, waiting_row
from unet_core.prices import Budget
from unet_core.wording import near_path

COUNT = 3000


@pytest.fixture
def archive(tmp_path: Path) -> PreparedArchive:
    job = make_archive_job(image=str(tmp_path / "in"), output=str(tmp_path / "out"), model="nuclei-he")
    items = tuple(Item(str(tmp_path / f"in/{number}.tif"), f"{number}.zarr") for number in range(COUNT))
    jobs = {number: job.job_of(item) for number, item in enumerate(items)}
    return PreparedArchive(job, items, jobs, tuple(waiting_row(item, job) for item in items), ())


class _Seen(Exception):
    pass


@contextmanager
def _no_cluster(*arguments: Any) -> Iterator[None]:
    yield None


def test_prefect_does_not_walk_through_all_images_at_each_task_run(
    archive: PreparedArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks for futures in whatever a task is given, three times each."""
    from prefect.utilities.collections import visit_collection

    import flows.archive

    def submit(*arguments: Any) -> None:
        seen: list[Any] = []
        visit_collection(arguments, visit_fn=lambda value: seen.append(value) or value, return_data=True)
        raise _Seen(len(seen))

    monkeypatch.setattr(flows.archive, "on_cluster", _no_cluster)
    monkeypatch.setattr(flows.archive.segment_images, "submit", submit)
    with pytest.raises(_Seen) as told:
        flows.archive._run([[0, 1], [2, 3]], 1, Board(archive), "local", 2)
    assert 0 < told.value.args[0] < 50


def test_the_summary_is_written_the_less_often_the_longer_it_takes(
    archive: PreparedArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, written = [0.0], list[float]()

    def write(summary: Any) -> None:
        written.append(clock[0])
        clock[0] += 3

    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(archive_run, "write_summary", write)
    board = Board(archive)
    for number in range(COUNT):
        clock[0] += 0.1
        board.put(number, archive.rows[number])
    assert len(written) > 2
    assert 3 * len(written) < 0.06 * clock[0]
    board.write()
    assert written[-1] == clock[0] - 3


def test_only_some_of_very_many_images_are_printed(archive: PreparedArchive, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tuple(
        row.model_copy(update={"state": "failed" if number % 1000 == 7 else "complete"})
        for number, row in enumerate(archive.rows)
    )
    archive_commands.print_rows(rows)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == ["7.zarr", "1007.zarr", "2007.zarr"]
    assert lines[-1] == "and 2,997 more, complete; --json names all"
    archive_commands.print_rows(archive.rows)
    lines = capsys.readouterr().out.splitlines()
    assert (len(lines), lines[-1]) == (1002, "and 2,000 more; --json names all")
    archive_commands.print_rows(rows[:1000])
    assert len(capsys.readouterr().out.splitlines()) == 1001


def test_what_was_meant_is_not_looked_for_among_very_many_names(tmp_path: Path) -> None:
    """A list of images that all were moved would take hours."""
    for number in range(2):
        (tmp_path / f"slide-{number}.svs").touch()
    assert "slide-0.svs" in near_path(tmp_path / "slide-0.tif")
    for number in range(1001):
        (tmp_path / f"slide-{number}.svs").touch()
    assert near_path(tmp_path / "slide-0.tif") == ""


def test_a_board_leaves_what_it_was_told(archive: PreparedArchive) -> None:
    board = Board(archive)
    board.put(5, archive.rows[5].model_copy(update={"state": "failed", "reason": "none"}))
    board.write()
    found = find_summary(archive.job.output)
    assert found is not None
    assert (found.counts, found.images[5].reason) == ({"waiting": COUNT - 1, "failed": 1}, "none")


def test_a_damaged_result_does_not_end_an_archive_with_a_budget(archive: PreparedArchive, tmp_path: Path) -> None:
    plan = tmp_path / "out/7.zarr/.unet/plan.json"
    plan.parent.mkdir(parents=True)
    plan.write_text("{")
    purse = archive_run.open_purse(archive, Budget(3600.0, None, "1 h"))
    assert purse is not None

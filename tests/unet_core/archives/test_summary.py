"""What archives leave behind is read by spreadsheets, and by this program: neither is led astray by a name in it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from unet_core.archives.job import make_archive_job
from unet_core.archives.listing import Item
from unet_core.archives.states import read_states, results_of
from unet_core.archives.summary import ArchiveSummary, as_csv, failed_row, waiting_row, write_summary
from unet_core.errors import JobError, ResumeError

JOB = make_archive_job(image="in", output="out", model="nuclei-he")


def test_no_cell_of_the_table_is_a_formula() -> None:
    items = [
        Item("=HYPERLINK(1).tif", "=HYPERLINK(1).zarr", owner="@ann", project="+1"),
        Item("in/-5.tif", "-5.zarr", owner="ann=", project="a-b"),
    ]
    rows = [failed_row(waiting_row(items[0], JOB), JobError('=1+1, "quoted"\n')), waiting_row(items[1], JOB)]
    first, second = csv.DictReader(as_csv(rows).decode().splitlines())
    assert [first[name] for name in ("image", "result", "owner", "project", "reason")] == [
        "'=HYPERLINK(1).tif", "'=HYPERLINK(1).zarr", "'@ann", "'+1", "'=1+1, \"quoted\"",
    ]  # fmt: skip
    assert [second[name] for name in ("image", "result", "owner", "project")] == ["in/-5.tif", "'-5.zarr", "ann=", "a-b"]


@pytest.mark.parametrize("name", ["../elsewhere.zarr", "/etc/x.zarr", "a/../../b.zarr", "..", "", "a.zarr/.."])
def test_a_summary_names_results_in_its_own_folder_only(name: str, tmp_path: Path) -> None:
    rows = (waiting_row(Item("a.tif", "a.zarr"), JOB),)
    write_summary(ArchiveSummary(source="in", output=str(tmp_path), status="running", models=("m",), seconds=0.0, images=rows))
    assert read_states(str(tmp_path)) is not None
    file = tmp_path / "archive.json"
    summary = json.loads(file.read_text())
    summary["images"][0]["result"] = name
    file.write_text(json.dumps(summary))
    for read in (read_states, results_of):
        with pytest.raises(ResumeError, match="archive.json in .* is damaged"):
            read(str(tmp_path))

"""Owners, projects and costs: kept beside the result without a word in its id, and summed from ledgers alone."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.flows.test_cli import call
from tests.unet_core.report.pages import Page
from tests.unet_core.test_segment import digest
from unet_core import ledger
from unet_core.costs import Costs, Row, as_csv, parse_day, sum_costs
from unet_core.errors import JobError
from unet_core.job import make_job
from unet_core.ledger import Record, Request
from unet_core.outputs import find_outputs
from unet_core.planning import resolve
from unet_core.segment import read_status, run
from unet_core.store import open_store

Maker = Callable[..., Path]


@pytest.fixture
def job_of(make_model: Maker, make_image: Maker, tmp_path: Path) -> Callable[..., Any]:
    image, model = str(make_image((90, 70))), str(make_model(levels=2))

    def make(name: str, **options: Any) -> Any:
        return make_job(image=image, output=f"{tmp_path}/runs/{name}", model=model, block_shape=(32, 32), **options)

    return make


def test_owner_and_project_are_shown_and_part_of_no_id(job_of: Callable[..., Any]) -> None:
    plain, named = resolve(job_of("a")), resolve(job_of("a", owner="Ann", project="liver"))
    assert (plain.plan.id, plain.request.id) == (named.plan.id, named.request.id)
    assert "owner" not in json.loads(ledger.to_bytes(plain.request))
    assert json.loads(ledger.to_bytes(named.request))["project"] == "liver"
    assert (named.facts()["owner"], named.facts()["project"], "owner" in plain.facts()) == ("Ann", "liver", False)
    run(job_of("a"))
    assert "owner" not in json.loads(Path(job_of("a").output, ledger.COMPLETE_KEY).read_text())
    before = digest(Path(job_of("a").output))
    assert run(job_of("a", owner="Ann", project="liver")).computed == 0  # on resume they may change
    assert run(job_of("a", owner="Bob")).computed == 0
    status = read_status(job_of("a").output)
    assert (status.state, status.owner, status.project) == ("complete", "Bob", "liver")  # what is not told stays
    mark = json.loads(Path(job_of("a").output, ledger.COMPLETE_KEY).read_text())
    assert (mark["owner"], mark["project"]) == ("Bob", "liver")
    assert digest(Path(job_of("a").output)) == before


def test_an_archive_names_owners_and_a_new_one_is_taken_over_without_computing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    for name in "ab":
        os.rename(make_image((40, 50), seed=ord(name)), tmp_path / f"{name}.zarr")
    rows = tmp_path / "list.csv"
    rows.write_text("image,owner,project\na.zarr,ann,\nb.zarr,,heart\n")
    common = ("archive", rows, tmp_path / "out", "--model", make_model(levels=2), "--cluster", "serial", "--json")

    def named(*options: str) -> list[tuple[str, str]]:
        code, out, _ = call(monkeypatch, capsys, *common, *options)
        assert code == 0
        found = json.loads(out.splitlines()[-1])["images"]
        stored = [ledger.read_request(open_store(f"{tmp_path}/out/{row['result']}")) for row in found]
        assert [(row["owner"], row["project"]) for row in found] == [(one.owner or "", one.project or "") for one in stored]
        return [(row["owner"], row["project"]) for row in found]

    assert named("--project", "liver") == [("ann", "liver"), ("", "heart")]
    before = [path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*/ledger/*/*")]
    rows.write_text("image,owner,project\na.zarr,bob,\nb.zarr,,heart\n")
    assert named("--project", "liver") == [("bob", "liver"), ("", "heart")]
    assert [path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*/ledger/*/*")] == before
    rows.write_text('image,owner\na.zarr,"bob\x07"\n')
    code, _, err = call(monkeypatch, capsys, *common)
    assert (code, "owner in row 1" in err) == (2, True)


def test_a_report_says_whose_run_it_was(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], job_of: Callable[..., Any], tmp_path: Path
) -> None:
    job = job_of("a", owner="Ann <b>", project="liver")
    run(job)
    code, _, _ = call(monkeypatch, capsys, "report", job.output, "--to", tmp_path / "page.html")
    assert code == 0
    assert Page(tmp_path / "page.html").facts["plan"]["owner"] == "Ann <b>"
    assert "project liver, owner Ann &lt;b&gt;" in (tmp_path / "page.html").read_text()


def spread(output: str, stage: str, moments: list[str | None], seconds: float) -> None:
    """Records of a stage with times of their own, and so many seconds of work each."""
    store = open_store(output)
    for number, (index, record) in enumerate(sorted(ledger.read_records(store, stage, ledger.read_plan(store).id).items())):
        changed = {"seconds": {"predict": seconds, "wait": 7.0}, "ended": moments[number % len(moments)]}
        assert record.index == index
        ledger.write_record(store, record.model_copy(update=changed))


def test_costs_are_the_sums_of_the_records(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], job_of: Callable[..., Any], tmp_path: Path
) -> None:
    moments = ["2026-10-31T23:59:59.000+00:00", "2026-11-01T00:00:00.000+00:00", "2026-11-30T12:00:00.000+00:00"]
    for name, options in {"a": {"project": "liver"}, "deep/er/b": {"project": "liver", "owner": "ann"}, "c": {}}.items():
        run(job_of(name, **options))
        spread(f"{tmp_path}/runs/{name}", "segment", moments, 3600.0)
    os.symlink(tmp_path / "runs/a", tmp_path / "runs/link")
    stored = sum(path.stat().st_size for path in (tmp_path / "runs/a").rglob("*") if path.is_file() and "/c/" in str(path))
    place = str(tmp_path / "runs")
    arguments = ("costs", place, f"{place}/a", "--price", "2 EUR", "--json")  # what is found twice counts once
    code, out, _ = call(monkeypatch, capsys, *arguments, "--csv", tmp_path / "costs.csv")
    found = json.loads(out.splitlines()[-1])
    assert code == 0
    rows = {row["project"]: row for row in found["rows"]}
    assert list(rows) == ["liver", ""]
    liver = rows["liver"]
    assert (liver["outputs"], liver["units"], liver["voxels"]) == (2, 18, 2 * 90 * 70)
    assert (liver["worker_hours"], liver["wait_seconds"], liver["cost"], liver["currency"]) == (18.0, 126.0, 36.0, "EUR")
    assert liver["stored_bytes"] == 2 * stored
    assert (found["total"]["worker_hours"], found["total"]["outputs"], found["total"]["cost"]) == (27.0, 3, 54.0)
    assert "(no project)" in out
    with (tmp_path / "costs.csv").open(newline="") as file:
        assert [(row["project"], float(row["cost"])) for row in csv.DictReader(file)] == [("liver", 36.0), ("", 18.0)]
    months = {row.group: row.spending.units for row in sum_costs([place], "month").rows}
    assert months == {"2026-10": 9, "2026-11": 18}
    since = sum_costs([place], "owner", parse_day("2026-11-01"))
    assert {row.group: (row.outputs, row.spending.units) for row in since.rows} == {"ann": (1, 6), "": (2, 12)}
    assert [row.outputs for row in sum_costs([place], "output").rows] == [1, 1, 1]
    assert [row.group for row in sum_costs([place], "model").rows] == ["random"]


def test_records_without_a_time_count_by_the_last_run_and_damaged_outputs_are_named(
    job_of: Callable[..., Any], tmp_path: Path
) -> None:
    run(job_of("a"))
    run(job_of("b"))
    spread(f"{tmp_path}/runs/a", "segment", [None], 1.0)
    record = next((tmp_path / "runs/a/.unet/ledger/segment").glob("*.json"), None)
    assert record is None or b"ended" not in record.read_bytes()
    moment = datetime(2026, 2, 3, tzinfo=UTC).timestamp()
    os.utime(tmp_path / "runs/a" / ledger.REQUEST_KEY, (moment, moment))
    (tmp_path / "runs/b" / ledger.PLAN_KEY).write_text("{}")
    found = sum_costs([str(tmp_path / "runs")], "month")
    assert [(row.group, row.spending.units) for row in found.rows] == [("2026-02", 9)]
    assert len(found.notes) == 2
    assert "9 records in 1 output, of an earlier release, have no date" in found.notes[1]
    assert "runs/b is left out: .unet/plan.json" in found.notes[0]


def test_outputs_are_found_below_folders_and_prefixes(
    job_of: Callable[..., Any], bucket: str, make_image: Maker, tmp_path: Path
) -> None:
    run(job_of("x/y/a"))
    make_image((4, 5)).rename(tmp_path / "runs/image.zarr")
    assert list(find_outputs(f"{tmp_path}/runs/")) == [f"{tmp_path}/runs/x/y/a"]
    assert list(find_outputs(f"{tmp_path}/runs/x/y/a")) == [f"{tmp_path}/runs/x/y/a"]
    job = job_of("a")
    remote = job.model_copy(update={"output": f"{bucket}/one/two/a"})
    run(remote)
    open_store(bucket).put("one/notes.txt", b"mine")
    assert list(find_outputs(bucket)) == [f"{bucket}/one/two/a"]
    assert sum_costs([bucket], "output").total.spending.voxels == 90 * 70
    assert sum_costs([bucket], "month").rows[0].group == f"{datetime.now(UTC):%Y-%m}"
    os.symlink(tmp_path / "runs", tmp_path / "link")
    for place, words in [("nowhere", "not found"), ("link", "is a symbolic link")]:
        with pytest.raises(JobError, match=words):
            list(find_outputs(f"{tmp_path}/{place}"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(JobError, match="No output of unet segment"):
        sum_costs([f"{tmp_path}/empty"])


def test_requests_and_records_of_before_are_read_and_written_as_they_were() -> None:
    old = {"schema": 1, "plan": "p", "image": "i", "model": "m", "device": "cpu", "trust_model": False, "roi": None}
    assert Request.model_validate(old).model_dump(mode="json", by_alias=True) == old
    record = Record(plan="p", request="r", stage="s", index=0, objects=(), voxels=1, seconds={}, hardware="h", software={})
    assert "ended" not in record.model_dump(mode="json")
    assert np.isfinite(record.work_seconds)


def test_no_cell_of_the_table_is_a_formula() -> None:
    rows = (Row('=HYPERLINK("x")'), Row("@ann"), Row("skin"))
    text = as_csv(Costs("project", rows, Row("total"), ()), None).decode()
    assert [row["project"] for row in csv.DictReader(text.splitlines())] == ['\'=HYPERLINK("x")', "'@ann", "skin"]

"""Budgets of real runs: they stop before more than what is in flight passes them, with code 3, and go on to the same bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows import dispatch
from tests.flows.test_archive import write_images
from tests.flows.test_cli import call
from tests.flows.test_prefect import server, unet  # noqa: F401  (a fixture)
from tests.unet_core.test_segment import digest
from unet_core.job import make_job
from unet_core.ledger import find_plan
from unet_core.segment import read_status, run
from unet_core.spending import every_record
from unet_core.store import open_store

Maker = Callable[..., Path]


def spent(output: Path) -> dict[str, list[float]]:
    store = open_store(str(output))
    plan = find_plan(store)
    found: dict[str, list[float]] = {}
    for record in every_record(store, plan) if plan else ():
        found.setdefault(record.stage, []).append(record.work_seconds)
    return found


def total(output: Path) -> float:
    return sum(map(sum, spent(output).values()))


@pytest.mark.parametrize("cluster", [("serial",), ("local", "--workers", "1")], ids=["serial", "local"])
def test_a_run_stops_before_its_budget_and_a_larger_one_ends_in_the_same_bytes(
    cluster: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    make_model: Maker,
    make_image: Maker,
    tmp_path: Path,
) -> None:
    image, model, output = make_image((150, 140)), make_model(base=8), tmp_path / "out"
    options = {"model": str(model), "block_shape": (32, 32), "instances": "components"}
    run(make_job(image=str(image), output=str(tmp_path / "undisturbed"), **options))
    budget = total(tmp_path / "undisturbed") / 3
    arguments = ("segment", image, output, "--model", model, "--block-shape", "32,32", "--instances", "components", "--json",
                 "--price", "2 EUR", "--cluster", *cluster)  # fmt: skip
    money = f"{2 * budget / 3600:.9f} EUR"
    code, out, _ = call(monkeypatch, capsys, *arguments, "--budget", money)
    summary = json.loads(out.splitlines()[-1])
    assert (code, summary["status"], summary["failures"]) == (3, "partial", [])
    states = read_status(str(output))
    assert states.state == "unfinished"
    left = sum(wanted - done for done, wanted in states.stages.values())
    assert summary["left"] == left > 0
    assert f"budget {money}" in summary["stopped"]
    assert f"{left} units are left, run again with a larger --budget" in summary["stopped"]
    assert f"  stopped: {summary['stopped']}" in out.splitlines()
    used = spent(output)
    slowest = max(max(values) for values in used.values())
    flying = 2 if cluster[0] == "serial" else 2 * dispatch.WINDOW_PER_THREAD
    assert 0 < total(output) <= budget + flying * slowest
    code, out, _ = call(monkeypatch, capsys, *arguments, "--budget", money)  # what earlier runs took counts
    assert (code, total(output) <= budget + flying * slowest) == (3, True)
    code, out, _ = call(monkeypatch, capsys, *arguments, "--budget", "10h")
    assert (code, json.loads(out.splitlines()[-1])["status"]) == (0, "complete")
    assert digest(output) == digest(tmp_path / "undisturbed")


def test_an_archive_shares_one_budget_with_all_that_its_results_took_before(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make_model: Maker, tmp_path: Path
) -> None:
    folder, output, model = tmp_path / "in", tmp_path / "out", make_model(base=8)
    write_images(folder, {name: (100, 90) for name in "abc"})
    (folder / "broken.tif").unlink()
    common = ("archive", folder, output, "--model", model, "--block-shape", "32,32", "--cluster", "serial", "--json")
    run(make_job(image=str(folder / "a.tif"), output=str(tmp_path / "a"), model=str(model), block_shape=(32, 32)))
    one = total(tmp_path / "a")
    code, out, _ = call(monkeypatch, capsys, *common, "--budget", f"{1.5 * one:.6f}s")
    summary = json.loads(out.splitlines()[-1])
    states = [row["state"] for row in summary["images"]]
    assert (code, states[2]) == (3, "waiting"), summary
    assert sum("units are left" in row["reason"] for row in summary["images"]) <= 1  # one is under way at a time
    assert any(note.startswith("budget ") for note in summary["notes"])
    used = {name: total(output / f"{name}.zarr") for name in "abc"}
    slowest = max(max(values) for name in "abc" for values in spent(output / f"{name}.zarr").values())
    assert sum(used.values()) <= 1.5 * one + 2 * slowest
    code, out, _ = call(monkeypatch, capsys, *common, "--budget", f"{1.5 * one:.6f}s")
    assert (code, sum(total(output / f"{name}.zarr") for name in "abc") <= 1.5 * one + 2 * slowest) == (3, True)
    code, out, _ = call(monkeypatch, capsys, *common, "--budget", "1h")
    assert (code, json.loads(out.splitlines()[-1])["status"]) == (0, "complete")
    for name in "abc":
        run(make_job(image=str(folder / f"{name}.tif"), output=str(tmp_path / name), model=str(model), block_shape=(32, 32)))
        assert digest(output / f"{name}.zarr") == digest(tmp_path / name)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--budget", "5 EUR"), "the price of a worker is not known"),
        (("--budget", "soon"), "write worker hours"),
        (("--price", "2h"), "write a currency"),
        (("--owner", "a\nb"), "owner: Should be 1 to 100 visible letters"),
        (("--project", "x" * 101), "project: Should be 1 to 100 visible letters"),
    ],
)
@pytest.mark.parametrize("command", ["segment", "archive"])
def test_what_cannot_be_read_is_refused_with_nothing_written(
    command: str,
    options: tuple[str, ...],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    make_model: Maker,
    make_image: Maker,
    tmp_path: Path,
) -> None:
    code, _, err = call(monkeypatch, capsys, command, make_image((40, 50)), tmp_path / "o", "--model", make_model(), *options)
    assert (code, err.count("\n"), words in err) == (2, 1, True), err
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
def test_a_flow_run_stops_before_its_budget_and_goes_on(
    server: dict[str, str],  # noqa: F811
    make_model: Maker,
    make_image: Maker,
    tmp_path: Path,
) -> None:
    image, model, output = make_image((150, 140)), make_model(base=8), tmp_path / "out"
    run(make_job(image=str(image), output=str(tmp_path / "undisturbed"), model=str(model), block_shape=(32, 32)))
    budget = total(tmp_path / "undisturbed") / 3
    arguments = ("segment", image, output, "--model", model, "--block-shape", "32,32", "--json", "--cluster", "serial")
    done = unet(server | {"UNET_PRICE": "2 EUR"}, *arguments, "--budget", f"{2 * budget / 3600:.9f} EUR")
    assert done.returncode == 3, done.stderr[-2000:]
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert (summary["status"], summary["failures"], summary["left"] > 0) == ("partial", [], True)
    slowest = max(max(values) for values in spent(output).values())
    assert 0 < total(output) <= budget + 2 * 2 * slowest  # two batches at once
    done = unet(server, *arguments, "--budget", "10h")
    assert done.returncode == 0, done.stderr[-2000:]
    assert digest(output) == digest(tmp_path / "undisturbed")

"""Metrics of runs: what the records say, in files that Prometheus' own parser reads, replaced whole while the run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from prometheus_client.parser import text_string_to_metric_families

from flows import metrics_file
from flows.run import segment_on_cluster
from tests.conftest import textured
from tests.flows.test_archive import write_images
from tests.flows.test_cli import call
from unet_core.job import make_job
from unet_core.ledger import find_plan
from unet_core.run_metrics import RunMetrics
from unet_core.spending import every_record
from unet_core.store import open_store

Maker = Callable[..., Path]


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Values by name, stage, phase and state, as Prometheus' parser reads them."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, *(sample.labels[name] for name in ("stage", "phase", "state") if name in sample.labels))
            assert key not in found
            found[key] = sample.value
    return found


def test_both_files_say_what_the_records_say(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    image, model = make_image((290, 40)), make_model(levels=2)
    common = ("--model", model, "--block-shape", "32,32", "--cluster", "serial", "--project", 'li"ver', "--owner", "Ann\\")
    for name in ("prom", "json"):
        code, _, err = call(
            monkeypatch, capsys, "segment", image, tmp_path / name, *common, "--metrics", tmp_path / f"run.{name}"
        )
        assert code == 0, err
        assert [path.name for path in tmp_path.glob(".*")] == []
    text = (tmp_path / "run.prom").read_text()
    labels = next(iter(text_string_to_metric_families(text))).samples[0].labels
    assert labels | {"stage": ""} == {
        "stage": "", "output": str(tmp_path / "prom"), "project": 'li"ver', "owner": "Ann\\", "model": "random",
    }  # fmt: skip
    store = open_store(str(tmp_path / "prom"))
    plan = find_plan(store)
    assert plan is not None
    records = list(every_record(store, plan))
    found, said = samples(text), json.loads((tmp_path / "run.json").read_text())
    for stage, units in {"segment": 20, "level-1": 5}.items():
        own = [record for record in records if record.stage == stage]
        assert len(own) == units == found["unet_units_done_total", stage] == found["unet_units_wanted", stage]
        assert found["unet_voxels_total", stage] == sum(record.voxels for record in own)
        stored = sum(shard.size_bytes for record in own for shard in record.objects)
        assert found["unet_stored_bytes_total", stage] == stored == said["stages"][stage]["stored_bytes"]
        for phase in own[0].seconds:
            seconds = sum(record.seconds[phase] for record in own)
            assert found["unet_phase_seconds_total", stage, phase] == pytest.approx(seconds)
        assert said["stages"][stage]["done"] == units
    assert (found["unet_units_failed_total",], found["unet_run_state", "complete"], said["state"]) == (0, 1, "complete")
    assert (found["unet_run_state", "running"], said["owner"]) == (0, "Ann\\")


def test_the_file_is_replaced_while_the_run_goes_on_and_tells_how_it_failed(
    monkeypatch: pytest.MonkeyPatch, make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    monkeypatch.setattr(metrics_file, "EVERY_SECONDS", 0.0)
    file, seen = tmp_path / "run.json", list[dict[str, Any]]()
    job = make_job(image=str(make_image((90, 90))), output=f"{tmp_path}/o", model=str(make_model(levels=2)), block_shape=(32, 32))
    counted = RunMetrics.add

    def add(metrics: RunMetrics, record: Any) -> None:
        seen.append(json.loads(file.read_text()))
        if len(seen) == 4:
            raise KeyboardInterrupt
        counted(metrics, record)

    monkeypatch.setattr(RunMetrics, "add", add)
    with pytest.raises(KeyboardInterrupt):
        segment_on_cluster(job, "serial", metrics=str(file))
    assert [said["stages"]["segment"]["done"] for said in seen] == [0, 1, 2, 3]
    assert {said["state"] for said in seen} == {"running"}
    assert json.loads(file.read_text())["state"] == "failed"


def test_failed_units_are_counted_of_runs_and_archives(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make_model: Maker, tmp_path: Path
) -> None:
    values = textured((40, 90)).astype(np.float32)
    values[5, 85] = np.inf
    zarr.create_array(tmp_path / "in/x.zarr", data=values, chunks=(40, 90))
    model, file = make_model(levels=2), tmp_path / "run.prom"
    common = ("--model", model, "--block-shape", "16,16", "--cluster", "serial", "--metrics", file)
    code, _, _ = call(monkeypatch, capsys, "segment", tmp_path / "in/x.zarr", tmp_path / "o", *common)
    found = samples(file.read_text())
    assert (code, found["unet_run_state", "partial"]) == (3, 1)
    failed = found["unet_units_failed_total",]
    assert 1 <= failed == found["unet_units_wanted", "segment"] - found["unet_units_done_total", "segment"]
    write_images(tmp_path / "in", {"a": (41, 53), "b": (30, 20)})
    code, _, err = call(monkeypatch, capsys, "archive", tmp_path / "in", tmp_path / "out", *common)
    found = samples(file.read_text())
    assert (code, found["unet_units_failed_total",]) == (3, failed), err
    assert found["unet_units_wanted", "segment"] == 12 + 4 + 3 * 6
    assert found["unet_units_done_total", "segment"] == 12 + 4 + 3 * 6 - failed


@pytest.mark.parametrize(("name", "words"), [("run.txt", "name a file in .prom"), ("folder.json", "which is a folder")])
def test_what_is_no_file_of_metrics_is_refused_with_nothing_written(
    name: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    make_model: Maker,
    make_image: Maker,
    tmp_path: Path,
) -> None:
    (tmp_path / "folder.json").mkdir()
    for command in ("segment", "archive"):
        code, _, err = call(
            monkeypatch, capsys, command, make_image((40, 50)), tmp_path / "o", "--model", make_model(), "--metrics",
            tmp_path / name,
        )  # fmt: skip
        assert (code, words in err) == (2, True), err
    assert not (tmp_path / "o").exists()

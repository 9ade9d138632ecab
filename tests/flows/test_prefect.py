"""The flow against a real Prefect server: state, task runs, progress and artifacts, and cancelling nothing of the bytes."""

from __future__ import annotations

import http
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import zarr

from tests.conftest import textured
from tests.flows.test_archive import write_images
from tests.flows.test_signals import STOPPED, segment_arguments, stop
from tests.unet_core.report.pages import Page
from tests.unet_core.test_segment import digest
from tests.unet_core.training.datasets import FAST, write_disks
from unet_core.job import make_job
from unet_core.ledger import REPORT_KEY
from unet_core.segment import run

Maker = Callable[..., Path]
pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


def ask(api: str, path: str, body: Any = None) -> Any:
    """What the server answers; asked again while it is too busy, as its own clients do."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{api}{path}", data=data, headers={"Content-Type": "application/json"})
    for seconds in (1, 2, 4, 8, 16, None):
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            if error.code != http.HTTPStatus.SERVICE_UNAVAILABLE or seconds is None:
                raise
            time.sleep(seconds)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """`prefect server start` on a free port, with a database of its own; yields the environment of its clients."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        "PREFECT_HOME": str(tmp_path_factory.mktemp("prefect")),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_UI_API_URL": f"http://127.0.0.1:{port}/api",  # that pages in a browser ask
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
        env=os.environ | environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    api = f"http://127.0.0.1:{port}/api"
    deadline = time.monotonic() + 300
    while True:
        try:
            ask(api, "/health")
            break
        except OSError:
            assert process.poll() is None, "the server ended while it started"
            assert time.monotonic() < deadline, "the server did not answer in 300 s"
            time.sleep(0.5)
    yield environment | {"PREFECT_API_URL": api}
    process.terminate()
    process.wait(timeout=60)


def unet(environment: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", *(str(argument) for argument in arguments)],
        env=os.environ | environment, cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_a_flow_run_on_a_real_server_is_complete_and_visible(
    server: dict[str, str], make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    image, model = make_image((300, 130)), make_model()
    options = ("--model", model, "--block-shape", "32,32", "--instances", "components")
    debug = {"PREFECT_LOGGING_LOGGERS_PREFECT_FLOW_RUNS_LEVEL": "DEBUG"}  # a line a block
    done = unet(server | debug, "segment", image, tmp_path / "out", *options, "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1])["status"] == "complete"
    api = server["PREFECT_API_URL"]
    runs = ask(api, "/flow_runs/filter", {"flows": {"name": {"any_": ["segment-volume"]}}})
    assert [entry["state_type"] for entry in runs] == ["COMPLETED"]
    assert runs[0]["name"] == f"{image.name} with {model.name}"
    tasks = ask(api, "/task_runs/filter", {"flow_runs": {"id": {"any_": [runs[0]["id"]]}}})
    assert 20 < len(tasks) <= 43  # coarser units come with those that they are made of
    assert {entry["name"].rsplit(maxsplit=3)[0] for entry in tasks} == {
        "segmentation", "objects joined", "objects numbered", "table of objects"
    }  # fmt: skip
    assert {entry["state_type"] for entry in tasks} == {"COMPLETED"}
    artifacts = {entry["key"]: entry for entry in ask(api, "/artifacts/filter", {})}
    assert set(artifacts) == {f"segmentation-{name}" for name in ("progress", "batches", "workers", "picture", "summary")}
    assert artifacts["segmentation-progress"]["data"] == 100
    assert artifacts["segmentation-progress"]["description"].startswith("50 of 50 blocks segmented, ")
    batches, workers = (json.loads(artifacts[f"segmentation-{name}"]["data"]) for name in ("batches", "workers"))
    assert len(batches) == len(tasks)
    assert {row["state"] for row in batches} == {"done"}
    assert sum(row["done"] for row in batches if row["step"] == "segmentation") == 50
    assert sum(row["blocks"] for row in workers) == 50
    assert "](data:image/jpeg;base64," in artifacts["segmentation-picture"]["data"]
    assert len(artifacts["segmentation-picture"]["data"]) < 300_000
    assert "](data:image/jpeg;base64," in artifacts["segmentation-summary"]["data"]
    assert "seams: across y, " in artifacts["segmentation-summary"]["data"]
    page = Page(tmp_path / "out" / REPORT_KEY)
    assert page.facts["state"] == "complete"
    assert page.facts["seconds"] > 0
    logs = ask(api, "/logs/filter", {"logs": {"flow_run_id": {"any_": [runs[0]["id"]]}}})
    lines = [entry["message"] for entry in sorted(logs, key=lambda entry: entry["timestamp"])]
    units = [line.split(": ")[1].split(",")[0] for line in lines if line.startswith("worker ") and " block " in line]
    assert units.index("level-1 block 0") < units.index("segment block 49") < units.index("join block 0")
    levels = {entry["message"]: entry["level"] for entry in logs}
    assert {level for line, level in levels.items() if " block " in line} == {10}
    run(
        make_job(
            image=str(image), output=str(tmp_path / "serial"), model=str(model), block_shape=(32, 32), instances="components"
        )
    )
    assert digest(tmp_path / "out") == digest(tmp_path / "serial")


def test_a_run_that_is_cancelled_frees_its_workers_and_is_resumed_to_the_same_bytes(
    server: dict[str, str], make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    output, api = tmp_path / "out", server["PREFECT_API_URL"]
    arguments = segment_arguments(make_model, make_image, output)
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "segment", *arguments], env=os.environ | server, cwd=ROOT,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while len(list((output / ".unet/ledger").glob("segment/*"))) < 5:
        assert process.poll() is None, process.communicate()[1][-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    workers = psutil.Process(process.pid).children(recursive=True)
    newest = ask(api, "/flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})[0]["id"]
    ask(api, f"/flow_runs/{newest}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
    err = process.communicate(timeout=60)[1]
    assert (process.returncode, err.splitlines()[-1]) == (130, STOPPED)
    assert "Traceback" not in err
    assert ask(api, f"/flow_runs/{newest}")["state"]["type"] == "CANCELLED"
    again = unet(server, "segment", *arguments, "--json")
    assert again.returncode == 0, again.stderr[-2000:]
    assert 0 < json.loads(again.stdout.splitlines()[-1])["computed"] < 225
    run(make_job(image=arguments[0], output=str(tmp_path / "serial"), model=arguments[3], block_shape=(64, 64)))
    assert digest(output) == digest(tmp_path / "serial")


def test_an_archive_is_one_flow_run_with_a_task_run_an_image_and_a_table(
    server: dict[str, str], make_model: Maker, tmp_path: Path
) -> None:
    folder, model = write_images(tmp_path / "in", {"a": (41, 53), "b": (90, 17), "sub/e": (7, 9)}), make_model(levels=2)
    options = ("--model", model, "--block-shape", "32,32", "--instances", "components", "--at-once", 2)
    done = unet(server, "archive", folder, tmp_path / "out", *options, "--json")
    assert done.returncode == 3, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["counts"] == {"complete": 3, "failed": 1}
    api = server["PREFECT_API_URL"]
    runs = ask(api, "/flow_runs/filter", {"flows": {"name": {"any_": ["segment-archive"]}}})
    assert [(entry["state_type"], entry["name"]) for entry in runs] == [("FAILED", f"in with {model.name}")]
    assert "broken.zarr" in runs[0]["state"]["message"]
    of_run = {"flow_runs": {"id": {"any_": [runs[0]["id"]]}}}
    tasks = ask(api, "/task_runs/filter", of_run)
    assert {entry["name"]: entry["state_type"] for entry in tasks} == dict.fromkeys(
        ("a.zarr", "b.zarr", "sub-e.zarr"), "COMPLETED"
    )
    artifacts = ask(api, "/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [runs[0]["id"]]}}})
    by_key = {entry["key"]: entry["data"] for entry in artifacts}
    table = {row["result"]: row for row in json.loads(by_key["archive-images"])}
    assert {name: row["state"] for name, row in table.items()} == {row["result"]: row["state"] for row in found["images"]}
    assert "cut short" in table["broken.zarr"]["reason"]
    assert by_key["archive-progress"] == 100
    for name in ("a", "b", "sub/e"):
        image, single, result = f"{folder}/{name}.tif", tmp_path / f"single/{name}", f"{name.replace('/', '-')}.zarr"
        run(make_job(image=image, output=str(single), model=str(model), block_shape=(32, 32), instances="components"))
        assert digest(tmp_path / "out" / result) == digest(single)
    (folder / "broken.tif").unlink()
    again = unet(server, "archive", folder, tmp_path / "out", *options)
    assert again.returncode == 0, again.stderr[-2000:]
    last = ask(api, "/flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})[0]
    assert last["state_type"] == "COMPLETED"
    assert not ask(api, "/task_runs/filter", {"flow_runs": {"id": {"any_": [last["id"]]}}})


def test_a_run_with_failed_blocks_is_red(server: dict[str, str], make_model: Maker, tmp_path: Path) -> None:
    values = textured((40, 150)).astype(np.float32)
    values[20, 130] = np.nan
    image = tmp_path / "nan.zarr"
    zarr.create_array(image, data=values, chunks=(40, 75))
    done = unet(
        server, "segment", image, tmp_path / "out", "--model", make_model(), "--block-shape", "16,16", "--cluster", "serial"
    )
    assert done.returncode == 3, done.stderr[-2000:]
    runs = ask(server["PREFECT_API_URL"], "/flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})
    assert runs[0]["state_type"] == "FAILED"


def test_bad_input_never_reaches_the_server(server: dict[str, str], make_model: Maker, tmp_path: Path) -> None:
    before = ask(server["PREFECT_API_URL"], "/flow_runs/count", {})
    done = unet(server, "segment", tmp_path / "no.zarr", tmp_path / "out", "--model", make_model())
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert ask(server["PREFECT_API_URL"], "/flow_runs/count", {}) == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_flow_ends_without_a_traceback_and_is_seen_as_crashed(
    number: signal.Signals, code: int, server: dict[str, str], make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    arguments = segment_arguments(make_model, make_image, tmp_path / "out")
    found, _, err = stop(server, number, tmp_path / "out", arguments)
    assert found == code
    assert "Traceback" not in err
    assert err.splitlines()[-1] == STOPPED
    runs = ask(server["PREFECT_API_URL"], "/flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})
    assert runs[0]["state_type"] == "CRASHED"


def check_quiet(err: str) -> None:
    """No traceback of ours. Prefect's short-lived server tells what its end cut off, at times, by one or a few of its own."""
    own = [line for line in err.splitlines() if f'File "{ROOT}/flows/' in line or f'File "{ROOT}/unet_core/' in line]
    assert not own, err[-3000:]
    assert err.count("Traceback (most recent call last)") <= 10, err[-3000:]


def test_ctrl_c_does_not_reach_the_short_lived_server(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    arguments = [*segment_arguments(make_model, make_image, tmp_path / "out"), "--flow"]
    began = time.monotonic()
    environment = {"PREFECT_API_URL": "", "PREFECT_HOME": str(tmp_path / "prefect")}
    code, _, err = stop(environment, signal.SIGINT, tmp_path / "out", arguments)
    assert code == 130
    check_quiet(err)
    assert STOPPED in err
    assert time.monotonic() - began < 150  # Prefect tries for minutes to reach a server that is gone


def test_the_demonstration_runs_without_any_server(tmp_path: Path) -> None:
    done = unet({"PREFECT_API_URL": ""}, "demo", tmp_path / "demo", "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    check_quiet(done.stderr)
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["status"] == "complete"
    assert 0.03 < summary["label_voxels"]["nucleus"] / (2967 * 2220) < 0.15
    assert Path(summary["picture"]).stat().st_size > 100_000
    assert Page(Path(summary["report"])).facts["classes"][1]["voxels"] == summary["label_voxels"]["nucleus"]
    again = unet({"PREFECT_API_URL": ""}, "demo", tmp_path / "demo", "--json")
    assert json.loads(again.stdout.splitlines()[-1])["computed"] == 0


def test_a_training_on_a_real_server_shows_progress_and_its_validations(server: dict[str, str], tmp_path: Path) -> None:
    data = write_disks(tmp_path / "data")
    settings = [word for setting in FAST for word in ("--set", setting)]
    done = unet(server, "train", data, tmp_path / "model", *settings, "--threads", 1, "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["steps"] == 12
    runs = ask(server["PREFECT_API_URL"], "/flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})
    assert (runs[0]["state_type"], runs[0]["name"]) == ("COMPLETED", "model on dataset.yaml")
    found = ask(server["PREFECT_API_URL"], "/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [runs[0]["id"]]}}})
    by_key = {entry["key"]: entry for entry in found}
    assert by_key["training-progress"]["data"] == 100
    table = json.loads(by_key["training-validations"]["data"])
    assert [row["step"] for row in table] == [6, 12]
    assert table[-1]["iou"] == pytest.approx(summary["validation"]["iou"]) or summary["best_step"] == 6
    before = ask(server["PREFECT_API_URL"], "/flow_runs/count", {})
    bad = unet(server, "train", data, tmp_path / "other", "--set", "stepps=3")
    assert (bad.returncode, "did you mean 'steps'" in bad.stderr) == (2, True)
    assert ask(server["PREFECT_API_URL"], "/flow_runs/count", {}) == before

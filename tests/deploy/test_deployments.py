"""Deployments on a real Prefect server and worker: forms, events, notifications, runs that are cancelled or killed and then resumed.

An archive of twenty images also on an S3-compatible server, and on dask workers that die and come while it goes on.
"""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import tifffile

from tests.conftest import describe, random_network, textured
from tests.deploy.test_compose import free_port
from tests.flows.test_prefect import ask, server
from tests.flows.test_viewers import CHROMIUM
from tests.unet_core.test_segment import digest
from tests.unet_core.training.datasets import FAST, write_disks
from unet_core.job import make_job
from unet_core.ledger import COMPLETE_KEY
from unet_core.model_package import save_model
from unet_core.segment import read_status, run
from unet_core.store import open_store

assert server  # a fixture
ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
pytestmark = pytest.mark.timeout(1200)  # a busy machine takes its time
CANCEL_SECONDS = 30
UNITS = 305  # 225 blocks, and those of coarser levels


class Place:
    """A data folder, and a Prefect server with the deployments of `deploy/` and a worker that runs them."""

    def __init__(self, folder: Path, environment: dict[str, str], worker: psutil.Process) -> None:
        self.data = folder
        self.environment = environment
        self.api = environment["PREFECT_API_URL"]
        self.worker = worker

    def job(self, output: str) -> dict[str, Any]:
        """As the user types it: paths relative to the data folder."""
        return {"image": "image.zarr", "output": output, "model": "model", "block_shape": [64, 64]}

    def start(self, deployment: str, **parameters: Any) -> str:
        """Ask for a run of FLOW/DEPLOYMENT; its id."""
        found = ask(self.api, f"/deployments/name/{deployment}")["id"]
        return ask(self.api, f"/deployments/{found}/create_flow_run", {"parameters": parameters})["id"]

    def state(self, run: str) -> dict[str, Any]:
        return ask(self.api, f"/flow_runs/{run}")["state"]

    def wait(self, run: str, *types: str, seconds: float = 180) -> str:
        until(lambda: self.state(run)["type"] in types, seconds, lambda: f"{run} is {self.state(run)}, expected {types}")
        return self.state(run)["type"]

    def run_of(self, output: str, *but: str) -> str | None:
        """A run other than those named that writes ``output``."""
        runs = ask(self.api, "/flow_runs/filter", {})
        found = [entry["id"] for entry in runs if entry["parameters"].get("job", {}).get("output") == output]
        return next((run for run in found if run not in but), None)

    def processes(self, run: str) -> list[psutil.Process]:
        """The process of a flow run first, then what it started."""
        for process in self.worker.children(recursive=True):
            if process.environ().get("PREFECT__FLOW_RUN_ID") == run and "prefect.engine" in " ".join(process.cmdline()):
                return [process, *process.children(recursive=True)]
        raise AssertionError(f"no process of {run} among {[child.cmdline() for child in self.worker.children(recursive=True)]}")

    def committed(self, output: str) -> int:
        """Units that the ledger has, of all stages."""
        return sum(path.is_file() for path in (self.data / output / ".unet/ledger").rglob("*"))


def until(condition: Callable[[], Any], seconds: float, complaint: Callable[[], str] = lambda: "") -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, complaint()
        time.sleep(0.2)


def prefect(environment: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    done = subprocess.run(command, env=environment, cwd=DEPLOY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def process(*command: object, environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A program of this environment, killed at the end."""
    words = [sys.executable, "-m", *(str(word) for word in command)]
    started = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield started
    finally:
        started.kill()
        started.wait()


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    """An S3-compatible server with one bucket, ``s3://bucket``: the environment of its clients."""
    port = free_port()
    with process("moto.server", "--host", "127.0.0.1", "--port", port):
        bucket = urllib.request.Request(f"http://127.0.0.1:{port}/bucket", method="PUT")
        until(lambda: answers(bucket), 60, lambda: "the S3-compatible server does not answer")
        names = {"ENDPOINT_URL": f"http://127.0.0.1:{port}", "ALLOW_HTTP": "true", "REGION": "us-east-1"}
        yield {f"AWS_{name}": value for name, value in names.items()} | {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
        }


def answers(request: urllib.request.Request) -> bool:
    try:
        urllib.request.urlopen(request, timeout=20).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def place(server: dict[str, str], s3: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    import zarr

    folder = tmp_path_factory.mktemp("data")
    zarr.create_array(folder / "image.zarr", data=textured((900, 900)), chunks=(300, 300))
    arguments = {"in_channels": 1, "classes": 3, "base": 32, "levels": 3}  # slow enough to be stopped in the middle
    save_model(folder / "model", random_network(**arguments), describe(**arguments))
    environment = (
        os.environ | server | s3 | {"UNET_DATA": str(folder), "PYTHONPATH": str(ROOT), "PREFECT_WORKER_QUERY_SECONDS": "1"}
    )
    environment.pop("UNET_CLUSTER", None)
    prefect(environment, "work-pool", "create", "unet", "--type", "process")
    prefect(environment, "deploy", "--all")
    log = (folder / "worker.log").open("w")
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "unet"]
    worker = subprocess.Popen(command, env=environment, cwd=tmp_path_factory.mktemp("elsewhere"), stdout=log, stderr=log)
    yield Place(folder, environment, psutil.Process(worker.pid))
    worker.kill()
    worker.wait()


@pytest.fixture(scope="module")
def interrupted(place: Place) -> dict[str, str]:
    """One run is cancelled, the process of another is killed, each in the middle."""

    def begin(output: str) -> tuple[str, list[psutil.Process]]:
        run = place.start("segment-volume/segment", job=place.job(output))
        until(lambda: place.committed(output) >= 3, 180, lambda: (place.data / "worker.log").read_text()[-3000:])
        processes = place.processes(run)
        assert len(processes) > 2  # its workers
        return run, processes

    killed, processes = begin("killed.zarr")
    processes[0].kill()
    assert place.wait(killed, "CRASHED", "COMPLETED") == "CRASHED"
    cancelled, more = begin("cancelled.zarr")
    ask(place.api, f"/flow_runs/{cancelled}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    _, alive = psutil.wait_procs([*processes, *more], timeout=CANCEL_SECONDS)
    assert not alive, (place.data / "worker.log").read_text()[-3000:]
    assert place.wait(cancelled, "CANCELLED", "COMPLETED", "CRASHED") == "CANCELLED"
    return {"cancelled.zarr": cancelled, "killed.zarr": killed}


def check_resumed(place: Place, output: str, run_id: str, before: int) -> None:
    """Complete, with the bytes of an undisturbed run, and nothing of it computed twice."""
    assert place.wait(run_id, "COMPLETED", "FAILED", "CRASHED") == "COMPLETED", place.state(run_id)
    assert read_status(str(place.data / output)).state == "complete"
    logs = ask(place.api, "/logs/filter", {"logs": {"flow_run_id": {"any_": [run_id]}}, "sort": "TIMESTAMP_ASC"})
    planned = next(entry["message"] for entry in logs if "units left to do" in entry["message"])
    assert f", {UNITS - before} units left to do" in planned
    serial = place.data / "serial.zarr"
    if not serial.exists():
        names = place.job("serial.zarr")
        places = {name: str(place.data / names[name]) for name in ("image", "output", "model")}
        run(make_job(**places, block_shape=(64, 64)))
    assert digest(place.data / output) == digest(serial)


@pytest.mark.slow
def test_all_is_deployed_with_its_limits_and_its_schedules_are_paused(place: Place) -> None:
    found = {entry["name"]: entry for entry in ask(place.api, "/deployments/filter", {})}
    limits = {name: (entry["global_concurrency_limit"] or {}).get("limit") for name, entry in found.items()}
    assert limits == {"segment": 2, "archive": 1, "verify": None, "train": 1, "evaluate": 2}
    schedules = [schedule for entry in found.values() for schedule in entry["schedules"]]
    assert [schedule["active"] for schedule in schedules] == [False, False]
    assert found["segment"]["parameters"] == {}  # without a cluster of its own, each run starts workers


@pytest.mark.slow
def test_an_arrived_image_is_segmented_where_a_cancelled_run_stopped_and_the_result_is_told(
    place: Place, interrupted: dict[str, str], told: list[str]
) -> None:
    before = place.committed("cancelled.zarr")
    assert 3 <= before < UNITS
    job = place.job("cancelled.zarr")
    prefect(place.environment, "event", "emit", "unet.image.arrived", "--resource-id", "microscope", "--payload", json.dumps(job))
    until(lambda: place.run_of("cancelled.zarr", interrupted["cancelled.zarr"]), 30)
    run_id = place.run_of("cancelled.zarr", interrupted["cancelled.zarr"])
    assert run_id
    check_resumed(place, "cancelled.zarr", run_id, before)
    until(lambda: any("is complete" in text for text in told), 20, lambda: str(told))


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)")
def test_the_form_in_the_browser_resumes_a_run_whose_process_was_killed(place: Place, interrupted: dict[str, str]) -> None:
    from playwright.sync_api import sync_playwright

    before = place.committed("killed.zarr")
    assert 3 <= before < UNITS
    deployment = ask(place.api, "/deployments/name/segment-volume/segment")["id"]
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-background-networking"])
        page = browser.new_page(viewport={"width": 1200, "height": 1000})
        page.set_default_timeout(180_000)  # milliseconds; a busy machine takes its time
        page.goto(f"{place.api.removesuffix('/api')}/deployments/deployment/{deployment}/run")
        fill_form(page, place.job("killed.zarr"))
        browser.close()
    until(lambda: place.run_of("killed.zarr", interrupted["killed.zarr"]), 30)
    run_id = place.run_of("killed.zarr", interrupted["killed.zarr"])
    assert run_id
    check_resumed(place, "killed.zarr", run_id, before)


def fill_form(page: Any, job: dict[str, Any]) -> None:
    """As somebody at the screen does: words into fields, two numbers into a list, Submit."""

    def field(title: str) -> Any:
        label = page.get_by_text(title, exact=True)
        return page.locator(".schema-form-property", has=label).last

    for title in ("Image", "Output", "Model"):
        field(title).locator("textarea").fill(job[title.lower()])
    blocks = field("Block shape (voxels) (Optional)")
    blocks.get_by_role("button", name="list").click()
    for number, size in enumerate(job["block_shape"]):
        blocks.get_by_role("button", name="Add item").click()
        blocks.locator("input[type=number]").nth(number).fill(str(size))
    page.get_by_role("button", name="Submit").click()
    page.wait_for_url(lambda url: not url.endswith("/run"))


@pytest.fixture(scope="module")
def told(place: Place) -> Iterator[list[str]]:
    """What the automations of `deploy/automations.yaml` sent to a web hook on this machine."""
    texts: list[str] = []

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            texts.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    hook = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=hook.serve_forever, daemon=True).start()
    code = (
        "import sys; from prefect.blocks.notifications import CustomWebhookNotificationBlock as Hook; "
        "print(Hook(name='lab', url=sys.argv[1], json_data={'text': '{{subject}} {{body}}'}).save('lab'))"
    )
    url = f"http://127.0.0.1:{hook.server_address[1]}"
    done = subprocess.run([sys.executable, "-c", code, url], env=place.environment, capture_output=True, text=True, check=True)
    file = place.data / "automations.yaml"
    file.write_text((DEPLOY / "automations.yaml").read_text().replace("NOTIFICATION_BLOCK", done.stdout.split()[-1]))
    prefect(place.environment, "automation", "create", "--from-file", str(file))
    yield texts
    hook.shutdown()


IMAGES = 20


@pytest.mark.slow
def test_an_archive_of_twenty_images_outlives_its_workers_and_uses_those_that_come(
    place: Place, s3: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    archive = open_store("s3://bucket/archive")
    for number in range(IMAGES):
        shape = (90 + number, 140 - 3 * number)
        tifffile.imwrite(tmp_path / "image.tif", textured(shape, number))
        archive.put(f"{number:02}.tif", (tmp_path / "image.tif").read_bytes())
    job = {
        "image": "s3://bucket/archive",
        "output": "s3://bucket/results",
        "model": str(place.data / "model"),
        "block_shape": [64, 64],
    }
    file = tmp_path / "scheduler.json"

    results = open_store(job["output"])

    def complete() -> int:
        return sum(entry.key.endswith(COMPLETE_KEY) for entry in results.list())

    with ExitStack() as stack:
        dask = ("--scheduler-file", file, "--no-dashboard")
        stack.enter_context(
            process("dask", "scheduler", "--host", "127.0.0.1", "--port", 0, *dask, environment=place.environment)
        )
        until(file.exists, 60)
        scheduler = json.loads(file.read_text())["address"]
        options = ("--no-dashboard", "--local-directory", tmp_path)

        def worker() -> subprocess.Popen[bytes]:
            command = ("dask", "worker", scheduler, "--nthreads", 2, "--no-nanny", *options)
            return stack.enter_context(process(*command, environment=place.environment))

        first, second = worker(), worker()
        run_id = place.start("segment-archive/archive", job=job, cluster=scheduler)
        until(lambda: complete() >= 2, 240, lambda: str(place.state(run_id)))
        first.kill()
        worker()
        until(lambda: complete() >= 6, 240, lambda: str(place.state(run_id)))
        second.kill()
        assert complete() < IMAGES
        assert place.wait(run_id, "COMPLETED", "FAILED", "CRASHED", seconds=400) == "COMPLETED", place.state(run_id)
    summary = json.loads(results.get("archive.json"))
    assert (summary["status"], len(summary["images"]), complete()) == ("complete", IMAGES, IMAGES)
    for number in (3, 19):  # the first ones and the last ones, whatever was under way when workers died
        name, serial, fetched = f"{number:02}.tif", tmp_path / f"serial-{number}", tmp_path / f"fetched-{number}"
        run(make_job(**job | {"image": f"s3://bucket/archive/{name}", "output": str(serial), "block_shape": (64, 64)}))
        result = open_store(f"{job['output']}/{number:02}.zarr")
        for entry in result.list():
            (fetched / entry.key).parent.mkdir(parents=True, exist_ok=True)
            (fetched / entry.key).write_bytes(result.get(entry.key))
        assert digest(fetched) == digest(serial)


@pytest.mark.slow
def test_a_worker_trains_segments_verifies_and_evaluates(place: Place) -> None:
    """Each as its form gives it, with paths from the data folder on."""

    def complete(deployment: str, **parameters: Any) -> None:
        run_id = place.start(deployment, **parameters)
        assert place.wait(run_id, "COMPLETED", "FAILED", "CRASHED") == "COMPLETED", place.state(run_id)

    write_disks(place.data / "disks")
    complete(
        "train-model/train", job={"dataset": "disks/dataset.yaml", "model_out": "disks-model", "settings": FAST, "threads": 1}
    )
    job = {"image": "disks/images/disks0.png", "output": "disks0.zarr", "model": "disks-model"}
    complete("segment-volume/segment", job=job, cluster="serial")
    complete("verify-output/verify", output="disks0.zarr")
    complete(
        "evaluate-archive/evaluate",
        prediction="disks0.zarr",
        reference="disks/labels/disks0.tif",
        options={"reference_is": "mask"},
        report="page.html",
    )
    assert "disks0" in (place.data / "page.html").read_text()
    shard = next(path for path in (place.data / "disks0.zarr/labels/classes/0/c").rglob("*") if path.is_file())
    shard.write_bytes(b"damaged")
    run_id = place.start("verify-output/verify", output="disks0.zarr")
    assert place.wait(run_id, "COMPLETED", "FAILED", "CRASHED") == "FAILED"
    assert "damaged" in place.state(run_id)["message"]

"""The services of `compose.yaml` as plain processes with their own commands and settings, Postgres included: they run a segmentation."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
import zarr

from flows.certificates import make_certificates, write_certificates
from tests.conftest import describe, random_network, textured
from tests.unet_core.test_segment import digest
from unet_core.job import make_job
from unet_core.model_package import save_model
from unet_core.segment import run

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
POSTGRES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)
OWNER = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name  # Postgres does not run as root
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(POSTGRES is None, reason="no Postgres is installed (Debian: apt-get install postgresql)"),
]
AUTH = "admin:canary"


class Services:
    """What `compose.yaml` says, with host names and ports replaced by ones of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.logs: dict[str, Path] = {}
        ports = {name: free_port() for name in ("postgres:5432", "prefect:4200", "scheduler:8786")}
        self.port = {name.split(":")[0]: port for name, port in ports.items()}
        values = {
            "POSTGRES_PASSWORD": "secret",
            "PREFECT_AUTH_STRING": AUTH,
            "UNET_DATA": str(folder / "data"),
            "UNET_WORKERS": "2",
        }
        text = (ROOT / "deploy/compose.yaml").read_text()
        text = re.sub(r"\$\{(\w+)(?::[-?]([^}]*))?\}", lambda found: values.get(found[1], found[2] or ""), text)
        for name, port in ports.items():
            text = text.replace(f"{name}/", f"127.0.0.1:{port}/").replace(f"://{name}", f"://127.0.0.1:{port}")
        text = text.replace(":/certificates", ":/elsewhere").replace("/certificates/", f"{folder}/certificates/")
        text = text.replace("127.0.0.1:4200/", f"127.0.0.1:{ports['prefect:4200']}/")
        self.services: dict[str, Any] = yaml.safe_load(text)["services"]

    def environment(self, name: str) -> dict[str, str]:
        """Of a service: its own, those of the image, and where this machine has other folders than a container."""
        image = dict(re.findall(r"^ {4}(\w+)=(\S+?)(?: \\)?$", (ROOT / "deploy/Dockerfile").read_text(), re.MULTILINE))
        own = self.services[name].get("environment", {})
        here = {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "HOME": str(self.folder)}
        here |= {"PREFECT_HOME": str(self.folder / f"home-{name}"), "DASK_TEMPORARY_DIRECTORY": str(self.folder)}
        data = {"UNET_DATA": str(self.folder / "data")} if "UNET_DATA" in own else {}
        return image | own | here | data

    @contextmanager
    def started(self, name: str, number: int = 0) -> Iterator[subprocess.Popen[bytes]]:
        command = [str(word) for word in self.services[name]["command"]]
        if name in self.port:  # it listens on all interfaces of its container
            command[command.index("--host") + 1] = "127.0.0.1"
            command[command.index("--port") + 1] = str(self.port[name])
        place = ROOT / "deploy" if "working_dir" in self.services[name] else self.folder
        self.logs[f"{name}-{number}"] = log = self.folder / f"{name}-{number}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(command, env=self.environment(name), cwd=place, stdout=file, stderr=file)
        try:
            yield process
        finally:
            children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            for ended in (process, *children):
                ended.kill()
            process.wait()

    @contextmanager
    def postgres(self) -> Iterator[None]:
        """A database of its own, made as the image makes it."""
        settings = self.services["postgres"]["environment"]
        with tempfile.TemporaryDirectory(prefix="unet-postgres-") as folder:  # where another user may enter
            yield from self._postgres(Path(folder), settings)

    def _postgres(self, folder: Path, settings: dict[str, str]) -> Iterator[None]:
        place, password = folder / "data", folder / "password"
        password.write_text(settings["POSTGRES_PASSWORD"])
        for path in (folder, password):
            shutil.chown(path, OWNER)
        user = {"user": OWNER, "cwd": "/"} if os.geteuid() == 0 else {}
        assert POSTGRES is not None
        make = [POSTGRES / "initdb", "--pgdata", place, "--username", settings["POSTGRES_USER"], "--auth", "scram-sha-256"]
        subprocess.run([*make, "--pwfile", password, "--no-sync"], check=True, capture_output=True, **user)
        options = [
            "-D",
            place,
            "-p",
            str(self.port["postgres"]),
            "-k",
            place,
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            "fsync=off",
        ]
        log = (self.folder / "postgres.log").open("wb")
        process = subprocess.Popen([POSTGRES / "postgres", *options], stdout=log, stderr=log, **user)
        try:
            environment = os.environ | {"PGPASSWORD": settings["POSTGRES_PASSWORD"]}
            where = ["--host", "127.0.0.1", "--port", str(self.port["postgres"]), "--username", settings["POSTGRES_USER"]]
            create = [POSTGRES / "createdb", *where, settings["POSTGRES_DB"]]
            wait_for(lambda: subprocess.run(create, env=environment, capture_output=True).returncode == 0, 60)
            yield
        finally:
            process.terminate()
            process.wait()
            log.close()

    def ask(self, path: str, body: Any = None, auth: str = AUTH) -> Any:
        headers = {"Content-Type": "application/json", "Authorization": f"Basic {b64encode(auth.encode()).decode()}"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port['prefect']}/api{path}", data=data, headers=headers)
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Any, seconds: float, tell: Any = lambda: "") -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, tell()
        time.sleep(0.3)


def answers(services: Services) -> bool:
    try:
        services.ask("/health")
    except OSError:
        return False
    return True


def test_the_services_segment_an_image_with_a_database_and_workers_of_their_own(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    zarr.create_array(data / "image.zarr", data=textured((300, 260)), chunks=(150, 130))
    arguments = {"in_channels": 1, "classes": 3, "base": 4, "levels": 3}
    save_model(data / "model", random_network(**arguments), describe(**arguments))
    write_certificates(tmp_path / "certificates", make_certificates(["scheduler"]))
    services = Services(tmp_path)
    with services.postgres(), services.started("prefect") as server, services.started("scheduler"):
        wait_for(lambda: answers(services) or server.poll() is not None, 300)
        assert server.poll() is None, services.logs["prefect-0"].read_text()[-2000:]
        with services.started("dask-worker", 0), services.started("dask-worker", 1), services.started("deploy") as deploy:
            assert deploy.wait(240) == 0, services.logs["deploy-0"].read_text()[-2000:]
            with pytest.raises(urllib.error.HTTPError, match="401"):
                services.ask("/deployments/name/segment-volume/segment", auth="admin:guess")
            with services.started("worker"):
                check_a_run(services, data)


def check_a_run(services: Services, data: Path) -> None:
    deployment = services.ask("/deployments/name/segment-volume/segment")
    assert deployment["parameters"]["cluster"] == f"tls://127.0.0.1:{services.port['scheduler']}"
    job = {"image": "image.zarr", "output": "out.zarr", "model": "model", "block_shape": [64, 64]}
    flow_run = services.ask(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": {"job": job}})["id"]
    ended = ("COMPLETED", "FAILED", "CRASHED")
    log = services.logs["worker-0"]
    wait_for(lambda: services.ask(f"/flow_runs/{flow_run}")["state"]["type"] in ended, 240, lambda: log.read_text()[-3000:])
    assert services.ask(f"/flow_runs/{flow_run}")["state"]["type"] == "COMPLETED", log.read_text()[-3000:]
    places = {name: str(data / job[name]) for name in ("image", "model")}
    run(make_job(**places, output=str(data / "serial.zarr"), block_shape=(64, 64)))
    assert digest(data / "out.zarr") == digest(data / "serial.zarr")
    assert all("canary" not in path.read_text(errors="replace") for path in services.logs.values())

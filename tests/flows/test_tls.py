"""Certificates and schedulers elsewhere: real dask processes over TLS, and what is refused before anything is connected to."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest
import yaml

from flows import certificates
from flows.addresses import check_address
from flows.certificates import make_certificates, write_certificates
from flows.clusters import check_cluster, check_reachable
from flows.run import segment_on_cluster
from flows.train_ranks import Supervision, train_on_cluster
from tests.unet_core.test_segment import digest
from unet_core.errors import JobError
from unet_core.job import make_job
from unet_core.segment import run

Maker = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def unet(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "flows.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=120)


@contextmanager
def started(command: str, log: Path) -> Iterator[psutil.Process]:
    """A shell command as it is printed, ended with all that it started."""
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    with log.open("wb") as file:
        process = subprocess.Popen(
            ["bash", "-c", f"exec env {command}"], env=environment, cwd=log.parent, stdout=file, stderr=file
        )
    try:
        yield psutil.Process(process.pid)
    finally:
        family = (
            [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []
        )
        for member in family:
            member.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], Any], seconds: float, complaint: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, complaint()
        time.sleep(0.1)


class Secured:
    """A scheduler and a worker with the certificates of a folder, started by the commands that `unet certificates` prints."""

    def __init__(self, folder: Path, port: int, commands: dict[str, str]) -> None:
        self.folder, self.port, self.commands = folder, port, commands
        self.address = f"tls://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    place, port = tmp_path_factory.mktemp("tls"), free_port()
    done = unet("certificates", place / "certificates", "--host", "127.0.0.1", "--host", "gpu-3.lab", "--json")
    assert done.returncode == 0, done.stderr
    commands = {
        role: line.replace("8786", str(port)) for role, line in json.loads(done.stdout.splitlines()[-1])["commands"].items()
    }
    logs = {role: place / f"{role}.log" for role in ("scheduler", "worker")}
    with started(commands["scheduler"], logs["scheduler"]):
        until(lambda: "Scheduler at" in logs["scheduler"].read_text(), 60, lambda: logs["scheduler"].read_text())
        with started(commands["worker"], logs["worker"]):
            yield Secured(place / "certificates", port, commands)


@pytest.mark.slow
def test_the_printed_commands_give_the_bytes_of_the_serial_run(
    secured: Secured, make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    image, model = make_image((130, 90)), make_model(levels=2)
    fields = {"image": str(image), "model": str(model), "block_shape": (32, 32)}
    run(make_job(**fields, output=str(tmp_path / "serial")))
    words = {"IMAGE": str(image), "OUTPUT": str(tmp_path / "far"), "MODEL": str(model)}
    command = " ".join(words.get(word, word) for word in shlex.split(secured.commands["client"]))
    command = command.replace(" unet ", f" {sys.executable} -m flows.cli ") + " --block-shape 32,32"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert digest(tmp_path / "far") == digest(tmp_path / "serial")


@pytest.mark.slow
def test_who_has_no_certificate_of_the_folder_is_refused(
    secured: Secured, make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    job = make_job(image=str(make_image((40, 50))), output=str(tmp_path / "out"), model=str(make_model()))
    with pytest.raises(
        JobError, match=f"Cluster '{secured.address}' needs certificates, and dask knows no distributed.comm.tls.ca-file"
    ):
        segment_on_cluster(job, secured.address)
    write_certificates(tmp_path / "others", make_certificates())
    words = (
        f"No TLS with what listens at {secured.address} \\(CERTIFICATE_VERIFY_FAILED\\); start 'dask scheduler --protocol tls'"
    )
    with trusting(tmp_path / "others"), pytest.raises(JobError, match=words):
        segment_on_cluster(job, secured.address)
    with pytest.raises(JobError, match=f"tcp://127.0.0.1:{secured.port}"):
        segment_on_cluster(job, f"tcp://127.0.0.1:{secured.port}")
    assert not (tmp_path / "out").exists()
    # Nor does the scheduler say a word to who trusts it, and shows nothing of his own.
    context = ssl.create_default_context(cafile=str(secured.folder / "ca.pem"))
    context.check_hostname = False
    with socket.create_connection(("127.0.0.1", secured.port), timeout=20) as connection, pytest.raises(ssl.SSLError):
        context.wrap_socket(connection).recv(8)


def trusting(folder: Path) -> Any:
    """dask's configuration as if DASK_CONFIG named that of a folder."""
    tls = yaml.safe_load((folder / "dask.yaml").read_text())["distributed"]["comm"]["tls"]
    keys = {f"{role}.{kind}": path for role in ("scheduler", "worker", "client") for kind, path in tls[role].items()}
    return dask.config.set({f"distributed.comm.tls.{key}": path for key, path in {**keys, "ca-file": tls["ca-file"]}.items()})


@pytest.mark.slow
def test_what_dask_serves_besides_listens_on_loopback_only(secured: Secured) -> None:
    processes = [process for process in psutil.process_iter() if any("dask" in word for word in _command(process))]
    found = {
        connection.laddr.ip: connection.laddr.port
        for process in processes
        if str(secured.port) in " ".join(_command(process))
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port != secured.port
    }
    assert "127.0.0.1" in found
    assert not {ip for ip in found if ip in ("0.0.0.0", "::")}


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("made") / "certificates"
    write_certificates(place, make_certificates(["10.0.0.5", "gpu-3.lab"], days=30))
    return place


def test_the_printed_commands_are_those_of_a_shell(tmp_path: Path) -> None:
    done = unet("certificates", tmp_path / "of the lab", "--host", "fd00::7", "--json")
    assert done.returncode == 0, done.stderr
    for command in json.loads(done.stdout.splitlines()[-1])["commands"].values():
        assert shlex.split(command)[0] == f"DASK_CONFIG={tmp_path}/of the lab/dask.yaml"
        assert ("tls://[fd00::7]:8786" in shlex.split(command)) == ("dask scheduler" not in command)


def openssl(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl is installed")
def test_openssl_verifies_the_chain_and_what_each_role_may_be(folder: Path, tmp_path: Path) -> None:
    write_certificates(tmp_path / "others", make_certificates())
    for role in ("scheduler", "worker", "client"):
        chain = ("verify", "-x509_strict", "-CAfile")
        assert openssl(*chain, folder / "ca.pem", "-purpose", "sslclient", folder / f"{role}.pem").returncode == 0
        assert openssl(*chain, tmp_path / "others/ca.pem", folder / f"{role}.pem").returncode != 0
        serves = openssl(*chain, folder / "ca.pem", "-purpose", "sslserver", folder / f"{role}.pem").returncode == 0
        assert serves == (role != "client")
        public = openssl("x509", "-in", folder / f"{role}.pem", "-noout", "-pubkey").stdout
        assert public == openssl("pkey", "-in", folder / f"{role}-key.pem", "-pubout").stdout
        text = openssl("x509", "-in", folder / f"{role}.pem", "-noout", "-text").stdout
        assert "IP Address:10.0.0.5, DNS:gpu-3.lab, DNS:localhost, IP Address:127.0.0.1" in text
        assert openssl("x509", "-in", folder / f"{role}.pem", "-noout", "-checkend", 29 * 86400).returncode == 0
        assert openssl("x509", "-in", folder / f"{role}.pem", "-noout", "-checkend", 31 * 86400).returncode == 1


def test_keys_are_read_by_their_owner_alone_and_the_authoritys_is_nowhere(folder: Path) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert {name for name, mode in modes.items() if mode == 0o600} == {
        f"{role}-key.pem" for role in ("scheduler", "worker", "client")
    }
    assert sum("PRIVATE KEY" in path.read_text() for path in folder.iterdir()) == 3
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_that_holds_something_is_left_alone(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    done = unet("certificates", folder)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "holds something; certificates belong together" in done.stderr
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1:8786", "tcp://127.9.8.7:1", "tcp://localhost:8786", "tcp://[::1]:8786", "tls://10.0.0.5:8786"]
)
def test_loopback_needs_no_tls(address: str) -> None:
    assert check_address(address) == address


@pytest.mark.parametrize(
    "host", ["10.0.0.5", "0.0.0.0", "scheduler", "localhost.lab", "127.0.0.1.lab", "[fe80::1]", "[::ffff:10.0.0.5]"]
)
def test_another_machine_without_tls_is_refused_with_the_commands(host: str) -> None:
    with pytest.raises(JobError, match="is another machine without TLS") as caught:
        check_address(f"tcp://{host}:8786")
    assert f"--cluster tls://{host}:8786" in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "TCP://10.0.0.5:8786",
        "tcp://127.0.0.1:80@10.0.0.5:8786",
        "tcp://a b:1",
        "tcp://h:70000",
        "ucx://h:1",
        "tcp://127.0.0.1:1/",
    ],
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(JobError, match="is no address of a scheduler"):
        check_address(address)


def test_a_scheduler_elsewhere_without_tls_is_never_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*arguments: Any, **more: Any) -> None:
        raise AssertionError("it connects")

    monkeypatch.setattr(socket, "create_connection", connect)
    for ask in (check_reachable, lambda cluster: train_on_cluster("model", cluster, Supervision())):
        with pytest.raises(JobError, match="is another machine without TLS"):
            ask("tcp://10.0.0.5:8786")


BEFORE_ANYTHING = """
import re, socket, sys
from flows.cli import main
def connect(*arguments): raise AssertionError("it connects")
socket.socket.connect = socket.getaddrinfo = connect
sys.argv[1:] = ["{command}", "nothing.tif", "out", *"{model}".split(), "--cluster", "tcp://10.0.0.5:8786"]
try:
    main()
finally:
    assert not {{"torch", "distributed", "prefect", "zarr", "numpy"}} & set(sys.modules), "something heavy was imported"
"""


@pytest.mark.parametrize("command", ["segment", "plan", "archive", "train"])
def test_the_refusal_comes_before_anything_heavy_and_connects_to_nothing(command: str) -> None:
    code = BEFORE_ANYTHING.format(command=command, model="" if command == "train" else "--model nuclei-he")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("unet: Cluster 'tcp://10.0.0.5:8786' is another machine without TLS")
    assert "unet certificates FOLDER --host 10.0.0.5" in done.stderr
    assert done.stderr.count("\n") == 1


def test_certificates_that_are_gone_mixed_up_or_old_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "certificates"
    write_certificates(folder, make_certificates())
    key = (folder / "client-key.pem").read_text()

    def refused(words: str, folder: Path = folder) -> None:
        with trusting(folder), pytest.raises(JobError, match=words):
            check_cluster("tls://10.0.0.5:8786", 2)

    with trusting(folder):
        check_cluster("tls://10.0.0.5:8786", 2)
    (folder / "client-key.pem").unlink()
    refused(r"needs \S+/client-key.pem \(distributed.comm.tls.client.key\), which is not there; set DASK_CONFIG=FOLDER/dask.yaml")
    (folder / "client-key.pem").write_text((folder / "worker-key.pem").read_text())
    refused("do not fit each other")
    (folder / "client-key.pem").write_text(key)
    monkeypatch.setattr(certificates, "datetime", _LastYear)
    write_certificates(tmp_path / "old", make_certificates(days=30))
    refused(r"old/ca.pem ended on \d{4}-\d\d-\d\d; make new ones", tmp_path / "old")


class _LastYear(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return datetime.now(UTC) - timedelta(days=365)

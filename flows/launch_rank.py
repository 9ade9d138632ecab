"""A dask task that starts a rank's process, relays its reports, and ends it when nobody wants it any more. Knows no Prefect, no images.

The rank is a process of its own, not a thread of the worker: it can be killed where it hangs in a collective, may start
processes itself (a worker's may not), and the worker goes on answering the scheduler while it computes.
"""

from __future__ import annotations

import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import psutil
from distributed import Worker, get_worker

from flows.settings import rank_environment

REPORT_SECONDS = 0.5  # between reports of steps that pass through the scheduler
_LOOK_SECONDS = 0.1
_LOG_CHARACTERS = 1500


@dataclass(frozen=True)
class RankOrder:
    """What one rank is to do.

    Args:
        rank: number, from 0.
        size: ranks of the group.
        folder: that the training is given.
        target: ``module:function`` that trains.
        device: ``cpu`` or ``cuda``.
        threads: of its libraries.
        timeout_minutes: longest wait for other ranks.
        topic: of the scheduler's events, for reports.
        loaders: processes of the rank that read crops ahead; None for as many as the training thinks right.
        address: of rank 0's group; None for rank 0, which finds it.
    """

    rank: int
    size: int
    folder: str
    target: str
    device: str
    threads: int
    timeout_minutes: float
    topic: str
    loaders: int | None = None
    address: str | None = None


def run_rank(order: RankOrder) -> dict[str, Any]:
    """Run one rank to its end; what it told last: done, an error, or that its process died.

    Events on the topic: ``started``, ``address`` (rank 0), ``step`` with a report, and ``ended`` once the process is gone for certain.
    """
    worker = get_worker()
    key = worker.get_current_task()
    if not _is_wanted(worker, key):
        return {"kind": "cancelled"}
    host = urlsplit(worker.address).hostname or "127.0.0.1"
    address = order.address or f"tcp://{_bracketed(host)}:{_free_port(host)}"

    def tell(kind: str, **more: Any) -> None:
        worker.log_event(order.topic, {"kind": kind, "rank": order.rank, **more})

    tell("started", worker=worker.address)
    reading, writing = os.pipe()
    environment = rank_environment(order.threads, [os.getcwd(), *sys.path], _interface(host))
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            _command(order, address, writing), stdin=subprocess.PIPE, stdout=log, stderr=log, pass_fds=[writing],
            env=environment, start_new_session=True,
        )  # fmt: skip
        os.close(writing)
        if order.rank == 0:
            tell("address", address=address)
        relay = _Relay(tell)
        reader = threading.Thread(target=relay.read, args=(reading,), daemon=True)
        reader.start()
        try:
            while process.poll() is None and _is_wanted(worker, key):
                time.sleep(_LOOK_SECONDS)
        finally:
            _kill(process)
        reader.join(5)  # a child that outlives the rank may hold the pipe
        relay.flush()
        tell("ended")
        return relay.outcome or {"kind": "died", "message": _epitaph(process, log)}


class _Relay:
    """Reports of the rank's process, passed on at most every half second, but those of validations and the last one always."""

    def __init__(self, tell: Any) -> None:
        self._tell = tell
        self._held: Any = None
        self._told = 0.0
        self.outcome: dict[str, Any] | None = None

    def read(self, descriptor: int) -> None:
        with os.fdopen(descriptor) as lines:
            for line in lines:
                if not line.endswith("\n"):
                    return  # killed while it wrote
                report = json.loads(line)
                if report["kind"] != "step":
                    self.outcome = report
                    continue
                self._held = report["report"]
                told = self._held.get("scores") or self._held.get("notes")  # a validation, or what is worth a line
                if told or time.monotonic() - self._told >= REPORT_SECONDS:
                    self.flush()

    def flush(self) -> None:
        if self._held is not None:
            self._tell("step", report=self._held)
            self._held, self._told = None, time.monotonic()


def _command(order: RankOrder, address: str, reports: int) -> list[str]:
    options = {
        "rank": order.rank,
        "size": order.size,
        "address": address,
        "target": order.target,
        "device": order.device,
        "timeout-minutes": order.timeout_minutes,
        "reports": reports,
    } | ({} if order.loaders is None else {"loaders": order.loaders})
    written = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return [sys.executable, "-m", "flows.rank", order.folder, *written]


def _is_wanted(worker: Worker, key: Any) -> bool:
    """Whether the task is still to run: a client that cancels, or is gone, makes the scheduler take it back."""
    task = worker.state.tasks.get(key)
    return task is not None and task.state in ("executing", "long-running")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the rank and what it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin:
        process.stdin.close()


def _epitaph(process: subprocess.Popen[bytes], log: Any) -> str:
    code = process.returncode
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    if code == -signal.SIGKILL:  # by somebody else, or for want of memory: it said nothing about it
        return f"its process {how}"
    log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_CHARACTERS))
    last = log.read().decode(errors="replace").strip().splitlines()
    return f"its process {how}" + (f" ({last[-1]})" if last else "")


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _interface(host: str) -> str | None:
    """Network interface that has the worker's own address; else gloo would ask for the host's name, which may be another network's."""
    try:
        wanted = ipaddress.ip_address(host)
    except ValueError:  # a name
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.family in (socket.AF_INET, socket.AF_INET6) and _same(entry.address, wanted) for entry in addresses):
            return name
    return None


def _same(text: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return ipaddress.ip_address(text.partition("%")[0]) == address

"""The workers of a run as those who watch it see them: rates, who is there, what they log. Knows distributed, no Prefect."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.request import urlopen

from distributed import Client

from flows.printing import visible
from flows.worker_events import listen
from unet_core.ledger import Record
from unet_core.pace import RECENT_SECONDS
from unet_core.report.numbers import size_bytes
from unet_core.stages import SEGMENT_STAGE

HERE, GONE = "this process", "gone"
_BLOCK = "worker %s: %s block %s, %.2f s"
_MOST_LINES = 1000  # of workers' logs that are told; more of them say nothing new
_DASHBOARD_SECONDS = 3.0
_NO_COMPUTING = ("read", "encode", "write", "wait")


@dataclass
class _Worker:
    began: float
    blocks: int = 0
    voxels: int = 0
    computing: float = 0.0
    last: float = 0.0
    recent: deque[tuple[float, int, float]] = field(default_factory=deque)  # time, voxels, seconds of computing

    def add(self, now: float, stage: str, voxels: int, computing: float) -> None:
        self.blocks += stage == SEGMENT_STAGE
        counted = voxels if stage == SEGMENT_STAGE else 0
        self.recent.append((now, counted, computing))
        self.voxels, self.computing, self.last = self.voxels + counted, self.computing + computing, now

    def shown(self, now: float, is_over: bool) -> dict[str, Any]:
        """Rates of the last minute; of all its time when the run is over."""
        while self.recent and self.recent[0][0] <= now - RECENT_SECONDS:
            self.recent.popleft()
        if is_over:
            voxels, computing, span = self.voxels, self.computing, max(1e-9, self.last - self.began)
        else:
            voxels, computing = sum(entry[1] for entry in self.recent), sum(entry[2] for entry in self.recent)
            span = max(1e-9, min(RECENT_SECONDS, now - self.began))
        return {
            "blocks": self.blocks,
            "million voxels per second": round(voxels / span / 1e6, 3),
            "computing": f"{min(100, 100 * computing / span):.0f} %",
        }


class WatchedWorkers:
    """What is known of each worker.

    Args:
        logger: of the run, told what workers log, and which of them come and go.
    """

    def __init__(self, logger: Any) -> None:
        self._logger, self._lock = logger, threading.Lock()
        self._workers: dict[str, _Worker] = {}  # by address
        self._names: dict[str, str] = {}
        self._there: set[str] = set()
        self._client: Client | None = None
        self._lines = 0
        self.dashboard: str | None = None
        self.is_over = False

    @contextmanager
    def connected(self, scheduler: str | None, run: str) -> Iterator[None]:
        """Listen to the workers of a scheduler while the context lasts; without one all is done in this process."""
        if scheduler is None:
            yield
            return
        with Client(scheduler, set_as_default=False, timeout="30s") as client:
            listen(client, run, self._hear)
            self.dashboard = _dashboard(client)
            if self.dashboard:
                self._logger.info("dask's dashboard: %s", self.dashboard)
            self._client = client
            try:
                yield
            finally:
                self._client, self.is_over = None, True

    def here(self, record: Record, now: float) -> None:
        """Count a unit, if it was done in this process."""
        if self._client is None and not self._there:
            computing = sum(seconds for phase, seconds in record.seconds.items() if phase not in _NO_COMPUTING)
            self._logger.debug(_BLOCK, HERE, record.stage, record.index, record.work_seconds)
            self._add(HERE, now, record.stage, record.voxels, computing)

    def rows(self, now: float) -> list[dict[str, Any]]:
        """The table of workers, those that are there first."""
        found = self._look()
        with self._lock:
            for address in found:
                self._workers.setdefault(address, _Worker(now))
            rows = []
            for address, worker in self._workers.items():
                row = {"worker": self._names.get(address, address)} | worker.shown(now, self.is_over)
                seen = "until the end" if self.is_over else "now" if address == HERE else GONE
                rows.append(row | found.get(address, {"memory": "", "last seen": seen}))
        return sorted(rows, key=lambda row: (row["last seen"] == GONE, str(row["worker"])))

    def _look(self) -> dict[str, dict[str, Any]]:
        """Memory and last sign of life of the workers that are there, by address; who came and who went is logged."""
        client = self._client
        if client is None:
            return {}
        try:
            known: dict[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
        except (OSError, TimeoutError, RuntimeError):  # the run itself tells if the scheduler is gone
            return {}
        latest = max((worker["last_seen"] for worker in known.values()), default=0.0)  # by the scheduler's own clock
        self._names |= {address: _name(address, worker) for address, worker in known.items()}
        for address in sorted(known.keys() - self._there):
            self._logger.info("worker %s is there", self._names[address])
        for address in sorted(self._there - known.keys()):
            self._logger.warning("worker %s is gone; others do its blocks", self._names[address])
        self._there = set(known)
        return {
            address: {
                "memory": size_bytes(int(worker.get("metrics", {}).get("memory", 0))),
                "last seen": f"{latest - worker['last_seen']:.0f} s ago",
            }
            for address, worker in known.items()
        }

    def _hear(self, event: dict[str, Any]) -> None:
        address, now = str(event.get("worker", "")), time.monotonic()
        if "line" in event:
            self._lines += 1
            if self._lines <= _MOST_LINES:
                self._logger.log(int(event["level"]), "worker %s: %s", self._names.get(address, address), visible(event["line"]))
            return
        self._logger.debug(_BLOCK, self._names.get(address, address), event["stage"], event["index"], event["work"])
        self._add(address, now, event["stage"], event["voxels"], event["computing"])

    def _add(self, address: str, now: float, stage: str, voxels: int, computing: float) -> None:
        with self._lock:
            self._workers.setdefault(address, _Worker(now - computing)).add(now, stage, voxels, computing)


def _name(address: str, worker: dict[str, Any]) -> str:
    """Of a local cluster a number, else usually the address."""
    name = str(worker.get("name", address))
    return address if name == address else visible(f"{name} ({address})")


def _dashboard(client: Client) -> str | None:
    """Where the scheduler draws what it does; None if it does not, or not for this machine: what it names may be a port alone."""
    try:
        link: str | None = client.dashboard_link
        if link is None:
            return None
        with urlopen(link, timeout=_DASHBOARD_SECONDS):
            return link
    except (KeyError, AttributeError, ValueError, OSError):
        return None

"""How far a run is: one count, shown on a terminal, as log lines, or wherever a callback sends it. Knows no Prefect."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from unet_core.ledger import Record

_EVERY_SECONDS = 1.0


@dataclass(frozen=True)
class Snapshot:
    """Progress at one moment.

    Args:
        done: units of all stages.
        total: likewise.
        voxels: segmented in this run.
        seconds: since the run began, the start of its workers included.
        seconds_left: as the units since the first one suggest; None before there are two.
    """

    done: int
    total: int
    voxels: int
    seconds: float
    seconds_left: float | None

    @property
    def fraction(self) -> float:
        return self.done / self.total if self.total else 1.0

    def sentence(self) -> str:
        rate = self.voxels / self.seconds if self.seconds > 0 else 0.0
        left = f", about {self.seconds_left:.0f} s left" if self.seconds_left is not None and self.done < self.total else ""
        return f"{self.done} of {self.total} units, {rate / 1e6:.2f} Mvoxel/s{left}"


class Progress:
    """Counts records from any thread and tells ``show``, at most once a second and once at the end."""

    def __init__(self, total: int, show: Callable[[Snapshot], None]) -> None:
        self._total = total
        self._show = show
        self._lock = threading.Lock()
        self._done = self._voxels = 0
        self._began = time.monotonic()
        self._first: float | None = None  # when the first unit ended: what came before is mostly the start of workers
        self._shown = 0.0

    def add(self, record: Record) -> None:
        with self._lock:
            self._done += 1
            self._voxels += record.voxels if record.stage == "segment" else 0
            now = time.monotonic()
            self._first = self._first or now
            left = (now - self._first) / (self._done - 1) * (self._total - self._done) if self._done > 1 else None
            due = now - self._shown >= _EVERY_SECONDS or self._done == self._total
            if due:
                self._shown = now
            snapshot = Snapshot(self._done, self._total, self._voxels, now - self._began, left)
        if due:
            self._show(snapshot)


def terminal_progress() -> tuple[Callable[[Snapshot], None], Callable[[], None]]:
    """A bar on a terminal, one line a step otherwise, on standard error; and what to call at the end."""
    if not sys.stderr.isatty():
        return (lambda snapshot: print(snapshot.sentence(), file=sys.stderr, flush=True)), (lambda: None)
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    bar = Bar(TextColumn("segmenting"), BarColumn(), TextColumn("{task.description}"), console=Console(stderr=True))
    row = bar.add_task("", total=1.0)
    bar.start()
    return (lambda snapshot: bar.update(row, completed=snapshot.fraction, description=snapshot.sentence())), bar.stop

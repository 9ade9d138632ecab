"""How far a run is: one count, shown on a terminal, as log lines, or wherever a callback sends it. Knows no Prefect."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unet_core.ledger import Record
from unet_core.stages import SEGMENT_STAGE

if TYPE_CHECKING:
    from unet_core.training.watching import StepReport

_EVERY_SECONDS = 1.0
_LINE_SECONDS = 10.0  # between lines of a training, where there is no terminal


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
    """Counts records from any thread and tells ``show``, at most once a second and once at the end.

    Args:
        total: units of all stages.
        show: what is told.
        counted: the stage whose voxels give the rate.
    """

    def __init__(self, total: int, show: Callable[[Snapshot], None], counted: str = SEGMENT_STAGE) -> None:
        self._total = total
        self._counted = counted
        self._show = show
        self._lock = threading.Lock()
        self._done = self._voxels = 0
        self._began = time.monotonic()
        self._first: float | None = None  # when the first unit ended: what came before is mostly the start of workers
        self._shown = 0.0

    def expect(self, total: int) -> None:
        """Say how many units there are, where that was not known at first."""
        self._total = total

    def add(self, record: Record) -> None:
        with self._lock:
            self._done += 1
            self._voxels += record.voxels if record.stage == self._counted else 0
            now = time.monotonic()
            self._first = self._first or now
            left = (now - self._first) / (self._done - 1) * (self._total - self._done) if self._done > 1 else None
            due = now - self._shown >= _EVERY_SECONDS or self._done == self._total
            if due:
                self._shown = now
            snapshot = Snapshot(self._done, self._total, self._voxels, now - self._began, left)
        if due:
            self._show(snapshot)


def terminal_progress(doing: str = "segmenting") -> tuple[Callable[[Snapshot], None], Callable[[], None]]:
    """A bar on a terminal, one line a step otherwise, on standard error; and what to call at the end."""
    if not sys.stderr.isatty():
        return (lambda snapshot: print(snapshot.sentence(), file=sys.stderr, flush=True)), (lambda: None)
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    bar = Bar(TextColumn(doing), BarColumn(), TextColumn("{task.description}"), console=Console(stderr=True))
    row = bar.add_task("", total=1.0)
    bar.start()
    return (lambda snapshot: bar.update(row, completed=snapshot.fraction, description=snapshot.sentence())), bar.stop


def terminal_count(doing: str, unit: str) -> Callable[[int, int], None]:
    """A line on a terminal that counts, for what takes no longer than reading; nothing otherwise."""

    def show(done: int, total: int) -> None:
        print(f"\r{doing}: {done} of {total} {unit}", end="" if done < total else "\n", file=sys.stderr, flush=True)

    return show if sys.stderr.isatty() else lambda done, total: None


def training_progress() -> tuple[Callable[[StepReport], None], Callable[[], None]]:
    """The same for a training: a bar on a terminal, else a line now and then; every validation a line of its own."""
    if not sys.stderr.isatty():
        return _TrainingLines().show, lambda: None
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    bar = Bar(TextColumn("training"), BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn(), console=console)
    row = bar.add_task("", total=None)
    bar.start()

    def show(report: StepReport) -> None:
        bar.update(row, completed=report.step, total=report.steps, description=report.sentence())
        for line in (*report.notes, *report.scored()):
            console.print(line, markup=False, highlight=False)

    return show, bar.stop


class _TrainingLines:
    def __init__(self) -> None:
        self._shown = 0.0

    def show(self, report: StepReport) -> None:
        now = time.monotonic()
        if now - self._shown >= _LINE_SECONDS or report.scores or report.step == report.steps:
            self._shown = now
            print(report.sentence(), file=sys.stderr, flush=True)
        for line in (*report.notes, *report.scored()):
            print(line, file=sys.stderr, flush=True)

"""What the page of a flow run shows of a segmentation while it goes on: progress, batches, workers, a picture. Knows no Prefect server."""

from __future__ import annotations

import base64
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from flows.live_artifacts import Content, Live
from flows.run import Prepared
from flows.watched_workers import WatchedWorkers
from unet_core.agenda import Batch
from unet_core.errors import UnetCoreError
from unet_core.ledger import Record
from unet_core.pace import Pace
from unet_core.pictures.mosaic import Mosaic
from unet_core.pictures.rgb import jpeg
from unet_core.report.markdown import plain, table_of
from unet_core.report.numbers import duration
from unet_core.report.preview import open_mosaic
from unet_core.resume import wanted_units
from unet_core.stages import SEGMENT_STAGE, title_of
from unet_core.tally import Tally

PROGRESS_SECONDS, TABLE_SECONDS, PICTURE_SECONDS = 2.0, 5.0, 10.0
FIRST_PICTURE_SECONDS = 5.0  # after the begin: what ends before needs none
LINE_SECONDS = 60.0  # between lines of the log that tell the progress
_QUALITY = 75
_MOST_ROWS = 200  # of a table


@dataclass
class _Row:
    """A batch, as its table shows it."""

    batch: Batch
    began: float
    tally: Tally = field(default_factory=Tally)
    state: str = "running"
    seconds: float = 0.0

    def shown(self, now: float) -> dict[str, Any]:
        voxels = self.tally.voxels[SEGMENT_STAGE]
        own, seconds = self.tally.units[self.batch.stage], self.seconds or now - self.began
        return {
            "step": title_of(self.batch.stage),
            "blocks": f"{self.batch.first} to {self.batch.last}",
            "state": self.state,
            "done": own,
            "of later steps": self.tally.total - own,
            "failed": self.tally.failed,
            "million voxels per second": round(voxels / max(seconds, 1e-9) / 1e6, 3) if voxels else "",
            "seconds": round(seconds, 1),
        }


class RunWatch:
    """Counts what happens in a run, from any thread, and draws it when asked.

    Args:
        prepared: what is left to do.
        logger: of the run.
        cost: what the run costs so far, in words, if that is known.
    """

    def __init__(self, prepared: Prepared, logger: Any, cost: Callable[[], str] | None = None) -> None:
        self._prepared, self._plan, self._logger, self._cost = prepared, prepared.planned.plan, logger, cost
        self._lock = threading.Lock()
        self._began = self._told = time.monotonic()
        self._pace = Pace(self._began)
        self._left = {name: len(units) for name, units in prepared.remaining.items()}
        self._wanted = {
            stage.name: sum(1 for _ in wanted_units(self._plan, prepared.request, stage)) for stage in self._plan.stages
        }
        self._failed: Counter[str] = Counter()
        self._rows: dict[int, _Row] = {}
        self._summary: Content | None = None
        self._mosaic: Mosaic | None = None
        self._undrawn: list[tuple[str, int]] = []  # committed units that the picture may lack
        self.workers = WatchedWorkers(logger)
        self.cancelled = threading.Event()

    def lives(self) -> list[Live]:
        """The artifacts of the page."""
        first = time.monotonic() + FIRST_PICTURE_SECONDS
        return [
            Live("segmentation-progress", "progress", PROGRESS_SECONDS, self._progress),
            Live("segmentation-batches", "table", TABLE_SECONDS, self._batches),
            Live("segmentation-workers", "table", TABLE_SECONDS, self._workers),
            Live("segmentation-picture", "markdown", PICTURE_SECONDS, self._picture, due=first),
            Live("segmentation-summary", "markdown", TABLE_SECONDS, lambda: self._summary),
        ]

    def begin(self, batch: Batch) -> None:
        with self._lock:
            self._rows[id(batch)] = _Row(batch, time.monotonic())

    def add(self, batch: Batch, record: Record) -> None:
        """Count a unit that is committed."""
        now = time.monotonic()
        with self._lock:
            self._rows[id(batch)].tally.add(record)
            self._pace.add(record, now)
            self._left[record.stage] -= 1
            self._undrawn.append((record.stage, record.index))
            is_due = now - self._told >= LINE_SECONDS
            self._told = now if is_due else self._told
        self.workers.here(record, now)
        if is_due:
            self._logger.info(self.sentence())

    def fail(self, batch: Batch, text: str) -> None:
        with self._lock:
            self._rows[id(batch)].tally.fail(text)
            self._failed[batch.stage] += 1

    def end(self, batch: Batch, state: str) -> str:
        """A batch has ended, ``done`` or ``stopped``; a line about it."""
        now = time.monotonic()
        with self._lock:
            row = self._rows[id(batch)]
            row.state, row.seconds = state, now - row.began
            shown = row.shown(now)
        failed = f", {shown['failed']} failed" if shown["failed"] else ""
        rate = f", {shown['million voxels per second']} million voxels per second" if batch.stage == SEGMENT_STAGE else ""
        return f"{shown['step']}, blocks {shown['blocks']}: {shown['done']} done{failed} in {duration(row.seconds)}{rate}"

    def tell(self, markdown: str, caption: str) -> None:
        """Show the result."""
        self._summary = Content(markdown, caption)

    def sentence(self) -> str:
        """How far the run is."""
        now = time.monotonic()
        with self._lock:
            left, failed = dict(self._left), self._failed.total()
            rate, seconds = self._pace.voxels_per_second(now), self._pace.seconds_left(left, now)
        later = sum(self._wanted.values()) - self._wanted[SEGMENT_STAGE]
        later_left = sum(left.values()) - left[SEGMENT_STAGE]
        parts = [f"{self._wanted[SEGMENT_STAGE] - left[SEGMENT_STAGE]:,} of {self._wanted[SEGMENT_STAGE]:,} blocks segmented"]
        if later:
            parts.append(f"{later - later_left:,} of {later:,} later steps")
        if skipped := sum(mask.skipped for mask in self._prepared.request.masks):
            parts.append(f"{skipped:,} blocks skipped by masks")
        if failed:
            parts.append(f"{failed:,} failed")
        if left[SEGMENT_STAGE] and rate:
            parts.append(f"{rate / 1e6:.2f} million voxels per second")
        if sum(left.values()):
            parts += [f"about {duration(max(1, round(seconds)))} left"] if seconds is not None else []
        elif self._summary is None:
            parts.append("the check at the end goes on")
        if self._cost is not None:
            parts.append(f"cost so far: {self._cost()}")
        return ", ".join(parts)

    def _progress(self) -> Content:
        with self._lock:
            left, wanted = sum(self._left.values()), max(1, sum(self._wanted.values()))
        return Content(round(100 * (1 - left / wanted), 1), self.sentence())

    def _batches(self) -> Content | None:
        now = time.monotonic()
        with self._lock:
            rows = [row.shown(now) for row in reversed(self._rows.values())]
        if self.cancelled.is_set():
            rows = [row | {"state": "stopped" if row["state"] == "running" else row["state"]} for row in rows]
        return Content(rows[:_MOST_ROWS], "Batches of blocks, the last one first") if rows else None

    def _workers(self) -> Content | None:
        rows = self.workers.rows(time.monotonic())
        more = f", {len(rows) - _MOST_ROWS} more are not shown" if len(rows) > _MOST_ROWS else ""
        return (
            Content(
                rows[:_MOST_ROWS], f"Workers; rates of {'all of the run' if self.workers.is_over else 'the last minute'}{more}"
            )
            if rows
            else None
        )

    def _picture(self) -> Content | None:
        """What is there, drawn small; what is not there yet is dark."""
        if self._mosaic is None:
            self._open_picture()
        assert self._mosaic is not None
        with self._lock:
            fresh, self._undrawn = self._undrawn, []
            left = dict(self._left)
        lines = [table_of(["step", "done", "of"], [[title_of(n), f"{w - left[n]:,}", f"{w:,}"] for n, w in self._wanted.items()])]
        if link := self.workers.dashboard:
            lines.append(f"[dask's dashboard]({link})")
        try:
            self._mosaic.add(index for name, index in fresh if name == self._mosaic.stage.name)
            data = base64.b64encode(jpeg(self._mosaic.draw(), _QUALITY)).decode()
        except (UnetCoreError, OSError) as error:  # such as a storage that does not answer: the next picture shows it
            with self._lock:
                self._undrawn += fresh
            return Content("\n\n".join([plain(f"No picture just now: {error}"), *lines]), self._prepared.output)
        classes = ", ".join(plain(entry.name) for entry in self._plan.model.classes if entry.value)
        picture = f"![the result so far, what is not there yet is dark](data:image/jpeg;base64,{data})"
        note = f"In their colours: {classes}. Dark: not there yet, or not wanted."
        return Content("\n\n".join([picture, note, *lines]), f"{self._prepared.request.image} -> {self._prepared.output}")

    def _open_picture(self) -> None:
        mosaic = open_mosaic(self._prepared.output, self._plan, self._prepared.request)
        remaining = set(self._prepared.remaining[mosaic.stage.name].tolist())
        wanted = mosaic.units.intersection(wanted_units(self._plan, self._prepared.request, mosaic.stage))
        with self._lock:
            self._undrawn += ((mosaic.stage.name, index) for index in sorted(wanted - remaining))
            self._mosaic = mosaic

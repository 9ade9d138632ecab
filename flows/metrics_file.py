"""The file of a run's metrics: written whole every few seconds and at the end. Knows no Prefect."""

from __future__ import annotations

import time
from collections.abc import Mapping
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any

from unet_core.errors import JobError, UnetCoreError
from unet_core.ledger import Record
from unet_core.object_files import put_file
from unet_core.places import check_location, check_writable
from unet_core.run_metrics import Labels, RunMetrics, State
from unet_core.store import is_remote, local_path

if TYPE_CHECKING:
    from flows.progress import Progress
    from flows.run import Prepared

EVERY_SECONDS = 5.0
ENDINGS = (".json", ".prom")


class MetricsFile:
    """Metrics of one run in one file; what cannot be written is no reason to stop.

    Args:
        url: of the file; its ending tells the format.
        labels: of the run.
    """

    def __init__(self, url: str, labels: Labels) -> None:
        self._url, self._metrics = url, RunMetrics(labels)
        self._lock = Lock()
        self._written = 0.0
        self.problem = ""

    def expect(self, units: Mapping[str, int]) -> None:
        self._metrics.expect(units)
        self._write()

    def add(self, record: Record) -> None:
        self._metrics.add(record)
        with self._lock:
            due = time.monotonic() - self._written >= EVERY_SECONDS
            if due:
                self._written = time.monotonic()
        if due:
            self._write()

    def end(self, state: State, failed: int) -> None:
        self._metrics.end(state, failed)
        self._write()

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            self.end("failed", 0)

    def _write(self) -> None:
        data = self._metrics.as_prometheus() if self._url.endswith(".prom") else self._metrics.as_json()
        with self._lock:
            self._written = time.monotonic()
            try:
                put_file(self._url, data)
            except (OSError, UnetCoreError) as error:
                self.problem = f"metrics {self._url} cannot be written: {error}"


class Metered:
    """A progress whose records are counted by metrics too.

    Args:
        progress: that is shown.
        meter: that counts.
    """

    def __init__(self, progress: Progress, meter: MetricsFile | None) -> None:
        self._progress, self._meter = progress, meter

    def add(self, record: Record) -> None:
        self._progress.add(record)
        if self._meter:
            self._meter.add(record)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._progress, name)


def check_metrics(url: str) -> None:
    """Refuse what is no place of metrics, before anything is done.

    Raises:
        JobError: naming it.
    """
    check_location("metrics", url)
    if not url.endswith(ENDINGS):
        raise JobError(f"metrics is {url}; name a file in .prom (Prometheus, as its text file collector reads it) or .json.")
    if not is_remote(url):
        if local_path(url).is_dir():
            raise JobError(f"metrics is {url}, which is a folder; name a file in .prom or .json.")
        check_writable(str(local_path(url).absolute().parent))


def open_meter(url: str | None, prepared: Prepared) -> MetricsFile | None:
    """The metrics of the run of one image; None if no file is asked for.

    Raises:
        JobError: if the file cannot be.
    """
    if url is None:
        return None
    check_metrics(url)
    plan, request = prepared.planned.plan, prepared.request
    models = ", ".join(model.name for model in plan.models)
    meter = MetricsFile(url, Labels(prepared.output, request.project or "", request.owner or "", models))
    meter.expect({stage: len(units) for stage, units in prepared.remaining.items()})
    return meter

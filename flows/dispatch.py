"""Units of work on a dask cluster, in a bounded window of futures. Knows distributed, neither Prefect nor images."""

from __future__ import annotations

import time
from collections.abc import Callable

from distributed import Client, Future, KilledWorker, as_completed

from flows import settings
from flows.clusters import THREADS
from flows.supervision import NO_PROGRESS_SECONDS, Watch
from flows.worker_events import run_key, run_told
from unet_core.agenda import UnitId, Units
from unet_core.attempts import MOST_ATTEMPTS, Retried
from unet_core.errors import BlockError, UnetCoreError
from unet_core.ledger import Record, read_request
from unet_core.pipeline import run_ready
from unet_core.store import open_store

ENDED = ("finished", "error")  # a future of a scheduler that is gone is cancelled
LOST = ("lost", "pending")  # it had ended, but the worker that held what it returned died before it was asked: dask runs it again
WINDOW_PER_THREAD = 2  # futures in flight for each thread of a worker: one runs, the other waits for it to end
REFRESH_SECONDS = 3.0  # between two looks at which workers there are


class ClusterLostError(UnetCoreError):
    """The scheduler is gone; the output can be resumed."""


def run_units(
    scheduler: str | None,
    output_url: str,
    request_key: str,
    units: Units,
    on_record: Callable[[Record], None],
    on_failure: Callable[[str], None],
) -> None:
    """Compute units, each as soon as it is ready; keeps nothing of those that have ended.

    Args:
        scheduler: address, or None to run in this process.
        output_url: of the prepared output.
        request_key: of its request.
        units: to be done.
        on_record: called in this thread after each unit.
        on_failure: likewise with a sentence for each that failed.

    Raises:
        ClusterLostError: if the scheduler went away; what is committed stays committed.
        StalledError: if nothing moves any more.
        LeaseLostError: if another run has taken over the output.
    """
    if scheduler is None:
        for outcome in run_ready(output_url, request_key, units):
            if isinstance(outcome, BlockError):
                on_failure(str(outcome))
            else:
                on_record(outcome)
        return

    with Client(scheduler, set_as_default=False, timeout="30s") as client:
        _Dispatch(client, scheduler, output_url, request_key, units, on_record, on_failure).run()


class _Window:
    """How many futures may be in flight: as the threads of the workers that are there now, whoever joined or left."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._size, self._asked = WINDOW_PER_THREAD, -REFRESH_SECONDS

    @property
    def size(self) -> int:
        now = time.monotonic()
        if now - self._asked >= REFRESH_SECONDS:
            self._asked = now
            try:
                threads = sum(self._client.nthreads().values())
            except (OSError, TimeoutError):  # the futures tell whether the scheduler is gone for good
                return self._size
            self._size = WINDOW_PER_THREAD * max(1, threads)  # without workers: what waits for the next one
        return self._size


class _Dispatch:
    """Units of one output on their way through a scheduler.

    No future's result is kept: an at-least-once scheduler recomputes what it still holds when a worker dies, and so memory stays as
    it is however many units there are.
    """

    def __init__(
        self,
        client: Client,
        scheduler: str,
        output_url: str,
        request_key: str,
        units: Units,
        on_record: Callable[[Record], None],
        on_failure: Callable[[str], None],
    ) -> None:
        self._client, self._scheduler = client, scheduler
        self._output_url, self._request_key = output_url, request_key
        self._units = Retried(units, open_store(output_url))
        self._watch = Watch(client, settings.no_progress_seconds(NO_PROGRESS_SECONDS))
        self._on_record, self._on_failure = on_record, on_failure
        self._run_key = run_key(output_url, request_key)
        self._window = _Window(client)
        needs_gpu = read_request(open_store(output_url)).device.startswith("cuda")
        self._resources = {"GPU": 1 / THREADS} if needs_gpu else None  # a worker has one: while a unit computes, another is read
        self._flying: dict[str, UnitId] = {}
        self._suspects: list[UnitId] = []  # units that were in a worker when it died, with others

    def run(self) -> None:
        completed = as_completed(self._fill(), loop=self._client.loop)
        while self._flying:
            while self._flying:
                ended = _next_ended(completed)
                self._watch.check(self._flying)
                records = self._fetch([future for future in ended if future.status == "finished"])
                for future in ended:
                    if future.status in LOST and future.key not in records:
                        completed.add(future)
                        continue
                    unit, killed = self._take_over(future, records)
                    if killed is not None:
                        self._suspects.append(unit)
                completed.update(self._fill())
            while self._suspects:
                self._run_alone(self._suspects.pop(0))
            completed.update(self._fill())  # what waited for a suspect

    def _fill(self) -> list[Future]:
        units = []
        while len(self._flying) + len(units) < self._window.size and (unit := self._units.take()) is not None:
            units.append(unit)
        return self._submit(units)

    def _submit(self, units: list[UnitId], suffix: str = "") -> list[Future]:
        if not units:
            return []
        # A key of its own for each attempt: dask may still hold how the one before ended, and would give that again.
        keys = [f"{unit[0]}-{unit[1]}-{self._run_key}{suffix}-{self._units.tried(unit)}" for unit in units]
        self._flying |= zip(keys, units, strict=True)
        stages, indices = zip(*units, strict=True)
        places = [self._output_url] * len(units), [self._request_key] * len(units)
        # Free to run anywhere: a future that wishes for a worker waits for ever if all die at once, also if others come.
        started: list[Future] = self._client.map(
            run_told, *places, stages, indices, key=keys, pure=False, resources=self._resources
        )
        return started

    def _run_alone(self, unit: UnitId) -> None:
        """Try a unit with no other in flight, so that none is blamed for another."""
        completed = as_completed(self._submit([unit], "-alone"), loop=self._client.loop)
        future = None
        while future is None or future.status in LOST:
            if future is not None:
                completed.add(future)
            while not (ended := _next_ended(completed)):
                self._watch.check(self._flying)
            (future,) = ended
        _, killed = self._take_over(future, {})
        if killed is not None:
            text = f"{unit[0]} block {unit[1]}: the worker process died each time it tried this block, alone too ({killed})"
            self._quarantine(
                unit, text, MOST_ATTEMPTS
            )  # with the deaths before, in which it was not alone, it has had its chances

    def _quarantine(self, unit: UnitId, reason: str, attempts: int = 1) -> None:
        """Have a unit that failed tried again, or give it up."""
        text = self._units.failed(unit, reason, attempts)
        if text is not None:
            self._on_failure(text)

    def _fetch(self, futures: list[Future]) -> dict[str, Record]:
        """What futures brought, by their keys, in one message for all; nothing where that cannot be had of all of them any more."""
        if len(futures) < 2:
            return {}
        try:
            return dict(zip([future.key for future in futures], self._client.gather(futures), strict=True))
        except Exception:  # then each is asked for by itself, which tells what is wrong with which
            return {}

    def _take_over(self, future: Future, records: dict[str, Record]) -> tuple[UnitId, KilledWorker | None]:
        """What an ended future brought, which is let go; its unit, and the error if its worker died."""
        if future.status not in ENDED and future.key not in records:
            raise ClusterLostError(
                f"The dask scheduler {self._scheduler} went away with {len(self._flying)} blocks in flight; "
                "run the same command again to resume."
            )
        unit = self._flying.pop(future.key)
        self._watch.moved()
        found = records.get(future.key)
        error = future.exception() if found is None and future.status == "error" else None
        if error is None:
            record = future.result() if found is None else found
            self._units.committed(record.stage, record.index)
            self._on_record(record)
        elif isinstance(error, BlockError):
            self._quarantine(unit, str(error))
        elif not isinstance(error, KilledWorker):
            raise error
        future.release()
        return unit, error if isinstance(error, KilledWorker) else None


def _next_ended(completed: as_completed) -> list[Future]:
    """Futures that ended since, as soon as there is one; none if it is time to look which workers there are."""
    until = time.monotonic() + REFRESH_SECONDS
    while not completed.has_ready() and (left := until - time.monotonic()) > 0:
        with completed.thread_condition:
            completed.thread_condition.wait(min(left, 0.1))
    found: list[Future] = completed.next_batch(block=False)
    return found

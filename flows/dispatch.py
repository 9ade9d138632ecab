"""Units of work on a dask cluster, in a bounded window of futures. Knows distributed, neither Prefect nor images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from distributed import Client, Future, KilledWorker, as_completed

from unet_core.agenda import UnitId, Units
from unet_core.errors import BlockError, UnetCoreError
from unet_core.ledger import Record
from unet_core.pipeline import run_ready
from unet_core.worker import run_unit

ENDED = ("finished", "error")  # a future of a scheduler that is gone is cancelled
LOST = ("lost", "pending")  # it had ended, but the worker that held what it returned died before it was asked: dask runs it again
WINDOW_PER_THREAD = 2  # futures in flight for each thread of a worker: one runs, the other waits for it to end


class ClusterLostError(UnetCoreError):
    """The scheduler is gone; the output can be resumed."""


def run_units(
    scheduler: str | None, output_url: str, request_key: str, units: Units, on_record: Callable[[Record], None]
) -> list[str]:
    """Compute units, each as soon as it is ready; one sentence for each that failed.

    Args:
        scheduler: address, or None to run in this process.
        output_url: of the prepared output.
        request_key: of its request.
        units: to be done.
        on_record: called in this thread after each unit.

    Raises:
        ClusterLostError: if the scheduler went away; what is committed stays committed.
    """
    if scheduler is None:
        return _run_here(output_url, request_key, units, on_record)
    # Two results of one image, made at once, have the same request.
    run_key = f"{request_key}-{hashlib.sha256(output_url.encode()).hexdigest()[:8]}"
    failures: list[str] = []
    suspects: list[UnitId] = []  # units that were in a worker when it died, with others
    # No future's result is kept: an at-least-once scheduler recomputes what it still holds when a worker dies.
    with Client(scheduler, set_as_default=False, timeout="30s") as client:
        threads = sum(worker["nthreads"] for worker in client.scheduler_info(n_workers=-1)["workers"].values())
        window = WINDOW_PER_THREAD * max(1, threads)
        flying = dict[str, UnitId]()

        def submit(unit: UnitId, suffix: str = "") -> Future:
            key = f"{unit[0]}-{unit[1]}-{run_key}{suffix}"
            flying[key] = unit
            # Free to run anywhere: a future that wishes for a worker waits for ever if all die at once, also if others come.
            return client.submit(run_unit, output_url, request_key, *unit, pure=False, key=key)

        def fill() -> list[Future]:
            started = []
            while len(flying) < window and (unit := units.take()) is not None:
                started.append(submit(unit))
            return started

        def note(record: Record) -> None:
            units.committed(record.stage, record.index)
            on_record(record)

        futures = fill()
        while futures:
            completed = as_completed(futures, loop=client.loop)
            for future in completed:
                if future.status in LOST:
                    completed.add(future)
                    continue
                _check_ended(future, scheduler, len(flying))
                unit = flying.pop(future.key)
                if _killed(future, note, failures):
                    suspects.append(unit)
                future.release()
                completed.update(fill())
            while suspects:  # alone, so that none is blamed for another
                unit = suspects.pop(0)
                future = submit(unit, "-alone")
                for _ in as_completed([future], loop=client.loop):
                    pass
                _check_ended(future, scheduler, 1)
                flying.clear()
                if _killed(future, note, failures):
                    failures.append(
                        f"{unit[0]} block {unit[1]}: the worker process died each time it tried this block, alone too "
                        f"({future.exception()})"
                    )
                future.release()
            futures = fill()  # what waited for a suspect
    return failures


def _check_ended(future: Future, scheduler: str, flying: int) -> None:
    """Refuse a future that ended only because its scheduler is gone."""
    if future.status not in ENDED:
        raise ClusterLostError(
            f"The dask scheduler {scheduler} went away with {flying} blocks in flight; run the same command again to resume."
        )


def _killed(future: Future, on_record: Callable[[Record], None], failures: list[str]) -> bool:
    """Take over what a future brought; whether that is nothing, because its worker died."""
    error = future.exception() if future.status == "error" else None
    if error is None:
        on_record(future.result())
    elif isinstance(error, BlockError):
        failures.append(str(error))
    elif not isinstance(error, KilledWorker):
        raise error
    return isinstance(error, KilledWorker)


def _run_here(output_url: str, request_key: str, units: Units, on_record: Callable[[Record], None]) -> list[str]:
    failures: list[str] = []
    for outcome in run_ready(output_url, request_key, units):
        if isinstance(outcome, BlockError):
            failures.append(str(outcome))
        else:
            on_record(outcome)
    return failures

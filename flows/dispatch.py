"""Units of work on a dask cluster, in a bounded window of futures. Knows distributed, neither Prefect nor images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice

from distributed import Client, Future, KilledWorker, as_completed

from unet_core.errors import BlockError, UnetCoreError
from unet_core.ledger import Record
from unet_core.pipeline import run_units as run_units_here
from unet_core.worker import run_unit

ENDED = ("finished", "error")  # a future of a scheduler that is gone is cancelled
LOST = ("lost", "pending")  # it had ended, but the worker that held what it returned died before it was asked: dask runs it again
WINDOW_PER_THREAD = 2  # futures in flight for each thread of a worker: one runs, the other waits for it to end


class ClusterLostError(UnetCoreError):
    """The scheduler is gone; the output can be resumed."""


def run_units(
    scheduler: str | None,
    output_url: str,
    request_key: str,
    stage: str,
    indices: Iterable[int],
    on_record: Callable[[Record], None],
) -> list[str]:
    """Compute units of one stage; one sentence for each that failed.

    Args:
        scheduler: address, or None to run in this process.
        output_url: of the prepared output.
        request_key: of its request.
        stage: name.
        indices: numbers of the units.
        on_record: called in this thread after each unit.

    Raises:
        ClusterLostError: if the scheduler went away; what is committed stays committed.
    """
    if scheduler is None:
        return _run_here(output_url, request_key, stage, indices, on_record)
    failures: list[str] = []
    suspects: list[int] = []  # units that were in a worker when it died, with others
    # No future's result is kept: an at-least-once scheduler recomputes what it still holds when a worker dies.
    with Client(scheduler, set_as_default=False, timeout="30s") as client:
        threads = sum(worker["nthreads"] for worker in client.scheduler_info(n_workers=-1)["workers"].values())
        pending, flying = iter(indices), dict[str, int]()

        def submit(count: int) -> list[Future]:
            started = []
            for index in islice(pending, count):
                key = f"{stage}-{index}-{request_key}"
                flying[key] = index
                # Free to run anywhere: a future that wishes for a worker waits for ever if all die at once, also if others come.
                started.append(client.submit(run_unit, output_url, request_key, stage, index, pure=False, key=key))
            return started

        completed = as_completed(submit(WINDOW_PER_THREAD * max(1, threads)), loop=client.loop)
        for future in completed:
            if future.status in LOST:
                completed.add(future)
                continue
            if future.status not in ENDED:
                raise ClusterLostError(
                    f"The dask scheduler {scheduler} went away with {len(flying)} blocks of {stage} in flight; "
                    "run the same command again to resume."
                )
            index = flying.pop(future.key)
            if _killed(future, on_record, failures):
                suspects.append(index)
            future.release()
            completed.update(submit(1))
        for index in suspects:  # alone, so that none is blamed for another
            future = client.submit(
                run_unit, output_url, request_key, stage, index, pure=False, key=f"{stage}-{index}-{request_key}-alone"
            )
            for _ in as_completed([future], loop=client.loop):
                pass
            if future.status not in ENDED:
                raise ClusterLostError(f"The dask scheduler {scheduler} went away; run the same command again to resume.")
            if _killed(future, on_record, failures):
                failures.append(
                    f"{stage} block {index}: the worker process died each time it tried this block, alone too ({future.exception()})"
                )
            future.release()
    return failures


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


def _run_here(
    output_url: str, request_key: str, stage: str, indices: Iterable[int], on_record: Callable[[Record], None]
) -> list[str]:
    failures: list[str] = []
    for outcome in run_units_here(output_url, request_key, stage, indices):
        if isinstance(outcome, BlockError):
            failures.append(str(outcome))
        else:
            on_record(outcome)
    return failures

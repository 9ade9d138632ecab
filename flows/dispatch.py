"""Units of work on a dask cluster, in a bounded window of futures. Knows distributed, neither Prefect nor images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice

from distributed import Client, Future, KilledWorker, as_completed

from unet_core.errors import BlockError, UnetCoreError
from unet_core.ledger import Record
from unet_core.pipeline import run_units as run_units_here
from unet_core.worker import run_unit

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
    pending = iter(indices)
    # No future's result is kept: an at-least-once scheduler recomputes what it still holds when a worker dies.
    with Client(scheduler, set_as_default=False, timeout="30s") as client:
        threads = max(1, sum(worker["nthreads"] for worker in client.scheduler_info(n_workers=-1)["workers"].values()))

        def submit(count: int) -> list[Future]:
            return [
                client.submit(run_unit, output_url, request_key, stage, index, pure=False, key=f"{stage}-{index}-{request_key}")
                for index in islice(pending, count)
            ]

        started = submit(WINDOW_PER_THREAD * threads)
        running = len(started)
        completed = as_completed(started, loop=client.loop)
        for future in completed:
            running -= 1
            error = future.exception() if future.status == "error" else None
            if future.status == "finished":
                on_record(future.result())
            elif isinstance(error, BlockError):
                failures.append(str(error))
            elif isinstance(error, KilledWorker):
                failures.append(f"{future.key}: the worker process died each time it tried this block ({error})")
            elif error is not None:
                raise error
            else:
                break  # cancelled: the scheduler is gone
            future.release()
            fresh = submit(1)
            running += len(fresh)
            completed.update(fresh)
        if running:
            raise ClusterLostError(
                f"The dask scheduler {scheduler} went away with {running} blocks of {stage} in flight; run the same command again to resume."
            )
    return failures


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

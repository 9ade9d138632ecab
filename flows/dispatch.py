"""Units of work on a dask cluster, in a bounded window of futures. Knows distributed, neither Prefect nor images."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

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
    # No future's result is kept: an at-least-once scheduler recomputes what it still holds when a worker dies.
    with Client(scheduler, set_as_default=False, timeout="30s") as client:
        threads = {name: worker["nthreads"] for name, worker in client.scheduler_info(n_workers=-1)["workers"].items()}
        lanes = Lanes(list(indices), threads or {"": 1})
        lane_of: dict[str, str] = {}

        def submit(worker: str) -> list[Future]:
            index = lanes.next(worker)
            if index is None:
                return []
            key = f"{stage}-{index}-{request_key}"
            lane_of[key] = worker
            # The worker is a wish: others take over what one leaves behind.
            wish = {"workers": [worker], "allow_other_workers": True} if worker else {}
            return [client.submit(run_unit, output_url, request_key, stage, index, pure=False, key=key, **wish)]

        started = [future for worker in first_window(threads) or [""] for future in submit(worker)]
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
            fresh = submit(lane_of.pop(future.key))
            running += len(fresh)
            completed.update(fresh)
        if running:
            raise ClusterLostError(
                f"The dask scheduler {scheduler} went away with {running} blocks of {stage} in flight; run the same command again to resume."
            )
    return failures


def first_window(threads: Mapping[str, int]) -> list[str]:
    """Workers in the order in which they get their first units: each one before any gets a second, since one computes at a time."""
    most = WINDOW_PER_THREAD * max(threads.values(), default=0)
    return [worker for turn in range(most) for worker, count in threads.items() if turn < WINDOW_PER_THREAD * count]


class Lanes:
    """Units dealt out in runs of neighbours, one a worker: what neighbours share, a worker decodes once.

    A worker at the end of its run takes the last unit of the longest run that is left.

    Args:
        indices: of the units, neighbours beside each other.
        threads: of each worker; runs are as long as a worker has threads.
    """

    def __init__(self, indices: Sequence[int], threads: Mapping[str, int]) -> None:
        self._lanes: dict[str, deque[int]] = {}
        dealt = passed = 0
        for worker, count in threads.items():
            passed += count
            stop = len(indices) * passed // sum(threads.values())
            self._lanes[worker], dealt = deque(indices[dealt:stop]), stop

    def next(self, worker: str) -> int | None:
        """The next unit for a worker; None if there are none left."""
        if self._lanes[worker]:
            return self._lanes[worker].popleft()
        longest = max(self._lanes.values(), key=len)
        return longest.pop() if longest else None


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

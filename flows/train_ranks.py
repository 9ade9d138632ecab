"""A training on dask workers: one rank each, supervised; a group that lost a rank starts anew from its last checkpoint. No Prefect."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, Queue
from typing import Any
from uuid import uuid4

from distributed import Client, Future

from flows.cluster_settings import SETTINGS, settings_of
from flows.clusters import check_reachable, open_cluster
from flows.dispatch import ClusterLostError
from flows.launch_rank import RankOrder, run_rank
from flows.rank import TARGET, as_json, resolve
from flows.run import gpu_count
from unet_core import errors
from unet_core.errors import GroupError, JobError, UnetCoreError
from unet_core.wording import counted

RESTARTS = 3
TIMEOUT_MINUTES = 5.0
HANG_MINUTES = 30.0
WORKER_SECONDS = 120  # for which a worker that was lost may stay away
_GRACE_SECONDS = 5.0  # for the other ranks to tell what they saw: the first to tell is rarely the cause
_STOP_SECONDS = 10.0  # for a worker to say that its rank's process is gone
_LOOK_SECONDS = 1.0  # between looks at the list of workers

Report = dict[str, Any]


class RestartsSpentError(UnetCoreError):
    """The group lost ranks more often than is allowed; the last good checkpoint is kept."""


@dataclass(frozen=True)
class Supervision:
    """How a training on several ranks is run.

    Args:
        ranks: processes of the group, one on each dask worker; stays the same over a training.
        threads: of each rank.
        device: ``cpu`` or ``cuda``; a cluster's workers then have the resource GPU=1, and see one GPU.
        restarts: of the whole group, after which the training is given up.
        timeout_minutes: for which a rank waits for the others.
        hang_minutes: without a step (validations in between are to report too), after which the group counts as hanging.
        loaders: processes of each rank that read crops ahead; None for as many as the training thinks right.
        target: ``module:function`` that trains as one rank, given folder, group, on_step, and loaders if told.
    """

    ranks: int = 1
    threads: int = 1
    device: str = "cpu"
    restarts: int = RESTARTS
    timeout_minutes: float = TIMEOUT_MINUTES
    hang_minutes: float = HANG_MINUTES
    loaders: int | None = None
    target: str = TARGET


def train_serially(folder: str, how: Supervision, on_progress: Callable[[Report], None] = lambda report: None) -> Any:
    """Train as one rank in this process; its summary as plain values.

    Raises:
        JobError: if more than one rank is asked.
    """
    if how.ranks != 1:
        raise JobError(f"Cluster 'serial' has one process, --ranks is {how.ranks}; use --cluster local.")
    from unet_core.training.group import single

    more = {} if how.loaders is None else {"loaders": how.loaders}
    return as_json(resolve(how.target)(folder, single(how.device), lambda report: on_progress(as_json(report)), **more))


def train_on_cluster(
    folder: str,
    cluster: str,
    how: Supervision,
    on_progress: Callable[[Report], None] = lambda report: None,
    on_restart: Callable[[str], None] = lambda reason: None,
) -> Any:
    """Train on dask workers, from the last checkpoint in the folder if there is one.

    Args:
        folder: URL of the planned training, which every worker can reach.
        cluster: ``local``, or a scheduler's address.
        how: number of ranks, and when they start anew.
        on_progress: called in this thread with rank 0's reports, at most twice a second.
        on_restart: called with what happened before the group starts anew.

    Returns:
        Rank 0's summary.

    Raises:
        InputError: as a rank met it; not tried again.
        UnetCoreError: likewise, e.g. for a loss that is not finite.
        RestartsSpentError: with the reason of each restart.
        ClusterLostError: if the scheduler went away.
    """
    _check(how, cluster)
    check_reachable(cluster)
    with (
        open_cluster(cluster, how.ranks, gpu_count(how.device)) as scheduler,
        Client(scheduler, set_as_default=False, timeout="30s") as client,
    ):
        reasons: list[str] = []
        while True:
            workers = _choose_workers(client, how, reasons)
            attempt = _Attempt(client, str(folder), how, workers, on_progress)
            try:
                lost = attempt.run()
            finally:  # also when this process is told to stop
                attempt.end()
            if lost is None:
                return attempt.outcomes[0]["summary"]
            reasons.append(f"{len(reasons) + 1}) {lost}")
            if len(reasons) > how.restarts:
                raise RestartsSpentError(
                    f"The training stopped after {how.restarts} restarts: {'; '.join(reasons)}. Its last checkpoint is kept in "
                    f"{folder}; mend what ended the ranks, and run the same command again to go on."
                )
            on_restart(lost)


def _check(how: Supervision, cluster: str) -> None:
    if how.ranks < 1:
        raise JobError(f"ranks is {how.ranks}; at least 1 is needed.")
    if cluster == "serial":
        raise JobError("Cluster 'serial' has no workers; use --cluster local.")
    if "://" not in cluster and settings_of(cluster)[0] in SETTINGS:
        raise JobError(
            f"Cluster '{cluster}' ends workers while a training goes on; use --cluster local, or a scheduler's address."
        )
    if cluster == "local" and how.device.startswith("cuda") and how.ranks > gpu_count(how.device):
        raise JobError(
            f"--ranks is {how.ranks}, this machine has {counted(gpu_count(how.device), 'GPU')}; a rank needs one of its own."
        )


def _choose_workers(client: Client, how: Supervision, reasons: list[str]) -> list[str]:
    """Addresses of the workers of ranks 0, 1, .., neighbours first; waits for those that are coming back."""
    deadline = time.monotonic() + WORKER_SECONDS
    while True:
        known = _workers(client)
        able = [
            (str(worker["host"]), str(worker["name"]), address)
            for address, worker in known.items()
            if not how.device.startswith("cuda") or worker["resources"].get("GPU", 0) >= 1
        ]
        if len(able) >= how.ranks:
            return [address for _, _, address in sorted(able)[: how.ranks]]
        if not reasons or time.monotonic() > deadline:
            kind = "workers with the resource GPU=1" if how.device.startswith("cuda") else "workers"
            before = f" after {'; '.join(reasons)}" if reasons else ""
            raise JobError(
                f"--ranks is {how.ranks}, the cluster has {len(able)} {kind}{before}; start more, or use fewer "
                "--ranks in a new training."
            )
        time.sleep(0.2)


def _workers(client: Client) -> dict[str, Any]:
    try:
        return dict(client.scheduler_info(n_workers=-1)["workers"])
    except (OSError, TimeoutError) as error:
        raise ClusterLostError(f"The dask scheduler went away ({error}); run the same command again to resume.") from None


class _Attempt:
    """One group, from its start to its end. Events come through the scheduler, in the order in which each rank sent them."""

    def __init__(
        self, client: Client, folder: str, how: Supervision, workers: list[str], on_progress: Callable[[Report], None]
    ) -> None:
        self._client, self._how, self._workers, self._on_progress = client, how, workers, on_progress
        self._topic = f"unet-training-{uuid4().hex}"
        self._first = RankOrder(
            0, how.ranks, folder, how.target, how.device, how.threads, how.timeout_minutes, self._topic, how.loaders
        )
        self._events: Queue[dict[str, Any]] = Queue()
        self._futures: dict[int, Future] = {}
        self._started: set[int] = set()
        self._ended: set[int] = set()
        self._is_over = False
        self._last_step: Any = None
        self._heard = self._looked = time.monotonic()
        self.outcomes: dict[int, dict[str, Any]] = {}

    def run(self) -> str | None:
        """None once all ranks are done, else why the group is lost.

        Raises:
            UnetCoreError: of a rank, if trying again would not help.
        """
        self._client.subscribe_topic(self._topic, lambda event: self._events.put(event[1]))
        self._submit(self._first)
        failed_at: float | None = None
        while True:
            self._take_events(0.1)
            self._take_outcomes()
            now = time.monotonic()
            failed = {rank: outcome for rank, outcome in self.outcomes.items() if outcome["kind"] != "done"}
            if failed:
                failed_at = failed_at or now
                if len(self.outcomes) == len(self._futures) or now - failed_at > _GRACE_SECONDS:
                    return self._reason(failed)
            elif len(self.outcomes) == self._how.ranks:
                return None
            if now - self._heard > 60 * self._how.hang_minutes:
                step = "no step at all" if self._last_step is None else f"no step after {self._last_step}"
                return f"{step} for {60 * self._how.hang_minutes:.0f} s: the group hangs"

    def end(self) -> None:
        """End all ranks, and do not come back before their processes are gone: two groups must not write one folder."""
        self._is_over = True
        self._client.cancel(list(self._futures.values()), force=True)
        deadline = time.monotonic() + _STOP_SECONDS
        while (silent := self._started - self._ended) and time.monotonic() < deadline:
            self._take_events(0.1)
            if silent and time.monotonic() - self._looked > _LOOK_SECONDS:
                self._drop_lost_workers()
        stuck = [self._workers[rank] for rank in self._started - self._ended]
        self._client.unsubscribe_topic(self._topic)
        if stuck:  # the worker itself hangs; its end is its rank's
            try:
                self._client.restart_workers(stuck, timeout=60, raise_for_error=False)
            except ValueError:
                raise GroupError(
                    f"Workers {', '.join(stuck)} do not answer, and have no nanny that could restart them; "
                    "end these processes, and run the same command again to go on."
                ) from None

    def _submit(self, order: RankOrder) -> None:
        self._futures[order.rank] = self._client.submit(
            run_rank,
            order,
            key=f"rank-{order.rank}-{self._topic}",
            workers=[self._workers[order.rank]],
            allow_other_workers=False,
            resources={"GPU": 1} if self._how.device.startswith("cuda") else None,
            retries=0,
            pure=False,
        )

    def _take_events(self, seconds: float) -> None:
        with suppress(Empty):
            event = self._events.get(timeout=seconds)
            while True:
                self._take(event)
                event = self._events.get_nowait()

    def _take(self, event: dict[str, Any]) -> None:
        kind, rank = event["kind"], event["rank"]
        if kind == "started":
            self._started.add(rank)
        elif kind == "ended":
            self._ended.add(rank)
        elif kind == "address" and not self._is_over:
            self._heard = time.monotonic()
            for other in range(1, self._how.ranks):
                self._submit(RankOrder(**(vars(self._first) | {"rank": other, "address": event["address"]})))
        elif kind == "step":
            self._heard = time.monotonic()
            self._last_step = f"step {event['report'].get('step')}"
            self._on_progress(event["report"])

    def _take_outcomes(self) -> None:
        for rank, future in list(self._futures.items()):  # events that are taken meanwhile may add some
            if rank in self.outcomes or not future.done():
                continue
            if future.status == "finished":
                outcome = future.result()
                self._take_events(0)  # what it told before
                _raise_if_final(outcome)
                self.outcomes[rank] = outcome
            elif future.status == "error":
                error = future.exception()
                self.outcomes[rank] = {"kind": "died", "message": f"its worker failed ({type(error).__name__}: {error})"}
            else:
                raise ClusterLostError("The dask scheduler went away; run the same command again to resume.")
        if time.monotonic() - self._looked > _LOOK_SECONDS:
            self._drop_lost_workers()

    def _drop_lost_workers(self) -> None:
        """A pinned task whose worker is gone waits for ever; the worker's rank is gone too, as it ends with its parent."""
        self._looked = time.monotonic()
        known = _workers(self._client)
        for rank in self._futures:
            if self._workers[rank] not in known:
                self._ended.add(rank)
                self.outcomes.setdefault(rank, {"kind": "died", "message": "its worker is gone"})

    def _reason(self, failed: dict[int, dict[str, Any]]) -> str:
        """What the most telling rank saw: a death before an error, an error before a missing neighbour."""

        def order(item: tuple[int, dict[str, Any]]) -> tuple[int, int]:
            rank, outcome = item
            return (0 if outcome["kind"] == "died" else 2 if outcome.get("type") == "GroupError" else 1), rank

        rank, outcome = min(failed.items(), key=order)
        after = f" after {self._last_step}" if self._last_step else ""
        return f"rank {rank} on {self._workers[rank]}{after}: {outcome.get('message', outcome['kind'])}"


def _raise_if_final(outcome: dict[str, Any]) -> None:
    """Raise what a rank raised, unless it may pass: bad input and a loss that is not finite come again."""
    kind = getattr(errors, outcome.get("type") or "", None)
    if kind is not None and not issubclass(kind, GroupError):
        raise kind(outcome["message"])

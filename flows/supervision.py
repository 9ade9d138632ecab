"""Whether a cluster still moves: blocks that end, steps within those that run; and what it is busy with if it does not. Knows no images."""

from __future__ import annotations

import time
from collections.abc import Mapping

from distributed import Client, get_worker

from unet_core.agenda import UnitId
from unet_core.errors import UnetCoreError
from unet_core.ledger import Record
from unet_core.pulse import PULSE
from unet_core.worker import run_unit

NO_PROGRESS_SECONDS = 1800.0
_METRIC = "unet-steps"  # of a worker, which tells it to its scheduler with each of its signs of life
_LOOKS = 10  # at the workers, in the time for which nothing may move
_MOST_NAMED = 8


class StalledError(UnetCoreError):
    """Nothing moved for too long; the message names what was in flight where. What is committed stays."""


def run_watched(output_url: str, request_key: str, stage: str, index: int) -> Record:
    """The function that workers run: one unit, whose steps its scheduler is told of.

    Raises:
        BlockError: see ``run_unit``.
    """
    get_worker().metrics[_METRIC] = _steps
    PULSE.beat()
    return run_unit(output_url, request_key, stage, index)


def _steps(worker: object) -> int:
    return PULSE.steps


class Watch:
    """Notices that nothing moves.

    Args:
        client: of the cluster.
        seconds: for which nothing may move.
    """

    def __init__(self, client: Client, seconds: float = NO_PROGRESS_SECONDS) -> None:
        self._client, self._seconds = client, seconds
        self._moved = self._looked = time.monotonic()
        self._steps: dict[str, int] = {}
        self._since: dict[str, float] = {}

    def moved(self) -> None:
        """Say that a block ended."""
        self._moved = time.monotonic()

    def check(self, flying: Mapping[str, UnitId]) -> None:
        """Refuse to wait any longer if nothing moved for so long; may be asked at any time.

        Args:
            flying: units in flight, by the keys of their futures.

        Raises:
            StalledError: naming these, and their workers.
        """
        now = time.monotonic()
        self._since = {key: self._since.get(key, now) for key in flying}
        if now - max(self._moved, self._looked) < self._seconds / _LOOKS:
            return
        self._looked = now
        steps = self._count()
        if steps != self._steps:  # a worker that came or went, too
            self._moved, self._steps = now, steps
        elif now - self._moved >= self._seconds:
            raise StalledError(self._diagnosis(flying, now))

    def _count(self) -> dict[str, int]:
        try:
            workers = self._client.scheduler_info(n_workers=-1)["workers"]
        except (OSError, TimeoutError):  # the futures tell whether the scheduler is gone for good
            return self._steps
        return {address: int(worker.get("metrics", {}).get(_METRIC, 0)) for address, worker in workers.items()}

    def _diagnosis(self, flying: Mapping[str, UnitId], now: float) -> str:
        held = f"No block ended and no worker made a step for {_time(self._seconds)}, with {len(flying)} in flight"
        try:
            where = {key: address for address, keys in self._client.processing().items() for key in keys}
        except (OSError, TimeoutError):
            where = {}
        if not self._steps:
            return f"{held}, and there is no worker. Start workers, then run the same command again to resume."
        named = [
            f"{unit[0]} block {unit[1]} on {where.get(key, 'no worker yet')} for {_time(now - self._since[key])}"
            for key, unit in sorted(flying.items(), key=lambda item: self._since[item[0]])[:_MOST_NAMED]
        ]
        more = f", and {len(flying) - _MOST_NAMED} more" if len(flying) > _MOST_NAMED else ""
        return (
            f"{held}: {', '.join(named)}{more}. Look at these workers (storage that does not answer, a GPU that hangs?) and restart "
            "them; then run the same command again to resume. UNET_NO_PROGRESS_MINUTES allows more time."
        )


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"

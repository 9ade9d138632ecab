"""No more units than a budget allows: a purse that all of a run share, and units that are handed out while it lasts. Knows no cluster.

budget   |<------- spent: what records say ------->|<- in flight ->|<- next ->|        what is expected of those stands in between
"""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt
from threading import Lock

from unet_core.agenda import UnitId, Units
from unet_core.ledger import Record
from unet_core.prices import Budget


class Purse:
    """What has been spent of a budget, and what units in flight are expected to take; for any number of outputs and threads.

    A unit is expected to take the mean of its stage and a standard deviation more, and what the costliest stage takes while nothing is
    known of its own. Before the first record nothing is known at all: the first units in flight are not held back. One that failed stays
    in flight: it took about as much, and has no record.

    Args:
        budget: for all of it.
    """

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self._lock = Lock()
        self._stages: dict[str, _Seen] = {}
        self._flying: dict[tuple[str, str, int], None] = {}
        self._spent = 0.0
        self._stopped = False

    def know(self, records: Iterable[Record]) -> None:
        """Take into account what earlier runs spent."""
        for record in records:
            with self._lock:
                self._note(record.stage, record.work_seconds)

    def reserve(self, output: str, stage: str, index: int) -> bool:
        """Whether a unit may be begun; once one may not, no other may either."""
        with self._lock:
            asked = self._spent + sum(self._expected(name) for _, name, _ in self._flying) + self._expected(stage)
            if self._stopped or self._spent >= self.budget.work_seconds or asked > self.budget.work_seconds:
                self._stopped = True
                return False
            self._flying[output, stage, index] = None
            return True

    def add(self, output: str, record: Record) -> None:
        """Take into account what a unit took in the end."""
        with self._lock:
            self._flying.pop((output, record.stage, record.index), None)
            self._note(record.stage, record.work_seconds)

    @property
    def is_stopped(self) -> bool:
        """Whether anything was held back, or would be."""
        with self._lock:
            return self._stopped or self._spent >= self.budget.work_seconds

    @property
    def spent_seconds(self) -> float:
        with self._lock:
            return self._spent

    def sentence(self) -> str:
        """What was spent of what, without a full stop."""
        whole = self.budget.words(self.budget.work_seconds)
        return f"budget {self.budget.asked}: {self.budget.words(self.spent_seconds)} of {whole} are spent"

    def _note(self, stage: str, seconds: float) -> None:
        self._spent += seconds
        self._stages.setdefault(stage, _Seen()).add(seconds)

    def _expected(self, stage: str) -> float:
        if stage in self._stages:
            return self._stages[stage].expected
        return max((seen.expected for seen in self._stages.values()), default=0.0)


class _Seen:
    """Mean and standard deviation of what units of one stage took; Welford 1962, "Note on a method for calculating corrected sums"."""

    def __init__(self) -> None:
        self._count, self._mean, self._squares = 0, 0.0, 0.0

    def add(self, seconds: float) -> None:
        self._count += 1
        apart = seconds - self._mean
        self._mean += apart / self._count
        self._squares += apart * (seconds - self._mean)

    @property
    def expected(self) -> float:
        return self._mean + (sqrt(self._squares / (self._count - 1)) if self._count > 1 else 0.0)


class Capped:
    """Units that are handed out while a purse lasts; those in flight come back.

    Args:
        units: to be done.
        purse: that pays for them; None for as many as there are.
        output: URL, of the output that they belong to.
    """

    def __init__(self, units: Units, purse: Purse | None, output: str) -> None:
        self._units, self._purse, self._output = units, purse, output

    def take(self) -> UnitId | None:
        if self._purse is None:
            return self._units.take()
        if self._purse.is_stopped:
            return None
        unit = self._units.take()
        return unit if unit is not None and self._purse.reserve(self._output, *unit) else None

    def committed(self, stage: str, index: int) -> None:
        self._units.committed(stage, index)

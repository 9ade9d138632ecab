"""A run seen from outside, by its output alone: what is done, and how fast more arrives in the ledger. Computes no voxel.

look                look                look
 |  reads all        |  reads what is new  |
 |  records          |  since the last one |
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unet_core import ledger
from unet_core.arrivals import Arrivals
from unet_core.completion import find_failures
from unet_core.ledger import Request
from unet_core.pace import RECENT_SECONDS, Pace
from unet_core.places import check_location
from unet_core.plan import Plan
from unet_core.report.numbers import duration
from unet_core.resume import wanted_units
from unet_core.store import Store, open_store
from unet_core.wording import counted


@dataclass(frozen=True)
class Look:
    """How far a run is at one moment.

    Args:
        state: ``complete``; ``partial`` if the last run ended without some blocks; ``unfinished``.
        plan: id.
        model: name; of several models, their names with commas.
        stages: name to (units done, units wanted).
        skipped: blocks that masks left out.
        voxels_per_second: segmented over the last minute; None at the first look.
        seconds_left: as the last minute suggests; None if nothing arrived in it.
        quiet_seconds: since the last unit arrived, or since the first look.
        hardware: class of hardware to voxels per second over the last minute.
        failed: blocks, of a run that ended ``partial``.
        failures: one sentence for each of the first of these.
    """

    state: str
    plan: str
    model: str
    stages: dict[str, tuple[int, int]]
    skipped: int
    voxels_per_second: float | None
    seconds_left: float | None
    quiet_seconds: float
    hardware: dict[str, float]
    failed: int = 0
    failures: tuple[str, ...] = ()

    @property
    def done(self) -> int:
        return sum(done for done, _ in self.stages.values())

    @property
    def wanted(self) -> int:
        return sum(wanted for _, wanted in self.stages.values())

    def sentence(self) -> str:
        """All of it in one line."""
        blocks, wanted = next(iter(self.stages.values()))
        parts = [f"{blocks:,} of {wanted:,} blocks segmented"]
        if self.wanted > wanted:
            parts.append(f"{self.done - blocks:,} of {self.wanted - wanted:,} later steps")
        if self.skipped:
            parts.append(f"{self.skipped:,} skipped by masks")
        return ", ".join([*parts, *self._pace()])

    def _pace(self) -> list[str]:
        if self.state != "unfinished":
            return [f"ended without {counted(self.failed, 'block')}" if self.failed else self.state]
        if self.done == self.wanted:
            return ["all is done, the check at the end goes on"]
        if self.voxels_per_second is None:
            return []
        if self.quiet_seconds > RECENT_SECONDS:
            return [f"nothing new for {duration(self.quiet_seconds)}: does the run still go on?"]
        left = f"about {duration(self.seconds_left)} left" if self.seconds_left is not None else "time left not known yet"
        return [f"{self.voxels_per_second / 1e6:.2f} million voxels per second", left]


class Follower:
    """Looks at an output again and again; each record is read once.

    Args:
        output_url: of the output.
        clock: seconds that only grow.

    Raises:
        ResumeError: if it is not an output of this program.
    """

    def __init__(self, output_url: str, clock: Callable[[], float] = time.monotonic) -> None:
        check_location("output", output_url)
        self._store: Store = open_store(output_url)
        self._clock = clock
        self._plan: Plan = ledger.read_plan(self._store)
        self._request: Request = ledger.read_request(self._store)
        self._arrivals: Arrivals = self._take_up(self._request)
        self._pace: Pace | None = None
        self._arrived = self._looked = 0.0  # when the last unit arrived, and when it was first looked

    def look(self) -> Look:
        """How far the run is now.

        Raises:
            ResumeError: if plan or request are gone.
        """
        request = ledger.read_request(self._store)
        if request.id != self._request.id:
            self._arrivals = self._take_up(request)
        self._request = request  # of the run that goes on now, whose failures name it
        fresh = self._arrivals.poll()
        now, is_first = self._clock(), self._pace is None
        if self._pace is None:
            self._pace, self._arrived, self._looked = Pace(now), now, now
        for record in fresh:
            if is_first:
                self._pace.know(record)
            else:
                self._pace.add(record, now)
                self._arrived = now
        return self._told(now)

    def _take_up(self, request: Request) -> Arrivals:
        """Begin anew, with what a request wants."""
        self._wanted: dict[str, NDArray[np.int64] | None] = {  # None for all units
            stage.name: None if request.roi is None else np.fromiter(wanted_units(self._plan, request, stage), np.int64)
            for stage in self._plan.stages
        }
        named = {stage: None if stage.kind == "segment" else request.id for stage in self._plan.stages}
        return Arrivals(self._store, self._plan.id, named)

    def _counts(self) -> dict[str, tuple[int, int]]:
        """Units done and wanted of each stage."""
        found = {}
        for name, done in self._arrivals.done.items():
            wanted = self._wanted[name]
            chosen = done if wanted is None else done[wanted]
            found[name] = int(np.count_nonzero(chosen)), len(chosen)
        return found

    def _told(self, now: float) -> Look:
        assert self._pace is not None
        counts, hardware = self._counts(), self._pace.hardware(now)
        failures = find_failures(self._store, self._request)
        is_complete = ledger.is_complete(self._store, self._request)
        return Look(
            state="complete" if is_complete else "partial" if failures else "unfinished",
            plan=self._plan.id,
            model=", ".join(model.name for model in self._plan.models),
            stages=counts,
            skipped=sum(mask.skipped for mask in self._request.masks),
            voxels_per_second=sum(hardware.values()) if now > self._looked else None,
            seconds_left=self._pace.seconds_left({name: wanted - done for name, (done, wanted) in counts.items()}, now),
            quiet_seconds=now - self._arrived,
            hardware=hardware,
            failed=failures.failed if failures else 0,
            failures=failures.failures if failures else (),
        )

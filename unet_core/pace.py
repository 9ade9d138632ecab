"""How fast units of work end, over the last minute, and how long what is left will take at that. Knows no storage."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from unet_core.records import Record
from unet_core.stages import SEGMENT_STAGE

RECENT_SECONDS = 60.0


class Pace:
    """Sums over the records of the last minute, and the mean time of a unit of each stage.

    Args:
        began: when it was first looked, in seconds of any clock that only grows.
    """

    def __init__(self, began: float) -> None:
        self._began = began
        self._recent: deque[tuple[float, int, float, str]] = deque()  # time, voxels, seconds of work, hardware
        self._seconds: dict[str, float] = {}
        self._timed: dict[str, int] = {}

    def know(self, record: Record) -> None:
        """Learn how long a unit takes, from one that ended before."""
        self._seconds[record.stage] = self._seconds.get(record.stage, 0.0) + record.work_seconds
        self._timed[record.stage] = self._timed.get(record.stage, 0) + 1

    def add(self, record: Record, now: float) -> None:
        """Count a unit that has just ended."""
        self.know(record)
        self._recent.append((now, record.voxels if record.stage == SEGMENT_STAGE else 0, record.work_seconds, record.hardware))
        self._forget(now)

    def hardware(self, now: float) -> dict[str, float]:
        """Segmented voxels per second by class of hardware."""
        self._forget(now)
        rates: dict[str, float] = {}
        for _, voxels, _, name in self._recent:
            rates[name] = rates.get(name, 0.0) + voxels / self._span(now)
        return rates

    def voxels_per_second(self, now: float) -> float:
        return sum(self.hardware(now).values())

    def seconds_left(self, remaining: Mapping[str, int], now: float) -> float | None:
        """For units that are left of each stage; None if none ended in the last minute. Stages of which none ended yet count as nothing."""
        self._forget(now)
        work = sum(seconds for _, _, seconds, _ in self._recent)
        if not work:
            return None
        ahead = sum(count * self._seconds[name] / self._timed[name] for name, count in remaining.items() if name in self._timed)
        return ahead * self._span(now) / work

    def _span(self, now: float) -> float:
        return max(1e-9, min(RECENT_SECONDS, now - self._began))

    def _forget(self, now: float) -> None:
        while self._recent and self._recent[0][0] <= now - RECENT_SECONDS:
            self._recent.popleft()

"""What is left to do, and which of it comes next: each unit once all that it reads is committed. Knows no storage and no cluster.

segment   0  1  2  3     4  5  6  7    ..      in line, in their order
level-1               0              1 ..      each as soon as the blocks under it are there, before the next one of the line
level-2                                0
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from threading import Lock
from typing import Protocol

from unet_core.stages import Stage, reached, read_box, source_of

UnitId = tuple[str, int]  # name of the stage, index in its grid


class Units(Protocol):
    """What a loop over units, a window of futures, or a batch takes its work from."""

    def take(self) -> UnitId | None:
        """A unit that can be done now; None if there is none, for ever or until others are committed."""

    def committed(self, stage: str, index: int) -> None:
        """Say that a unit which was taken has its record. One that failed is not told: what is made from it waits for ever."""


class Agenda:
    """The units that a run has to do, shared by all of its threads; each is handed out once.

    Those that could be done from the beginning, and those that wait for whole stages, stand in line. The others are ready when the few
    units that they read are committed, and then go first, the coarsest of them before all, so that a viewer sees what is there.

    Args:
        stages: of the plan.
        remaining: units left to do by the name of their stage, in the order in which they are to be done.

    Example:
        >>> from unet_core.stages import stages_of
        >>> stages = stages_of([((8, 8), (1, 1)), ((4, 4), (2, 2))], (4, 4), has_instances=False)
        >>> agenda = Agenda(stages, {"segment": [2, 3], "level-1": [0]})  # a run that was stopped after two blocks
        >>> agenda.take(), agenda.take(), agenda.take()
        (('segment', 2), ('segment', 3), None)
        >>> agenda.committed("segment", 2), agenda.committed("segment", 3), agenda.take()
        (None, None, ('level-1', 0))
    """

    def __init__(self, stages: Sequence[Stage], remaining: Mapping[str, Iterable[int]]) -> None:
        self._stages = {stage.name: stage for stage in stages}
        self._number = {stage.name: number for number, stage in enumerate(stages)}
        self._sources = {stage.name: _sources(stages, stage) for stage in stages}
        listed = {stage.name: list(remaining.get(stage.name, ())) for stage in stages}
        self._left = {name: set(indices) for name, indices in listed.items()}
        self._line: deque[UnitId] = deque(
            (name, index) for name in reversed(listed) for index in listed[name] if not self._waits(name, index)
        )
        self._unlocked: list[tuple[int, int]] = []  # heap of minus the stage's number, index
        self._lock = Lock()

    def take(self) -> UnitId | None:
        with self._lock:
            return self._next_unlocked() or (self._line.popleft() if self._line else None)

    def committed(self, stage: str, index: int) -> None:
        with self._lock:
            if index not in self._left[stage]:
                return
            self._left[stage].remove(index)
            for name, sources in self._sources.items():
                if stage not in sources or not self._left[name]:
                    continue
                if read_box(self._stages[name], 0) is None:
                    if not self._left[stage] and not self._waits(name, 0):
                        self._line.extend((name, number) for number in sorted(self._left[name]))
                elif sources[0] == stage:
                    self._unlock(name, index)

    def batch(self, most: Callable[[str], int]) -> Batch | None:
        """The next units of one stage in line, with what becomes ready through them; None if nothing stands in line now.

        Args:
            most: units of a stage, by its name, that a batch may take from the line.
        """
        with self._lock:
            own: deque[UnitId] = deque()
            while self._line and (not own or (self._line[0][0] == own[0][0] and len(own) < most(own[0][0]))):
                own.append(self._line.popleft())
            return Batch(self, own) if own else None

    def take_unlocked(self) -> UnitId | None:
        """A unit that became ready since its sources are committed, if there is one."""
        with self._lock:
            return self._next_unlocked()

    def _next_unlocked(self) -> UnitId | None:
        if not self._unlocked:
            return None
        number, index = heapq.heappop(self._unlocked)
        return tuple(self._stages)[-number], index

    def _unlock(self, name: str, source_index: int) -> None:
        """Make ready what reads a unit of the stage's source, if that was the last one it waited for."""
        stage, source = self._stages[name], self._stages[self._sources[name][0]]
        for index in stage.grid.touching(reached(source.grid.block(source_index), stage)):
            if index in self._left[name] and not self._waits(name, index):
                heapq.heappush(self._unlocked, (-self._number[name], index))

    def _waits(self, name: str, index: int) -> bool:
        sources, box = self._sources[name], read_box(self._stages[name], index)
        if not sources:
            return False
        if box is None:
            return any(self._left[source] for source in sources)
        left = self._left[sources[0]]
        return bool(left) and any(number in left for number in self._stages[sources[0]].grid.touching(box))


class Batch:
    """Consecutive units of one stage, and whatever becomes ready while they are done; made by ``Agenda.batch``."""

    def __init__(self, agenda: Agenda, own: deque[UnitId]) -> None:
        self._agenda, self._own = agenda, own
        self.stage, self.first, self.last = own[0][0], own[0][1], own[-1][1]

    def take(self) -> UnitId | None:
        return self._agenda.take_unlocked() or (self._own.popleft() if self._own else None)

    def committed(self, stage: str, index: int) -> None:
        self._agenda.committed(stage, index)


def _sources(stages: Sequence[Stage], stage: Stage) -> tuple[str, ...]:
    """The stage that a stage reads, the one which that one was made from, and so on."""
    names: list[str] = []
    source = source_of(stages, stage)
    while source is not None:
        names.append(source.name)
        source = source_of(stages, source)
    return tuple(names)

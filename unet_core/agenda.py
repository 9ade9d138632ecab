"""What is left to do, and which of it comes next: each unit once all that it reads is committed. Knows no storage and no cluster.

segment   0  1  2  3     4  5  6  7    ..      in line, in their order
level-1               0              1 ..      each as soon as the blocks under it are there, before the next one of the line
level-2                                0

Units are held as numpy arrays, a few bytes each, since there may be millions of them.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from unet_core.geometry import Box
from unet_core.stages import Stage, reached, read_box, source_of

UnitId = tuple[str, int]  # name of the stage, index in its grid


class Units(Protocol):
    """What a loop over units, a window of futures, or a batch takes its work from."""

    def take(self) -> UnitId | None:
        """A unit that can be done now; None if there is none, for ever or until others are committed."""

    def committed(self, stage: str, index: int) -> None:
        """Say that a unit which was taken has its record. One that failed is not told: what is made from it waits for ever."""


@dataclass
class _Left:
    """Units of a stage that have no record yet: whether each is one of them, and how many there are."""

    flags: NDArray[np.bool_]
    count: int


@dataclass
class _Line:
    """Units of one stage that can be done, in their order."""

    stage: str
    indices: NDArray[np.int64]
    taken: int = 0

    @property
    def is_empty(self) -> bool:
        return self.taken == len(self.indices)

    def take(self) -> UnitId:
        self.taken += 1
        return self.stage, int(self.indices[self.taken - 1])

    def cut(self, most: int) -> _Line:
        """The next ones, as a line of their own."""
        first, self.taken = self.taken, min(self.taken + most, len(self.indices))
        return _Line(self.stage, self.indices[first : self.taken])


class Agenda:
    """The units that a run has to do, shared by all of its threads; each is handed out once.

    Those that could be done from the beginning, and those that wait for whole stages, stand in line. The others are ready when the few
    units that they read are committed, and then go first, the coarsest of them before all, so that a viewer sees what is there.

    Args:
        stages: of the plan.
        remaining: units left to do by the name of their stage, in the order in which they are to be done.
        on_committed: told of each unit that is, in the thread that says so.
        check: called before anything is handed out; raises if the run is to end.

    Example:
        >>> from unet_core.stages import stages_of
        >>> stages = stages_of([((8, 8), (1, 1)), ((4, 4), (2, 2))], (4, 4), has_instances=False)
        >>> agenda = Agenda(stages, {"segment": [2, 3], "level-1": [0]})  # a run that was stopped after two blocks
        >>> agenda.take(), agenda.take(), agenda.take()
        (('segment', 2), ('segment', 3), None)
        >>> agenda.committed("segment", 2), agenda.committed("segment", 3), agenda.take()
        (None, None, ('level-1', 0))
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        remaining: Mapping[str, Iterable[int]],
        on_committed: Callable[[str, int], None] = lambda stage, index: None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_committed, self._check = on_committed, check
        self._stages = {stage.name: stage for stage in stages}
        self._number = {stage.name: number for number, stage in enumerate(stages)}
        self._sources = {stage.name: _sources(stages, stage) for stage in stages}
        self._reads_all = {stage.name: read_box(stage, 0) is None for stage in stages}
        listed = {stage.name: _as_array(remaining.get(stage.name, ())) for stage in stages}
        self._left = {stage.name: _left(stage, listed[stage.name]) for stage in stages}
        lines = (_Line(name, listed[name][~self._waiting(name)[listed[name]]]) for name in reversed(listed) if len(listed[name]))
        self._lines = deque(line for line in lines if not line.is_empty)
        self._unlocked: list[tuple[int, int]] = []  # heap of minus the stage's number, index
        self._lock = Lock()

    def take(self) -> UnitId | None:
        self._check()
        with self._lock:
            return self._next_unlocked() or self._next_in_line()

    def committed(self, stage: str, index: int) -> None:
        self._on_committed(stage, index)
        with self._lock:
            left = self._left[stage]
            if not left.flags[index]:
                return
            left.flags[index] = False
            left.count -= 1
            for name, sources in self._sources.items():
                if stage not in sources or not self._left[name].count:
                    continue
                if self._reads_all[name]:
                    if not left.count and not self._waits(name, 0):
                        self._lines.append(_Line(name, np.flatnonzero(self._left[name].flags)))
                elif sources[0] == stage:
                    self._unlock(name, index)

    def batch(self, most: Callable[[str], int]) -> Batch | None:
        """The next units of one stage in line, with what becomes ready through them; None if nothing stands in line now.

        Args:
            most: units of a stage, by its name, that a batch may take from the line.
        """
        self._check()
        with self._lock:
            if not self._lines:
                return None
            line = self._lines[0]
            own = line.cut(max(1, most(line.stage)))
            if line.is_empty:
                self._lines.popleft()
            return Batch(self, own)

    def take_unlocked(self) -> UnitId | None:
        """A unit that became ready since its sources are committed, if there is one."""
        self._check()
        with self._lock:
            return self._next_unlocked()

    def _next_unlocked(self) -> UnitId | None:
        if not self._unlocked:
            return None
        number, index = heapq.heappop(self._unlocked)
        return tuple(self._stages)[-number], index

    def _next_in_line(self) -> UnitId | None:
        if not self._lines:
            return None
        unit = self._lines[0].take()
        if self._lines[0].is_empty:
            self._lines.popleft()
        return unit

    def _unlock(self, name: str, source_index: int) -> None:
        """Make ready what reads a unit of the stage's source, if that was the last one it waited for."""
        stage, source = self._stages[name], self._stages[self._sources[name][0]]
        for index in stage.grid.touching(reached(source.grid.block(source_index), stage)):
            if self._left[name].flags[index] and not self._waits(name, index):
                heapq.heappush(self._unlocked, (-self._number[name], index))

    def _waits(self, name: str, index: int) -> bool:
        """Whether something that a unit reads is left to do."""
        sources, box = self._sources[name], read_box(self._stages[name], index)
        if not sources:
            return False
        if box is None:
            return any(self._left[source].count for source in sources)
        left = self._left[sources[0]]
        return left.count > 0 and any(left.flags[number] for number in self._stages[sources[0]].grid.touching(box))

    def _waiting(self, name: str) -> NDArray[np.bool_]:
        """The same of every unit of a stage, at once."""
        stage, sources = self._stages[name], self._sources[name]
        waiting = np.zeros(stage.grid.block_count, dtype=bool)
        if not sources:
            return waiting
        if self._reads_all[name]:
            return waiting | any(self._left[source].count for source in sources)
        source, left = self._stages[sources[0]], self._left[sources[0]]
        if not left.count:
            return waiting
        some = left.flags.reshape(source.grid.counts)
        for axis in range(some.ndim):  # what a unit reads along an axis depends on its position along that axis alone
            first, stop = _read_range(stage, source, axis)
            before = np.insert(np.cumsum(some, axis=axis, dtype=np.int32), 0, 0, axis=axis)
            some = before.take(stop, axis=axis) > before.take(first, axis=axis)
        return some.ravel()


class Batch:
    """Consecutive units of one stage, and whatever becomes ready while they are done; made by ``Agenda.batch``."""

    def __init__(self, agenda: Agenda, own: _Line) -> None:
        self._agenda, self._own = agenda, own
        self.stage, self.first, self.last = own.stage, int(own.indices[0]), int(own.indices[-1])

    def take(self) -> UnitId | None:
        return self._agenda.take_unlocked() or (None if self._own.is_empty else self._own.take())

    def committed(self, stage: str, index: int) -> None:
        self._agenda.committed(stage, index)


def _as_array(indices: Iterable[int]) -> NDArray[np.int64]:
    return indices if isinstance(indices, np.ndarray) else np.fromiter(indices, dtype=np.int64)


def _left(stage: Stage, indices: NDArray[np.int64]) -> _Left:
    flags = np.zeros(stage.grid.block_count, dtype=bool)
    flags[indices] = True
    return _Left(flags, int(np.count_nonzero(flags)))


def _read_range(stage: Stage, source: Stage, axis: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First block of the source that units read, and one past the last, by their position along an axis."""
    grid, whole = stage.grid, Box.from_shape(source.shape)
    ranges = np.zeros((2, grid.counts[axis]), dtype=np.int64)
    for position in range(grid.counts[axis]):
        box = read_box(stage, grid.index(tuple(position if other == axis else 0 for other in range(whole.ndim))))
        assert box is not None
        read = box.intersect(whole)
        if read.shape[axis]:
            cover = read.scale_down(source.block_shape)
            ranges[:, position] = cover.start[axis], cover.stop[axis]
    return ranges[0], ranges[1]


def _sources(stages: Sequence[Stage], stage: Stage) -> tuple[str, ...]:
    """The stage that a stage reads, the one which that one was made from, and so on."""
    names: list[str] = []
    source = source_of(stages, stage)
    while source is not None:
        names.append(source.name)
        source = source_of(stages, source)
    return tuple(names)

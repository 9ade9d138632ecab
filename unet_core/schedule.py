"""Which rows every step of a network makes when, while the network is fed strip by strip. Integers only: no tensors, no images.

Every value of the network is a queue of rows. A step makes what whole rows it can of the queues of its inputs, and these keep
what its next rows will need: a convolution the last ``kernel - 1`` rows, a pooling the rest of its window, a skip connection
what waits for the decoder.

    input   ────strip────┬────strip────┬────strip────
    conv 3    ───────────┼─────────────┼───────────      2 rows wait
    pool 2      ─────────┼───────────  ┼ ─────────       up to 1 row waits
    logits          ─────┼─────────    ┼   ───────       a margin behind the input

The walk is that of the traced graph, and what each step needs comes from the rule table that gives the footprint.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass
from math import inf

from unet_core.errors import FootprintError
from unet_core.layers import changes_for_others
from unet_core.operations import Crop, Expand, Interpolate, Operation, Step, Trace, Window, inputs_of
from unet_core.positions import samples_of, source_rows


@dataclass(frozen=True)
class Move:
    """What one step does in one push.

    Args:
        step: of the network.
        takes: of each input that it reads, the first row and the end, counted from the first row that its queue holds.
        surplus: rows that the step gives before the first one wanted, for want of whole windows.
        count: rows that it makes.
        drops: how many rows of a queue no step needs any more after this.
    """

    step: Step
    takes: tuple[tuple[str, int, int], ...]
    surplus: int
    count: int
    drops: tuple[tuple[str, int], ...]


class Schedule:
    """The moves of each push of rows, in order of execution.

    Args:
        traced: network.
        axis: that is streamed, of the spatial axes.
        length: rows of the whole box, of a legal size; None if not known before the last of them.

    Raises:
        FootprintError: if the network pads along the axis.
    """

    def __init__(self, traced: Trace, axis: int, length: int | None) -> None:
        check_streams(traced, axis)
        self._axis, self._source, self._steps = axis, traced.source, traced.steps
        self._rows = samples_of(traced, axis)
        self._counts: dict[str, int | float] = dict.fromkeys(self._rows, inf)
        if length is not None:
            self._end_at(length)
        self._made = dict.fromkeys(self._rows, 0)
        self._first = dict.fromkeys(self._rows, 0)  # row that a queue still holds
        self.users: dict[str, list[Step]] = {name: [] for name in self._rows}
        for step in traced.steps:
            for name in dict.fromkeys(inputs_of(step)):
                self.users[name].append(step)
        # Of a crop, all rows lie as far from their source as the first; to find how far takes fractions.
        crops = [step for step in traced.steps if isinstance(step.operation, Crop)]
        self._cut = {step.name: source_rows(step, self._rows, axis, 0, 0)[0] for step in crops}
        self._period = max(int(samples.stride) for samples in self._rows.values())
        self._before: tuple[int, tuple[Move, ...]] | None = None
        self._steady: tuple[int, tuple[Move, ...]] | None = None

    @property
    def made(self) -> int:
        """Rows of the input so far."""
        return self._made[self._source]

    @property
    def lacking(self) -> int | float:
        """Rows of the input that are still to come; infinite if its length is not known."""
        return self._counts[self._source] - self.made

    def push(self, rows: int) -> tuple[Move, ...]:
        """What is done with so many more rows of the input.

        The moves are the same objects as for the push before once the network runs in its steady state.
        """
        if self._steady is not None and self._repeats(rows, self._steady):
            self._replay(*self._steady)
            return self._steady[1]
        self._made[self._source] += rows
        moves = tuple(move for move in map(self._advance, self._steps) if move is not None)
        # Whole periods that move every queue by as much leave all as it was before, seen from the rows that came.
        even = rows % self._period == 0 and (rows, moves) == self._before and self._is_even(rows, moves)
        self._before, self._steady = (rows, moves), (rows, moves) if even else None
        return moves

    def close(self) -> tuple[Move, ...]:
        """What is left to do after the last row of an input whose length was not known."""
        self._end_at(self.made)
        return tuple(move for move in map(self._advance, self._steps) if move is not None)

    def _end_at(self, length: int) -> None:
        self._counts = {name: int(length / row.stride + row.surplus) for name, row in self._rows.items()}

    def _repeats(self, rows: int, steady: tuple[int, tuple[Move, ...]]) -> bool:
        """Whether a push is one more of those before, and no value comes to its end in it."""
        if rows != steady[0] or rows >= self.lacking:
            return False
        return all(self._made[move.step.name] + move.count < self._counts[move.step.name] for move in steady[1])

    def _replay(self, rows: int, moves: tuple[Move, ...]) -> None:
        self._made[self._source] += rows
        for move in moves:
            self._made[move.step.name] += move.count
            for name, count in move.drops:
                self._first[name] += count

    def _is_even(self, rows: int, moves: tuple[Move, ...]) -> bool:
        made = {move.step.name: move.count for move in moves}
        dropped = Counter[str]()
        for move in moves:
            dropped.update(dict(move.drops))
        return all(
            made.get(step.name, 0) * self._rows[step.name].stride == rows for step in self._steps if step.name in self._rows
        ) and all(dropped[name] * row.stride == rows for name, row in self._rows.items() if self.users[name])

    def _advance(self, step: Step) -> Move | None:
        first = self._made[step.name]
        end = max(first, self._complete(step))  # of a length told late, a crop may have given rows that nobody reads
        takes: tuple[tuple[str, int, int], ...] = ()
        surplus = 0
        if end > first:
            start, stop = self._needed(step, first, end)
            takes = tuple((name, start - self._first[name], stop - self._first[name]) for name in inputs_of(step))
            surplus = first - _first_row(step.operation, self._axis, first, start)
            self._made[step.name] = end
        drops = tuple(entry for entry in map(self._drop, dict.fromkeys(inputs_of(step))) if entry[1])
        return Move(step, takes, surplus, end - first, drops) if takes or drops else None

    def _drop(self, name: str) -> tuple[str, int]:
        needed = min(self._first_needed(user, name) for user in self.users[name])
        count = max(0, min(needed, self._made[name]) - self._first[name])
        self._first[name] += count
        return name, count

    def _complete(self, step: Step) -> int:
        """How many rows of a step can be made of what its inputs have by now."""
        total, first = self._counts[step.name], self._made[step.name]
        inputs = inputs_of(step)
        if all(self._made[name] == self._counts[name] for name in inputs):
            return int(total)
        at_hand = min(self._made[name] for name in inputs)
        end = min(total, (at_hand + 1) * _growth(step.operation, self._axis))  # whatever the length, which may not be known
        return first + bisect_left(range(first, int(end)), at_hand, key=lambda row: self._sees(step, row, row)[1])

    def _needed(self, step: Step, first: int, end: int) -> tuple[int, int]:
        """Rows of the inputs that rows ``first`` to ``end`` of a step are made of; what lies outside the box does not exist."""
        start, last = self._sees(step, first, end - 1)
        return max(0, start), int(min(last + 1, *(self._counts[name] for name in inputs_of(step))))

    def _sees(self, step: Step, first: int, last: int) -> tuple[int, int]:
        """Rows of its input that rows ``first`` to ``last`` of a step are made of, also outside the box."""
        if step.name in self._cut:
            return first + self._cut[step.name], last + self._cut[step.name]
        return source_rows(step, self._rows, self._axis, first, last)

    def _first_needed(self, step: Step, name: str) -> int:
        """First row of its input ``name`` that a step will still read."""
        made = self._made[step.name]
        return self._needed(step, made, made + 1)[0] if made < self._counts[step.name] else self._made[name]


def check_streams(traced: Trace, axis: int = 0) -> None:
    """Refuse a network that cannot run strip by strip.

    Raises:
        FootprintError: naming the first layer that pads along the axis, whose result depends on where the box ends, or that changes
            in place what others read.
    """
    nodes = {node.name: node for node in traced.graph.graph.nodes}
    for step in traced.steps:
        operation = step.operation
        if isinstance(operation, Window) and (operation.before[axis] or operation.after[axis]):
            raise FootprintError(
                f"Layer '{step.name}' pads along the axis that is streamed, so its rows depend on where a strip ends; "
                "run the network in whole boxes, or in its unpadded form."
            )
        if changes_for_others(traced, nodes[step.name]):
            raise FootprintError(
                f"Layer '{step.name}' changes its input in place, which other layers read, too, so rows would not see what one pass sees; "
                "run the network in whole boxes, or make the layer without inplace=True."
            )


def _first_row(operation: Operation, axis: int, first: int, start: int) -> int:
    """Which row of its result an operation gives first that is run on its input from row ``start`` on, to give row ``first``."""
    if isinstance(operation, Window):
        return start // operation.stride[axis]
    if isinstance(operation, Expand | Interpolate):
        return start * operation.factor[axis]
    return first


def _growth(operation: Operation, axis: int) -> int:
    """Rows made of one, at most."""
    if isinstance(operation, Expand):
        return operation.factor[axis] + operation.kernel[axis]
    return operation.factor[axis] if isinstance(operation, Interpolate) else 1

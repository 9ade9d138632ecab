"""How much memory a network needs that is fed strip by strip, from its schedule. Integers only: nothing is run.

Memory is followed as the streamer takes and gives it back: a value's queue is a list of parts, each in some memory; views share
the memory of what they show, and it is free again when nothing shows it.
"""

from __future__ import annotations

from dataclasses import dataclass

from unet_core.cost import Sizes
from unet_core.geometry import Shape
from unet_core.layers import layer_of
from unet_core.operations import Crop, Trace, Trim
from unet_core.schedule import Move, Schedule
from unet_core.streaming import joins

_PUSHES = 3  # with logits, after which nothing new happens


class _Tally:
    """Elements that are alive."""

    def __init__(self) -> None:
        self.live = self.peak = 0

    def take(self, elements: int) -> _Memory:
        self.live += elements
        self.peak = max(self.peak, self.live)
        return _Memory(self, elements)


class _Memory:
    """Some elements, alive for as long as something refers to them."""

    def __init__(self, tally: _Tally, elements: int) -> None:
        self._tally, self._elements = tally, elements

    def __del__(self) -> None:
        self._tally.live -= self._elements


@dataclass(frozen=True)
class _Part:
    """Rows of a queue, and the memory that they lie in."""

    rows: int
    memory: _Memory


class StripMemory:
    """Elements that are alive at once while strips are fed to a network.

    Args:
        traced: network.
        axis: that is streamed.
        input_channels: of the network.
    """

    def __init__(self, traced: Trace, axis: int, input_channels: int) -> None:
        self._traced, self._axis = traced, axis
        self.parameters = sum(value.numel() for value in traced.graph.parameters())
        self._sizes = Sizes(traced, input_channels)
        self._others = tuple(other for other in range(traced.dims) if other != axis)
        nodes = {node.name: node for node in traced.graph.graph.nodes}
        self._layers = {step.name: layer_of(traced, nodes[step.name]) for step in traced.steps}

    def peak(self, shape: Shape, strip: int) -> int:
        """Most elements alive at once, with an input of ``shape`` (legal, spatial) in strips of ``strip`` rows."""
        tally, length = _Tally(), shape[self._axis]
        schedule = Schedule(self._traced, self._axis, length)
        channels = self._sizes.channels
        self._row = {name: channels[name] * self._sizes.voxels(name, shape, self._others) for name in channels}
        queues: dict[str, list[_Part]] = {name: [] for name, users in schedule.users.items() if users}
        pushes = 0
        for first in range(0, length, strip):
            rows = min(strip, length - first)
            queues[self._traced.source].append(_Part(rows, tally.take(rows * self._row[self._traced.source])))
            for move in schedule.push(rows):
                if move.count:
                    self._make(tally, queues, move)
                    pushes += move.step.name == self._traced.result
                for name, count in move.drops:
                    self._drop(tally, queues[name], name, count)
            if pushes == _PUSHES:
                break
        return tally.peak

    def _make(self, tally: _Tally, queues: dict[str, list[_Part]], move: Move) -> None:
        name, layer = move.step.name, self._layers[move.step.name]
        taken = [self._taken(tally, queues[source], source, first, end) for source, first, end in move.takes]
        queue = queues.get(name)
        if isinstance(move.step.operation, Crop | Trim):
            made = _Part(move.count, taken[0])
        elif queue and layer.into and joins([part.rows for part in queue], move):
            together = queue[0].rows + move.count
            queue[:] = [_Part(together, tally.take(together * self._row[name]))]
            return
        elif layer.in_place:
            made = _Part(move.count, taken[0])
        else:
            made = _Part(move.count, tally.take((move.surplus + move.count) * self._row[name]))
        if queue is not None:
            queue.append(made)

    def _taken(self, tally: _Tally, queue: list[_Part], name: str, first: int, end: int) -> _Memory:
        """Memory of rows of a queue: that of a part, or of a copy where they lie in several."""
        start, found = 0, []
        for part in queue:
            if start < end and start + part.rows > first:
                found.append(part.memory)
            start += part.rows
        return found[0] if len(found) == 1 else tally.take((end - first) * self._row[name])

    def _drop(self, tally: _Tally, queue: list[_Part], name: str, count: int) -> None:
        while queue and queue[0].rows <= count:
            count -= queue.pop(0).rows
        if count:
            rest = queue[0].rows - count
            queue[0] = _Part(rest, tally.take(rest * self._row[name]))

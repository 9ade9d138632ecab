"""A network run along one axis, strip by strip, with the result of one pass over the whole box. Knows no blocks, images or storage.

Every value of the network is a queue of rows. A step takes from the queues of its inputs what it can make whole rows of, and
leaves what its next rows will need: a convolution the last ``kernel - 1`` rows, a pooling the rest of its window, a skip
connection what waits for the decoder. No row of any value is computed twice, and memory follows the cross-section of the box
and the strip, not the length of the box.

    input   ────strip────┬────strip────┬────strip────
    conv 3    ───────────┼─────────────┼───────────      2 rows wait
    pool 2      ─────────┼───────────  ┼ ─────────       up to 1 row waits
    logits          ─────┼─────────    ┼   ───────       a margin behind the input

The walk is that of the traced graph, and what each step needs comes from the rule table that gives the footprint.
"""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from unet_core.errors import FootprintError
from unet_core.operations import Crop, Expand, Interpolate, Operation, Step, Trace, Trim, Window
from unet_core.positions import crop_counts, samples_of, source_rows

AXIS = 0  # of the spatial axes: z in 3D, y in 2D
_DIM = 2 + AXIS  # of a tensor (N, C, *spatial)
_MAKE_THEIR_OWN = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.BatchNorm2d, nn.BatchNorm3d)


def check_streams(traced: Trace) -> None:
    """Refuse a network that cannot run strip by strip.

    Raises:
        FootprintError: naming the first layer that pads along the axis, whose result depends on where the box ends.
    """
    for step in traced.steps:
        operation = step.operation
        if isinstance(operation, Window) and (operation.before[AXIS] or operation.after[AXIS]):
            raise FootprintError(
                f"Layer '{step.name}' pads along the axis that is streamed, so its rows depend on where a strip ends; "
                "run the network in whole boxes, or in its unpadded form."
            )


def stream(traced: Trace, image: Tensor, strip: int) -> Iterator[Tensor]:
    """Logits of ``image``, in parts (N, K, rows, ...) whose rows follow each other along the first spatial axis.

    Args:
        traced: network without padding along that axis.
        image: (N, C, *spatial) of legal shape, on the network's device.
        strip: rows that are put in at a time; all steps but the first and last have the same shapes if it is a multiple of
            the network's stride.

    Raises:
        FootprintError: if the network cannot run strip by strip.
    """
    streaming = Streaming(traced, image.shape[_DIM])
    for first in range(0, image.shape[_DIM], strip):
        rows = image.narrow(_DIM, first, min(strip, image.shape[_DIM] - first))
        part = streaming.push(rows)
        if part is not None:
            yield part


@dataclass
class _Queue:
    """Rows of a value that some step still needs; ``first`` and ``end`` count from the first row of the value."""

    first: int = 0
    end: int = 0
    parts: list[Tensor] = field(default_factory=list)

    def put(self, rows: Tensor) -> None:
        self.parts.append(rows)
        self.end += rows.shape[_DIM]

    def rows(self, first: int, end: int) -> Tensor:
        """Rows ``first`` to ``end``: a view where they lie in one part."""
        found, start = [], self.first
        for part in self.parts:
            stop = start + part.shape[_DIM]
            low, high = max(first, start), min(end, stop)
            if low < high:
                found.append(part.narrow(_DIM, low - start, high - low))
            start = stop
        return found[0] if len(found) == 1 else torch.cat(found, dim=_DIM)

    def drop_before(self, first: int) -> None:
        while self.parts and self.first + self.parts[0].shape[_DIM] <= first:
            self.first += self.parts.pop(0).shape[_DIM]
        if self.parts and self.first < first:
            rest = self.parts[0].shape[_DIM] - (first - self.first)
            # A copy, since a view would keep what is dropped.
            self.parts[0] = self.parts[0].narrow(_DIM, first - self.first, rest).clone()
            self.first = first


class Streaming:
    """A network that is fed rows and gives rows.

    Args:
        traced: network.
        length: rows of the whole box, of a legal size.

    Raises:
        FootprintError: if the network cannot run strip by strip.
    """

    def __init__(self, traced: Trace, length: int) -> None:
        check_streams(traced)
        self._traced = traced
        self._rows = [samples_of(traced, axis) for axis in range(traced.dims)]
        self._counts = {name: int(length / row.stride + row.surplus) for name, row in self._rows[AXIS].items()}
        self._queues = {name: _Queue() for name in self._counts}
        self._made = dict.fromkeys(self._counts, 0)
        nodes = {node.name: node for node in traced.graph.graph.nodes}
        self._calls = {step.name: _call(traced, nodes[step.name]) for step in traced.steps}
        self._users: dict[str, list[Step]] = {name: [] for name in self._counts}
        for step in traced.steps:
            for name in dict.fromkeys(_read(step)):
                self._users[name].append(step)

    def push(self, rows: Tensor) -> Tensor | None:
        """The logits' rows that ``rows`` (N, C, rows, ...), the next of the box, complete; None if there are none yet."""
        self._put(self._traced.source, rows)
        logits: Tensor | None = None
        for step in self._traced.steps:
            made = self._advance(step)
            if step.name == self._traced.result:
                logits = made
        return logits

    def _put(self, name: str, rows: Tensor) -> Tensor:
        self._made[name] += rows.shape[_DIM]
        if self._users[name]:
            self._queues[name].put(rows)
        return rows

    def _advance(self, step: Step) -> Tensor | None:
        first, end = self._made[step.name], self._complete(step)
        result = None
        if end > first:
            start, stop = self._source(step, first, end)
            taken = {name: self._queues[name].rows(start, stop) for name in _read(step)}
            made = self._run(step, taken)
            surplus = first - _first_row(step.operation, first, start)  # rows before the first, made for want of whole windows
            result = self._put(step.name, made.narrow(_DIM, surplus, end - first))
        for name in _read(step):
            self._queues[name].drop_before(min(self._first_needed(user, name) for user in self._users[name]))
        return result

    def _complete(self, step: Step) -> int:
        """How many rows of a step can be made of what its inputs have by now."""
        total, first = self._counts[step.name], self._made[step.name]
        inputs = _read(step)
        if all(self._made[name] == self._counts[name] for name in inputs):
            return total
        at_hand = min(self._made[name] for name in inputs)
        return first + bisect_left(
            range(first, total), at_hand, key=lambda row: source_rows(step, self._rows[AXIS], AXIS, row, row)[1]
        )

    def _source(self, step: Step, first: int, end: int) -> tuple[int, int]:
        """Rows of the inputs that rows ``first`` to ``end`` of a step are made of; what lies outside the box does not exist."""
        start, last = source_rows(step, self._rows[AXIS], AXIS, first, end - 1)
        return max(0, start), min(last + 1, *(self._counts[name] for name in _read(step)))

    def _first_needed(self, step: Step, name: str) -> int:
        """First row of its input ``name`` that a step will still read."""
        made = self._made[step.name]
        return self._source(step, made, made + 1)[0] if made < self._counts[step.name] else self._counts[name]

    def _run(self, step: Step, taken: dict[str, Tensor]) -> Tensor:
        if not isinstance(step.operation, Crop | Trim):
            return self._calls[step.name](taken)
        value = taken[step.inputs[0]]  # along the axis that is streamed, cropping is a choice of rows
        for axis in range(AXIS + 1, self._traced.dims):
            if isinstance(step.operation, Trim):
                before = after = step.operation.count[axis]
            else:
                before, after = crop_counts(step.name, step.operation, *(self._rows[axis][name] for name in step.inputs[:2]))
            value = value.narrow(2 + axis, before, value.shape[2 + axis] - before - after)
        return value


def _read(step: Step) -> tuple[str, ...]:
    """Inputs whose rows a step reads: of the reference of a crop only the size matters."""
    return step.inputs[:1] if isinstance(step.operation, Crop) else step.inputs


def _first_row(operation: Operation, first: int, start: int) -> int:
    """Which row of its result an operation gives first that is run on its input from row ``start`` on, to give row ``first``."""
    if isinstance(operation, Window):
        return start // operation.stride[AXIS]
    if isinstance(operation, Expand | Interpolate):
        return start * operation.factor[AXIS]
    return first


def _call(traced: Trace, node: torch.fx.Node) -> Callable[[dict[str, Tensor]], Tensor]:
    """The computation of a node as a function of its inputs by name; it changes none that other steps may read."""
    function: Any = node.target
    if node.op == "call_module":
        function = traced.graph.get_submodule(str(node.target))
        if getattr(function, "inplace", False) and not _is_fresh(traced, node.args[0]):
            function = copy.copy(function)
            function.inplace = False

    def call(values: dict[str, Tensor]) -> Tensor:
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda other: values[other.name])
        result: Tensor = function(*args, **kwargs)
        return result

    return call


def _is_fresh(traced: Trace, value: Any) -> bool:
    """Whether a value has memory of its own and one reader, so that this one may change it in place."""
    if value.op != "call_module" or len(value.users) > 1:
        return False
    return isinstance(traced.graph.get_submodule(str(value.target)), _MAKE_THEIR_OWN)

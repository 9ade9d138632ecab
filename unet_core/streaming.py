"""A network run along one axis, strip by strip, with the result of one pass over the whole box. Knows no blocks, images or storage.

``schedule`` says which rows every step makes when; here they are made. No row of any value is computed twice, and memory
follows the cross-section of the box and the strip, not the length of the box.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from unet_core.layers import layer_of
from unet_core.operations import Crop, Trace, Trim
from unet_core.positions import crop_counts, samples_of
from unet_core.rules import trace
from unet_core.schedule import Move, Schedule

AXIS = 0  # that blocks are streamed along: z in 3D, y in 2D
_LEAD = 2  # axes before the spatial ones, N and C


def stream(traced: Trace, image: Tensor, strip: int, axis: int = AXIS) -> Iterator[Tensor]:
    """Logits of ``image``, in parts (N, K, rows, ...) whose rows follow each other along the axis.

    Args:
        traced: network without padding along that axis.
        image: (N, C, *spatial) of legal shape, on the network's device.
        strip: rows that are put in at a time; all steps but the first and last have the same shapes if it is a multiple of
            the network's stride.
        axis: of the spatial ones.

    Raises:
        FootprintError: if the network cannot run strip by strip.
    """
    length = image.shape[_LEAD + axis]
    streamer = Streamer(traced, axis, length)
    for first in range(0, length, strip):
        part = streamer.push(image.narrow(_LEAD + axis, first, min(strip, length - first)))
        if part is not None:
            yield part


class Streamer:
    """A network that is fed rows and gives rows.

    Args:
        network: without padding along the axis; a module, or what ``trace`` made of one.
        axis: of the spatial axes; rows of the first one lie next to each other in memory, which is fastest.
        length: rows of the whole box, of a legal size; with None, ``close`` tells the last of them.

    Raises:
        FootprintError: if the network cannot run strip by strip.

    Example:
        >>> from unet_core.networks import build
        >>> streamer = Streamer(build("unet", in_channels=1, classes=2, base=4, levels=2).eval(), axis=0)
        >>> streamer.push(torch.zeros(1, 1, 20, 20)).shape
        torch.Size([1, 2, 4, 4])
        >>> streamer.close() is None
        True
    """

    def __init__(self, network: nn.Module | Trace, axis: int = AXIS, length: int | None = None) -> None:
        self._traced = network if isinstance(network, Trace) else trace(network)
        self._schedule = Schedule(self._traced, axis, length)
        self._dim = _LEAD + axis
        self._others = [other for other in range(self._traced.dims) if other != axis]
        self._samples = [samples_of(self._traced, other) for other in range(self._traced.dims)]
        self._queues: dict[str, list[Tensor]] = {name: [] for name, users in self._schedule.users.items() if users}
        nodes = {node.name: node for node in self._traced.graph.graph.nodes}
        self._layers = {step.name: layer_of(self._traced, nodes[step.name]) for step in self._traced.steps}

    @torch.no_grad()
    def push(self, rows: Tensor) -> Tensor | None:
        """The logits' rows that ``rows`` (N, C, rows, ...), the next of the box, complete; None if there are none yet."""
        moves = self._schedule.push(rows.shape[self._dim])
        self._put(self._traced.source, rows)
        return self._work(moves)

    @torch.no_grad()
    def close(self) -> Tensor | None:
        """The logits' rows that are left after the last push; None if there are none.

        Raises:
            ValueError: if rows of a box of known length did not come.
        """
        if 0 < self._schedule.lacking < float("inf"):
            raise ValueError(
                f"{self._schedule.lacking} rows of the box did not come, after {self._schedule.made}; push them first."
            )
        return self._work(self._schedule.close())

    def _work(self, moves: tuple[Move, ...]) -> Tensor | None:
        logits: Tensor | None = None
        for move in moves:
            if move.count:
                made = self._make(move)
                if move.step.name == self._traced.result:
                    logits = made
            for name, count in move.drops:
                self._drop(name, count)
        return logits

    def _make(self, move: Move) -> Tensor:
        step, dim = move.step, self._dim
        taken = {name: self._rows(name, first, end) for name, first, end in move.takes}
        if isinstance(step.operation, Crop | Trim):  # along the axis that is streamed, cropping is a choice of rows
            return self._put(step.name, self._cropped(move, taken[step.inputs[0]]))
        layer, waiting = self._layers[step.name], self._queues.get(step.name)
        if layer.into and waiting and joins([part.shape[dim] for part in waiting], move):
            return layer.into(taken, lambda like, channels: self._room(step.name, waiting[0], move.count, like, channels))
        made = layer.call(taken)
        if move.surplus or made.shape[dim] != move.count:
            made = made.narrow(dim, move.surplus, move.count)
        return self._put(step.name, made)

    def _room(self, name: str, waiting: Tensor, count: int, like: Tensor, channels: int) -> Tensor:
        """Memory for ``count`` rows that follow those which wait, so that who reads both finds them together."""
        shape = list(like.shape)
        shape[1], shape[self._dim] = channels, waiting.shape[self._dim] + count
        form: Any = torch.channels_last if like.dim() == 4 else torch.channels_last_3d
        whole = torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=form)
        whole.narrow(self._dim, 0, waiting.shape[self._dim]).copy_(waiting)
        self._queues[name] = [whole]
        return whole.narrow(self._dim, waiting.shape[self._dim], count)

    def _cropped(self, move: Move, value: Tensor) -> Tensor:
        step = move.step
        for axis in self._others:
            if isinstance(step.operation, Trim):
                before = after = step.operation.count[axis]
            else:
                assert isinstance(step.operation, Crop)
                before, after = crop_counts(step.name, step.operation, *(self._samples[axis][name] for name in step.inputs[:2]))
            value = value.narrow(_LEAD + axis, before, value.shape[_LEAD + axis] - before - after)
        return value

    def _rows(self, name: str, first: int, end: int) -> Tensor:
        """Rows of a queue: a view where they lie in one part."""
        found, start = [], 0
        for part in self._queues[name]:
            stop = start + part.shape[self._dim]
            low, high = max(first, start), min(end, stop)
            if low < high:
                found.append(part if high - low == stop - start else part.narrow(self._dim, low - start, high - low))
            start = stop
        return found[0] if len(found) == 1 else torch.cat(found, dim=self._dim)

    def _put(self, name: str, rows: Tensor) -> Tensor:
        if name in self._queues:
            self._queues[name].append(rows)
        return rows

    def _drop(self, name: str, count: int) -> None:
        parts = self._queues[name]
        while parts and parts[0].shape[self._dim] <= count:
            count -= parts.pop(0).shape[self._dim]
        if count:
            # A copy, since a view would keep what is dropped.
            parts[0] = parts[0].narrow(self._dim, count, parts[0].shape[self._dim] - count).clone()


def joins(waiting: list[int], move: Move) -> bool:
    """Whether the rows of a move are put behind those that wait in its queue, given as the rows of each part, in memory of their own.

    Long queues are those of skip connections, which nobody reads as a whole.
    """
    return len(waiting) == 1 and waiting[0] <= move.count and not move.surplus

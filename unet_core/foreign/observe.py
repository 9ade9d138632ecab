"""What a network that cannot be traced does, seen operation by operation while it runs. Knows no files and no blocks.

It runs on tensors that have a shape, a type and a lifetime, but no values, so an input may be as large as one likes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from unet_core.errors import UnetCoreError
from unet_core.geometry import Shape
from unet_core.live_bytes import LiveBytes

Network = Callable[[Tensor], Any]

# What code that nobody here wrote may raise for a shape that it does not take.
REFUSALS = (
    UnetCoreError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    NotImplementedError,
)


@dataclass(frozen=True)
class Observed:
    """What one forward pass in float32 needs.

    Args:
        live_bytes: of all values that are alive at once at the worst step, the input included, the parameters not.
        operations: floating-point operations of convolutions and matrix products, two a multiplication and addition.
    """

    live_bytes: int
    operations: int


def observe(network: Network, input_shape: Shape, small_shape: Shape, output_voxels: Callable[[Shape], int]) -> Observed:
    """Memory and operations of one forward pass on an input of ``input_shape`` (C, *spatial).

    A network that looks at values (``if image.max() > 0``) cannot run without them; it runs on ``small_shape`` instead, and what
    that needs for each output voxel is taken for each of the large one. That is more than the large one needs, since what
    surrounds the output weighs less there.

    Args:
        output_voxels: how many voxels the network returns for a spatial shape.
    """
    try:
        with _without_values():
            return _observe(network, torch.empty((1, *input_shape)))
    except REFUSALS:
        found = _observe(network, torch.zeros((1, *small_shape)))
        scale = output_voxels(input_shape[1:]) / output_voxels(small_shape[1:])
        return Observed(int(found.live_bytes * scale), int(found.operations * scale))


class Shapes:
    """Which input shapes a network takes, and what shape it returns for them.

    Args:
        network: on the CPU, in arithmetic of ``dtype``.
        channels: of its input.
    """

    def __init__(self, network: Network, channels: int, dtype: torch.dtype = torch.float32) -> None:
        self._network, self._channels, self._dtype = network, channels, dtype
        self._looks_at_values = False
        self.refusal = ""  # what the network said when it refused a shape last

    def first_taken(self, candidates: Iterable[Shape]) -> Shape | None:
        """The first of some spatial shapes that the network takes, None if there is none.

        If it takes none without values, it may be one that looks at them; from then on it runs on zeros.
        """
        shapes = list(candidates)
        for self._looks_at_values in (False, True):
            for shape in shapes:
                if self.after(shape):
                    return shape
        return None

    def after(self, shape: Shape) -> Shape | None:
        """Spatial shape of what the network returns for an input of spatial ``shape``, or None if it refuses that."""
        mode: Any = nullcontext() if self._looks_at_values else _without_values()
        try:
            with torch.no_grad(), mode:
                result = self._network(torch.zeros((1, self._channels, *shape), dtype=self._dtype))
                return tuple(result.shape[2:])
        except REFUSALS as error:
            self.refusal = " ".join(str(error)[-300:].split()) or type(error).__name__
            return None


@contextmanager
def _without_values() -> Iterator[None]:
    log = logging.getLogger("torch._subclasses.fake_tensor")  # it would print a traceback for each shape that is refused
    before, log.disabled = log.disabled, True
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        log.disabled = before


def _observe(network: Network, value: Tensor) -> Observed:
    live, operations = LiveBytes(), FlopCounterMode(display=False)
    with torch.no_grad(), operations, live:
        network(value)
    return Observed(live.peak + prod(value.shape) * value.element_size(), operations.get_total_flops())

"""How large the values of a network are, and what a forward pass computes, from the traced network alone. Runs nothing."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import nn

from unet_core.foreign.opaque_network import OpaqueNetwork
from unet_core.geometry import Shape
from unet_core.operations import Trace, inputs_of
from unet_core.positions import samples_of


class Sizes:
    """Channels and voxels of every value of a network. Both follow from the layers, which is far quicker than a pass on shapes:
    planning compares the blocks of dozens of grids.

    Args:
        traced: network.
        input_channels: of its input.
    """

    def __init__(self, traced: Trace, input_channels: int) -> None:
        self._rows = [samples_of(traced, axis) for axis in range(traced.dims)]
        self.channels = _channels(traced, input_channels)

    def voxels(self, name: str, input_shape: Shape, axes: tuple[int, ...] | None = None) -> int:
        """Voxels of a value, along some axes or all of them; one of what stands for the whole box.

        Args:
            name: of a step, or of the input.
            input_shape: spatial, legal.
            axes: that count.
        """
        wanted = range(len(self._rows)) if axes is None else axes
        along = [(input_shape[axis], self._rows[axis][name]) for axis in wanted if name in self._rows[axis]]
        return prod(int(size / row.stride + row.surplus) for size, row in along)

    def elements(self, name: str, input_shape: Shape) -> int:
        return self.channels[name] * self.voxels(name, input_shape)


def _channels(traced: Trace, input_channels: int) -> dict[str, int]:
    """Layers with weights say theirs, concatenation adds them up, and everything else keeps those of its widest input."""
    nodes = {node.name: node for node in traced.graph.graph.nodes}
    channels = {traced.source: input_channels}
    for step in traced.steps:
        node = nodes[step.name]
        module: Any = traced.graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        if hasattr(module, "out_channels"):
            channels[step.name] = int(module.out_channels)
        elif node.target is torch.cat:
            joined: Any = node.args[0] if node.args else node.kwargs["tensors"]  # one value may stand there several times
            channels[step.name] = sum(channels[part.name] for part in joined)
        else:
            channels[step.name] = max(channels[name] for name in inputs_of(step))
    return channels


def operations(traced: Trace | OpaqueNetwork, input_shape: Shape) -> int:
    """Floating-point operations of the convolutions of one forward pass, two for each multiplication and addition.

    Args:
        traced: network.
        input_shape: (C, *spatial), legal.
    """
    if isinstance(traced, OpaqueNetwork):
        return traced.observe(input_shape).operations
    sizes, shape = Sizes(traced, input_shape[0]), input_shape[1:]
    nodes, total = {node.name: node for node in traced.graph.graph.nodes}, 0
    for step in traced.steps:
        node = nodes[step.name]
        module: Any = traced.graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            total += 2 * sizes.voxels(step.name, shape) * module.weight.numel()
        elif isinstance(module, nn.ConvTranspose2d | nn.ConvTranspose3d):
            total += 2 * sizes.voxels(step.inputs[0], shape) * module.weight.numel()
    return total

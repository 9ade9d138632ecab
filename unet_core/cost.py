"""What a forward pass computes, from the network alone. Runs nothing: tensors have shapes, no values."""

from __future__ import annotations

import copy
from math import prod
from typing import Any

import torch
from torch import nn
from torch.fx.passes.shape_prop import ShapeProp

from unet_core.foreign.opaque_network import OpaqueNetwork
from unet_core.geometry import Shape
from unet_core.operations import Trace
from unet_core.positions import samples_of


def on_meta(traced: Trace, input_shape: Shape) -> torch.fx.GraphModule:
    """A copy of the network without values, whose nodes know the shapes that an input of ``input_shape`` (C, *spatial) gives."""
    network = copy.deepcopy(traced.graph).to("meta")
    ShapeProp(network).propagate(torch.empty((1, *input_shape), device="meta"))
    return network


def operations(traced: Trace | OpaqueNetwork, input_shape: Shape) -> int:
    """Floating-point operations of the convolutions of one forward pass, two for each multiplication and addition.

    Args:
        traced: network.
        input_shape: (C, *spatial), legal.
    """
    if isinstance(traced, OpaqueNetwork):
        return traced.observe(input_shape).operations
    # Sizes follow from positions, which is far quicker than a pass on shapes: planning compares the blocks of dozens of grids.
    rows = [samples_of(traced, axis) for axis in range(traced.dims)]

    def voxels(name: str) -> int:
        """Samples of a value; one of what stands for the whole box."""
        along = zip(input_shape[1:], (samples.get(name) for samples in rows), strict=True)
        return prod(int(size / row.stride + row.surplus) for size, row in along if row is not None)

    nodes, total = {node.name: node for node in traced.graph.graph.nodes}, 0
    for step in traced.steps:
        node = nodes[step.name]
        module: Any = traced.graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            total += 2 * voxels(step.name) * module.weight.numel()
        elif isinstance(module, nn.ConvTranspose2d | nn.ConvTranspose3d):
            total += 2 * voxels(step.inputs[0]) * module.weight.numel()
    return total

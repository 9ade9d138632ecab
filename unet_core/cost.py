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
    network = on_meta(traced, input_shape)
    total = 0
    for node in network.graph.nodes:
        module: Any = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            total += 2 * prod(node.meta["tensor_meta"].shape) * prod(module.weight.shape[1:])
        elif isinstance(module, nn.ConvTranspose2d | nn.ConvTranspose3d):
            total += 2 * prod(node.args[0].meta["tensor_meta"].shape) * prod(module.weight.shape[1:])
    return total

"""How much memory one forward pass needs, from the network alone. Runs nothing: tensors have shapes, no values."""

from __future__ import annotations

import copy
from dataclasses import replace
from math import prod

import torch

from unet_core.cost import on_meta
from unet_core.foreign.opaque_network import OpaqueNetwork
from unet_core.geometry import Shape
from unet_core.live_bytes import LiveBytes
from unet_core.operations import Trace
from unet_core.streaming import AXIS, Streamer

GIB = 1 << 30

# What the allocator and the convolution library keep beside the tensors, and what reading, readout and encoding need.
_OVERHEAD = 1.6
_STRIP_OVERHEAD = 1.6
_FIXED_BYTES = 72 << 20


def peak_bytes(traced: Trace | OpaqueNetwork, input_shape: Shape, element_bytes: int = 4) -> int:
    """Bytes that are alive at once at the worst step of a forward pass on one input of ``input_shape`` (C, *spatial).

    A value lives from the step that makes it to the last that reads it, so skip connections wait for the decoder.
    """
    if isinstance(traced, OpaqueNetwork):
        parameters = sum(value.numel() for value in traced.parameters()) * element_bytes
        return int(traced.observe(input_shape).live_bytes * element_bytes / 4 * _OVERHEAD) + parameters + _FIXED_BYTES
    network = on_meta(traced, input_shape)
    parameters = sum(value.numel() for value in network.parameters()) * element_bytes
    nodes = list(network.graph.nodes)
    last_use = {parent: position for position, node in enumerate(nodes) for parent in node.all_input_nodes}
    alive = peak = 0
    for position, node in enumerate(nodes):
        size = prod(node.meta["tensor_meta"].shape) * element_bytes if "tensor_meta" in node.meta else 0
        alive += size
        peak = max(peak, alive)
        alive -= sum(
            prod(parent.meta["tensor_meta"].shape) * element_bytes
            for parent in node.all_input_nodes
            if last_use[parent] == position
        )
    return int(peak * _OVERHEAD) + parameters + _FIXED_BYTES


def strip_bytes(traced: Trace, input_shape: Shape, strip: int, element_bytes: int = 4) -> int:
    """Bytes that are alive at once while a network is fed strips of ``strip`` rows of an input of ``input_shape`` (C, *spatial).

    Found by feeding it tensors without values until all that waits for the decoder is there and three more strips have passed.
    """
    network = traced.graph
    parameters = sum(value.numel() for value in network.parameters()) * element_bytes
    streaming = Streamer(replace(traced, graph=_without_values(network)), AXIS, input_shape[1 + AXIS])
    length, more = input_shape[1 + AXIS], 3
    with torch.inference_mode(), LiveBytes() as live:
        for first in range(0, length, strip):
            rows = min(strip, length - first)  # a strip may be longer than the box, or its last one shorter
            shape = (1, input_shape[0], rows, *input_shape[2 + AXIS :])
            if streaming.push(torch.empty(shape, device="meta")) is not None:
                more -= 1
            if not more:
                break
    return int(live.peak * element_bytes / 4 * _STRIP_OVERHEAD) + parameters + _FIXED_BYTES


def _without_values(network: torch.fx.GraphModule) -> torch.fx.GraphModule:
    return copy.deepcopy(network).to("meta")

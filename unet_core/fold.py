"""Batch normalisation with frozen statistics merged into the convolution before it. Knows no sizes and no images."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from unet_core.rules import trace

_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm2d, nn.BatchNorm3d)


def fold(network: nn.Module) -> torch.fx.GraphModule:
    """The same function with fewer layers: each normalisation that follows a convolution alone becomes part of it.

    What stands before its convolution (pre-activation units, dense layers) stays. Equal to 1e-5 of the logits' range in float32.

    Args:
        network: in evaluation mode; left as it is.

    Raises:
        FootprintError: if the network cannot be traced.
    """
    return fold_graph(trace(copy.deepcopy(network)).graph)


def fold_graph(folded: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """``fold`` of a traced network, changed in place."""
    uses = Counter(node.target for node in folded.graph.nodes if node.op == "call_module")
    for node in list(folded.graph.nodes):
        source = node.args[0] if node.op == "call_module" and isinstance(_module(folded, node), _NORMS) else None
        if source is None or source.op != "call_module" or len(source.users) > 1 or uses[source.target] > 1:
            continue
        convolution, norm = _module(folded, source), _module(folded, node)
        if not isinstance(convolution, _CONVOLUTIONS) or norm.running_var is None:  # statistics of each box
            continue
        weight, bias = fuse_conv_bn_weights(
            convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        convolution.weight, convolution.bias = nn.Parameter(weight, requires_grad=False), nn.Parameter(bias, requires_grad=False)
        node.replace_all_uses_with(source)
        folded.graph.erase_node(node)
    folded.recompile()
    folded.delete_all_unused_submodules()
    return folded


def _module(graph: torch.fx.GraphModule, node: torch.fx.Node) -> Any:
    return graph.get_submodule(str(node.target))

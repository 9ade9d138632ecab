"""Initial weights, as the paper of each network draws them."""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import nn

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def initialise(network: nn.Module, law: Literal["incoming", "outgoing", "uniform"] = "incoming") -> None:
    """Draw the weights of all convolutions; biases are zero.

    Args:
        network: changed in place.
        law: ``incoming``: a Gaussian of std sqrt(2 / N), N the incoming connections of a unit (He et al. 2015, as used in
            Ronneberger et al. 2015, section 3). ``outgoing``: the same with the connections of its windows to all output channels,
            as in the released residual networks (He et al. 2016). ``uniform``: of the variance of ``incoming``, within sqrt(6 / N),
            as in the released dense network (Jegou et al. 2016).
    """
    for module in network.modules():
        if (
            not isinstance(module, _LAYERS) or module.weight.is_meta
        ):  # no memory, no values; torch would load its compiler to draw them
            continue
        count = _connections(module, law == "outgoing")
        if law == "uniform":
            bound = math.sqrt(6 / count)
            nn.init.uniform_(module.weight, -bound, bound)
        else:
            nn.init.normal_(module.weight, std=math.sqrt(2 / count))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _connections(layer: Any, outgoing: bool) -> int:
    """Of one unit of a layer, to those before it or to those after it.

    In a transposed convolution a unit receives through one in ``stride`` of the window's samples on every axis: one sample of
    every input channel where windows do not overlap.
    """
    count = (layer.out_channels if outgoing else layer.in_channels) // layer.groups * math.prod(layer.kernel_size)
    transposed = isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
    return max(1, count // math.prod(layer.stride)) if transposed and not outgoing else count

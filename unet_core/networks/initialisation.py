"""Initial weights, for all networks as the U-Net paper draws them.

Their own papers draw others: FC-DenseNet He-uniform, the residual units by outgoing connections. The variance is of the same
order, and what is trained from here has been checked for the U-Net only.
"""

from __future__ import annotations

import math

from torch import nn


def initialise(network: nn.Module) -> None:
    """Draw weights from a Gaussian of std sqrt(2 / N), N the incoming connections of a unit; biases are zero.

    He et al. 2015, as used in Ronneberger et al. 2015, section 3. In a transposed convolution whose windows do not
    overlap, a unit receives one sample of every input channel.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            incoming = module.weight[0].numel()
        elif isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            incoming = module.in_channels * math.prod(module.kernel_size) // math.prod(module.stride)
        else:
            continue
        nn.init.normal_(module.weight, std=math.sqrt(2 / incoming))
        if module.bias is not None:
            nn.init.zeros_(module.bias)

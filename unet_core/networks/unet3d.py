"""The 3D U-Net of Cicek et al. 2016 (arXiv:1606.06650), in 3D and 2D. Knows nothing of tiling.

Shapes: N batch, C channels, then the spatial axes (Z,) Y, X.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from unet_core.networks import arguments
from unet_core.networks.initialisation import initialise
from unet_core.networks.layers import BATCH_NORM, CONVOLUTION, TRANSPOSED, ExactMaxPool, crop_like


class UNet3D(nn.Module):
    """A U-Net that doubles its channels before each pooling, "to avoid bottlenecks", and normalises before each ReLU (figure 2).

        input ─[conv w, conv 2w]─────── crop ───────[cat, conv 2w, conv 2w]─ 1x1 ─ logits
                      └ pool ─[conv 2w, conv 4w]─ up (keeps 4w) ┘             (here levels=2)

    Convolutions have a bias, up-convolutions have none: with that the published 19,069,955 parameters come out, the scale
    and shift of batch normalisation not counted.

    Args:
        in_channels: channels of the image; 3 in the paper.
        classes: channels of the logits; 3 in the paper.
        base: channels of the first convolution; 32 in the paper.
        levels: resolutions, the bottleneck included; 4 in the paper.
        dims: 2 or 3 spatial axes.
        padding: "valid" as in the paper, or "same": the padded form with the same weights.

    Raises:
        ModelPackageError: if the arguments do not describe a network.

    Example:
        >>> network = UNet3D(in_channels=3, classes=3)
        >>> sum(p.numel() for name, p in network.named_parameters() if "norm" not in name)
        19069955
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        base: int = 32,
        levels: int = 4,
        dims: int = 3,
        padding: Literal["valid", "same"] = "valid",
    ) -> None:
        super().__init__()
        arguments.check("A 3D U-Net", dims, padding, in_channels=in_channels, classes=classes, base=base, levels=levels)
        self.dims = dims
        self.contracting = nn.ModuleList()
        self.pools = nn.ModuleList()
        channels = in_channels
        for level in range(levels):
            width = base * 2**level
            self.contracting.append(_Stage(channels, width, 2 * width, dims, padding))
            channels = 2 * width
            if level < levels - 1:
                self.pools.append(ExactMaxPool((2,) * dims))
        self.ups = nn.ModuleList()
        self.expanding = nn.ModuleList()
        for level in reversed(range(levels - 1)):
            width = 2 * base * 2**level
            self.ups.append(TRANSPOSED[dims](channels, channels, 2, stride=2, bias=False))
            self.expanding.append(_Stage(width + channels, width, width, dims, padding))
            channels = width
        self.head = CONVOLUTION[dims](channels, classes, 1)
        initialise(self)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of shape (N, classes, *spatial) from an image of shape (N, in_channels, *spatial)."""
        features = image
        skips: list[Tensor] = []
        for level, stage in enumerate(self.contracting):
            features = stage(features)
            if level < len(self.pools):
                skips.append(features)
                features = self.pools[level](features)
        for up, stage in zip(self.ups, self.expanding, strict=True):
            features = up(features)
            features = stage(torch.cat([crop_like(skips.pop(), features), features], dim=1))
        logits: Tensor = self.head(features)
        return logits


class _Stage(nn.Module):
    """Convolution, normalisation, ReLU; twice."""

    def __init__(self, in_channels: int, middle: int, out_channels: int, dims: int, padding: str) -> None:
        super().__init__()
        self.conv1 = CONVOLUTION[dims](in_channels, middle, 3, padding=padding)
        self.norm1 = BATCH_NORM[dims](middle)
        self.conv2 = CONVOLUTION[dims](middle, out_channels, 3, padding=padding)
        self.norm2 = BATCH_NORM[dims](out_channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, features: Tensor) -> Tensor:
        features = self.relu(self.norm1(self.conv1(features)))
        result: Tensor = self.relu(self.norm2(self.conv2(features)))
        return result

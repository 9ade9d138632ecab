"""The U-Net that many model packages of bioimage.io hold, in 2D and 3D. Knows nothing of tiling.

Shapes: N batch, C channels, then the spatial axes (Z,) Y, X.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unet_core.errors import ModelPackageError
from unet_core.networks.arguments import check
from unet_core.networks.initialisation import initialise
from unet_core.networks.layers import CONVOLUTION, ExactMaxPool, Upsample, crop_like

INSTANCE_NORM: dict[int, Any] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


class ZooUNet(nn.Module):
    """A U-Net that upsamples linearly, then halves the channels by a 1x1 convolution.

        input ─[conv conv ReLU]─────────────────── crop ─[cat conv conv ReLU]─ 1x1 ─ logits
                  └ pool ─[conv conv ReLU]─ x2 ─ 1x1 ─────┘                          (here levels=2, relus=1)

    Two published forms differ in what no name or shape of a weight shows: the package "UNet 2D Nuclei Broad" has one ReLU
    after two convolutions and the skip connection first; networks trained with torch-em have a ReLU after each, what comes
    from below first, and mostly an instance normalisation (without scale and shift) before each convolution. Both have
    449,489 parameters at one channel, one class, base 16 and 4 levels.

    Args:
        in_channels: channels of the image.
        classes: channels of the logits.
        base: channels of the first level; they double at every level from there.
        levels: resolutions, the bottleneck included; 4 as published.
        dims: 2 or 3 spatial axes.
        first: what stands first in the concatenation, the "skip" connection or what was upsampled ("up").
        relus: 1, after the second convolution of a block; or 2, after each.
        norm: "none", or "instance" before each convolution, whose result then depends on the whole box.
        padding: "valid" for exact tiling without a margin to spare, or "same" as published; the weights are the same.

    Raises:
        ModelPackageError: if the arguments do not describe a network.

    Example:
        >>> sum(p.numel() for p in ZooUNet(in_channels=1, classes=1).parameters())
        449489
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        base: int = 16,
        levels: int = 4,
        dims: int = 2,
        first: Literal["skip", "up"] = "skip",
        relus: int = 1,
        norm: Literal["none", "instance"] = "none",
        padding: Literal["valid", "same"] = "valid",
    ) -> None:
        super().__init__()
        check("A U-Net of the zoo", dims, padding, in_channels=in_channels, classes=classes, base=base, levels=levels)
        if first not in ("skip", "up") or relus not in (1, 2) or norm not in ("none", "instance"):
            raise ModelPackageError(
                f"A U-Net of the zoo has first 'skip' or 'up', relus 1 or 2, norm 'none' or 'instance'; got first='{first}', "
                f"relus={relus}, norm='{norm}'."
            )
        self.skip_first = first == "skip"
        widths = [base * 2**level for level in range(levels)]
        inputs = [in_channels, *widths]
        self.contracting = nn.ModuleList(
            _block(channels, width, dims, relus, norm, padding) for channels, width in zip(inputs, widths, strict=False)
        )
        self.pools = nn.ModuleList(ExactMaxPool((2,) * dims) for _ in widths[:-1])
        self.upsamplings = nn.ModuleList()
        self.ups = nn.ModuleList()
        self.expanding = nn.ModuleList()
        for width in reversed(widths[:-1]):
            self.upsamplings.append(Upsample((2,) * dims, crop=padding == "valid"))
            self.ups.append(CONVOLUTION[dims](2 * width, width, 1))
            self.expanding.append(_block(2 * width, width, dims, relus, norm, padding))
        self.head = CONVOLUTION[dims](base, classes, 1)
        initialise(self)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of shape (N, classes, *spatial) from an image of shape (N, in_channels, *spatial)."""
        features = self.contracting[0](image)
        skips: list[Tensor] = []
        for pool, block in zip(self.pools, list(self.contracting)[1:], strict=True):
            skips.append(features)
            features = block(pool(features))
        for upsampling, up, block in zip(self.upsamplings, self.ups, self.expanding, strict=True):
            features = up(upsampling(features))
            skip = crop_like(skips.pop(), features)
            features = block(torch.cat([skip, features] if self.skip_first else [features, skip], dim=1))
        logits: Tensor = self.head(features)  # (N, classes, Z, Y, X)
        return logits


def _block(in_channels: int, out_channels: int, dims: int, relus: int, norm: str, padding: str) -> nn.Sequential:
    """Two convolutions; names, unlike numbers, stay the same whatever stands between them."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, channels in enumerate((in_channels, out_channels), start=1):
        if norm == "instance":
            layers[f"norm{number}"] = INSTANCE_NORM[dims](channels)
        layers[f"conv{number}"] = CONVOLUTION[dims](channels, out_channels, 3, padding=padding)
        if number + relus > 2:
            layers[f"relu{number}"] = nn.ReLU(inplace=True)
    return nn.Sequential(layers)

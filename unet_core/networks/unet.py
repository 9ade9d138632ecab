"""The U-Net of Ronneberger, Fischer and Brox 2015 (arXiv:1505.04597), in 2D and 3D. Knows nothing of tiling.

Shapes: N batch, C channels, then the spatial axes (Z,) Y, X.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from unet_core.errors import ModelPackageError
from unet_core.networks import arguments
from unet_core.networks.initialisation import initialise
from unet_core.networks.layers import BATCH_NORM, CONVOLUTION, TRANSPOSED, ExactMaxPool, crop_like

Sizes = Sequence[Sequence[int]]

# Beyond these an argument is a typing error, and building or tracing the network would not end.
MAX_LEVELS = 12
MAX_CHANNELS = 1 << 16
MAX_SIZE = 64  # of a kernel or pooling window
MAX_STRIDE = 1 << 12


class UNet(nn.Module):
    """The network of the 2015 paper, figure 1: unpadded convolutions, cropped skip connections.

        input ─[conv conv]────────── crop ──────────[cat conv conv]─ 1x1 ─ logits
                    └ pool ─[conv conv]─ crop ─[cat conv conv]─ up ┘
                                └ pool ─[conv conv]─ up ┘                  (here levels=3)

    Channels double at every level from ``base`` on, and halve in every up-convolution. The up-convolution stands
    first in the concatenation, as in the released network. Dropout closes the contracting path: it acts on the last
    two levels, before pooling and skip, as in the released network (the paper gives no rate; the release has 0.5).

    Args:
        in_channels: channels of the image.
        classes: channels of the logits.
        base: channels of the first level; 64 in the paper.
        levels: resolutions, the bottleneck included; 5 in the paper.
        dims: 2 or 3 spatial axes.
        kernels: kernel of the convolutions, one tuple a level (e.g. ``((1, 3, 3), (3, 3, 3))``); 3 on every axis unless told. Odd.
        poolings: window of the pooling below each level but the last; 2 on every axis unless told.
        batch_norm: normalise after each convolution, before its ReLU (not in the paper); the convolutions then carry no bias.
        dropout: rate at the end of the contracting path.
        padding: "valid" as in the paper, or "same": the padded form with the same weights.

    Raises:
        ModelPackageError: if the arguments do not describe a network.

    Example:
        >>> network = UNet(in_channels=1, classes=2).eval()
        >>> sum(p.numel() for p in network.parameters())
        31030658
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        base: int = 64,
        levels: int = 5,
        dims: int = 2,
        kernels: Sizes | None = None,
        poolings: Sizes | None = None,
        batch_norm: bool = False,
        dropout: float = 0.5,
        padding: Literal["valid", "same"] = "valid",
    ) -> None:
        super().__init__()
        arguments.check("A U-Net", dims, padding, in_channels=in_channels, classes=classes, base=base, levels=levels)
        if max(in_channels, classes) > MAX_CHANNELS or levels > MAX_LEVELS or base * 2 ** (levels - 1) > MAX_CHANNELS:
            raise ModelPackageError(
                f"A U-Net may have {MAX_LEVELS} levels and {MAX_CHANNELS} channels, which double at every level; got levels={levels}, "
                f"base={base}, in_channels={in_channels}, classes={classes}."
            )
        self.dims = dims
        self.kernels = _per_level("kernels", kernels, levels, dims, default=3)
        self.poolings = _per_level("poolings", poolings, levels - 1, dims, default=2)
        if any(math.prod(windows) > MAX_STRIDE for windows in zip(*self.poolings, strict=True)):
            raise ModelPackageError(f"poolings {self.poolings} have a product above {MAX_STRIDE} on one axis; pool less.")
        if any(size % 2 == 0 for kernel in self.kernels for size in kernel):
            raise ModelPackageError(f"kernels {self.kernels} has an even size; skips are cropped to the centre, use odd sizes.")
        widths = [base * 2**level for level in range(levels)]

        self.contracting = nn.ModuleList()
        self.pools = nn.ModuleList()
        for level, width in enumerate(widths):
            channels = in_channels if level == 0 else widths[level - 1]
            rate = dropout if level >= levels - 2 else 0.0
            self.contracting.append(_stage(channels, width, self.kernels[level], batch_norm, padding, rate))
            if level < levels - 1:
                self.pools.append(ExactMaxPool(self.poolings[level]))

        self.ups = nn.ModuleList()
        self.expanding = nn.ModuleList()
        for level in reversed(range(levels - 1)):
            pooling = self.poolings[level]
            self.ups.append(TRANSPOSED[dims](widths[level + 1], widths[level], pooling, stride=pooling))
            self.expanding.append(_stage(2 * widths[level], widths[level], self.kernels[level], batch_norm, padding, 0.0))
        self.head = CONVOLUTION[dims](base, classes, 1)
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
            features = stage(torch.cat([features, crop_like(skips.pop(), features)], dim=1))
        logits: Tensor = self.head(features)  # (N, classes, Z, Y, X)
        return logits


def _stage(
    in_channels: int, out_channels: int, kernel: tuple[int, ...], batch_norm: bool, padding: str, dropout: float
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        layers.append(CONVOLUTION[len(kernel)](channels, out_channels, kernel, padding=padding, bias=not batch_norm))
        if batch_norm:
            layers.append(BATCH_NORM[len(kernel)](out_channels))
        layers.append(nn.ReLU(inplace=True))
    if dropout:
        layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)


def _per_level(name: str, sizes: Sizes | None, count: int, dims: int, default: int) -> tuple[tuple[int, ...], ...]:
    if sizes is None:
        return ((default,) * dims,) * count
    chosen = tuple(tuple(int(size) for size in level) for level in sizes)
    if len(chosen) != count or any(len(level) != dims or not 1 <= min(level) <= max(level) <= MAX_SIZE for level in chosen):
        raise ModelPackageError(
            f"{name} is {str(chosen)[:200]}; this network needs {count} tuples of {dims} sizes from 1 to {MAX_SIZE}."
        )
    return chosen

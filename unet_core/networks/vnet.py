"""The V-Net of Milletari, Navab and Ahmadi 2016 (arXiv:1606.04797), in 3D and 2D. Knows nothing of tiling.

Shapes: N batch, C channels, then the spatial axes (Z,) Y, X.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from unet_core.errors import ModelPackageError
from unet_core.networks import arguments
from unet_core.networks.initialisation import initialise
from unet_core.networks.layers import CONVOLUTION, TRANSPOSED, crop_like

# Convolutions of each stage, from the finest to the deepest, then back. The receptive fields of the paper's table 1 force the
# first; the second is what was released.
DEPTHS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "paper": ((1, 2, 3, 3, 3), (3, 3, 2, 1)),
    "released": ((1, 1, 2, 3, 3), (3, 2, 1, 1)),
}


class VNet(nn.Module):
    """Residual stages of 5x5x5 convolutions; the network learns its down- and upsampling (figure 2).

        stage:  input ─ conv ─ PReLU ─ ... ─ conv ─(+ input)─ PReLU

    The input of a stage is added to its last convolution before that one's PReLU. The single channel of the image is added to
    all channels of the first stage. On the way up, the skip connection is concatenated and the whole is what a stage adds.
    Neither normalisation nor dropout. A PReLU has one slope a channel.

    Args:
        in_channels: channels of the image; 1 in the paper. It must divide ``base``; the image is repeated to ``base`` channels.
        classes: channels of the logits; 2 in the paper.
        base: channels of the first stage; 16 in the paper.
        depths: "paper", "released", or the convolutions of each stage, ((down, .., deepest), (up, .., finest)).
        kernel: of the convolutions, odd; 5 in the paper.
        dims: 2 or 3 spatial axes.
        padding: "valid" for exact tiling, or "same" as in the paper; the weights are the same.

    Raises:
        ModelPackageError: if the arguments do not describe a network.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        base: int = 16,
        depths: str | Sequence[Sequence[int]] = "paper",
        kernel: int = 5,
        dims: int = 3,
        padding: Literal["valid", "same"] = "valid",
    ) -> None:
        super().__init__()
        down, up = _depths(depths)
        arguments.check("A V-Net", dims, padding, in_channels=in_channels, classes=classes, base=base)
        if kernel % 2 == 0 or base % in_channels:
            raise ModelPackageError(
                f"A V-Net needs an odd kernel, and base a multiple of in_channels; got kernel={kernel}, base={base}, in_channels={in_channels}."
            )
        self.dims = dims
        self.repeats = base // in_channels
        widths = [base * 2**level for level in range(len(down))]
        self.contracting = nn.ModuleList(
            _Stage(in_channels if level == 0 else width, width, count, kernel, dims, padding)
            for level, (width, count) in enumerate(zip(widths, down, strict=True))
        )
        self.downs = nn.ModuleList(_change(CONVOLUTION[dims], width, 2 * width, dims) for width in widths[:-1])
        self.ups = nn.ModuleList()
        self.expanding = nn.ModuleList()
        channels = widths[-1]
        for width, count in zip(reversed(widths[:-1]), up, strict=True):
            self.ups.append(_change(TRANSPOSED[dims], channels, width, dims))
            channels = 2 * width  # the concatenation; its convolutions stay that wide
            self.expanding.append(_Stage(channels, channels, count, kernel, dims, padding))
        self.tail = nn.Sequential(
            CONVOLUTION[dims](channels, classes, kernel, padding=padding),
            nn.PReLU(classes),
            CONVOLUTION[dims](classes, classes, 1),
        )
        initialise(self)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of shape (N, classes, *spatial) from an image of shape (N, in_channels, *spatial)."""
        features = self.contracting[0](image, torch.cat([image] * self.repeats, dim=1))
        skips: list[Tensor] = []
        for level, down in enumerate(self.downs):
            skips.append(features)
            features = down(features)
            features = self.contracting[level + 1](features, features)
        for up, stage in zip(self.ups, self.expanding, strict=True):
            features = up(features)
            features = torch.cat([features, crop_like(skips.pop(), features)], dim=1)
            features = stage(features, features)
        logits: Tensor = self.tail(features)
        return logits


class _Stage(nn.Module):
    def __init__(self, in_channels: int, channels: int, count: int, kernel: int, dims: int, padding: str) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            CONVOLUTION[dims](in_channels if number == 0 else channels, channels, kernel, padding=padding)
            for number in range(count)
        )
        self.activations = nn.ModuleList(nn.PReLU(channels) for _ in range(count))

    def forward(self, features: Tensor, shortcut: Tensor) -> Tensor:
        last = len(self.convolutions) - 1
        for number, (convolution, activation) in enumerate(zip(self.convolutions, self.activations, strict=True)):
            features = convolution(features)
            if number == last:
                features = features + crop_like(shortcut, features)
            features = activation(features)
        return features


def _change(layer: type[nn.Module], in_channels: int, out_channels: int, dims: int) -> nn.Sequential:
    """To another resolution: windows of 2 that do not overlap."""
    return nn.Sequential(layer(in_channels, out_channels, (2,) * dims, stride=(2,) * dims), nn.PReLU(out_channels))


def _depths(depths: str | Sequence[Sequence[int]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    chosen = DEPTHS.get(depths) if isinstance(depths, str) else tuple(tuple(int(count) for count in side) for side in depths)
    if chosen is None or len(chosen) != 2 or len(chosen[0]) != len(chosen[1]) + 1 or min(chosen[0] + chosen[1]) < 1:
        raise ModelPackageError(
            f"depths is {depths!r}; use {' or '.join(repr(name) for name in DEPTHS)}, or convolutions of each stage, one more way down than up."
        )
    return chosen[0], chosen[1]

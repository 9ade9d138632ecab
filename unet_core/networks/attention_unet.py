"""The Attention U-Net of Oktay et al. 2018 (arXiv:1804.03999), in 3D and 2D. Knows nothing of tiling.

Shapes: N batch, C channels, then the spatial axes (Z,) Y, X.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from unet_core.errors import ModelPackageError
from unet_core.networks import arguments
from unet_core.networks.initialisation import initialise
from unet_core.networks.layers import BATCH_NORM, CONVOLUTION, ExactMaxPool, Upsample, crop_like


class AttentionUNet(nn.Module):
    """A U-Net whose skip connections, but for the finest, pass additive attention gates (figures 1 and 2), with deep supervision.

        skip x ─ theta 2x2 / 2 ─(+)─ ReLU ─ psi 1x1 ─ sigmoid ─ x2 ─(* x)─ 1x1, norm ─ gated skip
        gating g ────── phi 1x1 ─┘

    The gating signal of each level is what the decoder has at the next coarser one. The decoder upsamples linearly; every level
    of it gives logits of its own, which are upsampled and mixed by a last 1x1 convolution.

    The structure is that of the released code: with one input channel and four classes, no gate gives 5,888,004 parameters (the
    plain network with deep supervision), one gate 6,214,151, two gates 6,473,322.

    Args:
        in_channels: channels of the image.
        classes: channels of the logits.
        base: channels of the first level; 16 in the released code.
        levels: resolutions, the bottleneck included, at least 2; 5 in the released code.
        gates: attention gates on each gated skip, side by side; 0 for none.
        dims: 2 or 3 spatial axes.
        padding: "valid" for exact tiling, or "same" as released; the weights are the same.

    Raises:
        ModelPackageError: if the arguments do not describe a network.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        base: int = 16,
        levels: int = 5,
        gates: int = 1,
        dims: int = 3,
        padding: Literal["valid", "same"] = "valid",
    ) -> None:
        super().__init__()
        arguments.check("An Attention U-Net", dims, padding, in_channels=in_channels, classes=classes, base=base)
        if levels < 2 or gates < 0:
            raise ModelPackageError(
                f"An Attention U-Net needs at least 2 levels, and no negative number of gates; got levels={levels}, gates={gates}."
            )
        self.dims = dims
        crop = padding == "valid"
        widths = [base * 2**level for level in range(levels)]
        self.contracting = nn.ModuleList(
            _stage(in_channels if level == 0 else widths[level - 1], width, dims, padding) for level, width in enumerate(widths)
        )
        self.pools = nn.ModuleList(ExactMaxPool((2,) * dims) for _ in widths[:-1])
        self.gating = _point(widths[-1], widths[-1], dims) if gates and levels > 2 else nn.Identity()
        self.gates = nn.ModuleList()
        self.ups = nn.ModuleList()
        self.expanding = nn.ModuleList()
        self.heads = nn.ModuleList()
        for level in reversed(range(levels - 1)):
            gated = gates > 0 and level > 0
            self.gates.append(_Gates(widths[level], widths[level + 1], gates, dims, crop) if gated else nn.Identity())
            self.ups.append(Upsample((2,) * dims, crop))
            self.expanding.append(_stage(widths[level] + widths[level + 1], widths[level], dims, padding))
            head: list[nn.Module] = [CONVOLUTION[dims](widths[level], classes, 1)]
            if level:
                head.append(Upsample((2**level,) * dims, crop))
            self.heads.append(nn.Sequential(*head))
        self.head = CONVOLUTION[dims](classes * (levels - 1), classes, 1)
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
        signal = self.gating(features)
        logits: list[Tensor] = []
        for gate, up, stage, head in zip(self.gates, self.ups, self.expanding, self.heads, strict=True):
            skip = skips.pop()
            if isinstance(gate, _Gates):
                skip = gate(skip, signal)
            features = up(features)
            features = signal = stage(torch.cat([crop_like(skip, features), features], dim=1))
            logits.append(head(features))
        finest = logits[-1]
        mixed: Tensor = self.head(torch.cat([finest, *(crop_like(coarse, finest) for coarse in reversed(logits[:-1]))], dim=1))
        return mixed


class _Gates(nn.Module):
    """Additive attention gates side by side, combined by a 1x1 convolution."""

    def __init__(self, channels: int, gating_channels: int, count: int, dims: int, crop: bool) -> None:
        super().__init__()
        self.gates = nn.ModuleList(_Gate(channels, gating_channels, dims, crop) for _ in range(count))
        self.combine = _point(count * channels, channels, dims)

    def forward(self, skip: Tensor, signal: Tensor) -> Tensor:
        gated = [gate(skip, signal) for gate in self.gates]
        result: Tensor = self.combine(torch.cat(gated, dim=1))
        return result


class _Gate(nn.Module):
    def __init__(self, channels: int, gating_channels: int, dims: int, crop: bool) -> None:
        super().__init__()
        convolution = CONVOLUTION[dims]
        self.theta = convolution(channels, channels, 2, stride=2, bias=False)
        self.phi = convolution(gating_channels, channels, 1)
        self.psi = convolution(channels, 1, 1)
        self.up = Upsample((2,) * dims, crop)
        self.out = nn.Sequential(convolution(channels, channels, 1), BATCH_NORM[dims](channels))

    def forward(self, skip: Tensor, signal: Tensor) -> Tensor:
        gate = self.phi(signal)
        coarse = torch.relu(crop_like(self.theta(skip), gate) + gate)
        attention = self.up(torch.sigmoid(self.psi(coarse)))  # (N, 1, Z, Y, X), between 0 and 1
        gated: Tensor = self.out(crop_like(skip, attention) * attention)
        return gated


def _stage(in_channels: int, channels: int, dims: int, padding: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for count in (in_channels, channels):
        layers += [CONVOLUTION[dims](count, channels, 3, padding=padding), BATCH_NORM[dims](channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _point(in_channels: int, channels: int, dims: int) -> nn.Sequential:
    return nn.Sequential(CONVOLUTION[dims](in_channels, channels, 1), BATCH_NORM[dims](channels), nn.ReLU(inplace=True))

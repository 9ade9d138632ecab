"""A U-Net of residual units (He et al. 2015, arXiv:1512.03385; He et al. 2016, arXiv:1603.05027). Knows nothing of tiling.

Shapes: N batch, C channels, then the spatial axes (Z,) Y, X.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from unet_core.networks import arguments
from unet_core.networks.initialisation import initialise
from unet_core.networks.layers import BATCH_NORM, CONVOLUTION, TRANSPOSED, crop_like, trim


class ResUNet(nn.Module):
    """Encoder and decoder of residual units, with the skip connections of the U-Net.

    Units follow "identity mappings": x + conv(ReLU(norm(conv(ReLU(norm(x)))))), nothing after the sum, and one norm and ReLU after
    the last unit. Where channels or resolution change, the first norm and ReLU are shared by both branches and the shortcut is
    a 1x1 convolution of what they give. With ``pre_activation=False`` the units are those of 2015: conv, norm, ReLU, conv, norm,
    plus shortcut, ReLU after the sum; projections where dimensions change (option B); norm and ReLU after the first convolution.

    Resolution halves in a 3x3 convolution of stride 2 and doubles in a transposed one, so that all samples of all levels lie on
    voxels: legal sizes are odd multiples, and the skip connections meet without a shift of half a voxel.

    Args:
        in_channels: channels of the image.
        classes: channels of the logits.
        base: channels of the first level; they double at every level.
        units: residual units of each level, the deepest last; the decoder has as many.
        pre_activation: units of 2016 rather than 2015.
        dims: 2 or 3 spatial axes.
        padding: "valid" for exact tiling, or "same", with the same weights.

    Raises:
        ModelPackageError: if the arguments do not describe a network.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        base: int = 64,
        units: Sequence[int] = (2, 2, 2, 2),
        pre_activation: bool = True,
        dims: int = 2,
        padding: Literal["valid", "same"] = "valid",
    ) -> None:
        super().__init__()
        arguments.check("A residual U-Net", dims, padding, in_channels=in_channels, classes=classes, base=base, units=units)
        self.dims = dims
        kind = _PreActivation if pre_activation else _Original
        self.stem = CONVOLUTION[dims](in_channels, base, 3, padding=padding, bias=False)
        self.first = nn.Identity() if pre_activation else nn.Sequential(BATCH_NORM[dims](base), nn.ReLU(inplace=True))
        widths = [base * 2**level for level in range(len(units))]
        self.contracting = nn.ModuleList()
        for level, (width, count) in enumerate(zip(widths, units, strict=True)):
            first = kind(widths[max(0, level - 1)], width, 1 if level == 0 else 2, dims, padding)
            rest = [kind(width, width, 1, dims, padding) for _ in range(count - 1)]
            self.contracting.append(nn.Sequential(first, *rest))
        self.ups = nn.ModuleList()
        self.expanding = nn.ModuleList()
        for width, count in zip(reversed(widths[:-1]), reversed(units[:-1]), strict=True):
            self.ups.append(TRANSPOSED[dims](2 * width, width, 3, stride=2, padding=1, bias=False))
            first = kind(2 * width, width, 1, dims, padding)
            rest = [kind(width, width, 1, dims, padding) for _ in range(count - 1)]
            self.expanding.append(nn.Sequential(first, *rest))
        self.last = nn.Sequential(BATCH_NORM[dims](base), nn.ReLU(inplace=True)) if pre_activation else nn.Identity()
        self.head = CONVOLUTION[dims](base, classes, 1)
        initialise(self, "outgoing" if pre_activation else "incoming")

    def forward(self, image: Tensor) -> Tensor:
        """Logits of shape (N, classes, *spatial) from an image of shape (N, in_channels, *spatial)."""
        features = self.contracting[0](self.first(self.stem(image)))
        skips: list[Tensor] = []
        for stage in self.contracting[1:]:
            skips.append(features)
            features = stage(features)
        for up, stage in zip(self.ups, self.expanding, strict=True):
            features = up(features)
            features = stage(torch.cat([features, crop_like(skips.pop(), features)], dim=1))
        logits: Tensor = self.head(self.last(features))
        return logits


class _PreActivation(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int, dims: int, padding: str) -> None:
        super().__init__()
        self.norm1 = BATCH_NORM[dims](in_channels)
        self.conv1 = _convolution(in_channels, channels, stride, dims, padding)
        self.norm2 = BATCH_NORM[dims](channels)
        self.conv2 = _convolution(channels, channels, 1, dims, padding)
        self.relu = nn.ReLU(inplace=False)  # the raw value is the shortcut
        changes = stride > 1 or in_channels != channels
        self.shortcut = _Projection(in_channels, channels, stride, dims, padding) if changes else None

    def forward(self, features: Tensor) -> Tensor:
        active = self.relu(self.norm1(features))
        shortcut = features if self.shortcut is None else self.shortcut(active)
        result: Tensor = self.conv2(self.relu(self.norm2(self.conv1(active))))
        return result + crop_like(shortcut, result)


class _Original(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int, dims: int, padding: str) -> None:
        super().__init__()
        self.conv1 = _convolution(in_channels, channels, stride, dims, padding)
        self.norm1 = BATCH_NORM[dims](channels)
        self.conv2 = _convolution(channels, channels, 1, dims, padding)
        self.norm2 = BATCH_NORM[dims](channels)
        self.relu = nn.ReLU(inplace=False)
        changes = stride > 1 or in_channels != channels
        self.shortcut = _Projection(in_channels, channels, stride, dims, padding) if changes else None
        self.shortcut_norm = BATCH_NORM[dims](channels) if changes else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        shortcut = features if self.shortcut is None else self.shortcut(features)
        result: Tensor = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(features)))))
        total: Tensor = self.relu(result + crop_like(self.shortcut_norm(shortcut), result))
        return total


class _Projection(nn.Module):
    """A 1x1 convolution at the positions of the unit's first 3x3 convolution."""

    def __init__(self, in_channels: int, channels: int, stride: int, dims: int, padding: str) -> None:
        super().__init__()
        self.conv = CONVOLUTION[dims](in_channels, channels, 1, stride=stride, bias=False)
        self.reach = (1 if padding == "valid" else 0,) * dims

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.conv(trim(features, self.reach))
        return result


def _convolution(in_channels: int, channels: int, stride: int, dims: int, padding: str) -> nn.Module:
    """3x3; torch knows "same" for stride 1 only, where it is 1."""
    layer: nn.Module = CONVOLUTION[dims](in_channels, channels, 3, stride=stride, padding=int(padding == "same"), bias=False)
    return layer

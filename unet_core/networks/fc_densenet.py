"""The fully convolutional DenseNet of Jegou et al. 2016 (arXiv:1611.09326), in 2D and 3D. Knows nothing of tiling.

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
from unet_core.networks.layers import BATCH_NORM, CONVOLUTION, TRANSPOSED, ExactMaxPool, crop_like

# Growth rate, and layers of each dense block: down, bottleneck, up.
VARIANTS: dict[str, tuple[int, tuple[int, ...]]] = {
    "56": (12, (4,) * 11),
    "67": (16, (5,) * 11),
    "103": (16, (4, 5, 7, 10, 12, 15, 12, 10, 7, 5, 4)),
}


class FCDenseNet(nn.Module):
    """Dense blocks on the way down and up; only what a block newly made is upsampled (figure 1, tables 1 and 2).

        layer: norm ─ ReLU ─ conv 3x3 (growth) ─ dropout          stack: what came in, and what each layer added

    Transition down: norm, ReLU, conv 1x1, dropout, max-pool 2. Transition up: transposed convolution 3x3 of stride 2. Its samples
    lie half a voxel beside those of the skip connection, in the paper too, whose centre crop keeps the first of the odd number.
    The head sees the whole last stack. All convolutions have a bias. Batch normalisation uses the running statistics; the
    released code uses those of each batch even when it tests, so that its result depends on the tile.

    Parameters for 3 channels and 11 classes: 1,376,795 ("56"), 3,463,243 ("67"), 9,322,091 ("103").

    Args:
        in_channels: channels of the image.
        classes: channels of the logits.
        variant: "56", "67" or "103": growth and layers of the paper.
        growth: channels that a layer adds, instead of the variant's.
        layers: of each block (down.., bottleneck, ..up), an odd number, instead of the variant's.
        base: channels of the first convolution; 48 in the paper.
        dropout: rate in each layer; 0.2 in the paper.
        dims: 2 or 3 spatial axes.
        padding: "valid" for exact tiling, or "same" as in the paper; the weights are the same.

    Raises:
        ModelPackageError: if the arguments do not describe a network.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        variant: str = "56",
        growth: int | None = None,
        layers: Sequence[int] | None = None,
        base: int = 48,
        dropout: float = 0.2,
        dims: int = 2,
        padding: Literal["valid", "same"] = "valid",
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ModelPackageError(f"variant is {variant!r}; use {', '.join(repr(name) for name in VARIANTS)}.")
        usual_growth, usual_layers = VARIANTS[variant]
        growth = usual_growth if growth is None else growth
        chosen = tuple(usual_layers if layers is None else layers)
        arguments.check(
            "A dense network", dims, padding, in_channels=in_channels, classes=classes, growth=growth, base=base, layers=chosen
        )
        if len(chosen) % 2 == 0:
            raise ModelPackageError(f"A dense network needs an odd number of blocks; got layers={chosen}.")
        self.dims = dims
        depth = len(chosen) // 2
        self.first = CONVOLUTION[dims](in_channels, base, 3, padding=padding)
        self.contracting = nn.ModuleList()
        self.downs = nn.ModuleList()
        channels = base
        skips: list[int] = []
        for count in chosen[:depth]:
            self.contracting.append(_Block(channels, growth, count, dropout, dims, padding))
            channels += count * growth
            skips.append(channels)
            self.downs.append(_down(channels, dropout, dims))
        self.bottleneck = _Block(channels, growth, chosen[depth], dropout, dims, padding)
        self.ups = nn.ModuleList()
        self.expanding = nn.ModuleList()
        made = chosen[depth] * growth
        for count in chosen[depth + 1 :]:
            # Unpadded: the outermost samples, which see one input sample less, are dropped.
            self.ups.append(TRANSPOSED[dims](made, made, 3, stride=2, padding=int(padding == "valid")))
            channels = skips.pop() + made
            self.expanding.append(_Block(channels, growth, count, dropout, dims, padding))
            made = count * growth
        self.head = CONVOLUTION[dims](channels + made, classes, 1)
        self.is_padded = padding == "same"
        self.starts = _starts(chosen)
        initialise(self, "uniform")

    def forward(self, image: Tensor) -> Tensor:
        """Logits of shape (N, classes, *spatial) from an image of shape (N, in_channels, *spatial)."""
        stack = self.first(image)
        skips: list[Tensor] = []
        for block, down in zip(self.contracting, self.downs, strict=True):
            stack, _ = block(stack)
            skips.append(stack)
            stack = down(stack)
        stack, made = self.bottleneck(stack)
        for up, block, start in zip(self.ups, self.expanding, self.starts, strict=True):
            fine, skip = up(made), skips.pop()
            if self.is_padded:
                fine = crop_like(fine, skip, start=0)
            else:
                skip = crop_like(skip, fine, start=start)
            stack, made = block(torch.cat([skip, fine], dim=1))
        logits: Tensor = self.head(stack)
        return logits


class _Block(nn.Module):
    """A dense block: gives the whole stack, and what it newly made."""

    def __init__(self, channels: int, growth: int, count: int, dropout: float, dims: int, padding: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                BATCH_NORM[dims](channels + number * growth),
                nn.ReLU(inplace=False),  # the stack is needed again
                CONVOLUTION[dims](channels + number * growth, growth, 3, padding=padding),
                nn.Dropout(dropout),
            )
            for number in range(count)
        )

    def forward(self, stack: Tensor) -> tuple[Tensor, Tensor]:
        made: list[Tensor] = []
        for layer in self.layers:
            fresh = layer(stack)
            made = [crop_like(earlier, fresh) for earlier in made] + [fresh]
            stack = torch.cat([crop_like(stack, fresh), fresh], dim=1)
        return stack, torch.cat(made, dim=1)


def _starts(layers: tuple[int, ...]) -> list[int]:
    """First sample of each skip connection that the unpadded form keeps, the coarsest first.

    A value that begins ``reach`` samples after the pooled one begins at 2 reach + 1/2 of the finer samples; the up-convolution
    leaves it there, and it is joined with the sample half a step further, as in the padded form.
    """
    depth = len(layers) // 2
    reach, starts = layers[depth], []
    for down, up in zip(reversed(layers[:depth]), layers[depth + 1 :], strict=True):
        starts.append(2 * reach + 1)
        reach = down + starts[-1] + up
    return starts


def _down(channels: int, dropout: float, dims: int) -> nn.Sequential:
    return nn.Sequential(
        BATCH_NORM[dims](channels),
        nn.ReLU(inplace=False),
        CONVOLUTION[dims](channels, channels, 1),
        nn.Dropout(dropout),
        ExactMaxPool((2,) * dims),
    )

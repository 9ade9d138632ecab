"""The fully convolutional networks of Long, Shelhamer and Darrell 2015 (arXiv:1411.4038), in 2D and 3D. Knows nothing of tiling.

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
from unet_core.networks.layers import CONVOLUTION, TRANSPOSED, ExactMaxPool, crop_like


class FCN(nn.Module):
    """VGG16 with convolutions for its last layers, scored and upsampled by 32 ("32s"), or with scores of earlier poolings added on
    the way: of one ("16s") or two ("8s").

    Upsampling is by fixed bilinear kernels, one channel a class, as in the released networks; scores begin at zero. The released
    networks pad the image by 100 and crop the result by a fixed offset; here "same" pads each convolution by half its kernel
    instead, and "valid" by nothing: positions decide what is cropped.

    Learned parameters for 3 channels and 21 classes: 134,346,581 (32s), 134,357,354 (16s), 134,362,751 (8s).

    Args:
        in_channels: channels of the image.
        classes: channels of the logits.
        skips: earlier poolings that are scored: 0 for 32s, 1 for 16s, 2 for 8s.
        base: channels of the first stage, doubled up to eight times that; 64 in VGG16.
        hidden: channels of the two fully connected layers; 4096 in VGG16.
        stages: convolutions before each pooling; (2, 2, 3, 3, 3) in VGG16.
        window: kernel of the first fully connected layer, odd; 7 in VGG16.
        dims: 2 or 3 spatial axes.
        padding: "valid" for exact tiling, or "same"; the weights are the same.

    Raises:
        ModelPackageError: if the arguments do not describe a network.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        skips: int = 2,
        base: int = 64,
        hidden: int = 4096,
        stages: Sequence[int] = (2, 2, 3, 3, 3),
        window: int = 7,
        dims: int = 2,
        padding: Literal["valid", "same"] = "valid",
    ) -> None:
        super().__init__()
        arguments.check(
            "An FCN", dims, padding, in_channels=in_channels, classes=classes, base=base, hidden=hidden, stages=stages
        )
        if not 0 <= skips < len(stages) or window % 2 == 0:
            raise ModelPackageError(
                f"An FCN needs fewer skips than stages, and an odd window; got skips={skips}, stages={tuple(stages)}, window={window}."
            )
        self.dims = dims
        widths = [base * min(2**stage, 8) for stage in range(len(stages))]
        self.stages = nn.ModuleList()
        channels = in_channels
        for width, count in zip(widths, stages, strict=True):
            layers: list[nn.Module] = []
            for _ in range(count):
                layers += [CONVOLUTION[dims](channels, width, 3, padding=padding), nn.ReLU(inplace=True)]
                channels = width
            self.stages.append(nn.Sequential(*layers, ExactMaxPool((2,) * dims)))
        self.classifier = nn.Sequential(
            CONVOLUTION[dims](channels, hidden, window, padding=padding), nn.ReLU(inplace=True), nn.Dropout(0.5),
            CONVOLUTION[dims](hidden, hidden, 1), nn.ReLU(inplace=True), nn.Dropout(0.5),
            CONVOLUTION[dims](hidden, classes, 1),
        )  # fmt: skip
        self.skips = [len(stages) - 2 - number for number in range(skips)]  # the coarsest first
        self.scores = nn.ModuleList(CONVOLUTION[dims](widths[stage], classes, 1) for stage in self.skips)
        self.ups = nn.ModuleList(_bilinear(classes, 2, dims, padding) for _ in self.skips)
        self.last = _bilinear(classes, 2 ** (len(stages) - skips), dims, padding)
        initialise(self)
        for score in (self.classifier[-1], *self.scores):
            nn.init.zeros_(score.weight)
        for layer in (*self.ups, self.last):
            _fill_bilinear(layer)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of shape (N, classes, *spatial) from an image of shape (N, in_channels, *spatial)."""
        features = image
        pooled: list[Tensor] = []
        for stage in self.stages:
            features = stage(features)
            pooled.append(features)
        logits = self.classifier(features)
        for stage_number, score, up in zip(self.skips, self.scores, self.ups, strict=True):
            logits = up(logits)
            logits = logits + crop_like(score(pooled[stage_number]), logits)
        result: Tensor = self.last(logits)
        return result


def _bilinear(classes: int, factor: int, dims: int, padding: str) -> nn.Module:
    """Upsampling by a fixed kernel of twice the factor, each class for itself."""
    # Unpadded, only samples that see all they should are kept.
    cut = factor if padding == "valid" else factor // 2
    layer: nn.Module = TRANSPOSED[dims](
        classes, classes, 2 * factor, stride=factor, padding=cut, bias=False, groups=classes
    ).requires_grad_(False)
    return layer


def _fill_bilinear(layer: nn.Module) -> None:
    """The kernel of Long et al.: (1 - |i - c| / f) along each axis, f = size / 2, c = f - 0.5."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    with torch.no_grad():
        weight.fill_(1.0)
        for axis in range(2, weight.dim()):
            size = weight.shape[axis]
            half = size / 2
            line = 1 - (torch.arange(size) - (half - 0.5)).abs() / half
            weight.mul_(line.reshape([-1 if other == axis else 1 for other in range(weight.dim())]))

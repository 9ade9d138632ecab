"""Small layers that the networks share. Shapes: N batch, C channels, then the spatial axes (Z,) Y, X.

They are leaves of a traced graph, so that ``footprint`` finds each in its rule table.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from unet_core.errors import GridError

CONVOLUTION: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORM: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_MAX_POOL = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}


def crop_like(value: Tensor, reference: Tensor, start: int | None = None) -> Tensor:
    """The part of ``value`` that has the spatial shape of ``reference``: its centre, or what begins at sample ``start`` of every axis.

    Args:
        value: of shape (N, C, *spatial), at least as large as ``reference`` on every spatial axis.
        reference: of shape (N, any, *spatial).
        start: first sample kept, where the part is not the centre.

    Raises:
        GridError: if there is no such part: the difference is negative, or odd although the centre is asked for.
    """
    for axis in range(2, value.dim()):
        surplus = value.shape[axis] - reference.shape[axis]
        if surplus < (start or 0) or (surplus % 2 and start is None):
            raise GridError(
                f"A skip connection of {tuple(value.shape[2:])} samples cannot be cropped evenly to {tuple(reference.shape[2:])}; "
                "use an input size that is legal for the network (footprint(network).legal_shape)."
            )
        if surplus:
            value = value.narrow(axis, surplus // 2 if start is None else start, reference.shape[axis])
    return value


def trim(value: Tensor, count: tuple[int, ...]) -> Tensor:
    """``value`` without ``count`` samples at both ends of each spatial axis, (N, C, *spatial)."""
    for axis, size in enumerate(count, start=2):
        if size:
            value = value.narrow(axis, size, value.shape[axis] - 2 * size)
    return value


class Upsample(nn.Module):
    """Linear upsampling by a whole factor, half-voxel centres (``align_corners=False``).

    At both ends torch repeats the last sample for want of a neighbour, so that the result would depend on where a block
    ends; the unpadded form drops these ``factor // 2`` samples.

    Args:
        factor: one integer an axis.
        crop: drop what was repeated.
    """

    def __init__(self, factor: tuple[int, ...], crop: bool = True) -> None:
        super().__init__()
        self.factor, self.crop = tuple(factor), crop

    def forward(self, value: Tensor) -> Tensor:
        mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(self.factor)]
        scale = tuple(float(size) for size in self.factor)
        fine: Tensor = functional.interpolate(value, scale_factor=scale, mode=mode, align_corners=False)
        return trim(fine, tuple(size // 2 for size in self.factor)) if self.crop else fine

    def extra_repr(self) -> str:
        return f"factor={self.factor}, crop={self.crop}"


class ExactMaxPool(nn.Module):
    """Max pooling over windows that do not overlap, refusing sizes that it would have to floor.

    "It is important to select the input tile size such that all 2x2 max-pooling operations are applied to a layer
    with an even x- and y-size" (Ronneberger et al. 2015, section 2); torch drops the odd row instead.

    Args:
        kernel_size: window and stride, one integer an axis.
    """

    def __init__(self, kernel_size: tuple[int, ...]) -> None:
        super().__init__()
        self.kernel_size = tuple(kernel_size)

    def forward(self, value: Tensor) -> Tensor:
        for size, window in zip(value.shape[2:], self.kernel_size, strict=True):
            if size % window:
                raise GridError(
                    f"{tuple(value.shape[2:])} samples do not divide by the pooling window {self.kernel_size}, so rows would be "
                    "dropped; use an input size that is legal for the network (footprint(network).legal_shape)."
                )
        pooled: Tensor = _MAX_POOL[len(self.kernel_size)](value, self.kernel_size)
        return pooled

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}"

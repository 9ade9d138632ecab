"""Small layers that the networks share. Shapes: N batch, C channels, then the spatial axes (Z,) Y, X.

Both layers are leaves of a traced graph, so that ``footprint`` finds each in its rule table.
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


def crop_like(value: Tensor, reference: Tensor) -> Tensor:
    """The centre of ``value`` that has the spatial shape of ``reference``.

    Args:
        value: of shape (N, C, *spatial), at least as large as ``reference`` on every spatial axis.
        reference: of shape (N, any, *spatial).

    Raises:
        GridError: if the difference is negative or odd, since then there is no centre.
    """
    for axis in range(2, value.dim()):
        surplus = value.shape[axis] - reference.shape[axis]
        if surplus < 0 or surplus % 2:
            raise GridError(
                f"A skip connection of {tuple(value.shape[2:])} samples cannot be cropped evenly to {tuple(reference.shape[2:])}; "
                "use an input size that is legal for the network (footprint(network).legal_shape)."
            )
        if surplus:
            value = value.narrow(axis, surplus // 2, reference.shape[axis])
    return value


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

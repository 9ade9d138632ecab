"""Batch normalisation whose batch is that of all ranks, on CPUs too (torch's own wants GPUs). Knows no images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from unet_core.errors import InputError
from unet_core.training.group import Group


def synchronise_batch_norm(network: nn.Module, group: Group) -> nn.Module:
    """Replace every batch norm by one with the statistics of all ranks' batches; parameters, buffers and their names stay.

    The result, gradients and running statistics are those of one process with the whole batch. Ranks may have unequal shares,
    but for none at all. On one rank the network stays as it is.

    Args:
        network: changed in place.
        group: of the training.

    Returns:
        The network; a new module if it is itself a batch norm.

    Raises:
        InputError: for a batch norm without running statistics, which would need all ranks in evaluation too.
    """
    if group.size == 1:
        return network
    if isinstance(network, _BatchNorm):
        return _SynchronisedBatchNorm(network, group)
    for name, child in network.named_children():
        try:
            setattr(network, name, synchronise_batch_norm(child, group))
        except InputError as error:
            raise InputError(f"{name}.{error}") from None
    return network


class _SynchronisedBatchNorm(_BatchNorm):
    def __init__(self, module: _BatchNorm, group: Group) -> None:
        if not module.track_running_stats:
            raise InputError(
                "batch norm keeps no running statistics (track_running_stats=False); train such a network on one rank."
            )
        super().__init__(module.num_features, module.eps, module.momentum, module.affine)
        self.weight, self.bias = module.weight, module.bias
        self.running_mean, self.running_var = module.running_mean, module.running_var
        self.num_batches_tracked = module.num_batches_tracked
        self.training = module.training
        self._group = group

    def forward(self, input: Tensor) -> Tensor:  # (N, C, *shape)
        assert self.running_mean is not None
        assert self.running_var is not None
        if not self.training:
            return functional.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        own_mean, own_variance = _own_statistics(input, self.running_mean.dtype)
        mean, variance, count = self._statistics(own_mean, own_variance, input.numel() // self.num_features)
        if input.numel() == self.num_features and count < 2:  # asked last: on a GPU the question waits for all work before it
            raise InputError("A batch norm sees one voxel in the whole batch, which has no variance; take larger or more crops.")
        self._remember(mean, variance, count)
        dtype = self.running_mean.dtype
        return _Normalised.apply(  # type: ignore[no-untyped-call]
            input, self.weight, self.bias, mean.to(dtype), variance.to(dtype), count, self.eps, self._group
        )

    def _statistics(self, own_mean: Tensor, own_variance: Tensor, own_count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and variance of each channel, float64, and voxels of the whole batch, in one sum over the ranks.

        Each rank brings its own mean and variance, which do not cancel as sums of squares do (Chan et al. 1979).
        """
        channels = self.num_features
        row = torch.cat([own_mean.double(), own_variance.double(), own_mean.new_full((1,), own_count, dtype=torch.float64)])
        before, after = self._group.rank, self._group.size - 1 - self._group.rank
        rows = self._group.summed(
            functional.pad(row[None], (0, 0, before, after)), "adding up batch statistics"
        )  # (ranks, 2 C + 1)
        means, variances, counts = rows[:, :channels], rows[:, channels:-1], rows[:, -1:]
        shares = counts / counts.sum()
        mean = (shares * means).sum(0)
        variance = (shares * (variances + (means - mean) ** 2)).sum(0)
        return mean, variance, counts.sum()

    def _remember(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        factor = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        unbiased = variance * (count / (count - 1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), factor)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), factor)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of axes; the module that was replaced has its own."""


def _own_statistics(input: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel, of ``dtype`` whatever that of the input."""
    with torch.no_grad():
        unused = torch.zeros(2, input.shape[1], dtype=dtype, device=input.device)  # its type is that of the results
        mean, variance = torch.batch_norm_update_stats(input, unused[0], unused[1], 0.0)
        return mean, variance


class _Normalised(torch.autograd.Function):
    """``weight (x - mean) / sqrt(variance + eps) + bias``, where mean and variance are functions of the x of all ranks.

    torch's own kernels for given statistics do the passes over voxels, forwards and backwards; what is left of the gradient is linear
    in x: dx = w r (dy - sum(dy) / n - x' sum(dy x') / n) with r = 1 / sqrt(variance + eps), x' = r (x - mean), sums over all n voxels
    of all ranks (Ioffe and Szegedy 2015).
    """

    @staticmethod
    def forward(
        context: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        count: Tensor,
        eps: float,
        group: Group,
    ) -> Tensor:
        context.save_for_backward(input, weight, mean, variance, count)
        context.eps, context.group = eps, group
        return functional.batch_norm(input, mean, variance, weight, bias, eps=eps)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, mean, variance, count = context.saved_tensors
        direct, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, input, weight, mean, variance, None, None, False, context.eps, [True, True, True]
        )
        sums = torch.stack([of_bias, of_weight]).double()
        sums = context.group.summed(sums, "adding up gradients of batch statistics") / count
        inverse = torch.rsqrt(variance.double() + context.eps)
        scale = inverse if weight is None else inverse * weight.double()
        slope = -scale * inverse * sums[1]
        offset = -scale * sums[0] - slope * mean.double()
        # slope * x + offset by the kernel of a batch norm: one pass, whatever the layout
        zero, one = torch.zeros_like(mean), torch.ones_like(mean)
        indirect = functional.batch_norm(input, zero, one, slope.to(mean.dtype), offset.to(mean.dtype), eps=0.0)
        none = (None,) * 5
        return (direct.add_(indirect), None if weight is None else of_weight, None if weight is None else of_bias, *none)

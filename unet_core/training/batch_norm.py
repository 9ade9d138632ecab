"""Batch normalisation whose batch is that of all ranks, on CPUs too (torch's own wants GPUs). Knows no images."""

from __future__ import annotations

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
        values = input.to(self.running_mean.dtype)
        mean, variance, count = self._statistics(values)
        if values.numel() == self.num_features and count < 2:  # asked last: on a GPU the question waits for all work before it
            raise InputError("A batch norm sees one voxel in the whole batch, which has no variance; take larger or more crops.")
        self._remember(mean.detach(), variance.detach(), count)
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            scale = scale * self.weight.double()
        offset = -mean * scale
        if self.affine:
            offset = offset + self.bias.double()
        shape = (1, -1) + (1,) * (input.dim() - 2)
        return (values * scale.to(values.dtype).view(shape) + offset.to(values.dtype).view(shape)).to(input.dtype)

    def _statistics(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and variance of each channel, float64, and voxels of the whole batch, in one sum over the ranks.

        Each rank brings its own mean and variance, which do not cancel as sums of squares do (Chan et al. 1979).
        """
        channels, count = self.num_features, values.numel() // self.num_features
        variance, mean = torch.var_mean(values, [0, *range(2, values.dim())], correction=0)
        row = torch.cat([mean.double(), variance.double(), mean.new_full((1,), count, dtype=torch.float64)])
        before, after = self._group.rank, self._group.size - 1 - self._group.rank
        rows = self._group.shared_total(functional.pad(row[None], (0, 0, before, after)))  # (ranks, 2 C + 1)
        means, variances, counts = rows[:, :channels], rows[:, channels:-1], rows[:, -1:].detach()
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

"""Losses of a head, as functions of sums over the global batch, so that any number of ranks gives the loss of one. Knows no network.

Shapes: N batch, K classes or channels, then the spatial axes of the target.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from unet_core.errors import InputError
from unet_core.training.options import LossOptions

Sums = Callable[[Tensor], Tensor]  # adds a small tensor over all ranks; its gradient is that of the own part
Reduction = Literal["sum", "mean"]


class Target(Protocol):
    """What a head should say.

    ``values``: int64 (N, *spatial) for classes; float32 (N, K, *spatial) else. ``weights``: float32, of as many axes, broadcast to the
    values, e.g. (N, 1, *spatial); 0 leaves a voxel out, whatever its value is.
    """

    @property
    def values(self) -> Tensor: ...

    @property
    def weights(self) -> Tensor: ...


def head_loss(options: LossOptions, kind: str, logits: Tensor, target: Target, total: Sums) -> Tensor:
    """Loss of one head over the global batch; the gradient is that of the own logits.

    Args:
        options: factors of the losses, reduction.
        kind: "classes" (soft-max), "regions" or "affinities" (sigmoid), "distance" (no activation).
        logits: (N, K, *spatial), any float dtype; computed with in float32.
        target: of this head.
        total: sums a tensor over the ranks.

    Raises:
        InputError: if no loss of this head has a factor above zero.
    """
    assert target.weights.dim() == target.values.dim() == logits.dim() - (kind == "classes"), (
        "weights and values need as many axes"
    )
    check_factors(options, kind)
    logits, weights = logits.float(), target.weights.float().expand(target.values.shape)
    if kind == "distance":
        return options.distance * squared_error(logits, target.values, weights, total, options.reduction)
    if kind == "classes":
        log_p = logits.log_softmax(dim=1)
        truth = target.values.unsqueeze(1) == _numbers(logits)  # (N, K, *spatial)
        losses = -torch.where(truth, log_p, 0).sum(dim=1)
        foreground, mask = truth[:, 1:], (weights > 0).unsqueeze(1)
    else:
        losses = functional.binary_cross_entropy_with_logits(logits, target.values, reduction="none")
        foreground, mask = target.values, weights > 0
    loss = torch.zeros((), device=logits.device)
    if options.cross_entropy:
        loss = loss + options.cross_entropy * weighted(losses, weights, total, options.reduction)
    if options.dice:
        probabilities = log_p[:, 1:].exp() if kind == "classes" else logits.sigmoid()
        loss = loss + options.dice * dice_loss(probabilities, foreground, mask, total)
    return loss


def check_factors(options: LossOptions, kind: str) -> None:
    """Refuse losses that would not train a head of this kind.

    Raises:
        InputError: naming the factors, one of which has to be above zero.
    """
    value, name = (
        (options.distance, "distance") if kind == "distance" else (options.cross_entropy + options.dice, "cross_entropy or dice")
    )
    if not value:
        raise InputError(f"The {kind} head has a loss of factor 0 and would not be trained; set loss.{name} above 0.")


def weighted(losses: Tensor, weights: Tensor, total: Sums, reduction: Reduction) -> Tensor:
    """Losses of voxels put together, each with its weight.

    "sum" is E = sum over x of w(x) loss(x), not normalised (Ronneberger et al. 2015, equation 1); "mean" divides it by the sum of the
    weights of all ranks. A batch without any weight has loss 0.

    Args:
        losses: of each voxel.
        weights: same shape; losses where it is 0 do not count.
        total: sums a tensor over the ranks.
        reduction: "sum" or "mean".
    """
    own = torch.where(weights > 0, losses, 0) * weights
    loss, weight = total(torch.stack([own.sum(), weights.sum()]))
    return loss if reduction == "sum" else loss / weight.clamp(min=torch.finfo(torch.float32).tiny)


def squared_error(values: Tensor, truth: Tensor, weights: Tensor, total: Sums, reduction: Reduction) -> Tensor:
    """(value - truth)^2 of each voxel and channel, put together as by ``weighted``."""
    return weighted((values - truth) ** 2, weights, total, reduction)


def dice_scores(probabilities: Tensor, truth: Tensor, mask: Tensor, total: Sums) -> tuple[Tensor, Tensor]:
    """Soft Dice D = 2 sum(p g) / (sum(p^2) + sum(g^2)) of each channel (Milletari et al. 2016, section 3).

    Args:
        probabilities: p, (N, K, *spatial).
        truth: g, same shape: 0 or 1, or boolean.
        mask: which voxels count; same shape, or broadcast to it.
        total: sums a tensor over the ranks.

    Returns:
        D and sum(g^2), (K,) each, over the voxels of all ranks; D is 0 where both sums are.
    """
    axes = (0, *range(2, probabilities.dim()))
    p = torch.where(mask, probabilities, 0)
    g = torch.where(mask, truth.to(p.dtype), 0)
    overlap, predicted, true = total(torch.stack([(p * g).sum(axes), (p**2).sum(axes), (g**2).sum(axes)]))
    return 2 * overlap / (predicted + true).clamp(min=torch.finfo(torch.float32).tiny), true.detach()


def dice_loss(probabilities: Tensor, truth: Tensor, mask: Tensor, total: Sums) -> Tensor:
    """1 - D, averaged over the channels that the batch has any voxel of; 0 if there is none.

    A channel without a voxel has D = 0 and no gradient whatever is predicted: it would only make the loss jump.
    """
    scores, true = dice_scores(probabilities, truth, mask, total)
    present = (true > 0).to(scores.dtype)
    return ((1 - scores) * present).sum() / present.sum().clamp(min=1)


def _numbers(logits: Tensor) -> Tensor:
    """0..K-1 along the channels; class numbers beyond, such as that of ignored voxels, equal none of them."""
    return torch.arange(logits.shape[1], device=logits.device).reshape(1, -1, *(1,) * (logits.dim() - 2))

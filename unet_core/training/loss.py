"""Losses on logits. Shapes: N batch, K classes, then the spatial axes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional


def weighted_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor, reduction: Literal["sum", "mean"] = "mean") -> Tensor:
    """Soft-max cross entropy, each voxel with its weight (Ronneberger et al. 2015, equation 1).

    Args:
        logits: (N, K, *spatial).
        labels: (N, *spatial), int64.
        weights: (N, *spatial).
        reduction: "sum" as in the paper, or "mean": divided by the sum of the weights.
    """
    losses = functional.cross_entropy(logits, labels, reduction="none") * weights
    return losses.sum() if reduction == "sum" else losses.sum() / weights.sum()


def soft_dice(logits: Tensor, labels: Tensor) -> Tensor:
    """One minus the mean over foreground classes of 2 sum(p g) / (sum(p^2) + sum(g^2)) (Milletari et al. 2016, section 3)."""
    probabilities = logits.softmax(dim=1)[:, 1:]
    truth = functional.one_hot(labels, logits.shape[1]).movedim(-1, 1)[:, 1:].to(probabilities.dtype)
    axes = (0, *range(2, logits.dim()))
    overlap = (probabilities * truth).sum(axes)
    return 1 - torch.mean(2 * overlap / ((probabilities**2).sum(axes) + (truth**2).sum(axes)).clamp(min=1e-6))

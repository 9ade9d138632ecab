"""Losses against their formulas by loops, and two simulated ranks against one."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from unet_core.errors import InputError
from unet_core.training.losses import dice_scores, head_loss
from unet_core.training.options import IGNORE, LossOptions

KINDS = ("classes", "regions", "affinities", "distance")


@dataclass
class Target:
    values: Tensor
    weights: Tensor


class Totals:
    """Adds the sums that the other rank recorded, in the order of the calls."""

    def __init__(self, others: list[Tensor]) -> None:
        self.others = iter(others)

    def __call__(self, tensor: Tensor) -> Tensor:
        return tensor + next(self.others).detach()


def alone(tensor: Tensor) -> Tensor:
    return tensor


def sample(kind: str, count: int = 2, seed: int = 0) -> tuple[Tensor, Target]:
    """Logits (N, 3, 5, 7) in float64 and a target of which a fifth is ignored; one channel or voxel has a weight of its own."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((count, 3, 5, 7), generator=generator).double()
    ignored = torch.rand((count, 5, 7), generator=generator) < 0.2
    weights = torch.rand((count, 5, 7), generator=generator) + 0.5
    if kind == "classes":
        values = torch.randint(0, 3, (count, 5, 7), generator=generator)
        return logits, Target(values.masked_fill(ignored, IGNORE), weights.masked_fill(ignored, 0))
    truth = torch.rand((count, 3, 5, 7), generator=generator)
    values = truth * 2 - 1 if kind == "distance" else (truth > 0.6).float()
    return logits, Target(values, weights.masked_fill(ignored, 0)[:, None])


def by_loops(kind: str, options: LossOptions, logits: Tensor, target: Target) -> float:
    """The same loss, voxel by voxel in Python floats."""
    z, v = logits.detach().double().numpy(), target.values.double().numpy()
    channels = z.shape[1]
    w = np.broadcast_to(target.weights.numpy(), target.values.shape)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True) if kind == "classes" else 1 / (1 + np.exp(-z))
    losses, weights = 0.0, 0.0
    for index in np.ndindex(*v.shape):
        if not w[index]:
            continue
        if kind == "classes":
            loss = -np.log(p[index[0], int(v[index]), *index[1:]])
        elif kind == "distance":
            loss = (z[index] - v[index]) ** 2
        else:
            loss = -np.log(p[index] if v[index] else 1 - p[index])
        losses += w[index] * loss
        weights += w[index]
    reduced = losses if options.reduction == "sum" else losses / weights
    if kind == "distance":
        return options.distance * reduced
    scores = []
    for k in range(1 if kind == "classes" else 0, channels):
        g = v == k if kind == "classes" else v[:, k] == 1
        m = (w if kind == "classes" else w[:, k]) > 0
        if (g & m).any():
            q = p[:, k][m]
            scores.append(2 * (q * g[m]).sum() / ((q**2).sum() + g[m].sum()))
    return options.cross_entropy * reduced + options.dice * (1 - np.mean(scores))


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_their_formulas(kind: str) -> None:
    logits, target = sample(kind)
    for cross_entropy, dice, reduction in itertools.product((0.0, 1.0, 0.7), (0.0, 0.4), ("sum", "mean")):
        options = LossOptions(cross_entropy=cross_entropy, dice=dice, distance=0.3, reduction=reduction)
        if kind != "distance" and not cross_entropy + dice:
            with pytest.raises(InputError, match="would not be trained; set loss"):
                head_loss(options, kind, logits, target, alone)
            continue
        found = head_loss(options, kind, logits, target, alone)
        assert float(found) == pytest.approx(by_loops(kind, options, logits, target), rel=1e-5)


def test_dice_has_the_gradient_of_the_v_net_paper() -> None:
    """dD/dp_j = 2 [g_j (sum p^2 + sum g^2) - 2 p_j sum p g] / (sum p^2 + sum g^2)^2 (Milletari et al. 2016, section 3)."""
    generator = torch.Generator().manual_seed(0)
    p = torch.rand((2, 1, 5, 7), generator=generator, dtype=torch.float64).requires_grad_()
    g = torch.rand((2, 1, 5, 7), generator=generator) > 0.7
    score, _ = dice_scores(p, g, torch.ones_like(g), alone)
    score.sum().backward()
    q, t = p.detach(), g.double()
    squares, overlap = (q**2).sum() + (t**2).sum(), (q * t).sum()
    torch.testing.assert_close(p.grad, 2 * (t * squares - 2 * q * overlap) / squares**2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_two_ranks_have_the_loss_and_the_gradient_of_one(kind: str, reduction: str) -> None:
    """Halves of unequal size and weight: rank averages would differ."""
    options = LossOptions(dice=0.5, reduction=reduction)
    logits, target = sample(kind, count=3)
    target.weights[0] *= 5
    whole = logits.clone().requires_grad_()
    loss = head_loss(options, kind, whole, target, alone)
    loss.backward()
    parts = [slice(0, 1), slice(1, 3)]
    own: list[list[Tensor]] = []
    for part in parts:
        own.append([])
        head_loss(
            options, kind, logits[part], Target(target.values[part], target.weights[part]), lambda t: own[-1].append(t) or t
        )
    for rank, part in enumerate(parts):
        leaf = logits[part].clone().requires_grad_()
        total = Totals(own[1 - rank])
        found = head_loss(options, kind, leaf, Target(target.values[part], target.weights[part]), total)
        found.backward()
        torch.testing.assert_close(found, loss)
        torch.testing.assert_close(leaf.grad, whole.grad[part])
        apart = logits[part].clone().requires_grad_()
        head_loss(options, kind, apart, Target(target.values[part], target.weights[part]), alone).backward()
        assert (reduction == "sum" and kind == "distance") or not torch.allclose(apart.grad, whole.grad[part])


@pytest.mark.parametrize("kind", KINDS)
def test_ignored_voxels_have_no_gradient_and_any_value(kind: str) -> None:
    options = LossOptions(dice=0.5)
    logits, target = sample(kind)
    leaf = logits.clone().requires_grad_()
    loss = head_loss(options, kind, leaf, target, alone)
    loss.backward()
    ignored = target.weights == 0 if kind != "classes" else target.weights[:, None] == 0
    assert (leaf.grad[ignored.expand_as(leaf)] == 0).all()
    assert (leaf.grad[~ignored.expand_as(leaf)] != 0).all()
    other = target.values.masked_fill(target.weights.expand_as(target.values) == 0, 1)
    torch.testing.assert_close(head_loss(options, kind, logits, Target(other, target.weights), alone), loss)
    nothing = head_loss(options, kind, leaf, Target(target.values, torch.zeros_like(target.weights)), alone)
    assert float(nothing.detach()) == 0


def test_a_class_without_a_voxel_changes_nothing() -> None:
    logits, target = sample("classes")
    target.values[target.values == 2] = 0
    p, w = logits.softmax(1)[:, 1], target.weights > 0
    g = target.values == 1
    expected = 1 - 2 * (p * g * w).sum() / ((p**2 * w).sum() + (g & w).sum())
    found = head_loss(LossOptions(cross_entropy=0, dice=1), "classes", logits, target, alone)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_logits_are_computed_with_in_float32(kind: str) -> None:
    logits, target = sample(kind)
    half = logits.bfloat16().requires_grad_()
    found = head_loss(LossOptions(dice=0.5), kind, half, target, alone)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, head_loss(LossOptions(dice=0.5), kind, half.detach().float(), target, alone))
    found.backward()
    assert half.grad.dtype == torch.bfloat16
    assert torch.isfinite(half.grad).all()


def test_large_logits_give_finite_losses() -> None:
    for kind in KINDS[:3]:
        logits, target = sample(kind)
        leaf = (logits * 1000).requires_grad_()
        loss = head_loss(LossOptions(dice=0.5), kind, leaf, target, alone)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(leaf.grad).all()

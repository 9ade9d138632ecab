"""A plain training loop on one device: crops in, weights changed in place. Knows no files."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from unet_core.errors import InputError, UnetCoreError
from unet_core.footprint import footprint
from unet_core.training.augment import Augmentation
from unet_core.training.crops import Annotated, draw_crop
from unet_core.training.loss import soft_dice, weighted_cross_entropy


@dataclass(frozen=True)
class TrainingOptions:
    """How long, how fast, on what.

    Args:
        steps: optimiser steps.
        seed: of crops, dropout and augmentation.
        batch_size: crops a step.
        target_size: voxels of a target along each axis, at least.
        learning_rate: largest of the schedule: linear warm-up, then a half cosine to zero.
        warmup_steps: of the schedule.
        weight_decay: of AdamW.
        dice: weight of the Dice loss beside the weighted cross entropy.
    """

    steps: int
    seed: int = 0
    batch_size: int = 4
    target_size: int = 168
    learning_rate: float = 2e-3
    warmup_steps: int = 50
    weight_decay: float = 1e-4
    dice: float = 0.5


def train(
    network: nn.Module,
    images: Sequence[Annotated],
    options: TrainingOptions,
    augmentation: Augmentation,
    on_step: Callable[[int, float, float], None] = lambda step, loss, rate: None,
) -> None:
    """Train a network of unpadded convolutions on crops of ``images``; on a CPU the same seed gives the same weights.

    Args:
        network: changed in place; left in evaluation mode.
        images: to draw crops from.
        options: length, seed and schedule.
        augmentation: of the crops.
        on_step: called after each step with its number, loss and learning rate.

    Raises:
        UnetCoreError: if the loss is not finite, with the step.
    """
    geometry = footprint(network.eval())
    if geometry.is_padded:
        raise InputError(
            "The network pads its values, which spoils the ends of every crop; train it with padding='valid', which has the same weights."
        )
    needed = tuple(a + options.target_size + b for a, b in zip(geometry.before, geometry.after, strict=True))
    input_shape = geometry.legal_shape(needed)
    target_shape = geometry.output_shape(input_shape)
    torch.manual_seed(options.seed)
    network.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
    for step in range(options.steps):
        crops = [
            draw_crop(
                images,
                step * options.batch_size + position,
                options.seed,
                (input_shape[0], input_shape[1]),
                (geometry.before[0], geometry.before[1]),
                (target_shape[0], target_shape[1]),
                augmentation,
            )
            for position in range(options.batch_size)
        ]
        batch = torch.from_numpy(np.stack([crop.image for crop in crops])).contiguous(memory_format=torch.channels_last)
        labels = torch.from_numpy(np.stack([crop.labels for crop in crops]))
        weights = torch.from_numpy(np.stack([crop.weights for crop in crops]))
        rate = _schedule(step, options)
        for group in optimizer.param_groups:
            group["lr"] = rate
        logits = network(batch)  # (N, K, Y, X)
        loss = weighted_cross_entropy(logits, labels, weights) + options.dice * soft_dice(logits, labels)
        if not bool(torch.isfinite(loss)):
            raise UnetCoreError(f"Loss is {loss.item()} at step {step}; lower the learning rate ({options.learning_rate}).")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        on_step(step, float(loss.detach()), rate)
    network.eval()


def _schedule(step: int, options: TrainingOptions) -> float:
    warmup = min(1.0, (step + 1) / max(1, options.warmup_steps))
    return options.learning_rate * warmup * (1 + math.cos(math.pi * step / options.steps)) / 2

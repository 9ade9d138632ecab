"""From logits, or means of probabilities, to what an output stores: labels, shown labels, masks of regions, probabilities, other heads.

Knows no blocks. Shapes: K channels of a head, then the spatial axes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unet_core.geometry import Shape
from unet_core.plan import Plan

HeadKind = Literal["classes", "regions", "affinities", "distance"]


def kept_heads(plan: Plan) -> tuple[tuple[str, HeadKind], ...]:
    """Name and kind of the heads that the plan uses: first that of the labels, then those whose values are stored."""
    return (plan.model.head, plan.model.kind), *((image.head.name, image.head.kind) for image in plan.images if image.head)


@torch.inference_mode()
def readout(plan: Plan, channels: Mapping[str, Shape], logits: Tensor) -> list[NDArray[Any]]:
    """What each image of the plan stores of the logits of one pass, of shape ([K,] *spatial).

    Args:
        channels: of each head by its name.
        logits: of all heads, (channels of the network, *spatial).
    """
    heads = [_channels_of(logits, channels[name]) for name, _ in kept_heads(plan)]
    kinds = [kind for _, kind in kept_heads(plan)]
    wanted = any(image.kind == "probabilities" for image in plan.images)
    values = [
        activated(head, kind) if wanted or number else head for number, (head, kind) in enumerate(zip(heads, kinds, strict=True))
    ]
    return _stored(plan, heads[0], 0.0, values)


@torch.inference_mode()
def readout_means(plan: Plan, means: list[Tensor]) -> list[NDArray[Any]]:
    """The same of what ``activations`` gave, averaged over passes: labels are those of the mean probability."""
    return _stored(plan, means[0], 0.5, means)


@torch.inference_mode()
def activations(plan: Plan, channels: Mapping[str, Shape], logits: Tensor) -> list[Tensor]:
    """Probabilities, or distances, of every head that the plan uses, each (K, *spatial) in float32."""
    return [activated(_channels_of(logits, channels[name]), kind) for name, kind in kept_heads(plan)]


def activated(logits: Tensor, kind: HeadKind) -> Tensor:
    """Probabilities of the logits of one head; distances stay what they are."""
    if kind == "distance":
        return logits
    return logits.softmax(dim=0) if kind == "classes" else logits.sigmoid()


def _channels_of(logits: Tensor, channels: Shape) -> Tensor:
    """The channels of one head; no copy where these are all."""
    return logits if channels == tuple(range(len(logits))) else logits[list(channels)]


def _stored(plan: Plan, scores: Tensor, half: float, values: list[Tensor]) -> list[NDArray[Any]]:
    """What each image stores.

    Args:
        scores: of the labels' head, (K, *spatial): logits or probabilities; the greatest wins, the first among equals.
        half: the score of a probability of one half.
        values: of every head in use.
    """
    names = tuple(entry.value for entry in plan.model.classes)
    shown: NDArray[Any]
    if plan.model.kind == "classes":
        labels = _labels_of(scores, names)
        shown = _spread(labels, names)
        masks: dict[int | None, NDArray[Any]] = {None: labels}
    else:
        inside: NDArray[np.bool_] = (scores > half).cpu().numpy()
        shown = inside.astype(np.uint8) * np.uint8(255)
        masks = {value: inside[channel].astype(np.uint8) * np.uint8(value) for channel, value in enumerate(names)}
    others = iter(values[1:])
    return [
        _as_stored(values[0], image.dtype)
        if image.kind == "probabilities"
        else _as_stored(next(others), image.dtype)
        if image.kind == "head"
        else shown
        if image.kind == "map"
        else masks[image.label_value]
        for image in plan.images
    ]


def _labels_of(scores: Tensor, values: tuple[int, ...]) -> NDArray[np.uint8]:
    table = torch.tensor(values, dtype=torch.uint8, device=scores.device)
    labels: NDArray[np.uint8] = table[scores.argmax(dim=0)].cpu().numpy()
    return labels


def _as_stored(values: Tensor, dtype: str) -> NDArray[Any]:
    """float32, or of probabilities uint8 as round(255 p), which is off by at most 1/510."""
    stored = (values * 255).round().to(torch.uint8) if dtype == "uint8" else values
    result: NDArray[Any] = stored.cpu().numpy()
    return result


def _spread(labels: NDArray[np.uint8], values: tuple[int, ...]) -> NDArray[np.uint8]:
    """Label values spread evenly over 0..255, so that they show as an image."""
    ranks = {value: rank for rank, value in enumerate(sorted({0, *values}))}
    table = np.zeros(256, dtype=np.uint8)
    for value, rank in ranks.items():
        table[value] = rank * 255 // max(1, len(ranks) - 1)
    spread: NDArray[np.uint8] = table[labels]
    return spread

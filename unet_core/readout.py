"""From logits to what an output stores of them: labels, shown labels, masks of regions, probabilities. Knows no blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unet_core.plan import Plan
from unet_core.predict import labels_of, probabilities_of, regions_of


def readout(plan: Plan, logits: torch.Tensor) -> list[NDArray[Any]]:
    """What each image of the plan stores of logits (K, *spatial), of shape ([C,] *spatial)."""
    values = tuple(entry.value for entry in plan.model.classes)
    shown: NDArray[Any]
    if plan.model.kind == "classes":
        labels = labels_of(logits, values)
        shown = _spread(labels, values)
        masks: dict[int | None, NDArray[Any]] = {None: labels}
    else:
        inside = regions_of(logits)
        shown = inside.astype(np.uint8) * np.uint8(255)
        masks = {value: inside[channel].astype(np.uint8) * np.uint8(value) for channel, value in enumerate(values)}
    return [
        probabilities_of(logits, plan.model.kind, image.dtype)
        if image.kind == "probabilities"
        else shown
        if image.kind == "map"
        else masks[image.label_value]
        for image in plan.images
    ]


def _spread(labels: NDArray[np.uint8], values: tuple[int, ...]) -> NDArray[np.uint8]:
    """Label values spread evenly over 0..255, so that they show as an image."""
    ranks = {value: rank for rank, value in enumerate(sorted({0, *values}))}
    table = np.zeros(256, dtype=np.uint8)
    for value, rank in ranks.items():
        table[value] = rank * 255 // max(1, len(ranks) - 1)
    spread: NDArray[np.uint8] = table[labels]
    return spread

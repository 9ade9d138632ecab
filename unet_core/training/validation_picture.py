"""A picture of validation tiles: image, truth and prediction side by side. Knows no network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from skimage.segmentation import find_boundaries

from unet_core.model_description import Head, LabelClass
from unet_core.training.dataset_description import PALETTE

if TYPE_CHECKING:
    from unet_core.training.validation import Predicted

_SIDE = 320  # of one panel, at least, in pixels
_GAP = 8
_TITLE = 16
_DIM = 0.35  # brightness of what is ignored


def draw_validation(tiles: Sequence[Predicted], head: Head, classes: Sequence[LabelClass]) -> Image.Image:
    """One row a tile: the image, with the truth outlined, with the prediction outlined, and the probability of the foreground.

    Of a 3D tile the middle section is drawn. What is ignored is dark in the truth. Of affinities the first offset is drawn; of a
    distance what lies above zero, and instead of a probability the distance itself.

    Args:
        tiles: at least one; their first head is drawn.
        head: the first one.
        classes: colours of a head of classes, whose channel 0 is not outlined, or of regions.
    """
    rows = [_row(tile, head.kind, classes) for tile in tiles]
    height, width = rows[0][0].shape[:2]
    scale = max(1, -(-_SIDE // max(height, width)))
    panel = (width * scale, height * scale)
    sheet = Image.new("RGB", (4 * (panel[0] + _GAP) - _GAP, _TITLE + len(rows) * (panel[1] + _GAP) - _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(("image", "truth", "prediction", "distance" if head.kind == "distance" else "probability")):
        draw.text((column * (panel[0] + _GAP) + 2, 2), title, fill="black")
    for line, pieces in enumerate(rows):
        for column, piece in enumerate(pieces):
            place = (column * (panel[0] + _GAP), _TITLE + line * (panel[1] + _GAP))
            sheet.paste(Image.fromarray(piece).resize(panel, Image.Resampling.NEAREST), place)
    return sheet


def _row(tile: Predicted, kind: str, classes: Sequence[LabelClass]) -> list[NDArray[np.uint8]]:
    """Four RGB panels (Y, X, 3)."""
    target, dims = tile.heads[0], tile.image.ndim - 1
    values, weights = target.values[0].cpu(), target.weights[0].cpu()
    if kind == "classes":  # without an axis of channels
        values, weights = values[None], weights[None]
    truth, counted = _section(values.numpy(), dims), _section(weights.numpy(), dims).max(axis=0) > 0
    gray = _colours(_section(tile.image, dims))
    logits = torch.from_numpy(_section(tile.logits.cpu().numpy(), dims))
    if kind == "classes":
        probabilities = logits[: len(classes)].softmax(0).numpy()
        drawn = [[chosen == number for number in range(1, len(classes))] for chosen in (truth[0], probabilities.argmax(0))]
        colors = [label.color for label in classes[1:]]
        shown = 1 - probabilities[0]
    else:
        outlined = len(classes) if kind == "regions" else 1
        drawn = [list(truth[:outlined] > 0), list(logits[:outlined].numpy() > 0)]  # 0.5 of what is sigmoid
        colors = [label.color for label in classes] if kind == "regions" else [PALETTE[1]]
        shown = ((1 + logits[0]) / 2 if kind == "distance" else logits[0].sigmoid()).numpy()
    dimmed = np.where(counted[..., None], gray, gray * _DIM)
    heat = np.repeat(shown[..., None] * 255, 3, axis=2)
    return [
        panel.clip(0, 255).astype(np.uint8)
        for panel in (gray, _outlined(dimmed, drawn[0], colors), _outlined(gray, drawn[1], colors), heat)
    ]


def _section(values: NDArray[Any], dims: int) -> NDArray[Any]:
    """(C, Y, X): the middle section of (C, Z, Y, X)."""
    return values[:, values.shape[1] // 2] if dims == 3 else values


def _colours(image: NDArray[np.generic]) -> NDArray[np.float64]:
    """(Y, X, 3) in 0..255, stretched from the 1st to the 99th percentile."""
    chosen = image[:3] if len(image) >= 3 else np.repeat(image[:1], 3, axis=0)
    low, high = np.percentile(chosen, (1, 99))
    stretched: NDArray[np.float64] = np.moveaxis((chosen - low) * (255 / max(high - low, 1e-6)), 0, -1)
    return stretched.clip(0, 255)


def _outlined(values: NDArray[np.float64], masks: Sequence[NDArray[np.bool_]], colors: Sequence[str]) -> NDArray[np.float64]:
    result = values.copy()
    for mask, color in zip(masks, colors, strict=True):
        result[find_boundaries(mask, mode="inner")] = list(bytes.fromhex(color[1:]))
    return result

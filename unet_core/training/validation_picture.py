"""A picture of validation tiles: image, truth and prediction side by side. Knows no network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from unet_core.model_description import Head, LabelClass
from unet_core.pictures import Drawing, Panel, Rgb, contrast_of, draw_sheet, edges_of, to_rgb
from unet_core.pictures.rgb import dimmed, gray
from unet_core.training.dataset_description import PALETTE

if TYPE_CHECKING:
    from unet_core.training.validation import Predicted

_SIDE = 320  # of one panel, at least, in pixels


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
    scale = max(1, -(-_SIDE // max(rows[0][0].shape[:2])))
    titles = ("image", "truth", "prediction", "distance" if head.kind == "distance" else "probability")
    columns = zip(titles, zip(*rows, strict=True), strict=True)
    return draw_sheet(
        [[Panel(rgb, "" if number else title, scale) for number, rgb in enumerate(pieces)] for title, pieces in columns]
    )


def _row(tile: Predicted, kind: str, classes: Sequence[LabelClass]) -> tuple[Rgb, Rgb, Rgb, Rgb]:
    target, dims = tile.heads[0], tile.image.ndim - 1
    values, weights = target.values[0].cpu(), target.weights[0].cpu()
    if kind == "classes":  # without an axis of channels
        values, weights = values[None], weights[None]
    truth, ignored = _section(values.numpy(), dims), _section(weights.numpy(), dims).max(axis=0) <= 0
    image = _section(tile.image, dims)
    shown = to_rgb(image, contrast_of(image, image.dtype))
    logits = torch.from_numpy(_section(tile.logits.cpu().numpy(), dims))
    if kind == "classes":
        probabilities = logits[: len(classes)].softmax(0).numpy()
        drawn = [[chosen == number for number in range(1, len(classes))] for chosen in (truth[0], probabilities.argmax(0))]
        colors = [label.color for label in classes[1:]]
        shares = 1 - probabilities[0]
    else:
        outlined = len(classes) if kind == "regions" else 1
        drawn = [list(truth[:outlined] > 0), list(logits[:outlined].numpy() > 0)]  # 0.5 of what is sigmoid
        colors = [label.color for label in classes] if kind == "regions" else [PALETTE[1]]
        shares = ((1 + logits[0]) / 2 if kind == "distance" else logits[0].sigmoid()).numpy()
    return shown, _outlined(dimmed(shown, ignored), drawn[0], colors), _outlined(shown, drawn[1], colors), gray(shares)


def _section(values: NDArray[Any], dims: int) -> NDArray[Any]:
    """(C, Y, X): the middle section of (C, Z, Y, X)."""
    return values[:, values.shape[1] // 2] if dims == 3 else values


def _outlined(rgb: Rgb, masks: Sequence[NDArray[np.bool_]], colors: Sequence[str]) -> Rgb:
    return Drawing.of(rgb, [(edges_of(mask), color) for mask, color in zip(masks, colors, strict=True)]).flat()

"""A picture of validation tiles: image, truth and prediction side by side. Knows no network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from skimage.segmentation import find_boundaries

from unet_core.model_description import LabelClass

if TYPE_CHECKING:
    from unet_core.training.validation import Predicted

_SIDE = 320  # of one panel, at least, in pixels
_GAP = 8
_TITLE = 16
_DIM = 0.35  # brightness of what is ignored


def draw_validation(tiles: Sequence[Predicted], classes: Sequence[LabelClass]) -> Image.Image:
    """One row a tile: the image, with the truth outlined, with the prediction outlined, and the probability of the foreground.

    Of a 3D tile the middle section is drawn. What is ignored is dark in the truth.

    Args:
        tiles: at least one; their first head is drawn.
        classes: colours; channel 0 of a head of classes is not outlined.
    """
    rows = [_row(tile, classes) for tile in tiles]
    height, width = rows[0][0].shape[:2]
    scale = max(1, -(-_SIDE // max(height, width)))
    panel = (width * scale, height * scale)
    sheet = Image.new("RGB", (4 * (panel[0] + _GAP) - _GAP, _TITLE + len(rows) * (panel[1] + _GAP) - _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(("image", "truth", "prediction", "probability")):
        draw.text((column * (panel[0] + _GAP) + 2, 2), title, fill="black")
    for line, pieces in enumerate(rows):
        for column, piece in enumerate(pieces):
            place = (column * (panel[0] + _GAP), _TITLE + line * (panel[1] + _GAP))
            sheet.paste(Image.fromarray(piece).resize(panel, Image.Resampling.NEAREST), place)
    return sheet


def _row(tile: Predicted, classes: Sequence[LabelClass]) -> list[NDArray[np.uint8]]:
    """Four RGB panels (Y, X, 3)."""
    values, target = tile.logits.cpu(), tile.heads[0]
    counted = np.broadcast_to(_section((target.weights[0] > 0).cpu().numpy()), tile.image.shape[-2:])
    gray = _colours(_section(tile.image))
    if target.values.is_floating_point():  # sigmoid channels, or a distance
        values = values[: target.values.shape[1]]
        truth = [_section(each.cpu().numpy()) > 0.5 for each in target.values[0]]
        probability = values.sigmoid().numpy()
        predicted = [_section(each) > 0.5 for each in probability]
        colors = [classes[(number + 1) % len(classes)].color for number in range(len(truth))]
        shown = _section(probability[0])
    else:
        number = len(classes)
        probability = values[:number].softmax(0).numpy()
        chosen, labels = _section(probability.argmax(0)), _section(target.values[0].cpu().numpy())
        truth, predicted = [[drawn == each for each in range(1, number)] for drawn in (labels, chosen)]
        colors = [label.color for label in classes[1:]]
        shown = 1 - _section(probability[0])
    dimmed = np.where(counted[..., None], gray, gray * _DIM)
    heat = np.repeat(shown[..., None] * 255, 3, axis=2)
    return [
        panel.clip(0, 255).astype(np.uint8)
        for panel in (gray, _outlined(dimmed, truth, colors), _outlined(gray, predicted, colors), heat)
    ]


def _section(values: NDArray[Any]) -> NDArray[Any]:
    """The middle section of what has a z axis before the last two, channels kept."""
    return values[..., values.shape[-3] // 2, :, :] if values.ndim == 4 else values


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

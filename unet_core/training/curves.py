"""Curves of trainings, from their logs: the loss of crops and a score of the validation over the steps, one line a training.

python -m unet_core.training.curves curves.png MODEL [MODEL ..] [--score iou]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from math import floor, log10
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from unet_core.errors import InputError
from unet_core.training.watching import LOG, read_log
from unet_core.training_folder import FOLDER, PLAN, find_training
from unet_core.wording import near_path

Points = Sequence[tuple[float, float]]
Rows = Sequence[Mapping[str, float]]

_COLOURS = ("#1f6fb4", "#d0662f", "#3a9148", "#8a55b8", "#b8a02c", "#5b646b")
_INK, _PALE = "#20262b", "#dde2e6"
_PANEL, _LEFT, _TOP, _BOTTOM, _RIGHT = (620, 380), 70, 46, 46, 30
_BAD_INPUT = 2
_SMOOTHED = 50  # the loss is drawn as means of so many parts of the training


def draw_curves(logs: Mapping[str, Rows], score: str = "iou") -> Image.Image:
    """Two panels: loss of crops (means of 50 parts of each training), and the validation's score.

    Args:
        logs: rows of ``log.csv`` by the name of the training.
        score: of the validation, without its prefix; the loss where a training has none of this name.
    """
    losses = {name: _smoothed([(row["step"], row["loss"]) for row in rows if "loss" in row]) for name, rows in logs.items()}
    known = any(f"validation_{score}" in row for rows in logs.values() for row in rows)
    column = f"validation_{score if known else 'loss'}"
    scores = {name: [(row["step"], row[column]) for row in rows if column in row] for name, rows in logs.items()}
    width, height = _PANEL
    sheet = Image.new("RGB", (2 * width, height + 26 * ((len(logs) + 1) // 2)), "white")
    pen = ImageDraw.Draw(sheet)
    _draw_panel(pen, 0, "loss of crops", losses)
    _draw_panel(pen, width, column.replace("_", " "), scores)
    for number, name in enumerate(logs):
        x, y = _LEFT + (number % 2) * width, height + 26 * (number // 2)
        pen.line([(x, y + 10), (x + 28, y + 10)], fill=_colour(number), width=4)
        pen.text((x + 38, y), name, fill=_INK, font=_font())
    return sheet


def _draw_panel(pen: ImageDraw.ImageDraw, left: int, title: str, lines: Mapping[str, Points]) -> None:
    width, height = _PANEL
    box = (left + _LEFT, _TOP, left + width - _RIGHT, height - _BOTTOM)
    pen.text((left + _LEFT, 14), title, fill=_INK, font=_font(17))
    points = [point for line in lines.values() for point in line if np.isfinite(point[1])]
    if not points:
        pen.text((box[0] + 10, box[1] + 10), "nothing yet", fill=_INK, font=_font())
        return
    last = max(step for step, _ in points)
    low, high = min(value for _, value in points), max(value for _, value in points)
    span = (high - low) or abs(high) or 1.0
    low, high = low - 0.05 * span, high + 0.05 * span

    def place(step: float, value: float) -> tuple[float, float]:
        return box[0] + (box[2] - box[0]) * step / last, box[3] - (box[3] - box[1]) * (value - low) / (high - low)

    for value in _ticks(low, high):
        y = place(0, value)[1]
        pen.line([(box[0], y), (box[2], y)], fill=_PALE)
        pen.text((box[0] - 8, y), f"{value:g}", fill=_INK, font=_font(), anchor="rm")
    for step in _ticks(0, last):
        x = place(step, low)[0]
        pen.line([(x, box[1]), (x, box[3])], fill=_PALE)
        pen.text((x, box[3] + 8), f"{step:g}", fill=_INK, font=_font(), anchor="ma")
    pen.text((box[2], box[3] + 26), "steps", fill=_INK, font=_font(), anchor="ra")
    for number, line in enumerate(lines.values()):
        drawn = [place(step, value) for step, value in line if np.isfinite(value)]
        if len(drawn) > 1:
            pen.line(drawn, fill=_colour(number), width=3, joint="curve")
        for x, y in drawn if len(drawn) < 60 else ():
            pen.ellipse([x - 3, y - 3, x + 3, y + 3], fill=_colour(number))


def _smoothed(points: Points) -> Points:
    parts = np.array_split(np.asarray(points, dtype=np.float64).reshape(-1, 2), min(_SMOOTHED, max(1, len(points))))
    return [(float(step), float(value)) for step, value in (part.mean(axis=0) for part in parts if len(part))]


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high, four to nine of them."""
    unit = 10.0 ** floor(log10((high - low) / 4))
    step = next(factor * unit for factor in (1, 2, 5, 10) if (high - low) / (factor * unit) < 9)
    first = int(np.ceil(low / step))
    return [round(number * step, 12) for number in range(first, int(np.floor(high / step)) + 1)]


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _font(size: int = 14) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def main() -> None:
    """Draw the curves of several trainings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--score", default="iou")
    options = parser.parse_args()
    try:
        _check_picture(options.picture)
        logs = {model.name: _read(model) for model in options.models}
        draw_curves(logs, options.score).save(options.picture)
    except (InputError, OSError) as error:
        sys.exit(_fail(str(error)))


def _check_picture(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"{path} is a folder; write the picture first, then the trainings: curves.png {path}.")
    if path.suffix.lower() not in Image.registered_extensions():
        raise InputError(f"{path} is no name of a picture; use one that ends in .png.")


def _read(model: Path) -> Rows:
    """The log of a training.

    Raises:
        InputError: if there is none, with what was probably meant.
    """
    training = find_training(str(model))
    if not model.exists():
        raise InputError(f"Training not found: {model}{near_path(model)}; check the path.")
    if training is None:
        raise InputError(
            f"{model} is no training (there is no {FOLDER}/{PLAN} in it); name the folder of a model that unet train wrote."
        )
    if not (model / FOLDER / LOG).is_file():
        raise InputError(f"{training.sentence()}. Its log is not begun.")
    return read_log(model / FOLDER)


def _fail(text: str) -> int:
    print(f"curves: {text}", file=sys.stderr)
    return _BAD_INPUT


if __name__ == "__main__":
    main()

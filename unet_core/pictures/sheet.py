"""Panels side by side with titles, as one picture. Knows arrays only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from unet_core.pictures.rgb import Rgb

_GAP = 8
_TITLE = 20  # pixels above a panel that has a title
_INK = "#20262b"


@dataclass(frozen=True)
class Panel:
    """One picture of a sheet.

    Args:
        rgb: of shape (Y, X, 3).
        title: above it.
        scale: pixels a voxel; whole ones, so that voxels stay squares.
    """

    rgb: Rgb
    title: str = ""
    scale: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.rgb.shape[1] * self.scale, self.rgb.shape[0] * self.scale


def draw_sheet(columns: Sequence[Sequence[Panel]]) -> Image.Image:
    """Columns of panels, each column as wide as its widest panel, panels of one column below each other."""
    heights = [sum(_height(panel) for panel in column) + _GAP * (len(column) - 1) for column in columns]
    widths = [max(panel.size[0] for panel in column) for column in columns]
    sheet = Image.new("RGB", (sum(widths) + _GAP * (len(columns) - 1), max(heights)), "white")
    pen, left = ImageDraw.Draw(sheet), 0
    for column, width in zip(columns, widths, strict=True):
        top = 0
        for panel in column:
            if panel.title:
                pen.text((left + 2, top + 2), panel.title, fill=_INK, font=ImageFont.load_default(13))
                top += _TITLE
            sheet.paste(Image.fromarray(panel.rgb).resize(panel.size, Image.Resampling.NEAREST), (left, top))
            top += panel.size[1] + _GAP
        left += width + _GAP
    return sheet


def _height(panel: Panel) -> int:
    return panel.size[1] + (_TITLE if panel.title else 0)

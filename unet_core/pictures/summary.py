"""A result in one picture: all of it with outlines, and its densest place at full resolution without and with them."""

from __future__ import annotations

import numpy as np
from PIL import Image

from unet_core.geometry import Box
from unet_core.pictures.places import Place, choose_places
from unet_core.pictures.rgb import Drawing, Rgb
from unet_core.pictures.scene import Scene, View
from unet_core.pictures.sheet import Panel, draw_sheet

_OVERVIEW_PIXELS = 900
_SMALLEST = 128  # voxels of the close-up along its sides
_FRAME = ("#000000", 3)


def draw_summary(scene: Scene) -> tuple[Image.Image, Place | None]:
    """The picture, and the place that was chosen; None where nothing was found, or nothing computed yet.

    Args:
        scene: of a result; of a volume the middle section is drawn.
    """
    view = scene.overview(pixels=_OVERVIEW_PIXELS)
    side = max(_SMALLEST, view.drawing.rgb.shape[0] // 2)
    sample = choose_places(scene, side, 1)
    place = next((place for place in sample.places if place.why == "densest"), None)
    if place is None:
        return draw_sheet([[Panel(view.drawing.flat())]]), None
    close = scene.close_up(place.box, view.contrast).drawing
    scale = max(1, round(side / max(close.rgb.shape[:2])))
    columns = [[Panel(_framed(view, place.box))], [Panel(close.rgb, scale=scale), Panel(close.flat(), scale=scale)]]
    return draw_sheet(columns), place


def _framed(view: View, box: Box) -> Rgb:
    """The overview with the place framed, if it lies in what is shown."""
    plane = view.plane
    spans = [(box.start[axis] // plane.step[axis], -(-box.stop[axis] // plane.step[axis])) for axis in plane.seen]
    color, width = _FRAME
    frame = np.zeros(view.drawing.rgb.shape[:2], dtype=bool)
    (top, bottom), (left, right) = spans
    frame[top:bottom, left:right] = True
    frame[top + width : bottom - width, left + width : right - width] = False
    return Drawing.of(view.drawing.flat(), [(frame, color)]).flat()

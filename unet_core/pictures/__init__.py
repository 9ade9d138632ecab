"""Pictures of images and of what was found in them: for reports, artifacts, evaluations and validations. Knows no network.

rgb    arrays to colours, outlines over them, bytes of a file
sheet  panels side by side, as one picture
scene  an image and its labels on disk, read tile by tile: overviews from coarse levels, close-ups from the finest
mosaic a result that is still being made, unit by unit
places where close-ups are taken: densest, most uncertain, at random
"""

from unet_core.pictures.places import Place, Sample, choose_places
from unet_core.pictures.rgb import Contrast, Drawing, Rgb, contrast_of, edges_of, to_rgb
from unet_core.pictures.scene import Plane, Scene, ShownClass, View
from unet_core.pictures.sheet import Panel, draw_sheet

__all__ = [
    "Contrast",
    "Drawing",
    "Panel",
    "Place",
    "Plane",
    "Rgb",
    "Sample",
    "Scene",
    "ShownClass",
    "View",
    "choose_places",
    "contrast_of",
    "draw_sheet",
    "edges_of",
    "to_rgb",
]

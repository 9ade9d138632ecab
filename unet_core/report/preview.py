"""The picture of a result that is still being made, opened from its output and its image."""

from __future__ import annotations

import numpy as np

from unet_core.errors import UnetCoreError
from unet_core.inputs import Source
from unet_core.pictures.mosaic import Mosaic
from unet_core.plan import Plan
from unet_core.records import Request
from unet_core.report.opened import shown_classes
from unet_core.volumes import Volume, open_volume


def open_mosaic(output: str, plan: Plan, request: Request) -> Mosaic:
    """A picture that shows nothing yet, over the image where that can be opened.

    Args:
        output: URL.
        plan: of the output.
        request: that says where the image lies.
    """
    opened: dict[tuple[str, int], Volume] = {}

    def labels(path: str, level: int) -> Volume:
        if (
            path,
            level,
        ) not in opened:  # what is not stored is background, or not there yet: units are drawn when they are committed
            opened[path, level] = open_volume(f"{output.rstrip('/')}/{path}".rstrip("/"), level, missing="fill")
        return opened[path, level]

    try:
        sources, dtype = _image_levels(plan, request.image)
    except (UnetCoreError, OSError):  # the run itself tells what is wrong with it
        sources, dtype = [], None
    return Mosaic(plan.stages, shown_classes(plan), labels, sources, dtype)


def _image_levels(plan: Plan, url: str) -> tuple[list[Source], np.dtype[np.generic]]:
    planned = plan.input

    def level(number: int) -> Volume:
        return open_volume(url, number, series=planned.series, time=planned.time, channels=planned.channels, missing="fill")

    finest = level(planned.level)
    coarser = [level(entry.index) for entry in finest.levels[planned.level + 1 :]]
    return [Source(volume, plan.spatial_axes) for volume in (finest, *coarser)], finest.dtype

"""Pictures as a page holds them: bytes inlined, scale bars, frames and captions beside them. Knows no template."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from string import ascii_uppercase
from typing import Any

import numpy as np

from unet_core.geometry import Box, Shape
from unet_core.pictures import Place, Sample, Scene, View, choose_places
from unet_core.pictures.rgb import Drawing, jpeg
from unet_core.report import numbers
from unet_core.report.objects import object_centres
from unet_core.report.opened import Opened

CLOSE_UP_SIDES = (64, 320)  # voxels: a third of the image, within these
EACH = 3  # close-ups of each kind
_BAR_SHARE = 0.25  # of the picture's width, at most
_OVERVIEW_QUALITY = 82
_LARGE = 600  # pixels along the longer side from which pixels are not to be seen as squares


@dataclass(frozen=True)
class Frame:
    """A rectangle over a picture, in percent of it; a line where width or height is 0."""

    left: float
    top: float
    width: float
    height: float
    label: str = ""


@dataclass(frozen=True)
class Picture:
    """A picture of a page.

    Args:
        image: data URI.
        outlines: likewise, transparent where nothing is drawn; empty for none.
        ratio: width over height as it should be seen, whatever the pixels.
        title: above or below it.
        caption: lines under it.
        bar: length of the scale bar in words; empty for none.
        bar_percent: of the picture's width.
        frames: over it.
        squares: whether pixels stay squares when enlarged.
    """

    image: str
    outlines: str
    ratio: float
    title: str = ""
    caption: tuple[str, ...] = ()
    bar: str = ""
    bar_percent: float = 0.0
    frames: tuple[Frame, ...] = ()
    squares: bool = True


@dataclass(frozen=True)
class Gallery:
    """The pictures of a result.

    Args:
        overviews: the whole plane; of a volume three sections at right angles.
        close_ups: at full resolution.
        widths: of the columns of a volume's sections, as shares of the whole; empty in 2D.
        sample: the places of the close-ups.
        has_image: whether the image is shown.
    """

    overviews: tuple[Picture, ...]
    close_ups: tuple[Picture, ...]
    widths: tuple[float, ...]
    sample: Sample
    has_image: bool

    def as_json(self) -> dict[str, Any]:
        """The places, for programs."""
        places = [
            {"label": label, "box": _text(place.box)} | {key: value for key, value in asdict(place).items() if key != "box"}
            for label, place in zip(ascii_uppercase, self.sample.places, strict=False)
        ]
        return {"candidates": self.sample.candidates, "side": self.sample.side, "places": places}


def draw_gallery(opened: Opened, scene: Scene | None = None) -> Gallery:
    """Draw overview and close-ups.

    Args:
        opened: an output.
        scene: of it; one that may read much of the image unless told.

    Raises:
        InputError: if the image is not there any more.
    """
    scene, plan = scene or opened.scene(), opened.plan
    kept = next((image for image in plan.images if image.kind == "probabilities"), None)
    probabilities = None if kept is None else opened.result.volume(kept.path)
    sample = choose_places(scene, _side(scene.shape), EACH, probabilities, plan.model.kind, object_centres(opened))
    spacing = plan.scale if plan.unit == "micrometer" else None
    views = _overviews(scene)
    first = views[0]
    labelled = list(zip(ascii_uppercase, sample.places, strict=False))
    overviews = tuple(
        picture_of(
            view, scene, spacing, title=_title(scene, view), frames=_frames(scene, view, labelled), quality=_OVERVIEW_QUALITY
        )
        for view in views
    )
    close_ups = tuple(
        picture_of(
            scene.close_up(place.box, first.contrast),
            scene,
            spacing,
            title=f"{label} · {place.why}",
            caption=_caption(place, scene),
        )
        for label, place in labelled
    )
    return Gallery(overviews, close_ups, _widths(scene), sample, first.contrast is not None)


def picture_of(
    view: View,
    scene: Scene,
    spacing_um: Sequence[float] | None,
    *,
    title: str = "",
    caption: tuple[str, ...] = (),
    frames: tuple[Frame, ...] = (),
    quality: int = 88,
) -> Picture:
    """A view as a picture of a page, as wide over high as the voxels are."""
    plane, spacing = view.plane, scene.spacing
    height, width = ((plane.box.stop[axis] - plane.box.start[axis]) * spacing[axis] for axis in plane.seen)
    voxels = plane.box.stop[plane.columns] - plane.box.start[plane.columns]
    bar, share = scale_bar(voxels, None if spacing_um is None else spacing_um[plane.columns])
    squares = max(view.drawing.rgb.shape[:2]) < _LARGE
    return inlined(view.drawing, width / height, title, caption, bar, 100 * share, frames, squares, quality)


def inlined(
    drawing: Drawing,
    ratio: float,
    title: str = "",
    caption: tuple[str, ...] = (),
    bar: str = "",
    bar_percent: float = 0.0,
    frames: tuple[Frame, ...] = (),
    squares: bool = True,
    quality: int = 88,
) -> Picture:
    """A drawing as a picture of a page."""
    outlines = data_uri("png", drawing.overlay_png()) if drawing.drawn.any() else ""
    return Picture(
        data_uri("jpeg", jpeg(drawing.rgb, quality)), outlines, ratio, title, caption, bar, bar_percent, frames, squares
    )


def data_uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def scale_bar(voxels: int, step_um: float | None) -> tuple[str, float]:
    """Words and length, as a share of the width, of a bar for a picture that is so many voxels wide."""
    if step_um is None:
        length = max(1.0, numbers.round_down(max(1.0, voxels * _BAR_SHARE)))
        return f"{length:,.0f} voxels", length / voxels
    length = numbers.round_down(voxels * step_um * _BAR_SHARE)
    unit = numbers.length_unit(length)
    return f"{length / unit.um:,.4g} {unit.sign}", length / (voxels * step_um)


def _side(shape: Shape) -> int:
    smallest, largest = CLOSE_UP_SIDES
    return min(largest, max(smallest, max(shape[-2:]) // 3))


def _overviews(scene: Scene) -> list[View]:
    if len(scene.shape) == 2:
        return [scene.overview()]
    centre = _centre(scene)
    first = scene.overview(centre, (1, 2))
    return [first, *(scene.overview(centre, seen, contrast=first.contrast) for seen in ((1, 0), (0, 2)))]


def _centre(scene: Scene) -> Shape:
    """The middle of what was computed."""
    places = np.argwhere(scene.done)
    if not len(places):
        return tuple(size // 2 for size in scene.shape)
    low, high = places.min(axis=0), places.max(axis=0) + 1
    return tuple(
        (int(first) * step + min(int(last) * step, size)) // 2
        for first, last, step, size in zip(low, high, scene.grid.block_shape, scene.shape, strict=True)
    )


def _title(scene: Scene, view: View) -> str:
    if len(scene.shape) == 2:
        return ""
    (hidden,) = {0, 1, 2} - set(view.plane.seen)
    axes = scene.axes[view.plane.columns] + scene.axes[view.plane.rows]
    return f"{axes}, at {scene.axes[hidden]} {view.plane.box.start[hidden]:,}"


def _frames(scene: Scene, view: View, places: Sequence[tuple[str, Place]]) -> tuple[Frame, ...]:
    """In 2D where the close-ups are, in 3D where the other two sections cut this one."""
    rows, columns = view.plane.seen
    height, width = scene.shape[rows], scene.shape[columns]
    if len(scene.shape) == 2:
        return tuple(
            Frame(
                100 * box.start[1] / width,
                100 * box.start[0] / height,
                100 * box.shape[1] / width,
                100 * box.shape[0] / height,
                label,
            )
            for label, box in ((label, place.box) for label, place in places)
        )
    centre = _centre(scene)
    return (
        Frame(100 * (centre[columns] + 0.5) / width, 0, 0, 100),
        Frame(0, 100 * (centre[rows] + 0.5) / height, 100, 0),
    )


def _widths(scene: Scene) -> tuple[float, ...]:
    """Of the columns in which sections lie: those of x, and those of z."""
    if len(scene.shape) == 2:
        return ()
    depth, _, width = (size * step for size, step in zip(scene.shape, scene.spacing, strict=True))
    return width / (width + depth), depth / (width + depth)


def _caption(place: Place, scene: Scene) -> tuple[str, ...]:
    start = dict(zip(scene.axes, place.box.start, strict=True))
    where = ", ".join(f"{axis} {start[axis]:,}" for axis in reversed(scene.axes))
    what = "object" if scene.ids_path else "component"
    found = f"{place.objects:,} {what}{'' if place.objects == 1 else 's'}, {numbers.percent(place.share)} of the area"
    doubt = () if place.uncertainty is None else (f"uncertainty {place.uncertainty:.2f}",)
    return (f"at {where}", found, *doubt)


def _text(box: Box) -> str:
    return ",".join(f"{first}:{last}" for first, last in zip(box.start, box.stop, strict=True))

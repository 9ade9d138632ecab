"""What of a result is shown: its image, probabilities, labels and instances, with colours and places. Knows no viewer."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np

from unet_core import ledger
from unet_core.errors import InputError
from unet_core.exports.naming import classes_of, objects_of
from unet_core.exports.placing import Placing, place
from unet_core.exports.segment_properties import segment_properties
from unet_core.geometry import Box
from unet_core.inputs import Source
from unet_core.ledger import Request
from unet_core.plan import ImagePlan, Plan
from unet_core.result import Result, open_result
from unet_core.store import open_store
from unet_core.viewing.pyramid import Pyramid
from unet_core.volumes import open_volume

MAX_COLORED = 5_000  # instances that are coloured one by one; a viewer takes along the colours with each of its steps
MAX_DESCRIBED = 200_000  # instances whose properties are handed over
_REOPEN_SECONDS = 3.0
_SAMPLE = 512  # voxels along each axis that the contrast is taken from
_CHANNEL_COLORS = ("#00ff00", "#ff00ff", "#00a0ff", "#ffff00", "#ff4000", "#ffffff")

Kind = Literal["image", "probabilities", "labels"]


@dataclass(frozen=True)
class Layer:
    """One image of a view.

    Args:
        name: that is shown.
        kind: how it is drawn.
        pyramid: its voxels.
        placing: of the output's grid in this one.
        visible: at first.
        colors: of labels by value, or of channels by number; "#rrggbb".
        contrast: values that are drawn black and white.
        properties: of labels, as Neuroglancer reads them.
    """

    name: str
    kind: Kind
    pyramid: Pyramid
    placing: Placing
    visible: bool = True
    colors: Mapping[int, str] = field(default_factory=dict)
    contrast: tuple[float, float] = (0.0, 255.0)
    properties: bytes | None = None

    @property
    def is_rgb(self) -> bool:
        finest = self.pyramid.finest
        return self.kind == "image" and finest.channel_count == 3 and finest.volume.dtype == np.uint8


@dataclass(frozen=True)
class View:
    """What is shown, the lowest layer first.

    Args:
        axes: of the output.
        shape: of the output's finest level, in voxels.
        scale: of a voxel along ``axes``.
        is_um: whether ``scale`` is in micrometres; else its unit is not known.
        layers: to draw.
        notes: on what is not shown, and why.
    """

    axes: str
    shape: tuple[int, ...]
    scale: tuple[float, ...]
    is_um: bool
    layers: tuple[Layer, ...]
    notes: tuple[str, ...]


def view_of(output: str, image: str | None = None) -> View:
    """What to show of an output, finished or not.

    Args:
        output: URL.
        image: that was segmented, where it lies now; where it lay unless told, and left out with a note if it is gone.

    Raises:
        InputError: if there is no output, or no image where it was said to be.
    """
    result = open_result(output)
    plan, request = result.plan, ledger.read_request(open_store(output))
    notes = []
    layers = []
    try:
        layers.append(_image_layer(plan, request, image))
    except InputError as error:
        if image is not None:
            raise
        notes.append(f"without the image: {error}")
    if result.status.state != "complete":
        done, wanted = result.status.stages[plan.stages[0].name]
        notes.append(f"the run is unfinished, {done} of {wanted} blocks are there; reload the page for those that come meanwhile")
    instances = plan.instance_image if _has_begun(result, plan.instance_image) else None
    for entry in plan.all_images:
        if entry.kind == "probabilities":
            colors = {number: name.color for number, name in enumerate(plan.model.classes) if name.value}
            contrast = (0.0, 1.0 if entry.dtype == "float32" else 255.0)
            pyramid, at_once = _pyramid(result, entry), _unmoved(plan)
            layers.append(Layer("probabilities", "probabilities", pyramid, at_once, False, colors, contrast))
        elif entry.kind == "labels":
            layers.append(_label_layer(result, entry, visible=instances is None))
    if instances is not None:
        layers.append(_instance_layer(result, instances, notes))
    return View(plan.spatial_axes, plan.levels[0].shape, plan.scale, plan.unit == "micrometer", tuple(layers), tuple(notes))


def _image_layer(plan: Plan, request: Request, url: str | None) -> Layer:
    placing = place(plan, request, url)
    source = plan.input
    opened = partial(open_volume, url or request.image, series=source.series, time=source.time, channels=source.channels)
    pyramid = Pyramid(
        lambda level: Source(opened(level, missing="fill"), plan.spatial_axes),
        range(len(opened(0).levels)),
        is_labels=False,
    )
    used, planned = opened(source.level).spatial_shape[-len(plan.spatial_axes) :], source.shape[-len(plan.spatial_axes) :]
    if used != planned:
        raise InputError(f"{url or request.image} has {used} voxels, {planned} were segmented; name the right one.")
    channels = pyramid.finest.channel_count
    colors = dict(enumerate(_CHANNEL_COLORS)) if channels > 1 else {0: "#ffffff"}
    return Layer("image", "image", pyramid, placing, colors=colors, contrast=_contrast(pyramid))


def _label_layer(result: Result, image: ImagePlan, visible: bool) -> Layer:
    colors = {value: entry.color for value, entry in classes_of(result, image).items()}
    properties = segment_properties(result, image, False)[0]
    name = image.path.removeprefix("labels/")
    return Layer(name, "labels", _pyramid(result, image), _unmoved(result.plan), visible, colors, properties=properties)


def _instance_layer(result: Result, image: ImagePlan, notes: list[str]) -> Layer:
    """Instances in shades of the colour of their class, as far as they are few."""
    colors: dict[int, str] = {}
    properties = None
    if result.status.state == "complete":
        objects, classes = objects_of(result, measurements=False), classes_of(result, image)
        count = len(objects.label)
        if count <= MAX_COLORED:
            pairs = zip(objects.label.tolist(), objects.class_value.tolist(), strict=True)
            colors = {label: _shade(classes[value].color, label) for label, value in pairs}
        else:
            notes.append(f"{count:,} instances have the viewer's colours; up to {MAX_COLORED:,} have shades of their class's")
        if count <= MAX_DESCRIBED:
            properties = segment_properties(result, image, True)[0]
        else:
            notes.append(f"{count:,} instances are shown without their measurements; up to {MAX_DESCRIBED:,} have them")
    return Layer("instances", "labels", _pyramid(result, image), _unmoved(result.plan), True, colors, properties=properties)


def _shade(color: str, label: int) -> str:
    """A colour near that of the class, another one for labels that follow each other."""
    hue, lightness, saturation = colorsys.rgb_to_hls(*(part / 255 for part in bytes.fromhex(color[1:])))
    turn, light = (label * 0.618034) % 1 - 0.5, (label * 0.754878) % 1 - 0.5
    shaded = colorsys.hls_to_rgb(
        (hue + 0.12 * turn) % 1, min(0.8, max(0.4, lightness + 0.15 + 0.35 * light)), max(0.4, saturation)
    )
    return "#" + bytes(round(part * 255) for part in shaded).hex()


def _has_begun(result: Result, image: ImagePlan | None) -> bool:
    if image is None:
        return False
    stage = next(stage for stage in result.plan.stages if image in result.plan.images_of(stage))
    return result.status.stages[stage.name][0] > 0


def _pyramid(result: Result, image: ImagePlan) -> Pyramid:
    """The levels that are whole; of an unfinished run often the finest alone, which has what is there."""
    plan, stages = result.plan, result.status.stages
    of_image = [stage for stage in plan.stages if image in plan.images_of(stage)]
    levels = [stage.level for stage in of_image if stage.level == 0 or stages[stage.name][0] == stages[stage.name][1]]
    url = f"{result.url.rstrip('/')}/{image.path}".rstrip("/")
    is_complete = result.status.state == "complete"
    is_labels = image.kind in ("labels", "instances")
    return Pyramid(
        lambda level: Source(open_volume(url, level, missing="fill"), plan.spatial_axes),
        levels,
        is_labels,
        None if is_complete else _REOPEN_SECONDS,
    )


def _unmoved(plan: Plan) -> Placing:
    dims = len(plan.spatial_axes)
    return Placing((1.0,) * dims, (0.0,) * dims)


def _contrast(pyramid: Pyramid) -> tuple[float, float]:
    """Values between which an image is drawn, from the middle of its coarsest level."""
    coarsest = pyramid.sources[-1]
    if coarsest.volume.dtype == np.uint8 and coarsest.channel_count == 3:
        return 0.0, 255.0
    size = tuple(min(extent, _SAMPLE if len(coarsest.spatial_shape) == 2 else 64) for extent in coarsest.spatial_shape)
    start = tuple((extent - part) // 2 for extent, part in zip(coarsest.spatial_shape, size, strict=True))
    low, high = np.nanpercentile(coarsest.read(Box.from_shape(size, start)).astype(np.float32), (0.5, 99.8))
    return float(low), float(high) if high > low else float(low) + 1

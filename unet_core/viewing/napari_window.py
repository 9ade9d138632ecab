"""A view in napari, lazily: levels as dask arrays, in micrometres where the voxel size is known."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np

from unet_core.errors import JobError
from unet_core.viewing.layers import Layer, View

_BINDINGS = ("PyQt6", "PySide6", "PyQt5", "PySide2")


def refuse_without_napari() -> None:
    """Refuse where napari, or the toolkit that it draws windows with, is not installed.

    Raises:
        JobError: saying what to install.
    """
    if find_spec("napari") is None or not any(map(find_spec, _BINDINGS)):
        raise JobError(
            "--napari needs napari and its windows, which are not installed; pip install 'napari[all]', or leave it out."
        )


def open_napari(view: View) -> None:
    """Show a view, and come back when the window is closed."""
    import napari

    add_layers(napari.Viewer(), view)
    napari.run()


def add_layers(viewer: Any, view: View) -> None:
    """Add every layer of a view to a viewer of napari."""
    for layer in view.layers:
        arguments = {"name": layer.name, "visible": layer.visible, **_place(layer, view)}
        levels = _levels(layer)
        arguments["multiscale"] = len(levels) > 1
        if layer.kind == "labels":
            colors: dict[int | None, str] = {None: "transparent", 0: "transparent"}
            colors |= dict(layer.colors.items())
            viewer.add_labels(_alone(levels), opacity=0.5, **({"colormap": colors} if layer.colors else {}), **arguments)
        elif layer.is_rgb:
            viewer.add_image(_alone([np.moveaxis(level, 0, -1) for level in levels]), rgb=True, **arguments)
        else:
            _add_channels(viewer, layer, levels, arguments)
    viewer.dims.axis_labels = tuple(view.axes)
    viewer.scale_bar.visible = view.is_um


def _add_channels(viewer: Any, layer: Layer, levels: list[Any], arguments: dict[str, Any]) -> None:
    for channel, color in layer.colors.items():
        if channel < layer.pyramid.finest.channel_count:
            named = arguments | {"name": f"{layer.name} {channel}" if len(layer.colors) > 1 else layer.name}
            viewer.add_image(
                _alone([level[channel] for level in levels]),
                colormap=_ramp(color),
                contrast_limits=layer.contrast,
                blending="additive",
                **named,
            )


def _levels(layer: Layer) -> list[Any]:
    """Every level as a dask array, channels first where there are some to be drawn."""
    found = []
    for source in layer.pyramid.sources:
        volume = source.volume
        array = volume.to_dask()
        shape = source.spatial_shape if layer.kind == "labels" else (source.channel_count, *source.spatial_shape)
        found.append(array.reshape(shape))
    return found


def _alone(levels: list[Any]) -> Any:
    """The levels, or the only one as it is."""
    return levels if len(levels) > 1 else levels[0]


def _place(layer: Layer, view: View) -> dict[str, Any]:
    """Size of a layer's voxels and where the centre of its first one lies, when that of the output's lies at 0."""
    axes = list(zip(layer.placing.factor, layer.placing.offset, view.scale, strict=True))
    return {
        "units": ["um" if view.is_um else "pixel"] * len(axes),
        "scale": [step / factor for factor, _, step in axes],
        "translate": [((0.5 - offset) / factor - 0.5) * step for factor, offset, step in axes],
    }


def _ramp(color: str) -> Any:
    """From black to a colour."""
    from napari.utils import Colormap

    return Colormap([[0, 0, 0, 1], [*(part / 255 for part in bytes.fromhex(color[1:])), 1]], name=color)

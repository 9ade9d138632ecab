"""A view as a page of Neuroglancer, served from this process to this machine only. Voxels are read when the page asks for them.

The client comes with the package; nothing is fetched from elsewhere. Addresses hold a random word, so that no other page guesses them.
"""

from __future__ import annotations

import io
import logging
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import JobError, UnetCoreError
from unet_core.geometry import Box
from unet_core.viewing.layers import Layer, View

try:
    import neuroglancer
    import neuroglancer.server
    from tornado.web import RequestHandler
except ImportError:
    raise JobError("'unet view' needs neuroglancer, which is not installed; pip install 'unet-flows[view]'.") from None

_HOST = "127.0.0.1"
_METRES = 1e-6  # in a micrometre
_PAGE_PIXELS = {2: 700.0, 3: 350.0}  # that the image is to fit into; in 3D the page has four parts
_DTYPES = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "float32")
_SCALES = 24  # reductions, at most

log = logging.getLogger(__name__)


class Page:
    """A page that is served until ``close``.

    Args:
        view: to show.
        port: 0 for any that is free.

    Raises:
        JobError: if the port is taken.
    """

    def __init__(self, view: View, port: int = 0) -> None:
        neuroglancer.set_server_bind_address(_HOST, port)
        try:
            self._viewer = neuroglancer.Viewer()
        except OSError as error:
            raise JobError(f"Port {port} cannot be used ({error.strerror or error}); give another --port, or none.") from None
        with self._viewer.txn() as state:
            _fill(state, view, self._viewer.token)
        self.url: str = str(self._viewer)

    def close(self) -> None:
        neuroglancer.stop()


def _fill(state: Any, view: View, token: str) -> None:
    names, scales = list(view.axes[::-1]), [step * (_METRES if view.is_um else 1) for step in view.scale[::-1]]
    space = neuroglancer.CoordinateSpace(names=names, units="m" if view.is_um else "", scales=scales)
    state.dimensions = space
    for layer in view.layers:
        source: list[Any] = [neuroglancer.LayerDataSource(url=_Served(layer, view, scales), transform=_transform(layer, space))]
        if layer.properties is not None:
            source.append(neuroglancer.LayerDataSource(url=_serve_properties(layer, token)))
        drawn = _labels(layer, source) if layer.kind == "labels" else _image(layer, source)
        state.layers.append(name=layer.name, layer=drawn, visible=layer.visible)
    state.position = [extent / 2 for extent in view.shape[::-1]]
    state.layout = "xy" if len(view.shape) == 2 else "4panel"
    # In sizes of the finest axis, where the dimensions are stated.
    longest = max(extent * step for extent, step in zip(view.shape[::-1], scales, strict=True)) / min(scales)
    state.cross_section_scale = longest / _PAGE_PIXELS[len(view.shape)]
    state.projection_scale = longest * 1.5
    state.show_default_annotations = False
    state.show_axis_lines = False


def _labels(layer: Layer, source: list[Any]) -> Any:
    return neuroglancer.SegmentationLayer(
        source=source, segment_colors=dict(layer.colors), selected_alpha=0.45, not_selected_alpha=0.1
    )


def _image(layer: Layer, source: list[Any]) -> Any:
    opacity, blend = (1.0, "default") if layer.kind == "image" else (0.6, "additive")
    return neuroglancer.ImageLayer(source=source, shader=_shader(layer), opacity=opacity, blend=blend)


def _shader(layer: Layer) -> str:
    """Colours for voxels: as they are for an image of red, green and blue, else each channel in its own."""
    if layer.is_rgb:
        values = ", ".join(f"toNormalized(getDataValue({channel}))" for channel in range(3))
        return f"void main() {{ emitRGB(vec3({values})); }}\n"
    low, high = (np.format_float_positional(np.float32(value), trim="0") for value in layer.contrast)
    lines, terms = [], []
    for channel, color in layer.colors.items():
        if channel < layer.pyramid.finest.channel_count:
            red, green, blue = (f"{part / 255:.4f}" for part in bytes.fromhex(color[1:]))
            lines.append(f"#uicontrol invlerp channel_{channel}(range=[{low}, {high}], channel={channel})")
            terms.append(f"channel_{channel}() * vec3({red}, {green}, {blue})")
    return "\n".join([*lines, f"void main() {{ emitRGB({' + '.join(terms)}); }}", ""])


def _transform(layer: Layer, space: Any) -> Any:
    """From the voxels of a layer, channels first, to those of the output."""
    factor, offset = layer.placing.factor[::-1], layer.placing.offset[::-1]
    count = len(factor)
    matrix = np.zeros((count + 1, count + 2))
    matrix[0, 0] = 1
    for axis in range(count):
        matrix[axis + 1, axis + 1], matrix[axis + 1, -1] = 1 / factor[axis], -offset[axis] / factor[axis]
    if layer.kind == "labels":
        return neuroglancer.CoordinateSpaceTransform(output_dimensions=space, matrix=matrix[1:, 1:])
    names, units, scales = ["c^", *space.names], ["", *space.units], [1, *space.scales]
    output = neuroglancer.CoordinateSpace(names=names, units=units, scales=scales)
    return neuroglancer.CoordinateSpaceTransform(output_dimensions=output, matrix=matrix)


class _Grid:
    """Shape and type of an array that is never there as a whole."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = shape, dtype

    def __getitem__(self, place: Any) -> NDArray[Any]:
        raise NotImplementedError


class _Served(neuroglancer.LocalVolume):  # type: ignore[misc]
    """The voxels of a layer with axes (c,) x, y (, z), reduced as the page asks."""

    def __init__(self, layer: Layer, view: View, scales: list[float]) -> None:
        finest = layer.pyramid.finest
        self._layer, self._has_channels = layer, layer.kind != "labels"
        lead = self._has_channels * 1
        own = [step / factor for step, factor in zip(scales, layer.placing.factor[::-1], strict=True)]
        space = neuroglancer.CoordinateSpace(
            names=["c^"] * lead + list(view.axes[::-1]),
            units=[""] * lead + ["m" if view.is_um else ""] * len(own),
            scales=[1] * lead + own,
        )
        self._dtype = finest.volume.dtype if finest.volume.dtype.name in _DTYPES else _drawable(finest.volume.dtype)
        super().__init__(
            _Grid((finest.channel_count,) * lead + finest.spatial_shape[::-1], self._dtype),
            dimensions=space,
            volume_type="image" if self._has_channels else "segmentation",
            max_downsampling=float("inf"),
            max_downsampling_scales=_SCALES,
            chunk_layout="flat" if len(own) == 2 else "isotropic",
        )

    def get_encoded_subvolume(self, data_format: str, start: Any, end: Any, scale_key: str) -> tuple[bytes, str]:
        """What the page asks for: a box of the image reduced by the factors of ``scale_key``."""
        factor = tuple(int(part) for part in scale_key.split(","))
        lead = 1 if self._has_channels else 0
        first, last = (tuple(int(value) for value in ends) for ends in (start, end))
        if len(factor) != len(first) or min(factor) < 1 or data_format != "npz":
            raise ValueError("no such voxels")
        box = Box(first[lead:][::-1], last[lead:][::-1])
        reduced = tuple(-(-size // step) for size, step in zip(self.shape[lead:], factor[lead:], strict=True))[::-1]
        if not Box.from_shape(reduced).contains(box):
            raise ValueError("no such voxels")
        try:
            values = self._layer.pyramid.read(box, factor[lead:][::-1])
        except (UnetCoreError, OSError) as error:
            log.warning("%s: %s", self._layer.name, error)
            raise ValueError("these voxels cannot be read") from error
        values = values[first[0] : last[0]] if lead else values[0]
        turned = values.transpose((0, *range(values.ndim - 1, 0, -1))) if lead else values.transpose()
        target = io.BytesIO()
        np.save(target, np.asfortranarray(turned.astype(self._dtype, copy=False)))
        return zlib.compress(target.getvalue(), 1), "application/octet-stream"

    def get_object_mesh(self, object_id: int) -> bytes:
        """None: making one would read the whole volume."""
        raise neuroglancer.local_volume.MeshesNotSupportedForVolume


def _drawable(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(np.uint8) if dtype == np.bool_ else np.dtype(np.float32)


def _serve_properties(layer: Layer, token: str) -> str:
    """Address of a layer's properties, on the server that serves its voxels."""
    assert layer.properties is not None
    server = neuroglancer.server.global_server
    path = f"/unet/{token}/{layer.name}"
    server.app.add_handlers(".*", [(f"{path}/info", _Document, {"document": layer.properties})])
    return f"precomputed://{server.server_url}{path}"


class _Document(RequestHandler):
    """One JSON document."""

    def initialize(self, document: bytes) -> None:
        self._body = document

    def get(self) -> None:
        self.set_header("Content-Type", "application/json")
        self.finish(self._body)

"""N5 datasets, and groups of their scales. Blocks are decoded by tensorstore.

An N5 dataset lists its dimensions with the fastest first, x, y, z; here, as everywhere else, x comes last.

Format: N5 specification 2; lengths as BigDataViewer, the N5 viewer, Paintera and COSEM write them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from unet_core.errors import VolumeError
from unet_core.geometry import Shape
from unet_core.store import Store, open_store
from unet_core.volumes.protocol import Layout, Level, Selection, Volume, choose_channels, choose_time
from unet_core.volumes.stored_chunks import ObjectChunks
from unet_core.volumes.tensorstore_array import Encoding, TensorstoreVolume, load_tensorstore
from unet_core.volumes.units import UNIT_UM, unit_name
from unet_core.volumes.zarr_array import canonical, metadata_hash, usual_axes
from unet_core.volumes.zarr_codecs import REWRITE, check_sizes
from unet_core.volumes.zarr_metadata import MAX_CHUNK_BYTES, read_document
from unet_core.volumes.zarr_nodes import group_path, listed

DOCUMENT = "attributes.json"
_TYPES = {*(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)), "float32", "float64"}
_COMPRESSIONS = ("raw", "gzip", "bzip2", "xz", "blosc", "zstd")
_MAX_SCALES = 64

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Dataset:
    """One array, its dimensions in the order of its axes: x last.

    Args:
        path: below the URL that was opened, "" for the URL itself.
        axes: name of each dimension.
        scale: along the spatial axes, in ``unit``; None if it is not stated.
        translation: of the first voxel's centre, likewise.
        unit: as OME-Zarr calls it, as written if that is unknown, None if it is not stated.
        document: as written.
    """

    path: str
    axes: str
    shape: Shape
    chunk_shape: Shape
    dtype: np.dtype[Any]
    scale: Numbers | None
    translation: Numbers
    unit: str | None
    document: Mapping[str, Any]

    @property
    def voxel_size(self) -> Numbers | None:
        if self.scale is None or self.unit not in UNIT_UM:
            return None
        return tuple(step * UNIT_UM[self.unit] for step in self.scale)


def open_n5(url: str, selection: Selection) -> Volume:
    """Open a dataset, or a scale of a group of them (``s0``, ``s1``, .. or as ``multiscales`` lists them).

    Raises:
        VolumeError: naming what is wrong, or what lies in a group that is no image.
    """
    load_tensorstore("an N5 dataset", url)
    store = open_store(url)
    if selection.series:
        raise VolumeError(f"{url} is a single image; leave --series away.")
    datasets = _datasets(store, url)
    if selection.level >= len(datasets):
        raise VolumeError(f"level {selection.level} of {url} does not exist; it has levels 0 to {len(datasets) - 1}.")
    chosen = datasets[selection.level]
    axes = "".join(axis for axis in "czyx" if axis in chosen.axes)
    time = choose_time(selection.time, chosen.shape[chosen.axes.index("t")] if "t" in chosen.axes else 1, url)
    channels = choose_channels(selection.channels, chosen.shape[chosen.axes.index("c")] if "c" in chosen.axes else 1, url)
    spatial = len(axes.removeprefix("c"))

    def shape_of(entry: Dataset) -> Shape:
        return (len(channels),) * (len(axes) - spatial) + canonical(entry.axes, entry.shape)[-spatial:]

    layout = Layout(
        url=url,
        level=selection.level,
        axes=axes,
        shape=shape_of(chosen),
        dtype=chosen.dtype,
        voxel_size=chosen.voxel_size,
        scale=chosen.scale or (1.0,) * spatial,
        unit=chosen.unit if chosen.scale else None,
        translation=chosen.translation,
        levels=tuple(Level(number, shape_of(entry), entry.voxel_size) for number, entry in enumerate(datasets)),
        chunk_shape=canonical(chosen.axes, chosen.chunk_shape)[-spatial:],
    )
    encoding = Encoding(
        driver="n5",
        documents={
            DOCUMENT: json.dumps(
                {key: chosen.document[key] for key in ("dimensions", "blockSize", "dataType", "compression")}
            ).encode()
        },
        disk_axes=chosen.axes[::-1],
        shape=chosen.shape[::-1],
        chunk_shape=chosen.chunk_shape[::-1],
        origin=(0,) * len(chosen.shape),
        extra={},
    )
    chunks = ObjectChunks(store, chosen.path, _key, url)
    stated = {"metadata": metadata_hash({"path": chosen.path, "array": chosen.document})}
    return TensorstoreVolume(layout, encoding, chunks, _key, time, channels, selection.missing, stated)


def _key(position: Shape) -> str:
    return "/".join(map(str, position))


def _datasets(store: Store, url: str) -> list[Dataset]:
    """The dataset at the URL, or the scales of a group, the finest first."""
    group = read_document(store, DOCUMENT) or {}
    if "dimensions" in group:
        return [_dataset("", group, {}, url)]
    paths = _multiscale_paths(group, url)
    if not paths:
        while len(paths) < _MAX_SCALES and store.exists(f"s{len(paths)}/{DOCUMENT}"):
            paths.append(f"s{len(paths)}")
    if not paths:
        names = [
            name for name in store.child_names() if store.exists(f"{name}/{DOCUMENT}") or store.exists(f"{name}/s0/{DOCUMENT}")
        ]
        base = url.rstrip("/")
        what = (
            f"it holds several datasets or groups, name one: {listed([f'{base}/{name}' for name in names])}"
            if names
            else "it holds no dataset"
        )
        raise VolumeError(f"no dimensions and no scales s0, s1, .. in {url}; {what}.")
    found = []
    for level, path in enumerate(paths):
        document = read_document(store, f"{path}/{DOCUMENT}")
        if document is None or "dimensions" not in document:
            raise VolumeError(f"level {level} '{path}' missing in {url}; copy it again, or {REWRITE}.")
        found.append(_dataset(path, document, group, f"{url.rstrip('/')}/{path}", level))
    if len({entry.axes for entry in found}) > 1:
        raise VolumeError(f"axes: the scales of {url} have {', '.join(entry.axes for entry in found)}; {REWRITE}.")
    return found


def _multiscale_paths(group: Mapping[str, Any], url: str) -> list[str]:
    entries = group.get("multiscales")
    datasets = entries[0].get("datasets") if isinstance(entries, list) and entries and isinstance(entries[0], dict) else None
    if not isinstance(datasets, list):
        return []
    stated = [entry.get("path") if isinstance(entry, dict) else None for entry in datasets[:_MAX_SCALES]]
    return [group_path(path, f"level {number}", url) for number, path in enumerate(stated)]


def _dataset(path: str, document: Mapping[str, Any], group: Mapping[str, Any], where: str, level: int = 0) -> Dataset:
    shape = check_sizes(document.get("dimensions"), "dimensions", where, smallest=1)[::-1]
    chunk_shape = check_sizes(document.get("blockSize"), "blockSize", where, smallest=1)[::-1]
    name = document.get("dataType")
    if name not in _TYPES:
        raise VolumeError(f"unsupported dataType {str(name)[:40]!r}: {where}; {', '.join(sorted(_TYPES))} are read.")
    if len(chunk_shape) != len(shape):
        raise VolumeError(f"blockSize has {len(chunk_shape)} dims, dimensions {len(shape)}: {where}; {REWRITE}.")
    compression = document.get("compression")
    kind = compression.get("type") if isinstance(compression, dict) else compression
    if kind not in _COMPRESSIONS or not isinstance(compression, dict):
        raise VolumeError(
            f"compression {str(kind)[:40]!r} of {where} is not known; {', '.join(_COMPRESSIONS)} are read: write it again with one of them."
        )
    dtype = np.dtype(name)
    if prod(chunk_shape) * dtype.itemsize > MAX_CHUNK_BYTES:
        raise VolumeError(
            f"chunk larger than max_chunk_bytes: {prod(chunk_shape) * dtype.itemsize} bytes against {MAX_CHUNK_BYTES} in {where}; "
            "write it again with smaller blocks."
        )
    axes = usual_axes(shape, dtype)
    if axes is None:
        raise VolumeError(f"axes: {where} has {len(shape)} dims; 2 to 5 are read, store it as several datasets.")
    spatial = "".join(axis for axis in "zyx" if axis in axes)
    scale, translation, unit = _lengths(document, group, level, spatial, where)
    return Dataset(path, axes, shape, chunk_shape, dtype, scale, translation, unit, document)


def _lengths(
    document: Mapping[str, Any], group: Mapping[str, Any], level: int, axes: str, where: str
) -> tuple[Numbers | None, Numbers, str | None]:
    """Scale, translation and unit of a dataset along ``axes``, from its own attributes, else from those of its group."""
    nowhere = (0.0,) * len(axes)
    cosem = _transform(document.get("transform"), axes, where)
    if cosem is not None:
        return cosem
    for source in (document, group):  # of the finest scale, x first
        stated = source.get("pixelResolution", source.get("resolution"))
        if stated is None:
            continue
        unit = stated.get("unit") if isinstance(stated, dict) else _common(source.get("units"))
        values = _numbers(stated.get("dimensions") if isinstance(stated, dict) else stated, None, "pixelResolution", where)
        factors = _factors(document, group, level, len(axes), where)
        if factors is None and (source is document or level == 0):
            factors = (1.0,) * len(axes)
        if not values or len(values) < len(axes) or factors is None:
            continue
        finest = _positive(values[: len(axes)][::-1], where)
        scale: Numbers = tuple(step * more for step, more in zip(finest, factors, strict=True))
        return scale, tuple((step - fine) / 2 for step, fine in zip(scale, finest, strict=True)), _unit(unit)
    return None, nowhere, None


def _transform(stated: Any, axes: str, where: str) -> tuple[Numbers, Numbers, str | None] | None:
    """The same from what COSEM writes of each scale, its axes named and x last; None if there is nothing of use."""
    names = stated.get("axes") if isinstance(stated, dict) else None
    if not isinstance(names, list) or not set(axes) <= set(map(str, names)):
        return None
    places = [names.index(axis) for axis in axes]
    scale = _numbers(stated.get("scale"), len(names), "transform.scale", where)
    moved = _numbers(stated.get("translate"), len(names), "transform.translate", where) or [0.0] * len(names)
    units = stated.get("units")
    units = [units[place] for place in places] if isinstance(units, list) and len(units) == len(names) else [None]
    if scale is None or len(set(map(str, units))) > 1:
        return None
    return _positive([scale[place] for place in places], where), tuple(moved[place] for place in places), _unit(units[0])


def _factors(document: Mapping[str, Any], group: Mapping[str, Any], level: int, count: int, where: str) -> Numbers | None:
    """How much coarser a scale is than the finest, x last; None if it is not stated."""
    stated = document.get("downsamplingFactors")
    every = group.get("downsamplingFactors", group.get("scales"))
    if stated is None and isinstance(every, list) and level < len(every):
        stated = every[level]
    values = _numbers(stated, None, "downsamplingFactors", where)
    return _positive(values[:count][::-1], where) if values and len(values) >= count else None


def _numbers(value: Any, count: int | None, name: str, where: str) -> list[float] | None:
    if value is None:
        return None
    known = isinstance(value, list) and all(type(entry) in (int, float) and math.isfinite(entry) for entry in value)
    if not known or (count is not None and len(value) != count):
        raise VolumeError(f"{name} of {where} is {str(value)[:60]}, it must be {count or 'a list of'} numbers; correct it.")
    return [float(entry) for entry in value]


def _positive(values: Sequence[float], where: str) -> Numbers:
    if not all(value > 0 for value in values):
        raise VolumeError(f"voxel size must be > 0: {str(list(values))[:60]} in {where}; correct it in {DOCUMENT}.")
    return tuple(values)


def _common(units: Any) -> Any:
    return units[0] if isinstance(units, list) and units and len(set(map(str, units))) == 1 else units


def _unit(unit: Any) -> str | None:
    return (unit_name(unit) or unit) if isinstance(unit, str) and unit else None

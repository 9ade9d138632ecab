"""Zarr nodes: which array a URL means, and what OME metadata (0.4, 0.5) says of it. Reads no voxel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from unet_core.errors import VolumeError
from unet_core.geometry import Shape
from unet_core.store import Store, open_store
from unet_core.volumes.protocol import Layout, Level, Selection, Volume, choose_channels, choose_time
from unet_core.volumes.zarr_array import ZarrVolume, canonical, metadata_hash, plain_axes
from unet_core.volumes.zarr_metadata import ArrayMetadata, array_metadata, read_document

VERSIONS = ("0.4", "0.5")
UNIT_UM = {
    "angstrom": 1e-4,
    "nanometer": 1e-3,
    "micrometer": 1.0,
    "millimeter": 1e3,
    "centimeter": 1e4,
    "meter": 1e6,
}
_MAX_LISTED = 12


@dataclass(frozen=True)
class _Node:
    """A group or array: its document, its attributes (those below ``ome`` in version 3), and the version of Zarr."""

    is_array: bool
    document: Mapping[str, Any]
    attributes: Mapping[str, Any]
    zarr_format: int


def open_node(url: str, selection: Selection) -> Volume:
    """Open the Zarr array or OME-Zarr image at ``url``.

    Raises:
        VolumeError: if there is none, or several; then with their URLs.
    """
    store = open_store(url)
    node = _read_node(store, "")
    if node is None:
        raise VolumeError(f"no zarr.json, .zarray or .zattrs under {url}.")
    if node.is_array:
        return _plain(store, node, url, selection)
    multiscales = node.attributes.get("multiscales")
    if multiscales is None:
        raise VolumeError(_what_else(store, node, url))
    return _image(store, node, multiscales, url, selection)


def _read_node(store: Store, path: str) -> _Node | None:
    folder = f"{path}/" if path else ""
    names = set(store.child_names(path))
    if "zarr.json" in names:
        document = read_document(store, f"{folder}zarr.json") or {}
        if document.get("zarr_format") != 3:
            raise VolumeError(
                f"unsupported zarr_format {repr(document.get('zarr_format'))[:60]}: {store.url}/{folder}zarr.json; 2 and 3 are read."
            )
        attributes = document.get("attributes") or {}
        if not isinstance(attributes, dict):
            raise VolumeError(f"attributes of {store.url}/{path} must be an object.")
        if document.get("node_type") == "array":
            return _Node(True, document, attributes, 3)
        ome = attributes.get("ome", {})
        return _Node(False, document, ome if isinstance(ome, dict) else {}, 3)
    attributes = read_document(store, f"{folder}.zattrs") or {} if ".zattrs" in names else {}
    if ".zarray" in names:
        return _Node(True, read_document(store, f"{folder}.zarray") or {}, attributes, 2)
    if ".zgroup" in names or ".zattrs" in names:
        return _Node(False, {"attributes": attributes}, attributes, 2)
    return None


def _what_else(store: Store, node: _Node, url: str) -> str:
    """Why a group is no image, with what lies in it."""
    base = url.rstrip("/")
    plate = node.attributes.get("plate")
    if isinstance(plate, dict):
        wells = [well.get("path") for well in plate.get("wells", []) if isinstance(well, dict)]
        return f"{url} is a plate of {len(wells)} wells; name one image, e.g. {_listed([f'{base}/{well}/0' for well in wells])}."
    well = node.attributes.get("well")
    if isinstance(well, dict):
        fields = [entry.get("path") for entry in well.get("images", []) if isinstance(entry, dict)]
        return f"{url} is a well of {len(fields)} images; name one: {_listed([f'{base}/{field}' for field in fields])}."
    labels = node.attributes.get("labels")
    if isinstance(labels, list):
        return f"{url} lists label images; name one: {_listed([f'{base}/{name}' for name in labels])}."
    images: list[str] = []
    arrays: list[str] = []
    for name in store.child_names():
        child = _read_node(store, name) if not name.startswith(".") and not name.endswith(".json") else None
        if child is not None:
            (arrays if child.is_array else images).append(f"{base}/{name}")
    if images or arrays:
        return f"no OME multiscales in {url}; it holds several images or arrays, name one: {_listed(images or arrays)}."
    return f"no OME multiscales and no array in {url}."


def _listed(urls: Sequence[str]) -> str:
    more = f" and {len(urls) - _MAX_LISTED} more" if len(urls) > _MAX_LISTED else ""
    return ", ".join(urls[:_MAX_LISTED]) + more


def _plain(store: Store, node: _Node, url: str, selection: Selection) -> Volume:
    metadata = array_metadata(node.document, node.attributes, url)
    if selection.level:
        raise VolumeError(f"level {selection.level} of {url} does not exist; it is a single array, level 0.")
    axes = plain_axes(metadata, url)
    return _volume(store, "", axes, url, selection, [metadata], [], None, {"metadata": metadata_hash(node.document)})


def _image(store: Store, node: _Node, multiscales: Any, url: str, selection: Selection) -> Volume:
    level, series = selection.level, selection.series
    if not isinstance(multiscales, list) or not multiscales or not all(isinstance(entry, dict) for entry in multiscales):
        raise VolumeError(f"multiscales of {url} must be a list of objects.")
    if len(multiscales) > 1 and series is None:
        names = "; ".join(f"--series {number}: {str(entry.get('name'))[:40]}" for number, entry in enumerate(multiscales))
        raise VolumeError(f"{url} holds {len(multiscales)} images: {names}; choose one.")
    if not 0 <= (series or 0) < len(multiscales):
        raise VolumeError(f"series {series} of {url} does not exist; it holds {len(multiscales)}.")
    multiscale = multiscales[series or 0]
    version = node.attributes.get("version") if node.zarr_format == 3 else multiscale.get("version", "0.4")
    if version not in VERSIONS:
        raise VolumeError(f'version "{str(version)[:20]}" of OME-Zarr in {url} is not read; {" and ".join(VERSIONS)} are.')
    axes, units = _axes(multiscale.get("axes"), url)
    datasets = multiscale.get("datasets")
    if not isinstance(datasets, list) or not datasets:
        raise VolumeError(f"datasets of {url} lists no level.")
    metadata, transforms = [], []
    for number, dataset in enumerate(datasets):
        path = dataset.get("path") if isinstance(dataset, dict) else None
        if not isinstance(path, str) or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise VolumeError(f"path leaves the group: level {number} of {url} is {str(path)[:60]!r}.")
        child = _read_node(store, path)
        if child is None or not child.is_array:
            raise VolumeError(f"level {number} '{path}' missing in {url}.")
        entry = array_metadata(child.document, child.attributes, f"{url.rstrip('/')}/{path}")
        if len(entry.shape) != len(axes):
            raise VolumeError(f"axes: {len(axes)} names, {len(entry.shape)} dims in {url}.")
        metadata.append(entry)
        transforms.append(_transform(dataset, multiscale, len(axes), url))
    if level >= len(datasets):
        raise VolumeError(f"level {level} of {url} does not exist; it has levels 0 to {len(datasets) - 1}.")
    hashes = {
        "metadata": metadata_hash(
            {"group": multiscale, "array": {"shape": metadata[level].shape, "key": metadata[level].key((0,) * len(axes))}}
        )
    }
    return _volume(store, datasets[level]["path"], axes, url, selection, metadata, transforms, units, hashes)


def _axes(value: Any, url: str) -> tuple[str, list[str | None]]:
    if not isinstance(value, list) or not all(isinstance(axis, dict) and isinstance(axis.get("name"), str) for axis in value):
        raise VolumeError(f"axes: missing or unnamed in {url}.")
    names = [axis["name"] for axis in value]
    joined = "".join(names)
    if len(set(names)) != len(names):
        raise VolumeError(f"axes: {', '.join(names)} in {url} names one twice.")
    if (
        any(len(name) != 1 for name in names)
        or joined not in ("".join(a for a in "tczyx" if a in joined),)
        or not joined.endswith("yx")
    ):
        raise VolumeError(f"axes: {', '.join(names)[:80]} in {url}; a subset of t c z y x in that order, ending in y x, is read.")
    return joined, [axis.get("unit") for axis in value]


def _transform(
    dataset: Mapping[str, Any], multiscale: Mapping[str, Any], count: int, url: str
) -> tuple[list[float], list[float]]:
    scale, translation = [1.0] * count, [0.0] * count
    for source in (dataset, multiscale):
        for step in source.get("coordinateTransformations") or []:
            kind = step.get("type") if isinstance(step, dict) else None
            values = step.get(kind) if kind in ("scale", "translation") else None
            if kind == "identity":
                continue
            if not isinstance(values, list) or len(values) != count or not all(isinstance(v, int | float) for v in values):
                raise VolumeError(
                    f"coordinateTransformations of {url} has {str(kind)[:30]!r} of {str(values)[:40]} for {count} axes."
                )
            if kind == "scale":
                if not all(math.isfinite(value) and value > 0 for value in values):
                    raise VolumeError(f"voxel size must be > 0: scale {values} in {url}.")
                scale = [a * b for a, b in zip(scale, values, strict=True)]
                translation = [a * b for a, b in zip(translation, values, strict=True)] if source is multiscale else translation
            else:
                translation = [a + b for a, b in zip(translation, values, strict=True)]
    return scale, translation


def _volume(
    store: Store,
    path: str,
    disk_axes: str,
    url: str,
    selection: Selection,
    every_level: Sequence[ArrayMetadata],
    transforms: Sequence[tuple[list[float], list[float]]],
    units: Sequence[str | None] | None,
    hashes: Mapping[str, str],
) -> Volume:
    level, metadata = selection.level, every_level[selection.level]
    time = choose_time(selection.time, metadata.shape[disk_axes.index("t")] if "t" in disk_axes else 1, url)
    axes = "".join(axis for axis in "czyx" if axis in disk_axes)
    spatial = axes.removeprefix("c")
    channels = choose_channels(selection.channels, metadata.shape[disk_axes.index("c")] if "c" in disk_axes else 1, url)

    def shape_of(entry: ArrayMetadata) -> Shape:
        return (len(channels),) * (len(axes) - len(spatial)) + canonical(disk_axes, entry.shape)[-len(spatial) :]

    def along(values: Sequence[float]) -> tuple[float, ...]:
        return tuple(float(values[disk_axes.index(axis)]) for axis in spatial)

    named = {units[disk_axes.index(axis)] for axis in spatial} if units else {None}
    unit = named.pop() if len(named) == 1 else None
    factor = UNIT_UM.get(unit or "")

    def size(number: int) -> tuple[float, ...] | None:
        return tuple(step * factor for step in along(transforms[number][0])) if transforms and factor else None

    layout = Layout(
        url=url,
        level=level,
        axes=axes,
        shape=shape_of(metadata),
        dtype=metadata.dtype,
        voxel_size=size(level),
        scale=along(transforms[level][0]) if transforms else (1.0,) * len(spatial),
        unit=unit,
        translation=along(transforms[level][1]) if transforms else (0.0,) * len(spatial),
        levels=tuple(Level(number, shape_of(entry), size(number)) for number, entry in enumerate(every_level)),
        chunk_shape=canonical(disk_axes, metadata.chunk_shape)[-len(spatial) :],
    )
    return ZarrVolume(store, path, metadata, disk_axes, layout, time, channels, selection.missing, hashes)

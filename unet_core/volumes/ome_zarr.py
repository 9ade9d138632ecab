"""Which array of a Zarr archive a URL means, and how the image it belongs to is laid out. Reads no voxel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from unet_core.errors import VolumeError
from unet_core.geometry import Shape
from unet_core.store import Store
from unet_core.volumes.ome_metadata import (
    Lengths,
    Numbers,
    Transform,
    channel_names,
    find_level,
    lengths,
    multiscale_of,
    transform_of,
)
from unet_core.volumes.plates import is_plate, why_no_image
from unet_core.volumes.protocol import Layout, Level, Selection, Volume, choose_channels, choose_time, name_channels
from unet_core.volumes.zarr_array import ZarrVolume, canonical, metadata_hash, plain_axes
from unet_core.volumes.zarr_codecs import REWRITE
from unet_core.volumes.zarr_metadata import ArrayMetadata, array_metadata
from unet_core.volumes.zarr_nodes import Node, groups_around, listed, locate, read_node, series_of, what_else


def open_node(url: str, selection: Selection) -> Volume:
    """Open the Zarr array or OME-Zarr image at ``url``.

    An array that is a level of an OME-Zarr image has the axes, lengths and time points that the image states.

    Raises:
        VolumeError: if there is none, or several; then with their URLs.
    """
    store, path = locate(url)
    node = read_node(store, path)
    if node is None:
        raise VolumeError(f"no zarr.json, .zarray or .zattrs under {url}; point to a folder that holds one.")
    if node.is_array:
        return _array(store, path, node, url, selection)
    if node.attributes.get("multiscales") is not None:
        return _image(store, path, node, url, url, selection)
    if is_plate(node):
        raise VolumeError(why_no_image(store, path, node, url))
    series = series_of(store, path, node, url)
    if series:
        return _one_of(store, path, series, url, selection)
    raise VolumeError(what_else(store, path, node, url))


def _array(store: Store, path: str, node: Node, url: str, selection: Selection) -> Volume:
    if selection.level:
        raise VolumeError(f"level {selection.level} of {url} does not exist; it is a single array, level 0.")
    for around, above, group, group_url, inside in groups_around(store, path, url):
        found = find_level(group, inside)
        if found is not None:
            series, level = found
            chosen = replace(selection, series=series, level=level)
            return _image(around, above, group, group_url, url, chosen, alone=True)
    metadata = array_metadata(node.document, node.attributes, url)
    axes = plain_axes(metadata, url)
    levels = [(metadata, Transform(None, (0.0,) * len(axes)))]
    return _volume(store, path, axes, url, selection, levels, Lengths(None, (), None), {"metadata": metadata_hash(node.document)})


def _one_of(store: Store, path: str, series: Sequence[str], url: str, selection: Selection) -> Volume:
    """One image of a file that bioformats2raw has converted, which may hold several."""
    number = selection.series
    names = [f"{url.rstrip('/')}/{entry.removeprefix(f'{path}/')}" for entry in series]
    if number is None and len(series) > 1:
        shown = listed([f"--series {index}: {name}" for index, name in enumerate(names)], "; ")
        raise VolumeError(f"{url} holds {len(series)} images, name one: {shown}.")
    if not 0 <= (number or 0) < len(series):
        raise VolumeError(f"series {number} of {url} does not exist; it has 0 to {len(series) - 1}.")
    image = series[number or 0]
    node = read_node(store, image)
    if node is None or node.attributes.get("multiscales") is None:
        raise VolumeError(f"series {number or 0} '{image}' missing in {url}, or no image; choose another, or copy it again.")
    return _image(store, image, node, names[number or 0], url, replace(selection, series=None))


def _image(store: Store, path: str, node: Node, image_url: str, url: str, selection: Selection, *, alone: bool = False) -> Volume:
    """Open a level of an image.

    Args:
        store: that holds it.
        path: of its group in there.
        node: the group.
        image_url: of the group, for messages.
        url: that the user gave.
        selection: what of it is meant.
        alone: whether the chosen level is to be the only one, since the URL names its array.
    """
    multiscale = multiscale_of(node, selection.series, image_url)
    axes, level = multiscale.axes, selection.level
    if level >= len(multiscale.paths):
        raise VolumeError(f"level {level} of {image_url} does not exist; it has levels 0 to {len(multiscale.paths) - 1}.")
    every = []
    for number, inside in enumerate(multiscale.paths):
        array = f"{path}/{inside}" if path else inside
        child = read_node(store, array)
        if child is None or not child.is_array:
            raise VolumeError(f"level {number} '{inside}' missing in {image_url}; copy it again, or {REWRITE}.")
        metadata = array_metadata(child.document, child.attributes, f"{image_url.rstrip('/')}/{inside}")
        if len(metadata.shape) != len(axes):
            raise VolumeError(f"axes: {len(axes)} names, {len(metadata.shape)} dims in {image_url}; correct the metadata.")
        every.append((metadata, transform_of(multiscale, number, image_url)))
    opened = every[level][0]
    stated = {"shape": opened.shape, "key": opened.key((0,) * len(axes))}
    hashes = {"metadata": metadata_hash({"group": multiscale.document, "array": stated})}
    array = f"{path}/{multiscale.paths[level]}" if path else multiscale.paths[level]
    places = [axes.index(axis) for axis in "zyx" if axis in axes]
    units = lengths(
        "".join(axes[place] for place in places),
        [multiscale.units[place] for place in places],
        [opened.shape[place] for place in places],
    )
    if alone:
        every, selection = [every[level]], replace(selection, level=0)
    return _volume(store, array, axes, url, selection, every, units, hashes, channel_names(node))


def _volume(
    store: Store,
    path: str,
    disk_axes: str,
    url: str,
    selection: Selection,
    every_level: Sequence[tuple[ArrayMetadata, Transform]],
    units: Lengths,
    hashes: Mapping[str, str],
    names: tuple[list[str | None], list[str | None]] = ([], []),
) -> Volume:
    metadata, transform = every_level[selection.level]
    time = choose_time(selection.time, metadata.shape[disk_axes.index("t")] if "t" in disk_axes else 1, url)
    axes = "".join(axis for axis in "czyx" if axis in disk_axes)
    spatial = axes.removeprefix("c")
    channels = choose_channels(selection.channels, metadata.shape[disk_axes.index("c")] if "c" in disk_axes else 1, url)

    def shape_of(entry: ArrayMetadata) -> Shape:
        return (len(channels),) * (len(axes) - len(spatial)) + canonical(disk_axes, entry.shape)[-len(spatial) :]

    def along(values: Numbers, factors: Numbers) -> Numbers:
        return tuple(values[disk_axes.index(axis)] * factor for axis, factor in zip(spatial, factors, strict=True))

    def voxel_size(entry: Transform) -> Numbers | None:
        return along(entry.scale, units.to_um) if entry.scale and units.to_um else None

    layout = Layout(
        url=url,
        level=selection.level,
        axes=axes,
        shape=shape_of(metadata),
        dtype=metadata.dtype,
        voxel_size=voxel_size(transform),
        scale=along(transform.scale, units.factors) if transform.scale else (1.0,) * len(spatial),
        unit=units.unit if transform.scale else None,
        translation=along(transform.translation, units.factors) if transform.scale else (0.0,) * len(spatial),
        levels=tuple(Level(number, shape_of(entry), voxel_size(place)) for number, (entry, place) in enumerate(every_level)),
        chunk_shape=canonical(disk_axes, metadata.chunk_shape)[-len(spatial) :],
        channels=name_channels(*names, channels) if "c" in disk_axes else (),
    )
    return ZarrVolume(store, path, metadata, disk_axes, layout, time, channels, selection.missing, hashes)

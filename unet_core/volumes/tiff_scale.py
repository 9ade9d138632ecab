"""Voxel size of a TIFF in micrometre and names of its channels, from where programs write them; None where none does. Reads no voxel."""

from __future__ import annotations

import math
import re
from typing import Any
from xml.etree import ElementTree

from unet_core.errors import VolumeError
from unet_core.volumes.units import UNIT_UM, unit_name

_PRINT_UM = 25.4  # 1000 dots an inch; larger steps tell how to print, not how the image was taken


def voxel_size_of(file: Any, number: int, spatial_axes: str, url: str) -> tuple[float, ...] | None:
    """Voxel size of the finest level of series ``number`` along ``spatial_axes`` in micrometre; None where it is not stated.

    A size that is not above zero is as good as none. So is the missing one of a z axis of a single section.

    Raises:
        VolumeError: if the OME-XML is damaged or declares entities.
    """
    series = file.series[number]
    if file.is_svs and series.name != "Baseline":
        sizes = {}  # thumbnail, label and overview of the slide have other voxels
    elif file.is_svs:
        found = re.search(r"MPP\s*=\s*([0-9]*[.,]?[0-9]+)", series.keyframe.description or "")
        sizes = dict.fromkeys("yx", float(found[1].replace(",", "."))) if found else {}
    elif file.is_ome:
        sizes = _from_ome(file, number, url)
    elif file.is_imagej:
        sizes = _from_imagej(file.imagej_metadata or {}, series.keyframe)
    else:
        sizes = _from_tags(series.keyframe)
    sizes = {axis: size for axis, size in sizes.items() if math.isfinite(size) and size > 0}
    if dict(zip(series.axes, series.shape, strict=True)).get("Z") == 1 and "x" in sizes:
        sizes.setdefault("z", sizes["x"])
    return tuple(sizes[axis] for axis in spatial_axes) if set(spatial_axes) <= set(sizes) else None


def channel_names(file: Any, number: int, url: str) -> tuple[list[str | None], list[str | None]]:
    """Names and colours of the channels of series ``number`` of an OME-TIFF, as its XML has them.

    Raises:
        VolumeError: as ``voxel_size_of``.
    """
    pixels = _ome_pixels(file, number, url)
    channels = [entry for entry in pixels if entry.tag.rpartition("}")[2] == "Channel"] if pixels is not None else []
    return [entry.get("Name") for entry in channels], [_ome_color(entry.get("Color")) for entry in channels]


def _ome_color(text: str | None) -> str | None:
    """Red, green and blue of a signed 32-bit RGBA."""
    if text is None or not re.fullmatch("-?[0-9]{1,10}", text):
        return None
    return f"{int(text) & 0xFFFFFFFF:08X}"[:6]


def _from_ome(file: Any, number: int, url: str) -> dict[str, float]:
    pixels = _ome_pixels(file, number, url)
    if pixels is None:
        return {}
    sizes = {}
    for axis in "xyz":
        value = pixels.get(f"PhysicalSize{axis.upper()}", "")
        unit = unit_name(pixels.get(f"PhysicalSize{axis.upper()}Unit", "um"))
        if unit is not None and re.fullmatch(r"[0-9.eE+-]+", value):
            sizes[axis] = float(value) * UNIT_UM[unit]
    return sizes


def _ome_pixels(file: Any, number: int, url: str) -> ElementTree.Element | None:
    """What the XML says of series ``number``, if it can be told which it means."""
    xml = file.ome_metadata or ""
    if "<!DOCTYPE" in xml or "<!ENTITY" in xml:
        raise VolumeError(f"DTD not allowed: the OME-XML of {url} declares entities.")
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        raise VolumeError(f"OME-XML of {url} is not valid: {error}.") from None
    images = [(image, pixels) for image in root.iter() for pixels in image if pixels.tag.rpartition("}")[2] == "Pixels"]
    if len(images) != len(file.series):
        # Images whose file is absent have no series, so that numbers do not correspond; names may.
        images = [entry for entry in images if entry[0].get("Name", "") == file.series[number].name]
        number = 0 if len(images) == 1 else len(images)
    return images[number][1] if number < len(images) else None


def _from_imagej(metadata: dict[str, Any], keyframe: Any) -> dict[str, float]:
    unit = unit_name(str(metadata.get("unit", "")))
    if unit is None:
        return {}
    sizes = {axis: UNIT_UM[unit] / density for axis, density in _densities(keyframe).items()}
    if "spacing" in metadata:
        sizes["z"] = float(metadata["spacing"]) * UNIT_UM[unit]
    return sizes


def _from_tags(keyframe: Any) -> dict[str, float]:
    unit = keyframe.tags.get("ResolutionUnit")
    kind = int(unit.value) if unit is not None else 2
    densities = _densities(keyframe)
    length = {2: UNIT_UM["inch"], 3: UNIT_UM["centimeter"]}.get(kind)
    sizes = {axis: length / density for axis, density in densities.items()} if length else {}
    return sizes if max(sizes.values(), default=0.0) <= _PRINT_UM else {}


def _densities(keyframe: Any) -> dict[str, float]:
    """Voxels a unit along y and x."""
    found = {}
    for axis, name in (("y", "YResolution"), ("x", "XResolution")):
        tag = keyframe.tags.get(name)
        if tag is not None:
            above, below = tag.value
            if above and below:
                found[axis] = above / below
    return found

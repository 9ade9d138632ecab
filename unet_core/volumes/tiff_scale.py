"""Voxel size of a TIFF in micrometre, from the places where programs write it; None where none does. Reads no voxel."""

from __future__ import annotations

import math
import re
from typing import Any
from xml.etree import ElementTree

from unet_core.errors import VolumeError

_OME_UNIT_UM = {"nm": 1e-3, "µm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6, "Å": 1e-4, "pm": 1e-6}
_IMAGEJ_UNIT_UM = {"um": 1.0, "micron": 1.0, "microns": 1.0, "µm": 1.0, "\\u00b5m": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4}
_INCH_UM, _CENTIMETRE_UM = 25_400.0, 10_000.0
_SCREEN_LIMIT = 1000  # dots an inch; below it the tag tells how to print, not how the image was taken


def voxel_size_of(file: Any, number: int, spatial_axes: str, url: str) -> tuple[float, ...] | None:
    """Voxel size of the finest level of series ``number`` along ``spatial_axes`` in micrometre.

    Raises:
        VolumeError: if the file states one that is not above zero, or its XML declares entities.
    """
    series = file.series[number]
    if file.is_svs:
        found = re.search(r"MPP\s*=\s*([0-9.eE+-]+)", series.keyframe.description or "")
        sizes = {"y": float(found[1]), "x": float(found[1])} if found else {}
    elif file.is_ome:
        sizes = _from_ome(file.ome_metadata or "", number, url)
    elif file.is_imagej:
        sizes = _from_imagej(file.imagej_metadata or {}, series.keyframe)
    else:
        sizes = _from_tags(series.keyframe)
    if any(axis not in sizes for axis in spatial_axes):
        return None
    chosen = tuple(sizes[axis] for axis in spatial_axes)
    if any(not math.isfinite(size) or size <= 0 for size in chosen):
        raise VolumeError(f"voxel size must be > 0: {url} states {chosen}.")
    return chosen


def _from_ome(xml: str, index: int, url: str) -> dict[str, float]:
    if "<!DOCTYPE" in xml or "<!ENTITY" in xml:
        raise VolumeError(f"DTD not allowed: the OME-XML of {url} declares entities.")
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        raise VolumeError(f"OME-XML of {url} is not valid: {error}.") from None
    pixels = [element for element in root.iter() if element.tag.endswith("}Pixels") or element.tag == "Pixels"]
    if index >= len(pixels):
        return {}
    sizes = {}
    for axis in "xyz":
        value = pixels[index].get(f"PhysicalSize{axis.upper()}")
        unit = _OME_UNIT_UM.get(pixels[index].get(f"PhysicalSize{axis.upper()}Unit", "µm"))
        if value is not None and unit is not None:
            sizes[axis] = float(value) * unit
    return sizes


def _from_imagej(metadata: dict[str, Any], keyframe: Any) -> dict[str, float]:
    unit = _IMAGEJ_UNIT_UM.get(str(metadata.get("unit", "")))
    if unit is None:
        return {}
    sizes = {axis: unit / density for axis, density in _densities(keyframe).items()}
    if "spacing" in metadata:
        sizes["z"] = float(metadata["spacing"]) * unit
    return sizes


def _from_tags(keyframe: Any) -> dict[str, float]:
    unit = keyframe.tags.get("ResolutionUnit")
    kind = int(unit.value) if unit is not None else 2
    densities = _densities(keyframe)
    if kind == 3:
        return {axis: _CENTIMETRE_UM / density for axis, density in densities.items()}
    if kind == 2 and densities and min(densities.values()) >= _SCREEN_LIMIT:
        return {axis: _INCH_UM / density for axis, density in densities.items()}
    return {}


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

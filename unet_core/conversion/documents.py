"""The metadata of a converted image's root, and of its arrays. Knows the plan, reads no voxel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from unet_core import shards
from unet_core.conversion.plan import ConversionPlan
from unet_core.ome_documents import group_documents, level_transforms, multiscale
from unet_core.store import redacted

_COLORS = ("FFFFFF", "00FF00", "FF00FF", "00FFFF", "FFFF00", "FF0000", "0000FF")  # of channels whose source has none


def array_documents(plan: ConversionPlan) -> dict[str, bytes]:
    """Metadata objects of the arrays of all levels, by their key."""
    return {
        f"{level}/{key}": data for level in range(len(plan.levels)) for key, data in shards.metadata(plan.layout(level)).items()
    }


def root_keys(plan: ConversionPlan) -> list[str]:
    return [*group_documents(plan.ngff, "", {})]


def root_documents(plan: ConversionPlan, target: str, value_range: Callable[[int], tuple[float, float]]) -> dict[str, bytes]:
    """Metadata objects of the root group, by their key; with them it is an image.

    Args:
        value_range: smallest and largest value of a channel, asked for where the type of the voxels does not give a range to display.
    """
    transforms = level_transforms(plan.scale, plan.translation, [level.factor for level in plan.levels])
    name = redacted(target).rstrip("/").rpartition("/")[2].removesuffix(".zarr").removesuffix(".ome") or "image"
    entry = multiscale(plan.ngff, name, plan.spatial_axes, plan.channel_count is not None, plan.unit, transforms, plan.method)
    attributes: dict[str, Any] = {"multiscales": [entry]}
    if plan.method == "mean":
        attributes["omero"] = {"channels": _channels(plan, name, value_range)}
    elif np.dtype(plan.input.dtype).kind != "b":
        attributes["image-label"] = {"version": plan.ngff} if plan.ngff == "0.4" else {}
    return group_documents(plan.ngff, "", attributes)


def _channels(plan: ConversionPlan, name: str, value_range: Callable[[int], tuple[float, float]]) -> list[dict[str, Any]]:
    count = plan.channel_count or 1
    entries = []
    for number in range(count):
        known = plan.channels[number] if plan.channels else None
        label = known.name if known else f"channel {number}" if count > 1 else name
        color = known.color if known and known.color else _COLORS[number % len(_COLORS)]
        window = _window(plan, value_range, number)
        entries.append({"label": label, "color": color, "window": window, "active": True})
    return entries


def _window(plan: ConversionPlan, value_range: Callable[[int], tuple[float, float]], number: int) -> dict[str, float]:
    dtype = np.dtype(plan.input.dtype)
    if dtype == np.uint8:
        return {"min": 0.0, "max": 255.0, "start": 0.0, "end": 255.0}
    low, high = value_range(number)
    bounds = (low, high) if dtype.kind == "f" else (float(np.iinfo(dtype).min), float(np.iinfo(dtype).max))
    return {"min": bounds[0], "max": bounds[1], "start": low, "end": high}

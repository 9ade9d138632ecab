"""Documents of OME-Zarr (0.4, 0.5) as they are written: groups, multiscales. Knows no plan and no storage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from unet_core.geometry import Shape

Ngff = Literal["0.5", "0.4"]
Numbers = tuple[float, ...]


def group_documents(ngff: Ngff, path: str, attributes: dict[str, Any]) -> dict[str, bytes]:
    """The metadata objects of a group by their key; ``path`` is "" for the root."""
    folder = f"{path}/" if path else ""
    if ngff == "0.5":
        node = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": {"version": "0.5", **attributes}}}
        return {f"{folder}zarr.json": json.dumps(node, indent=1).encode()}
    return {f"{folder}.zgroup": b'{"zarr_format": 2}', f"{folder}.zattrs": json.dumps(attributes, indent=1).encode()}


def multiscale(
    ngff: Ngff,
    name: str,
    spatial_axes: str,
    has_channels: bool,
    unit: str | None,
    transforms: Sequence[tuple[Numbers, Numbers]],
    method: str,
) -> dict[str, Any]:
    """One entry of ``multiscales``, whose levels lie in folders 0, 1, ..

    Args:
        transforms: scale and translation of each level along ``spatial_axes``, in ``unit``; the finest first.
        method: that made the coarser levels, in a word.
    """
    channel = [{"name": "c", "type": "channel"}] if has_channels else []
    space = [{"name": axis, "type": "space"} | ({"unit": unit} if unit else {}) for axis in spatial_axes]
    datasets = [
        {
            "path": str(level),
            "coordinateTransformations": [
                {"type": "scale", "scale": [*(1.0 for _ in channel), *scale]},
                {"type": "translation", "translation": [*(0.0 for _ in channel), *translation]},
            ],
        }
        for level, (scale, translation) in enumerate(transforms)
    ]
    version = {"version": ngff} if ngff == "0.4" else {}
    return {"name": name, **version, "axes": [*channel, *space], "datasets": datasets, "type": method}


def level_transforms(scale: Numbers, translation: Numbers, factors: Sequence[Shape]) -> list[tuple[Numbers, Numbers]]:
    """Scale and translation of each level; the centre of a coarse voxel lies in the middle of those it stands for.

    Args:
        scale: of the finest level.
        translation: of its first voxel's centre.
        factors: of each level, how much coarser it is than the one before; ones for the finest.
    """
    result = []
    for factor in factors:
        translation = tuple(origin + (more - 1) / 2 * step for origin, more, step in zip(translation, factor, scale, strict=True))
        scale = tuple(step * more for step, more in zip(scale, factor, strict=True))
        result.append((scale, translation))
    return result

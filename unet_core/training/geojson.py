"""Outlines drawn in QuPath (GeoJSON), painted into any box of an image.

A voxel belongs to a polygon when its centre does, by the even-odd rule over the polygon's rings. Which voxels those are is computed
from absolute positions alone, so that it does not depend on the box. Knows no classes and no images.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import InputError
from unet_core.geometry import Box
from unet_core.training.files import file_hash, read_file
from unet_core.wording import counted

_MAX_BYTES = 4 << 30


@dataclass(frozen=True)
class Outlines:
    """Polygons of one file, in the order in which they were drawn.

    Args:
        edges: of each: (n, 4) with x0, y0, x1, y1 in voxels of the level; the first voxel's centre is (0.5, 0.5).
        names: of the classification of each; None without one.
        own_names: that each was given by itself; None without one.
        sections: z of each.
        bounds: (features, 4): smallest y and x, largest y and x.
        url: for messages.
    """

    edges: tuple[NDArray[np.float64], ...]
    names: tuple[str | None, ...]
    own_names: tuple[str | None, ...]
    sections: NDArray[np.int64]
    bounds: NDArray[np.float64]
    url: str

    @property
    def byte_count(self) -> int:
        return sum(entry.nbytes for entry in self.edges) + self.bounds.nbytes


def read_outlines(url: str, scale: tuple[float, float], offset: Sequence[float] = (0.0, 0.0)) -> Outlines:
    """Polygons of a GeoJSON file: a FeatureCollection, a list of features, or one feature.

    Args:
        url: of the file; positions in it are pixels of level 0, the corner of the first one at (0, 0), as QuPath writes them.
        scale: voxels of the level for one pixel of level 0, along y and x.
        offset: pixels of level 0 before the corner of the level's first voxel, likewise.

    Raises:
        InputError: naming the feature, for a file that is no such thing, or shapes that have no inside.
    """
    features = _features(url)
    edges, names, own_names, sections = [], [], [], []
    for number, feature in enumerate(features):
        where = f"{url}: feature {number}"
        geometry = feature.get("geometry") if isinstance(feature, dict) else None
        if not isinstance(geometry, dict):
            raise InputError(f"{where} has no geometry; export annotations as GeoJSON features.")
        edges.append(_edges(geometry, where, scale, offset))
        names.append(_classification(feature))
        own_names.append(_own_name(feature))
        plane = geometry.get("plane")
        sections.append(int(plane.get("z", 0)) if isinstance(plane, dict) else 0)
    bounds = [(e[:, 1::2].min(), e[:, ::2].min(), e[:, 1::2].max(), e[:, ::2].max()) for e in edges]
    return Outlines(
        tuple(edges),
        tuple(names),
        tuple(own_names),
        np.array(sections, np.int64),
        np.array(bounds, np.float64).reshape(-1, 4),
        url,
    )


def outlines_hash(url: str) -> str:
    """The sha256 of a GeoJSON file."""
    return file_hash(url, _MAX_BYTES, "file of outlines")


def paint(
    outlines: Outlines, values: NDArray[np.int64], box: Box, background: int, chosen: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """Values of the polygons in a box; later ones lie on top of earlier ones.

    Args:
        outlines: to paint.
        values: one a polygon.
        box: (y, x) or (z, y, x); polygons of other sections do not show.
        background: what no polygon covers.
        chosen: which polygons to paint, all unless told.

    Returns:
        Array of the box's shape.
    """
    out = np.full(box.shape, background, dtype=np.int64)
    (top, left), (bottom, right) = box.start[-2:], box.stop[-2:]
    bounds = outlines.bounds
    meets = (bounds[:, 0] < bottom) & (bounds[:, 2] > top) & (bounds[:, 1] < right) & (bounds[:, 3] > left)
    if chosen is not None:
        meets &= chosen
    if box.ndim == 3:
        meets &= (outlines.sections >= box.start[0]) & (outlines.sections < box.stop[0])
    for number in np.flatnonzero(meets):
        area = Box(box.start[-2:], box.stop[-2:]).intersect(_around(bounds[number]))
        if area.is_empty:
            continue
        plane = out[int(outlines.sections[number]) - box.start[0]] if box.ndim == 3 else out
        part = plane[area.shift((-top, -left)).slices()]
        part[inside(outlines.edges[number], area)] = values[number]
    return out


def inside(edges: NDArray[np.float64], box: Box) -> NDArray[np.bool_]:
    """Which voxels of a (y, x) box have their centre inside a polygon.

    Each edge crosses the line of centres of some rows; every voxel at or right of the crossing changes sides.

    Args:
        edges: (n, 4) with x0, y0, x1, y1 of all rings.
        box: in voxels.
    """
    height, width = box.shape
    x0, y0, x1, y1 = edges.T
    low, high = np.minimum(y0, y1), np.maximum(y0, y1)
    # Rows whose centre lies in low <= y < high; so a corner between two edges counts once.
    first = np.clip(np.ceil(low - 0.5), box.start[0], box.stop[0]).astype(np.int64)
    last = np.clip(np.ceil(high - 0.5), box.start[0], box.stop[0]).astype(np.int64)
    counts = last - first
    edge = np.repeat(np.arange(len(edges)), counts)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    crossing = x0[edge] + (row + 0.5 - y0[edge]) * ((x1 - x0)[edge] / (y1 - y0)[edge])
    column = np.clip(np.ceil(crossing - 0.5), box.start[1], box.stop[1]).astype(np.int64) - box.start[1]
    toggles = np.bincount((row - box.start[0]) * (width + 1) + column, minlength=height * (width + 1)).reshape(height, width + 1)
    result: NDArray[np.bool_] = np.cumsum(toggles[:, :-1], axis=1) % 2 == 1
    return result


def _around(bounds: NDArray[np.float64]) -> Box:
    """Voxels whose centres may lie inside."""
    top, left, bottom, right = bounds
    return Box((int(np.floor(top)), int(np.floor(left))), (int(np.ceil(bottom)) + 1, int(np.ceil(right)) + 1))


def _features(url: str) -> list[Any]:
    try:
        content = json.loads(read_file(url, _MAX_BYTES, "file of outlines"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{url} is not readable GeoJSON: {error}.") from None
    kind = content.get("type") if isinstance(content, dict) else None
    if kind == "FeatureCollection" and isinstance(content.get("features"), list):
        return list(content["features"])
    if kind == "Feature":
        return [content]
    if isinstance(content, list):
        return content
    raise InputError(f"{url} is no GeoJSON FeatureCollection (type {kind!r}); export the annotations from QuPath as GeoJSON.")


def _edges(geometry: dict[str, Any], where: str, scale: tuple[float, float], offset: Sequence[float]) -> NDArray[np.float64]:
    kind, coordinates = geometry.get("type"), geometry.get("coordinates")
    if kind not in ("Polygon", "MultiPolygon"):
        raise InputError(f"{where} is a {kind}; only Polygon and MultiPolygon have an inside. Delete it, or draw it as an area.")
    try:
        parts = []
        for ring in _rings(coordinates if kind == "MultiPolygon" else [coordinates]):
            points = (np.array(ring, dtype=np.float64)[:, :2] - (offset[1], offset[0])) * (scale[1], scale[0])
            if points.shape[1] != 2 or len(points) < 3 or not np.isfinite(points).all():
                raise ValueError(f"a ring of {counted(len(points), 'point')}")
            edges = np.empty((len(points), 4))
            edges[:, :2] = points
            edges[:-1, 2:], edges[-1, 2:] = points[1:], points[0]
            parts.append(edges)
        return np.concatenate(parts)
    except (TypeError, ValueError, IndexError) as error:
        raise InputError(
            f"{where} has outlines that cannot be read ({error}); rings have at least three points of finite numbers."
        ) from None


def _rings(polygons: Any) -> Iterator[Any]:
    for polygon in polygons:
        yield from polygon


def _own_name(feature: dict[str, Any]) -> str | None:
    properties = feature.get("properties")
    name = properties.get("name") if isinstance(properties, dict) else None
    return str(name) if name else None


def _classification(feature: dict[str, Any]) -> str | None:
    properties = feature.get("properties")
    found = properties.get("classification") if isinstance(properties, dict) else None
    name = found.get("name") if isinstance(found, dict) else found
    return str(name) if name else None

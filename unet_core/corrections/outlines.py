"""Labels as outlines that QuPath reads (GeoJSON): polygons which, painted again, give the same labels. Knows no files.

Outlines pass half-way between the centres of voxels inside and outside (marching squares), and a voxel belongs to a polygon when its
centre does, so that nothing is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.measure import find_contours, label, regionprops


def outlines_of(
    labels: NDArray[np.integer], names: Mapping[int, tuple[str, str]], as_ids: bool, section: int | None
) -> list[Any]:
    """Features of one section: an annotation for each connected piece of a class, or for each id.

    Args:
        labels: (Y, X), class values or ids; what is not named is not drawn. Of ids, 1 names all.
        names: name and colour (``#rrggbb``, or empty) by value.
        as_ids: whether labels are ids, each one annotation of its pieces.
        section: z of the section in its stack; None for an image of one.
    """
    features = []
    for value in np.unique(labels):
        known = names.get(1 if as_ids and value else int(value))
        if known is None or value == 0:
            continue
        pieces = [_polygon(piece) for piece in regionprops(label(labels == value, connectivity=1))]
        for polygons in [pieces] if as_ids else [[piece] for piece in pieces]:
            features.append(_feature(polygons, *known, section))
    return features


def _polygon(piece: Any) -> list[list[list[float]]]:
    """Rings of one piece of face neighbours, (x, y), each closed; the outer one first."""
    top, left = piece.bbox[:2]
    rings = find_contours(np.pad(piece.image, 1).astype(np.float32), 0.5, fully_connected="low")
    rings.sort(key=lambda ring: -float(np.ptp(ring[:, 0]) * np.ptp(ring[:, 1])))
    # The first voxel of the padded piece is (top - 1, left - 1), and its centre lies half a voxel further.
    return [[[float(x + left - 0.5), float(y + top - 0.5)] for y, x in _corners(ring)] for ring in rings]


def _corners(ring: NDArray[np.floating]) -> NDArray[np.floating]:
    """A closed ring without the points that lie between two others on a line: fewer handles to drag."""
    steps = np.diff(ring, axis=0)
    turns = np.any(steps != np.roll(steps, 1, axis=0), axis=1)
    kept = ring[:-1][turns]
    return np.concatenate([kept, kept[:1]])


def _feature(polygons: list[Any], name: str, color: str, section: int | None) -> dict[str, Any]:
    kind = "Polygon" if len(polygons) == 1 else "MultiPolygon"
    geometry: dict[str, Any] = {"type": kind, "coordinates": polygons[0] if kind == "Polygon" else polygons}
    if section is not None:
        geometry["plane"] = {"c": -1, "z": section, "t": 0}
    classification: dict[str, Any] = {"name": name}
    if color:
        classification["color"] = [*bytes.fromhex(color[1:])]
    return {
        "type": "Feature",
        "geometry": geometry,
        "properties": {"objectType": "annotation", "classification": classification},
    }

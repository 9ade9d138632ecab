"""A mask as outlines: polygons in GeoJSON, as QuPath exports its annotations. Knows no image format."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import shapely
import shapely.errors

from unet_core.errors import VolumeError
from unet_core.geometry import Box, Shape
from unet_core.store import is_remote, local_path, open_store, redacted, storage_errors

SUFFIXES = (".geojson", ".json")
BEYOND = 0.01  # of the image's side, by which outlines may pass its end
_LINE = 1e-3  # voxels: a box and a polygon that share a line share no voxel
_IGNORED = "ignore"  # QuPath's class of regions that are no foreground


class Outlines:
    """Foreground inside polygons.

    Args:
        source: URL, for messages and records.
        data: bytes of the GeoJSON: a feature collection, a feature, or a list of features; (x, y) in voxels of the finest level.
        shape: of the image that is segmented, (y, x).
        finest: of its finest level.

    Raises:
        VolumeError: if it is not GeoJSON, holds anything but polygons, or passes the end of the image.
    """

    kind = "outlines"

    def __init__(self, source: str, data: bytes, shape: Shape, finest: Shape) -> None:
        self.source = source
        self.sha256 = hashlib.sha256(data).hexdigest()
        self._to_finest = tuple(fine / size for fine, size in zip(finest, shape, strict=True))
        self.scale = tuple(1 / step for step in self._to_finest)
        polygons, ignored = [], 0
        for feature in _features(data, source):
            if _class_name(feature).lower().startswith(_IGNORED):
                ignored += 1
            else:
                polygons.append(_polygon(feature, source))
        _check_extent(polygons, finest, source)
        self.facts: dict[str, Any] = {"polygons": len(polygons)} | ({"ignored": ignored} if ignored else {})
        self._tree = shapely.STRtree(polygons)

    def touches(self, box: Box) -> bool:
        (top, left), (bottom, right) = (
            tuple(place * step for place, step in zip(corner, self._to_finest, strict=True)) for corner in (box.start, box.stop)
        )
        inside = shapely.box(left + _LINE, top + _LINE, right - _LINE, bottom - _LINE)
        return bool(len(self._tree.query(inside, predicate="intersects")))


def is_outlines(url: str) -> bool:
    """Whether a mask is GeoJSON, by its name."""
    return url.lower().endswith(SUFFIXES)


def read_outlines(url: str, shape: Shape, finest: Shape) -> Outlines:
    """Outlines at a URL, on an image of ``shape`` whose finest level has the shape ``finest``.

    Raises:
        VolumeError: as ``Outlines``, or if there is nothing at ``url``, or the image is no plane.
    """
    if len(shape) != 2:
        raise VolumeError(f"Outlines {url} lie in a plane, the image has {shape} voxels; give a mask image with as many axes.")
    try:
        data = _bytes(url)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise VolumeError(f"Mask not found: {redacted(url)}; check the path.") from None
    return Outlines(url, data, shape, finest)


def _bytes(url: str) -> bytes:
    if is_remote(url):
        folder, _, name = url.rpartition("/")
        return open_store(folder).get(name)
    with storage_errors(url):
        return local_path(url).read_bytes()


def _features(data: bytes, source: str) -> list[dict[str, Any]]:
    try:
        read = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise VolumeError(f"Mask {source} is no GeoJSON ({str(error)[:100]}); export the annotations again.") from None
    found = read.get("features", [read]) if isinstance(read, dict) else read
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise VolumeError(f"Mask {source} holds no list of features; export the annotations as GeoJSON.")
    return found


def _class_name(feature: dict[str, Any]) -> str:
    properties = feature.get("properties")
    classification = properties.get("classification") if isinstance(properties, dict) else None
    name = classification.get("name") if isinstance(classification, dict) else classification
    return name if isinstance(name, str) else ""


def _polygon(feature: dict[str, Any], source: str) -> Any:
    geometry = feature.get("geometry")
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind not in ("Polygon", "MultiPolygon"):
        raise VolumeError(
            f"Mask {source} holds a feature of type {str(kind)[:40]}; only polygons enclose foreground: remove the others."
        )
    try:
        polygon = shapely.from_geojson(json.dumps(geometry))
        return polygon if polygon.is_valid else shapely.make_valid(polygon)
    except (shapely.errors.ShapelyError, ValueError) as error:
        raise VolumeError(f"Mask {source} holds a {kind} that cannot be read ({str(error)[:100]}); draw it again.") from None


def _check_extent(polygons: list[Any], finest: Shape, source: str) -> None:
    filled = [polygon.bounds for polygon in polygons if not polygon.is_empty]
    for bounds in filled:
        for first, last, size, axis in zip(bounds[:2], bounds[2:], finest[::-1], "xy", strict=True):
            if first < -BEYOND * size or last > (1 + BEYOND) * size:
                raise VolumeError(
                    f"Mask {source} reaches from {first:.0f} to {last:.0f} along {axis}, the image has {size} voxels there (at its finest "
                    "level); give outlines that were drawn on this image."
                )

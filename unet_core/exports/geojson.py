"""Objects and regions of an output as GeoJSON for QuPath: outlines along voxel edges, in pixels of level 0 of the image.

    objects    of the instances: each one feature (in 3D one for each section), with its measurements
    regions    of a label image: each set of voxels of one class that are connected by edges

Format: RFC 7946, with what QuPath 0.4 and later add: ``id`` a UUID, ``objectType``, ``classification`` with name and colour,
``measurements`` by name, and the ``plane`` of a geometry. QuPath opens .geojson, and .zip with one inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from unet_core import ledger
from unet_core.errors import JobError
from unet_core.exports.compressed import open_compressed
from unet_core.exports.features import Polygons, object_outlines, region_outlines
from unet_core.exports.naming import Objects, classes_of, objects_of
from unet_core.exports.outlines import Ring
from unet_core.exports.placing import Placing, place
from unet_core.exports.tiles import extents_of, walk
from unet_core.plan import ImagePlan, LabelName
from unet_core.result import Result
from unet_core.store import open_store

if TYPE_CHECKING:
    from unet_core.exports.exporting import Options


def write_geojson(result: Result, image: ImagePlan, path: Path, name: str, options: Options) -> dict[str, Any]:
    """Write the outlines of the instances, or of the regions of a label image.

    Args:
        result: complete.
        image: the instances, or another label image.
        path: of the new file.
        name: that it will have; one in ``.gz`` or ``.zip`` is compressed.
        options: all are heeded.

    Returns:
        How many features were written, and the names of their measurements.
    """
    request = ledger.read_request(open_store(result.url))
    plan = result.plan
    label_image = None if image.kind == "instances" else plan.all_images.index(image)
    encoder = _Encoder(plan.id, place(plan, request, options.image), label_image)
    measured: tuple[str, ...] = ()
    if image.kind == "instances":
        if options.min_voxels > 1:
            raise JobError(
                "--min-voxels is for regions; objects were chosen when they were made: segment with another --min-voxels."
            )
        objects = objects_of(result, options.measurements)
        measured = tuple(objects.measurements)
        features = _objects(result, image, encoder, objects, options.object_type or "detection")
    else:
        features = _regions(result, image, encoder, options)
    count = 0
    with open_compressed(path, name) as write:
        write(b'{"type":"FeatureCollection","features":[')
        for feature in features:
            write(b",\n" if count else b"\n")
            write(feature)
            count += 1
        write(b"\n]}\n")
    return {"features": count, "measurements": measured}


def _objects(result: Result, image: ImagePlan, encoder: _Encoder, objects: Objects, object_type: str) -> Iterator[bytes]:
    walked = walk(result.volume(image.path))
    tail = {value: _tail(entry, object_type) for value, entry in classes_of(result, image).items()}
    extents = objects.extents or extents_of(walked)
    rows = np.searchsorted(objects.label, extents.label).tolist()
    measured = _rows(objects)
    for z, number, polygons in object_outlines(walked, extents):
        row, label = rows[number], int(extents.label[number])
        yield encoder.feature(z, label, polygons, label, tail[int(objects.class_value[row])], measured(row))


def _regions(result: Result, image: ImagePlan, encoder: _Encoder, options: Options) -> Iterator[bytes]:
    plan = result.plan
    tail = {value: _tail(entry, options.object_type or "annotation") for value, entry in classes_of(result, image).items()}
    size = plan.scale[-2] * plan.scale[-1] if plan.unit == "micrometer" else None
    number = 0
    for z, value, polygon in region_outlines(walk(result.volume(image.path))):
        number += 1  # also of those that are left out, so that the others keep theirs
        voxels = sum(_area(ring) for ring in polygon)
        if voxels < options.min_voxels:
            continue
        measured: dict[str, float] = {"voxels": voxels} if options.measurements else {}
        if size and options.measurements:
            measured["area_um2"] = float(f"{voxels * size:.6g}")
        yield encoder.feature(z, number, [polygon], None, tail[value], measured)


def _area(ring: Ring) -> int:
    """Voxels inside a ring; negative for a hole."""
    return int(-(np.diff(ring[:, 0]) * ring[:-1, 1]).sum())


def _rows(objects: Objects) -> Callable[[int], dict[str, float | int]]:
    """Measurements of an object by its row, those that it has."""
    columns = objects.measurements
    names = list(columns)
    table = np.empty(len(objects.label), dtype=[(name, column.dtype) for name, column in columns.items()])
    for name, column in columns.items():
        table[name] = column
    has_gaps = any(np.isnan(column).any() for column in columns.values() if column.dtype.kind == "f")

    def row(number: int) -> dict[str, float | int]:
        values = dict(zip(names, table[number].item(), strict=True))
        return {name: value for name, value in values.items() if value == value} if has_gaps else values  # NaN is no JSON

    return row


def _tail(entry: LabelName, object_type: str) -> bytes:
    """Properties that all of a class share, as JSON without its braces."""
    color = list(bytes.fromhex(entry.color[1:]))
    return orjson.dumps({"objectType": object_type, "classification": {"name": entry.name, "color": color}})[1:-1]


@dataclass(frozen=True)
class _Encoder:
    """Makes features.

    Args:
        plan_id: of the output.
        placing: of it.
        label_image: number of the image whose regions are written; None for instances.
    """

    plan_id: str
    placing: Placing
    label_image: int | None

    def feature(self, z: int, number: int, polygons: Polygons, name: int | None, tail: bytes, measured: dict[str, Any]) -> bytes:
        """One feature as JSON.

        Args:
            z: section of the output.
            number: among its kind, for the id.
            polygons: in voxels of the output.
            name: that QuPath shows.
            tail: properties of the class.
            measured: name to number.
        """
        rings = [[self.placing.points(ring) for ring in polygon] for polygon in polygons]
        geometry: dict[str, Any] = {"type": "Polygon", "coordinates": rings[0]}
        if len(rings) > 1:
            geometry = {"type": "MultiPolygon", "coordinates": rings}
        section = self.placing.section(z)
        if section:
            geometry["plane"] = {"c": -1, "z": section, "t": 0}
        return b"".join(
            (
                b'{"type":"Feature","id":"',
                self._uuid(z, number),
                b'","geometry":',
                orjson.dumps(geometry, option=orjson.OPT_SERIALIZE_NUMPY),
                b',"properties":{',
                tail,
                b',"name":"%d"' % name if name is not None else b"",
                b',"measurements":' + orjson.dumps(measured) if measured else b"",
                b"}}",
            )
        )

    def _uuid(self, z: int, number: int) -> bytes:
        """An id that no other feature of this output has, of its instances or of regions of any of its label images.

        Version 8 of RFC 9562: the plan's id, section and number, as they are; of regions the number of their image before their own.
        """
        kind, high = (0x8, number >> 48 & 0xFFF) if self.label_image is None else (0x9, self.label_image & 0xFFF)
        return b"%s-%04x-8%03x-%x%03x-%012x" % (
            self.plan_id[:8].encode(),
            z & 0xFFFF,
            z >> 16 & 0xFFF,
            kind,
            high,
            number & (1 << 48) - 1,
        )

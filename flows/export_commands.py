"""The command that hands results over to other programs: ``unet export``."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter

from flows.options import Flag, Whole
from flows.printing import print_json, visible


def export_result(
    output: str,
    target: str,
    *,
    format: Literal["geojson", "precomputed", "ome-tiff"] | None = None,
    labels: str | None = None,
    object_type: Literal["detection", "annotation"] | None = None,
    measurements: Annotated[bool, Parameter(negative="--no-measurements")] = True,
    min_voxels: Whole = 1,
    image: str | None = None,
    json: Flag = False,
    debug: Flag = False,
) -> int:
    """Write the objects or classes of a finished result for QuPath, Neuroglancer, or readers of OME-TIFF.

    Args:
        output: Result of `unet segment`, a path or s3:// URL.
        target: New file or folder: .geojson (or .geojson.zip, .geojson.gz) for QuPath, .precomputed for Neuroglancer, .ome.tif.
        format: What to write, whatever the target's name is.
        labels: Label image of the result to export, e.g. classes; the instances if there are some, unless told.
        object_type: What QuPath makes of each outline; detections of objects, annotations of the regions of classes, unless told.
        measurements: Take along the columns of the table of objects.
        min_voxels: Smaller regions of classes are left out of GeoJSON.
        image: Where the segmented image lies now, if it was moved; GeoJSON of a coarser level needs it.
        json: Print a machine-readable last line.
        debug: Show tracebacks.
    """
    from dataclasses import asdict

    from unet_core.exports import Options
    from unet_core.exports import export_result as write

    done = write(output, target, format=format, labels=labels, options=Options(object_type, measurements, min_voxels, image))
    print(f"{done.format}: {done.path}, {done.size_bytes:,} bytes of {done.image} in {done.seconds:.1f} s")
    for name, value in done.facts.items():
        shown = (
            ", ".join(map(str, value)) if isinstance(value, list | tuple) else f"{value:,}" if isinstance(value, int) else value
        )
        if value not in ((), [], None):
            print(f"  {name.replace('_', ' ')}: {visible(shown)}")
    if json:
        print_json(asdict(done))
    return 0

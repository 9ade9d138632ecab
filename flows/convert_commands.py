"""The command ``unet convert``. Imports nothing heavy until it is called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from flows.options import Flag, TimePoint, Whole, WholeOrNone, numbers_of
from flows.printing import print_json

if TYPE_CHECKING:
    from unet_core.conversion import ConversionSummary


def convert(
    source: str,
    target: str,
    *,
    ngff: Literal["0.5", "0.4"] = "0.5",
    series: WholeOrNone = None,
    level: Whole = 0,
    time: TimePoint = None,
    channels: str | None = None,
    voxel_size: str | None = None,
    levels_by: Literal["mean", "mode"] | None = None,
    missing: Literal["error", "fill"] = "error",
    threads: Whole = 2,
    json: Flag = False,
    debug: Flag = False,
) -> int:
    """Write an image as OME-Zarr with a pyramid, its voxels as they are; run it again to resume.

    Args:
        source: Any image that `unet segment` reads; a path or s3:// URL.
        target: Where the OME-Zarr goes.
        ngff: Version of OME-Zarr to write.
        series: Which image of a file with several.
        level: Resolution of the source that becomes the finest of the target.
        time: Which time point of an image with several, 0 the first; each gets a target of its own.
        channels: Which channels, in this order, e.g. 0,1,2; all unless told.
        voxel_size: Micrometres along (z,) y, x of the level that is converted, where the source does not say it or says it wrongly.
        levels_by: How coarser levels are made: by the mean of the voxels, or by the most frequent value, for ids and other labels; the
            mean unless told.
        missing: What absent chunks of the source mean: an error, or background.
        threads: That read, encode and write.
        json: Print a machine-readable last line.
        debug: Show tracebacks.
    """
    from flows.progress import Progress, terminal_progress
    from unet_core.conversion import conversion_stage, make_conversion
    from unet_core.conversion import convert as run

    job = make_conversion(
        source=source,
        target=target,
        ngff=ngff,
        series=series,
        level=level,
        time=time,
        channels=numbers_of("channels", channels, int),
        voxel_size_um=numbers_of("voxel-size", voxel_size, float),
        levels_by=levels_by,
        missing=missing,
        threads=threads,
    )
    show, close = terminal_progress("converting")
    progress = Progress(0, show, counted=conversion_stage(0))
    try:
        summary = run(job, progress.expect, progress.add)
    finally:
        close()
    _print(summary)
    if json:
        print_json(summary.as_json())
    return 0


def _print(summary: ConversionSummary) -> None:
    print(f"complete: {summary.target}")
    print(f"  {summary.computed} of {summary.blocks} blocks written in {summary.seconds:.1f} s")
    named = f", channels {', '.join(summary.channels)}" if summary.channels else ""
    size = " x ".join(f"{step:.4g}" for step in summary.scale)
    print(f"  {summary.axes} {summary.dtype}{named}, voxels of {f'{size} {summary.unit}' if summary.unit else 'unknown size'}")
    print(f"  levels {', '.join(' x '.join(map(str, shape)) for shape in summary.shapes)}")
    if summary.missing_chunks:
        print(f"  note: {summary.missing_chunks} absent chunks of the source are background in the target")

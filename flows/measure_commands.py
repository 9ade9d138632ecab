"""The command ``unet measure``: tables of objects, counted in regions, as CSV. Imports nothing heavy."""

from __future__ import annotations

from flows.options import Flag
from flows.printing import print_json, visible


def measure(
    *outputs: str,
    regions: str | None = None,
    csv: str | None = None,
    summary: str | None = None,
    json: Flag = False,
    debug: Flag = False,
) -> int:
    """Count the objects of results, in regions if there are any; their tables as CSV.

    Args:
        outputs: Results of `unet segment` with --instances, or outputs of `unet archive`, for their complete results (ARCHIVE/*.zarr names them
            too); tables/objects.parquet of each result has a row for each object.
        regions: Of one result: outlines drawn in QuPath (GeoJSON), or another result of the same image, such as of its tissue; which region
            each object lies in is kept in tables/regions.parquet.
        csv: File for the rows of all objects, with their regions.
        summary: CSV file for counts, densities and mean sizes by image, class and region.
        json: Print a machine-readable last line.
        debug: Show tracebacks.
    """
    from unet_core.archives.states import results_of
    from unet_core.errors import JobError
    from unet_core.object_files import check_file, write_csv, write_summary
    from unet_core.object_summary import sentences, summarise

    if not outputs:
        raise JobError("No result is named; give at least one output of unet segment --instances.")
    for option, file in (("csv", csv), ("summary", summary)):
        if file is not None:
            check_file(option, file)
    if csv is not None and csv == summary:
        raise JobError(f"--csv and --summary are both {csv}; give two files.")
    notes: list[str] = []
    outputs = tuple(result for output in outputs for result in results_of(output, notes.append))
    if regions is not None:
        if len(outputs) > 1:
            raise JobError(
                f"--regions {regions} belong to one image, {len(outputs)} results are named; measure one after the other."
            )
        _count(outputs[0], regions)
    rows = {output: summarise(output) for output in outputs}
    for output, found in rows.items():
        print(output)
        for sentence in sentences(found):
            print(f"  {visible(sentence)}")
    written = []
    if csv is not None:
        written.append((write_csv(outputs, csv), csv))
    everything = [row for found in rows.values() for row in found]
    if summary is not None:
        written.append((write_summary(everything, summary), summary))
    for count, file in written:
        print(f"{count:,} rows: {file}")
    for note in notes:
        print(f"note: {visible(note)}")
    if json:
        print_json({"rows": [row.as_row() for row in everything], "files": [file for _, file in written], "notes": notes})
    return 0


def _count(output: str, regions: str) -> None:
    from flows.progress import terminal_count
    from unet_core.region_table import measure_regions

    measure_regions(output, regions, terminal_count("regions", "blocks"))

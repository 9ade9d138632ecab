"""The command ``unet archive``: many images, one result each. Imports nothing heavy."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from flows import settings
from flows.options import Flag, RunOptions, WholeOrNone
from flows.printing import print_json, visible

if TYPE_CHECKING:
    from unet_core.archives.job import ArchiveJob
    from unet_core.archives.summary import ArchiveSummary, ImageRow

_PARTIAL = 3
_FILE_LETTERS = 200  # of a line that goes to a file
_MOST_ROWS = 1000  # that are printed


def archive(images: str, output: str, options: RunOptions, *, at_once: WholeOrNone = None, dry_run: Flag = False) -> int:
    """Segment many images, each into a result of its own; run it again to go on, finished ones are known by their ledgers.

    Args:
        images: Folder or s3:// prefix (with all that lies below), glob ('slides/**/*.svs', in quotes), OME-Zarr plate (every field of view), or
            a list: CSV or Parquet with a column image, and if you like output (name of the result), voxel_size, level, series, time, channels,
            roi, mask, owner, project.
        output: Folder or s3:// prefix for the results, NAME.zarr each, and the summary, archive.json and archive.csv.
        at_once: Images under way together, on the same workers; 4 unless told, 1 with --cluster serial.
        dry_run: Show the images, the names of their results and their state; nothing is run or written.
    """
    from unet_core.archives.job import make_archive_job

    job = make_archive_job(image=images, output=output, **options.fields())
    options.prices()
    options.check_metrics()
    if dry_run:
        return _show_only(job, options, at_once)
    as_flow = options.flow or settings.prefect_api_url() is not None
    summary = _run_flow(job, options, at_once) if as_flow else _run_plain(job, options, at_once)
    print_rows(summary.images)
    print_counts(summary)
    if options.json:
        print_json(summary.as_json())
    return 0 if summary.status == "complete" else _PARTIAL


def _show_only(job: ArchiveJob, options: RunOptions, at_once: int | None) -> int:
    from flows.archive_run import check_archive

    found = check_archive(job, options.cluster, options.workers, at_once, _looking)
    print_rows(found.rows)
    for note in found.notes:
        print(f"note: {visible(note)}")
    if options.json:
        print_json({"images": [row.model_dump(mode="json") for row in found.rows], "notes": found.notes})
    return 0


def _run_plain(job: ArchiveJob, options: RunOptions, at_once: int | None) -> ArchiveSummary:
    from flows.archive_run import check_archive, segment_archive_on_cluster
    from flows.claims import terminal_claim
    from flows.progress import terminal_progress

    found = check_archive(job, options.cluster, options.workers, at_once, _looking)
    show, close = terminal_progress()
    try:
        budget, claim = options.prices()[0], terminal_claim()
        asked = (budget, claim, options.metrics)
        return segment_archive_on_cluster(found, options.cluster, options.workers, at_once, show, _tell, *asked)
    finally:
        close()


def _run_flow(job: ArchiveJob, options: RunOptions, at_once: int | None) -> ArchiveSummary:
    from flows.archive_run import check_archive
    from flows.prefect_server import check_prefect, start_ephemeral
    from unet_core.archives.summary import ArchiveSummary

    api_url = settings.prefect_api_url()
    if api_url is not None:
        check_prefect(api_url)
    check_archive(
        job, options.cluster, options.workers, at_once, _looking
    )  # bad input is told in one line, before a server starts
    settings.apply_defaults()
    if api_url is None:
        start_ephemeral()
    from flows.archive import PartialArchiveError, segment_archive

    try:
        price = options.prices()[1]
        asked = (options.budget, str(price) if price else None, options.metrics)
        return ArchiveSummary.model_validate(segment_archive(job, options.cluster, options.workers, at_once, *asked))
    except PartialArchiveError as error:
        return error.summary


def _looking(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\rlooking at image {done} of {total}", end="" if done < total else "\n", file=sys.stderr, flush=True)


def _tell(row: ImageRow) -> None:
    why = f": {row.reason}" if row.reason else f" in {row.seconds:.1f} s" if row.seconds is not None else ", was there already"
    print(visible(f"{row.result} {row.state}{why}"), file=sys.stderr, flush=True)


def print_rows(rows: tuple[ImageRow, ...]) -> None:
    """A line an image: state, what was found, seconds, or why not; of very many images those that are not complete."""
    shown = rows if len(rows) <= _MOST_ROWS else tuple(row for row in rows if row.state != "complete")[:_MOST_ROWS]
    _print_table(shown)
    if len(shown) < len(rows):
        left = ", complete" if len(shown) < _MOST_ROWS else ""
        print(f"and {len(rows) - len(shown):,} more{left}; --json names all")


def _print_table(rows: tuple[ImageRow, ...]) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _FILE_LETTERS
    table = Table(
        "result",
        "state",
        Column("classes, objects", overflow="fold"),
        Column("s", justify="right"),
        Column("image", overflow="fold"),
        box=None,
    )
    for row in rows:
        found = (
            visible(row.reason) if row.reason else ", ".join([*_counts(row.classes, "voxels"), *_counts(row.objects, "objects")])
        )
        table.add_row(
            visible(row.result), row.state, found, "" if row.seconds is None else f"{row.seconds:.1f}", visible(row.image)
        )
    console.print(table)


def _counts(counts: dict[str, int] | None, what: str) -> list[str]:
    return [f"{count:,} {what} of {visible(name)}" for name, count in (counts or {}).items()]


def print_counts(summary: ArchiveSummary) -> None:
    from unet_core.archives.summary import CSV_KEY, JSON_KEY

    folder = summary.output.rstrip("/")
    print(f"{summary.status}: {summary.sentence()}; {folder}/{JSON_KEY}, {CSV_KEY}")
    for note in summary.notes:
        print(f"  note: {visible(note)}")


def show_archive(output: str) -> dict[str, Any] | None:
    """The state of every image of an archive, by its ledger; None if the folder holds none."""
    from unet_core.archives.states import read_states

    found = read_states(output)
    if found is None:
        return None
    print_rows(found.images)
    print_counts(found)
    return found.as_json()

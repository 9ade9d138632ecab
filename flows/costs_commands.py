"""The command ``unet costs``: what runs took and cost, by their ledgers. Imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from flows.options import Flag, prices_of
from flows.printing import print_json, visible

if TYPE_CHECKING:
    from unet_core.costs import Costs
    from unet_core.prices import Price

_FILE_LETTERS = 160  # of a line that goes to a file


def costs(
    *places: str,
    by: Literal["project", "owner", "model", "month", "output", "hardware"] = "project",
    since: str | None = None,
    price: str | None = None,
    csv: Annotated[str | None, Parameter(name="--csv")] = None,
    json: Flag = False,
    debug: Flag = False,
) -> int:
    """Tell what segmentations took: worker hours (seconds of work of all workers, waiting not among them), voxels, bytes and money.

    Args:
        places: Outputs, or folders and s3:// prefixes that hold them, at any depth.
        by: What is summed together; month by when blocks were committed (UTC).
        since: Only what was committed from this day on (UTC), such as 2026-11-01.
        price: What a worker costs for an hour, such as '2.50 EUR'; that of UNET_PRICE unless told.
        csv: File for the rows.
        json: Print a machine-readable last line.
        debug: Show tracebacks.
    """
    from unet_core.costs import as_csv, parse_day, sum_costs
    from unet_core.errors import JobError
    from unet_core.object_files import check_file, put_file

    if not places:
        raise JobError("No place is named; give outputs, or folders that hold them.")
    found_price = prices_of(None, price)[1]
    first = None if since is None else parse_day(since)
    if csv is not None:
        check_file("csv", csv)
    found = sum_costs(places, by, first)
    _print_table(found, found_price)
    if csv is not None:
        put_file(csv, as_csv(found, found_price))
        print(f"{len(found.rows):,} rows: {csv}")
    if json:
        rows = [row.as_json(by, found_price) for row in found.rows]
        total = found.total.as_json("total", found_price)
        print_json({"by": by, "since": since, "rows": rows, "total": total, "notes": found.notes})
    return 0


def _print_table(found: Costs, price: Price | None) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    from unet_core.prices import HOUR, money

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _FILE_LETTERS
    numbers = ("outputs", "worker hours", "waiting", "Mvoxel", "MiB stored", *(["cost"] if price else []))
    table = Table(Column(found.by, overflow="fold"), *(Column(name, justify="right") for name in numbers), box=None)
    for row in (*found.rows, found.total):
        spent = row.spending
        name = "total" if row is found.total else visible(row.group) or f"(no {found.by})"
        cells = [f"{spent.work_seconds / HOUR:,.3f}", f"{spent.wait_seconds / HOUR:,.3f}", f"{spent.voxels / 1e6:,.2f}"]
        cells += [f"{spent.stored_bytes / 2**20:,.2f}", *([money(price.of(spent.work_seconds), price.currency)] if price else [])]
        if row is found.total:
            table.add_section()
        table.add_row(name, f"{row.outputs:,}", *cells)
    console.print(table)
    for note in found.notes:
        print(f"note: {visible(note)}")

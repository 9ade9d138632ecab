"""What runs took and cost, summed by project, owner, model or month: by their ledgers alone. Knows no Prefect and reads no voxel."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from unet_core import ledger
from unet_core.errors import JobError, UnetCoreError
from unet_core.ledger import Record, Request
from unet_core.outputs import find_outputs
from unet_core.plan import Plan
from unet_core.prices import HOUR, Price
from unet_core.spending import Spending, every_record
from unet_core.store import Store, absolute, open_store
from unet_core.wording import counted, no_formula

By = Literal["project", "owner", "model", "month", "output", "hardware"]
_READERS = 8
NOBODY = ""  # the group of what names no owner or project


@dataclass
class Row:
    """What one group took.

    Args:
        group: name of the project, owner, model or month (as 2026-11), output, or class of hardware; empty where none was named.
        outputs: that have a part in it.
        spending: sums over units.
    """

    group: str
    outputs: int = 0
    spending: Spending = field(default_factory=Spending)

    def as_json(self, by: str, price: Price | None) -> dict[str, Any]:
        found = self.spending
        return {
            by: self.group,
            "outputs": self.outputs,
            "units": found.units,
            "worker_hours": round(found.work_seconds / HOUR, 6),
            "work_seconds": round(found.work_seconds, 3),
            "wait_seconds": round(found.wait_seconds, 3),
            "voxels": found.voxels,
            "stored_bytes": found.stored_bytes,
            **({"cost": round(price.of(found.work_seconds), 6), "currency": price.currency} if price else {}),
        }


@dataclass(frozen=True)
class Costs:
    """What was found.

    Args:
        by: what rows are.
        rows: by group, the costliest first.
        total: of all rows.
        notes: what could not be read, or is not known exactly.
    """

    by: By
    rows: tuple[Row, ...]
    total: Row
    notes: tuple[str, ...]


def parse_day(text: str) -> datetime:
    """The beginning of a day, UTC.

    Raises:
        JobError: if it is none.
    """
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise JobError(f"since is {text[:60]!r}; write a day, such as 2026-11-01.") from None


def sum_costs(places: Iterable[str], by: By = "project", since: datetime | None = None) -> Costs:
    """Sum what the ledgers of all outputs below some places say.

    Args:
        places: outputs, or folders and prefixes that hold them; one that is found twice counts once.
        by: what is summed together.
        since: units that ended before are left out.

    Raises:
        InputError: if a place does not exist, or none holds an output.
    """
    if by not in get_args(By):
        raise JobError(f"by is '{by}'; use {', '.join(get_args(By))}.")
    urls = list(dict.fromkeys(absolute(url) for place in places for url in find_outputs(place)))
    if not urls:
        raise JobError("No output of unet segment or unet archive was found; name folders or prefixes that hold some.")
    rows: dict[str, Row] = {}
    total, notes, undated = Row("total"), [], []
    with ThreadPoolExecutor(_READERS, "unet-costs") as readers:
        for url, found in zip(urls, readers.map(lambda url: _read(url, by, since), urls), strict=True):
            if isinstance(found, str):
                notes.append(f"{url} is left out: {found}")
                continue
            for group, spending in found.groups.items():
                row = rows.setdefault(group, Row(group))
                row.outputs += 1
                row.spending.join(spending)
                total.spending.join(spending)
            total.outputs += bool(found.groups)
            undated.append(found.undated)
    if any(undated):
        where = counted(sum(map(bool, undated)), "output")
        notes.append(
            f"{sum(undated)} records in {where}, of an earlier release, have no date, and count by that of the last run."
        )
    ordered = sorted(rows.values(), key=lambda row: (-row.spending.work_seconds, row.group))
    return Costs(by, tuple(sorted(ordered, key=lambda row: row.group) if by == "month" else ordered), total, tuple(notes))


@dataclass
class _Found:
    groups: dict[str, Spending] = field(default_factory=dict)
    undated: int = 0


def _read(url: str, by: By, since: datetime | None) -> _Found | str:
    """What one output took, by group; a sentence if it cannot be read."""
    store = open_store(url)
    try:
        plan, request = ledger.read_plan(store), ledger.find_request(store)
        return _summed(url, store, plan, request, by, since)
    except (UnetCoreError, OSError) as error:
        return " ".join(str(error).split())


def _summed(url: str, store: Store, plan: Plan, request: Request | None, by: By, since: datetime | None) -> _Found:
    found, finest = _Found(), plan.stages[0].name
    group_of = _grouping(url, plan, request, by)
    dated = since is not None or by == "month"
    last = _last_run(store) if dated else None
    for record in every_record(store, plan):
        ended = _ended(record) if dated else None
        found.undated += dated and ended is None
        ended = ended or last
        if since is not None and ended is not None and ended < since:
            continue
        found.groups.setdefault(group_of(record, ended), Spending()).add(record, record.stage == finest)
    return found


def _grouping(url: str, plan: Plan, request: Request | None, by: By) -> Callable[[Record, datetime | None], str]:
    match by:
        case "month":
            return lambda record, ended: f"{ended:%Y-%m}" if ended else NOBODY
        case "hardware":
            return lambda record, ended: record.hardware
        case "model":
            name = ", ".join(model.name for model in plan.models)
        case "output":
            name = url
        case _:
            name = (getattr(request, by) if request else None) or NOBODY
    return lambda record, ended: name


def _ended(record: Record) -> datetime | None:
    try:
        ended = datetime.fromisoformat(record.ended) if record.ended else None
    except ValueError:
        return None
    return ended if ended is None or ended.tzinfo else ended.replace(tzinfo=UTC)


def _last_run(store: Store) -> datetime | None:
    """When an output was last taken up: its request is written anew each time."""
    modified = store.modified(ledger.REQUEST_KEY)
    return None if modified is None else datetime.fromtimestamp(modified, UTC)


def as_csv(found: Costs, price: Price | None) -> bytes:
    """A row for each group, without the total. No name is a formula to a spreadsheet."""
    names = list(Row("").as_json(found.by, price))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for row in found.rows:
        writer.writerow({name: no_formula(value) for name, value in row.as_json(found.by, price).items()})
    return text.getvalue().encode()

"""How far an archive is, image by image: archive.json and archive.csv in its output, each replaced as a whole. Opens no image."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from unet_core.archives.listing import Item
from unet_core.completion import Completion
from unet_core.errors import ResumeError
from unet_core.job import SegmentationJob
from unet_core.store import open_store
from unet_core.validation import first_problem
from unet_core.wording import no_formula, writable

if TYPE_CHECKING:
    from unet_core.segment import RunSummary

JSON_KEY, CSV_KEY = "archive.json", "archive.csv"
SCHEMA = 1
_LONGEST_REASON = 500  # letters

State = Literal["complete", "partial", "failed", "waiting"]


class ImageRow(BaseModel):
    """One image of an archive.

    Args:
        image: path or URL.
        result: its name in the output folder.
        state: ``complete``; ``partial`` (blocks failed); ``failed`` (see ``reason``); ``waiting`` (not begun, or stopped, also by a budget).
        classes: voxels by class name; None where there is no complete result.
        objects: instances by class name; None likewise, and where none are made.
        seconds: that this run took for it; None if it was complete before, or is not.
        reason: why it failed, in one sentence.
        owner: as a list says, or the options for all.
        project: likewise.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    image: str
    result: str = Field(pattern=r"^[^/\x00]+\.zarr$")
    state: State = "waiting"
    classes: dict[str, int] | None = None
    objects: dict[str, int] | None = None
    seconds: float | None = None
    reason: str = ""
    owner: str = ""
    project: str = ""


class ArchiveSummary(BaseModel):
    """An archive, and every image of it in its order.

    Args:
        source: what was asked to be segmented.
        output: folder or prefix.
        status: ``complete``; ``partial`` if images failed; ``running`` while some wait, also of a run that was killed.
        models: as they were asked for.
        seconds: of the last run.
        notes: what else there is to know.
        images: rows.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_number: int = Field(default=SCHEMA, alias="schema")
    source: str
    output: str
    status: Literal["complete", "partial", "running"]
    models: tuple[str, ...]
    seconds: float
    notes: tuple[str, ...] = ()
    images: tuple[ImageRow, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Images by state."""
        return dict(Counter(row.state for row in self.images))

    def as_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True) | {"counts": self.counts}

    def sentence(self) -> str:
        """How many images are in which state."""
        counts = self.counts
        return f"{len(self.images)} images: " + ", ".join(f"{counts[state]} {state}" for state in _STATES if state in counts)


_STATES = ("complete", "partial", "failed", "waiting")


def status_of(rows: Sequence[ImageRow]) -> Literal["complete", "partial", "running"]:
    states = {row.state for row in rows}
    return "running" if "waiting" in states else "partial" if states & {"partial", "failed"} else "complete"


def waiting_row(item: Item, job: SegmentationJob) -> ImageRow:
    owner, project = item.owner or job.owner or "", item.project or job.project or ""
    return ImageRow(image=writable(item.image), result=writable(item.name), owner=owner, project=project)


def failed_row(row: ImageRow, error: Exception) -> ImageRow:
    """The row of an image with why it cannot be segmented, on one line."""
    text = writable(" ".join(str(error).split())) or type(error).__name__
    return row.model_copy(update={"state": "failed", "reason": text[:_LONGEST_REASON]})


def finished_row(row: ImageRow, found: Completion) -> ImageRow:
    """The row of an image whose result was complete before."""
    return row.model_copy(update={"state": "complete", "classes": found.label_voxels, "objects": found.instances})


def computed_row(row: ImageRow, summary: RunSummary, seconds: float) -> ImageRow:
    """The row of an image that this run segmented; it waits for more money, if that was the end of it."""
    if summary.stopped and not summary.failures:
        return row.model_copy(
            update={"state": "waiting", "seconds": round(seconds, 3), "reason": summary.stopped[:_LONGEST_REASON]}
        )
    if summary.failures:
        more = f" (and {summary.failed - 1} more)" if summary.failed > 1 else ""
        reason = f"{summary.failures[0]}{more}"[:_LONGEST_REASON]
        return row.model_copy(update={"state": "partial", "seconds": round(seconds, 3), "reason": reason})
    return row.model_copy(
        update={"state": "complete", "classes": summary.label_voxels, "objects": summary.instances, "seconds": round(seconds, 3)}
    )


def write_summary(summary: ArchiveSummary) -> None:
    """Put both files, the table first, so that whoever sees the end in one finds it in the other."""
    store = open_store(summary.output)
    store.put(CSV_KEY, as_csv(summary.images))
    store.put(JSON_KEY, json.dumps(summary.as_json(), indent=1, allow_nan=False).encode())


def as_csv(rows: Sequence[ImageRow]) -> bytes:
    """A row an image; a column for the voxels, and for the objects, of each class. No name is a formula to a spreadsheet."""
    cells = []
    for row in rows:
        plain = {
            name: no_formula(getattr(row, name)) for name in ("image", "result", "state", "owner", "project", "seconds", "reason")
        }
        counts = {f"voxels_{name}": count for name, count in (row.classes or {}).items()}
        cells.append(plain | counts | {f"objects_{name}": count for name, count in (row.objects or {}).items()})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in cells for name in row)), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(cells)
    return text.getvalue().encode()


def find_summary(output: str) -> ArchiveSummary | None:
    """The summary that the last run left, None if there is none.

    Raises:
        ResumeError: if it cannot be read.
    """
    try:
        return ArchiveSummary.model_validate_json(open_store(output).get(JSON_KEY))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except pydantic.ValidationError as error:
        raise ResumeError(
            f"{JSON_KEY} in {output} is damaged, or of another release ({first_problem(error)}); run the same unet archive command again."
        ) from None

"""``crops.csv``: where each crop of a folder lies in its image, why it was picked, and its labels as they were written. Knows no results.

Further rounds read it: crops that exist are not picked again, and labels that a person edited are never overwritten.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from unet_core.corrections.files import IMAGES, LABELS, hash_of
from unet_core.errors import InputError
from unet_core.geometry import Box
from unet_core.store import is_remote, local_path
from unet_core.wording import counted, near_path

CROPS_FILE = "crops.csv"
_NAME = re.compile(r"crop-(\d+)\b")


@dataclass(frozen=True)
class CropRecord:
    """One crop.

    Args:
        crop: its name.
        image: path in the folder.
        labels: likewise.
        labels_sha256: as written; another one now means that a person edited them.
        purpose: train or validation.
        source: URL of the image that it was cut out of.
        source_id: tells voxels of one image, level, series and time from all others.
        level: of that image.
        series: likewise.
        time: likewise.
        channels: that were exported, with commas; empty for all.
        box: that is labelled, first:last along (z,) y, x, in voxels of the level.
        image_box: that was exported, with the margin of the network.
        output: URL of the result.
        plan: id of its plan.
        model: URL of the model that made it.
        by: why it was picked: entropy, random or disagreement.
        score: from 0 to 1; empty for random.
        rank: from 1.
        seed: of random picks; empty else.
        other: URL of the result that disagrees; empty else.
    """

    crop: str
    image: str
    labels: str
    labels_sha256: str
    purpose: str
    source: str
    source_id: str
    level: int
    series: int
    time: int
    channels: str
    box: str
    image_box: str
    output: str
    plan: str
    model: str
    by: str
    score: str
    rank: int
    seed: str
    other: str

    @property
    def labelled(self) -> Box:
        return box_of(self.box)


def box_text(box: Box) -> str:
    """As ``--roi`` takes it."""
    return str(box).replace(" ", "")


def box_of(text: str) -> Box:
    bounds = [part.split(":") for part in text.split(",")]
    return Box(tuple(int(first) for first, _ in bounds), tuple(int(last) for _, last in bounds))


def as_csv(records: Sequence[CropRecord]) -> str:
    """A table with a line for each crop."""
    text = io.StringIO()
    table = csv.DictWriter(text, [field.name for field in fields(CropRecord)], lineterminator="\n")
    table.writeheader()
    table.writerows(asdict(record) for record in records)
    return text.getvalue()


def read_records(folder: Path) -> tuple[CropRecord, ...]:
    """The crops of a folder, none if it has no table.

    Raises:
        InputError: if the table is not as it was written.
    """
    path = folder / CROPS_FILE
    if not path.is_file():
        return ()
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        records = tuple(map(_record, rows))
        for record in records:
            assert record.labelled.ndim in (2, 3)
    except (OSError, ValueError, KeyError, TypeError, AssertionError, csv.Error) as error:
        raise InputError(
            f"{path} is not as it was written ({type(error).__name__}: {error}); restore it, since it says what must not be picked again."
        ) from None
    return records


def _record(row: Mapping[str, str]) -> CropRecord:
    values: dict[str, Any] = {
        field.name: int(row[field.name]) if field.type == "int" else row[field.name] for field in fields(CropRecord)
    }
    return CropRecord(**values)


def excluded_boxes(folders: Sequence[str], source_id: str) -> list[Box]:
    """Labelled boxes of one image in several folders.

    Raises:
        InputError: if one is no folder of crops.
    """
    found: list[Box] = []
    for folder in folders:
        records = read_records(local_path(folder))
        if not records:
            near = "" if local_path(folder).exists() else near_path(local_path(folder))
            raise InputError(f"{folder} has no {CROPS_FILE}{near}; name a folder that unet sample wrote.")
        found += [record.labelled for record in records if record.source_id == source_id]
    return found


def edited(folder: Path, records: Sequence[CropRecord]) -> list[str]:
    """Names of the crops whose labels are no longer those that were written."""
    return [record.crop for record in records if hash_of(folder / record.labels) != record.labels_sha256]


def untouched(dataset: str) -> str | None:
    """A sentence if a data set lies beside crops of which nobody changed a label: they teach a model what it says already."""
    if is_remote(dataset):
        return None
    path = local_path(dataset)
    folder = path if path.is_dir() else path.parent
    try:
        records = read_records(folder)
    except InputError:  # a table of that name that is none of crops, as far as this sentence goes
        return None
    if not records or edited(folder, records):
        return None
    return (
        f"note: no labels of the {counted(len(records), 'crop')} in {folder} were changed since unet sample wrote them; from these a model "
        "learns what was said already"
    )


def next_number(folder: Path, records: Sequence[CropRecord]) -> int:
    """One above every number that a crop has, or a file that is in the way."""
    names = [record.crop for record in records]
    names += [entry.name for inner in (IMAGES, LABELS) if (folder / inner).is_dir() for entry in (folder / inner).iterdir()]
    return 1 + max((int(match[1]) for name in names if (match := _NAME.match(name))), default=0)

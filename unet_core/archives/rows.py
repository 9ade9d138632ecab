"""A list of images: a CSV or Parquet file with a row for each, and what is said of it alone. Opens no image.

image,output,voxel_size,owner,project
slides/a.svs,mouse-1,"0.5,0.5",ann,liver
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from unet_core.errors import InputError, JobError
from unet_core.job import LONGEST_NAME, is_name
from unet_core.store import absolute, is_remote, local_path, open_store
from unet_core.wording import near_path, near_word

LISTS = (".csv", ".tsv", ".parquet")
_NAME = re.compile(r"[^/\\\0]{1,200}")


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in re.split("[,; x]+", text.strip()))


def _indices(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.split("[,; ]+", text.strip()))


# column -> field of a job, and what makes a value of the text in a cell
_OPTIONS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "voxel_size": ("voxel_size_um", _numbers),
    "level": ("level", int),
    "series": ("series", int),
    "time": ("time", int),
    "channels": ("channels", _indices),
    "roi": ("roi", lambda text: tuple(text.split())),
    "mask": ("mask", str),
}
COLUMNS = ("image", "output", "owner", "project", *_OPTIONS)


@dataclass(frozen=True)
class Row:
    """One image of a list; ``output`` is the name of its result without ending, empty if it is not said."""

    image: str
    output: str
    owner: str
    project: str
    options: dict[str, Any] = field(default_factory=dict)


def is_list(source: str) -> bool:
    return source.lower().endswith(LISTS)


def read_rows(url: str) -> list[Row]:
    """The rows of a list; images and masks with relative paths lie beside it.

    Raises:
        JobError: naming the row or column, and what it may be.
    """
    folder, _, name = url.rpartition("/")
    try:
        data = open_store(folder or ("/" if url.startswith("/") else ".")).get(name)
    except FileNotFoundError:
        near = "" if is_remote(url) else near_path(local_path(url))
        raise JobError(f"List of images not found: {url}{near}; check the path.") from None
    cells = _parquet(data, url) if url.lower().endswith(".parquet") else _text(data, url)
    for column in cells[0] if cells else ():
        if column not in COLUMNS:
            raise JobError(
                f"Column '{column}' of {url} is not known{near_word(column, COLUMNS)}; columns are {', '.join(COLUMNS)}."
            )
    if cells and "image" not in cells[0]:
        raise JobError(f"{url} has no column 'image'; its columns are {', '.join(cells[0])}.")
    return [_row(entry, f"row {number} of {url}", folder) for number, entry in enumerate(cells, start=1)]


def _row(cells: Mapping[str, str], where: str, folder: str) -> Row:
    if not cells["image"]:
        raise JobError(f"{where} names no image; fill in its column 'image', or remove the row.")
    options = {}
    for column, (option, value_of) in _OPTIONS.items():
        text = cells.get(column, "")
        if text:
            try:
                options[option] = value_of(text)
            except ValueError:
                raise JobError(
                    f"{column} in {where} is '{text[:60]}', which is no number, or none with commas; correct it."
                ) from None
    if "mask" in options:
        options["mask"] = _beside(options["mask"], folder)
    output = cells.get("output", "").removesuffix(".zarr")
    if output and (not _NAME.fullmatch(output) or output.startswith(".") or not output.isprintable()):
        raise JobError(f"output in {where} is '{output[:60]}'; give a name without slashes that begins with no dot.")
    for column in ("owner", "project"):
        if cells.get(column) and not is_name(cells[column]):
            raise JobError(
                f"{column} in {where} is {cells[column][:60]!r}; give at most {LONGEST_NAME} visible letters on one line."
            )
    return Row(_beside(cells["image"], folder), output, cells.get("owner", ""), cells.get("project", ""), options)


def _beside(place: str, folder: str) -> str:
    """A path that a list names, seen from where we are."""
    if "://" in place or place.startswith(("/", "~")) or not folder:
        return place
    return f"{folder}/{place}" if is_remote(folder) else absolute(f"{folder}/{place}")


def _text(data: bytes, url: str) -> list[dict[str, str]]:
    try:
        text = data.decode("utf-8-sig")  # as spreadsheets write it
    except UnicodeDecodeError:
        raise JobError(f"{url} is no text in UTF-8; save it as CSV (UTF-8).") from None
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    separator = max(",;\t", key=lines.partition("\n")[0].count)  # spreadsheets of some countries write semicolons
    # Strict, since a quote that is not closed would hide rows.
    reader = csv.reader(io.StringIO(lines), delimiter=separator, strict=True)
    try:
        rows = [_without_empty_end([cell.strip() for cell in row]) for row in reader]
    except csv.Error as error:
        raise JobError(
            f"{url} is no table from line {reader.line_num} on ({error}); correct it, or save it as CSV anew."
        ) from None
    names = rows[0] if rows else []
    if len(set(names)) < len(names):
        raise JobError(f"{url} names a column twice: {', '.join(names)}; remove one.")
    filled = [row for row in rows[1:] if row]
    for number, row in enumerate(filled, start=1):
        if len(row) > len(names):
            raise JobError(
                f"row {number} of {url} has {len(row)} cells, there are {len(names)} columns; put cells with commas in quotes."
            )
    padded = (row + [""] * (len(names) - len(row)) for row in filled)
    cells = [dict(zip(names, row, strict=True)) for row in padded]
    for number, entry in enumerate(cells, start=1):
        size = entry.get("voxel_size", "")
        if separator == ";" and "," in size and "." not in size:
            raise JobError(
                f"voxel_size in row {number} of {url} is '{size[:60]}': in a list with semicolons a comma may be that of a decimal, or stand "
                "between two numbers; write decimals with a point, and spaces between numbers."
            )
    return cells


def _without_empty_end(row: list[str]) -> list[str]:
    """Spreadsheets write columns and rows that were used once."""
    return row[: max((number for number, cell in enumerate(row, start=1) if cell), default=0)]


def _parquet(data: bytes, url: str) -> list[dict[str, str]]:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(pa.BufferReader(data))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{url} is no readable Parquet file ({str(error)[:100]}); write it again.") from None

    def cell(value: Any) -> str:
        if value is None or value != value:
            return ""
        if isinstance(value, bytes):  # as some programs write text
            return value.decode(errors="replace").strip()
        if isinstance(value, list):
            return " ".join(cell(entry) for entry in value)
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()

    return [{name: cell(value) for name, value in row.items()} for row in table.to_pylist()]

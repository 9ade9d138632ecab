"""Files of objects for other programs: rows of several results in one, and their summary. Written whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from unet_core import ledger
from unet_core.errors import JobError
from unet_core.object_summary import ClassInRegion, summary_csv
from unet_core.places import check_location
from unet_core.store import is_remote, local_path, open_store
from unet_core.tables import as_csv, has_regions_table, read_objects_table

_SUFFIX = ".csv"


def write_csv(outputs: Sequence[str], url: str) -> int:
    """The objects of all outputs, with their regions where they were counted; how many rows.

    Args:
        outputs: URLs; of several, the first two columns say which image and result a row is of, and columns that one lacks are empty there.
        url: of the file.
    """
    tables = [_objects(output, several=len(outputs) > 1) for output in outputs]
    table = pa.concat_tables(tables, promote_options="default") if len(tables) > 1 else tables[0]
    put_file(url, as_csv(table))
    return len(table)


def write_summary(rows: Sequence[ClassInRegion], url: str) -> int:
    """Counts and sizes by image, class and region; how many rows."""
    put_file(url, summary_csv(rows))
    return len(rows)


def _objects(output: str, several: bool) -> pa.Table:
    table = read_objects_table(output, regions=has_regions_table(output))
    if several:
        named = (("output", output), ("image", ledger.read_request(open_store(output)).image))
        for name, value in named:
            table = table.add_column(0, name, pa.array([value], pa.string()).take(pa.nulls(len(table), pa.int64()).fill_null(0)))
    return table.replace_schema_metadata(None)


def check_file(option: str, url: str) -> None:
    """Refuse what cannot be the place of a table, or holds something else: a table is replaced, an image is not.

    Raises:
        JobError: naming the option.
    """
    check_location(option, url)
    if url.endswith("/") or (not is_remote(url) and local_path(url).is_dir()):
        raise JobError(f"--{option} is {url}, which is a folder; give the name of a file.")
    folder, name = _folder_and_name(url)
    if not name.lower().endswith(_SUFFIX) and open_store(folder).exists(name):
        raise JobError(f"--{option} is {url}, which exists and has no name in {_SUFFIX}; give another, only tables are replaced.")


def put_file(url: str, data: bytes) -> None:
    """Store the bytes of a file as a whole, at a path or URL."""
    folder, name = _folder_and_name(url)
    open_store(folder).put(name, data)


def _folder_and_name(url: str) -> tuple[str, str]:
    folder, slash, name = url.rpartition("/")
    return folder or slash or ".", name

"""Tables of an output, as Apache Parquet: written in one piece, read with pyarrow. Knows no network.

tables/objects.parquet    a row for each instance, sorted by ``label``; audited like all that a run writes
tables/regions.parquet    the same rows, with the regions that ``unet measure --regions`` counted them in
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet

from unet_core import ledger
from unet_core.committed import read_objects
from unet_core.errors import JobError, LedgerError
from unet_core.ledger import Record
from unet_core.measure import TABLE_KEY
from unet_core.measuring.columns import Column
from unet_core.places import check_location
from unet_core.stages import TABLE_STAGE
from unet_core.store import Store, open_store

REGIONS_KEY = "tables/regions.parquet"

_COMPRESSION = "zstd"
_METADATA = b"unet_flows"


@dataclass(frozen=True)
class RegionsTable:
    """Which regions objects lie in.

    Args:
        table: ``label``, and for each region ``in_NAME`` (whether it holds the centroid) and ``fraction_in_NAME`` (of the voxels).
        voxels: of each region, by name, in the order of the columns.
        source: where regions came from.
    """

    table: pa.Table
    voxels: Mapping[str, int]
    source: str


def read_objects_table(url: str, columns: Sequence[str] | None = None, regions: bool = False) -> pa.Table:
    """The table of the instances of an output, checked against its record: one row an object, sorted by ``label``.

    Args:
        url: of the output.
        columns: names; all unless told. Unit and meaning of each are in ``table.schema.field(name).metadata``.
        regions: with the columns of ``read_regions_table``.

    Raises:
        JobError: if the output has no such table, or no such column.
        ResumeError: if ``url`` is not an output of this program.
        LedgerError: if the table is not there yet, or not what was written.
    """
    check_location("output", url)
    store = open_store(url)
    record = _table_record(store, url)
    plan, request = ledger.read_plan(store), ledger.read_request(store)
    data = read_objects(store, plan, request, plan.stage(TABLE_STAGE), record.index)[TABLE_KEY]
    beside = read_regions_table(url).table.drop_columns(["label"]) if regions else pa.table({})
    with parquet.ParquetFile(io.BytesIO(data)) as file:
        known = [*file.schema_arrow.names, *beside.column_names]
        for name in columns or ():
            if name not in known:
                raise JobError(f"The table of objects of {url} has no column '{name}'; it has {', '.join(known)}.")
        own = None if columns is None else [name for name in columns if name in file.schema_arrow.names]
        table = file.read(own)
    for name in beside.column_names:
        table = table.append_column(beside.schema.field(name), beside.column(name))
    return table if columns is None else table.select(list(columns))


def read_regions_table(url: str) -> RegionsTable:
    """The regions that the objects of an output were counted in.

    Raises:
        JobError: if they were not counted, or there are other objects since.
    """
    store = open_store(url)
    try:
        data = store.get(REGIONS_KEY)
    except FileNotFoundError:
        raise JobError(f"{url} has no table of regions; count its objects in some with unet measure {url} --regions.") from None
    try:
        table = parquet.read_table(io.BytesIO(data))
        facts = json.loads(table.schema.metadata[_METADATA])
        found = RegionsTable(table, dict(facts["regions"]), facts["source"])
    except (pa.ArrowInvalid, OSError, KeyError, TypeError, ValueError) as error:
        raise JobError(
            f"{REGIONS_KEY} in {url} cannot be read ({error}); count again with unet measure {url} --regions."
        ) from None
    if facts["objects"] != _table_record(store, url).objects[0].sha256:
        raise JobError(
            f"{url} has other objects since they were counted in the regions of {found.source}; count again with unet measure {url} --regions "
            f"{found.source}."
        )
    return found


def has_regions_table(url: str) -> bool:
    """Whether objects of an output were counted in regions."""
    return open_store(url).exists(REGIONS_KEY)


def write_regions_table(url: str, columns: dict[str, Column], voxels: Mapping[str, int], source: str) -> None:
    """Put the table of regions, whole; it replaces an earlier one.

    Args:
        url: of the output.
        columns: of ``RegionsTable``.
        voxels: likewise.
        source: likewise.
    """
    store = open_store(url)
    facts = {"objects": _table_record(store, url).objects[0].sha256, "regions": list(voxels.items()), "source": source}
    store.put(REGIONS_KEY, encode_table([columns], {_METADATA: json.dumps(facts).encode()}))


def _table_record(store: Store, url: str) -> Record:
    """The record of the table of objects.

    Raises:
        JobError: if the run makes none.
        LedgerError: if it is not there yet.
    """
    plan, request = ledger.read_plan(store), ledger.read_request(store)
    if plan.measure is None:
        why = "was run with --no-measure" if plan.instances else "has no instances"
        raise JobError(
            f"{url} {why}, so it has no table of objects; run into a new output with --instances, and without --no-measure."
        )
    record = ledger.read_record(store, plan, TABLE_STAGE, 0, request.id)
    if record is None:
        raise LedgerError(f"{url} has no table of objects yet; run the same command again, its last stage writes it.")
    return record


def as_csv(table: pa.Table) -> bytes:
    """A table as text with commas: names in the first line, nothing where there is no value, numbers that read back the same."""
    target = io.BytesIO()
    csv.write_csv(table, target, csv.WriteOptions(quoting_style="needed"))
    return target.getvalue()


def encode_table(groups: Iterable[dict[str, Column]], metadata: Mapping[bytes, bytes] | None = None) -> bytes:
    """A table as one object; the same bytes for the same columns and version of pyarrow.

    Args:
        groups: columns of consecutive objects, at least one; each becomes a row group.
        metadata: of the table.
    """
    target, writer = io.BytesIO(), None
    for columns in groups:
        table = as_table(columns).replace_schema_metadata(metadata and dict(metadata))
        if writer is None:
            writer = parquet.ParquetWriter(target, table.schema, compression=_COMPRESSION)
        writer.write_table(table, row_group_size=max(1, len(table)))
    assert writer is not None
    writer.close()
    return target.getvalue()


def as_table(columns: Mapping[str, Column]) -> pa.Table:
    """Columns with their units and meanings."""
    arrays, fields = [], []
    for name, column in columns.items():
        array = _array(column)
        arrays.append(array)
        fields.append(pa.field(name, array.type, metadata={"unit": column.unit, "meaning": column.meaning}))
    return pa.table(arrays, schema=pa.schema(fields))


def _array(column: Column) -> pa.Array:
    if column.names is not None:
        return pa.array(column.names, pa.string()).take(_array(Column(column.values, "", "")))
    # From buffers: pa.array would import pandas, if it is there, which takes longer than to write most tables.
    values = np.ascontiguousarray(column.values)
    if values.dtype.kind == "b":
        return pa.Array.from_buffers(pa.bool_(), len(values), [None, pa.py_buffer(np.packbits(values, bitorder="little"))])
    there = ~np.isnan(values) if values.dtype.kind == "f" else np.ones(len(values), dtype=bool)
    valid = None if there.all() else pa.py_buffer(np.packbits(there, bitorder="little"))
    filled = np.where(there, values, 0).astype(values.dtype)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [valid, pa.py_buffer(filled)])

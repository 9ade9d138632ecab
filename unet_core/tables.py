"""Tables of an output, as Apache Parquet: written in one piece, read with pyarrow. Knows no network.

tables/objects.parquet    a row for each instance, sorted by ``label``
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from unet_core import ledger
from unet_core.committed import read_objects
from unet_core.errors import JobError, LedgerError
from unet_core.measure import TABLE_KEY
from unet_core.measuring.columns import Column
from unet_core.places import check_location
from unet_core.stages import TABLE_STAGE
from unet_core.store import open_store

_COMPRESSION = "zstd"


def read_objects_table(url: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The table of the instances of an output, checked against its record: one row an object, sorted by ``label``.

    Args:
        url: of the output.
        columns: names; all unless told. Unit and meaning of each are in ``table.schema.field(name).metadata``.

    Raises:
        JobError: if the output has no such table, or no such column.
        ResumeError: if ``url`` is not an output of this program.
        LedgerError: if the table is not there yet, or not what was written.
    """
    check_location("output", url)
    store = open_store(url)
    plan, request = ledger.read_plan(store), ledger.read_request(store)
    if plan.measure is None:
        why = "was run with --no-measure" if plan.instances else "has no instances"
        raise JobError(
            f"{url} {why}, so it has no table of objects; run into a new output with --instances, and without --no-measure."
        )
    record = ledger.read_record(store, plan, TABLE_STAGE, 0)
    if record is None or record.request != request.id:
        raise LedgerError(f"{url} has no table of objects yet; run the same command again, its last stage writes it.")
    data = read_objects(store, plan, request, plan.stage(TABLE_STAGE), 0)[TABLE_KEY]
    with parquet.ParquetFile(io.BytesIO(data)) as file:
        known = file.schema_arrow.names
        for name in columns or ():
            if name not in known:
                raise JobError(f"The table of objects of {url} has no column '{name}'; it has {', '.join(known)}.")
        return file.read(None if columns is None else list(columns))


def encode_table(groups: Iterable[dict[str, Column]]) -> bytes:
    """A table as one object; the same bytes for the same columns and version of pyarrow.

    Args:
        groups: columns of consecutive objects, at least one; each becomes a row group.
    """
    target, writer = io.BytesIO(), None
    for columns in groups:
        table = _table(columns)
        if writer is None:
            writer = parquet.ParquetWriter(target, table.schema, compression=_COMPRESSION)
        writer.write_table(table, row_group_size=max(1, len(table)))
    assert writer is not None
    writer.close()
    return target.getvalue()


def _table(columns: dict[str, Column]) -> pa.Table:
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
    there = ~np.isnan(values) if values.dtype.kind == "f" else np.ones(len(values), dtype=bool)
    valid = None if there.all() else pa.py_buffer(np.packbits(there, bitorder="little"))
    filled = np.where(there, values, 0).astype(values.dtype)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [valid, pa.py_buffer(filled)])

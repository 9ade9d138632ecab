"""The ledger: one record per committed unit of work, in the output store. The truth about progress; knows no torch.

.unet/plan.json      the plan, written once
.unet/request.json   which blocks are wanted, and where image and model lie
.unet/ledger/STAGE/INDEX.json, and packs of many records (see ``record_packs``)
.unet/complete.json  written by the audit alone
.unet/lease/         which run holds the output, see unet_core.lease
.unet/failures.json  why blocks failed, of a run that ended without them
.unet/report.html    a page about the result, of a run that makes one
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pydantic

from unet_core.errors import LedgerError, ResumeError
from unet_core.plan import Plan
from unet_core.record_packs import KEPT, UNITS, WITHDRAWN, packed_units
from unet_core.record_reading import iterate_records, read_records, recorded_units
from unet_core.records import (
    FOLDER,
    Identified,
    MaskRecord,
    Record,
    Request,
    StoredShard,
    parse_record,
    record_key,
    to_bytes,
)
from unet_core.store import Store, is_remote, local_path
from unet_core.training_folder import find_training
from unet_core.validation import first_problem
from unet_core.wording import near_path

__all__ = [
    "FOLDER",
    "Identified",
    "MaskRecord",
    "Record",
    "Request",
    "StoredShard",
    "iterate_records",
    "read_records",
    "record_key",
    "recorded_units",
    "to_bytes",
]

PLAN_KEY = f"{FOLDER}/plan.json"
REQUEST_KEY = f"{FOLDER}/request.json"
COMPLETE_KEY = f"{FOLDER}/complete.json"
FAILURES_KEY = f"{FOLDER}/failures.json"
REPORT_KEY = f"{FOLDER}/report.html"
_READERS = 8
_WRITERS = 32  # most of them wait for an object store


def commit(store: Store, shards: Mapping[str, bytes | None]) -> tuple[StoredShard, ...]:
    """Put every shard whole and read it back; None stands for a shard of fill values only, which must be absent.

    Args:
        store: of the output.
        shards: object key to bytes.

    Raises:
        LedgerError: if what is read back is not what was put.
    """
    stored: list[StoredShard] = []
    for key, data in shards.items():
        if data is None:
            store.delete(key)
            stored.append(StoredShard(key=key, sha256=None, size_bytes=0, empty=True))
            continue
        store.put(key, data)
        sha256 = hashlib.sha256(data).hexdigest()
        if hashlib.sha256(store.get(key)).hexdigest() != sha256:
            raise LedgerError(
                f"Object {key} reads back with another sha256 than was written; the storage of {store.url} is at fault."
            )
        stored.append(StoredShard(key=key, sha256=sha256, size_bytes=len(data), empty=False))
    return tuple(stored)


def write_record(store: Store, record: Record) -> None:
    store.put(record_key(record.stage, record.index), to_bytes(record))


def read_record(store: Store, plan: Identified, stage: str, index: int, request_id: str | None = None) -> Record | None:
    """The record of one unit; None if there is none that can be read and counts, as in ``iterate_records``."""
    try:
        data = store.get(record_key(stage, index))
    except FileNotFoundError:
        line = KEPT.line(store, plan.id, stage, request_id, index)
        if line is None:
            return None
        data = line
    except OSError:
        return None
    record = parse_record(data, stage, index)
    return record if record is not None and record.plan == plan.id and request_id in (None, record.request) else None


def read_unit(
    store: Store, plan: Identified, stage: str, index: int, request_id: str | None = None, folders: tuple[str, ...] = ("",)
) -> dict[str, bytes] | None:
    """Stored objects of a committed unit by their key, each checked against its record; None if no record of the unit counts.

    Args:
        request_id: likewise.
        folders: with a slash at their end; what lies in no one of them is not read.

    Raises:
        LedgerError: if one is not what was written.
    """
    record = read_record(store, plan, stage, index, request_id)
    if record is None:
        return None
    try:
        return _read_objects(store, record, folders)
    except LedgerError:  # the unit may have been done again since the pack was read that is kept
        KEPT.forget(store)
        again = read_record(store, plan, stage, index, request_id)
        if again is None or again == record:
            raise
        return _read_objects(store, again, folders)


def _read_objects(store: Store, record: Record, folders: tuple[str, ...]) -> dict[str, bytes]:
    read = ((shard.key, read_object(store, shard)) for shard in record.objects if shard.key.startswith(folders))
    return {key: data for key, data in read if data is not None}


def read_object(store: Store, shard: StoredShard) -> bytes | None:
    """The bytes of an object of a committed unit; None for an empty one.

    Raises:
        LedgerError: if it is not what was written.
    """
    fault, data = _checked(store, shard)
    if fault:
        raise LedgerError(f"{fault}; run the same command again, it computes this again")
    return data


def _checked(store: Store, shard: StoredShard) -> tuple[str | None, bytes | None]:
    """What is wrong with a stored object, and its bytes; both None for an empty one that is absent."""
    if shard.empty:
        return (f"{shard.key} exists, the ledger says it is empty" if store.exists(shard.key) else None), None
    try:
        data = store.get(shard.key)
    except FileNotFoundError:
        return f"{shard.key} is missing", None
    except OSError as error:
        return f"{shard.key} cannot be read ({error.strerror})", None
    if hashlib.sha256(data).hexdigest() != shard.sha256:
        return f"{shard.key} has {len(data)} bytes of another sha256 than the {shard.size_bytes} bytes that were written", None
    return None, data


def withdraw(store: Store, plan: Identified, stage: str, *indices: int) -> None:
    """Remove the records of units of a stage, so that they count as not done."""
    units = np.unique(np.array(indices, dtype=np.int64))
    with ThreadPoolExecutor(_WRITERS) as writers:
        for number in np.unique(units // UNITS).tolist():
            some = units[units // UNITS == number]
            is_packed = np.isin(some, packed_units(store, plan.id, stage, number))
            list(writers.map(lambda index: store.put(record_key(stage, index), WITHDRAWN), some[is_packed].tolist()))
            store.delete_all([record_key(stage, index) for index in some[~is_packed].tolist()])


def faults(store: Store, records: Iterable[Record]) -> list[tuple[Record, str]]:
    """What the store has that a record does not say: the record and one sentence each; reads and hashes every object."""

    def check(pair: tuple[Record, StoredShard]) -> tuple[Record, str] | None:
        fault, _ = _checked(store, pair[1])
        return (pair[0], fault) if fault else None

    with ThreadPoolExecutor(_READERS) as readers:
        found = readers.map(check, [(record, shard) for record in records for shard in record.objects])
        return [fault for fault in found if fault]


def find_plan(store: Store) -> Plan | None:
    """The plan of an output, None if there is none.

    Raises:
        ResumeError: if there is one that cannot be read.
    """
    try:
        return Plan.model_validate_json(store.get(PLAN_KEY))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except pydantic.ValidationError as error:
        reason = first_problem(error)
    except OSError as error:
        reason = str(error.strerror)
    raise ResumeError(
        f"{PLAN_KEY} in {store.url} is damaged, or of another release ({reason}); restore it, or give a new output."
    ) from None


def read_plan(store: Store) -> Plan:
    """The plan of an output.

    Raises:
        ResumeError: if there is none.
    """
    plan = find_plan(store)
    if plan is None:
        raise ResumeError(_no_result(store.url))
    return plan


def _no_result(url: str) -> str:
    """Why there is no plan, and what was probably meant."""
    training = find_training(url)
    if training:
        return f"{training.sentence()}; it is no result of unet segment."
    if not is_remote(url) and not os.path.lexists(local_path(url)):
        return f"Result not found: {url}{near_path(local_path(url))}; check the path."
    return f"{url} has no plan ({PLAN_KEY}); it is not an output of this program."


def find_request(store: Store) -> Request | None:
    """The request of an output; None if it is absent or damaged, since any run of the same plan can write it anew."""
    try:
        return Request.model_validate_json(store.get(REQUEST_KEY))
    except (pydantic.ValidationError, OSError):
        return None


def read_request(store: Store) -> Request:
    """The request of an output.

    Raises:
        ResumeError: if there is none.
    """
    request = find_request(store)
    if request is None:
        raise ResumeError(f"{store.url} has no readable request ({REQUEST_KEY}); run the same command again to write it.")
    return request


def is_complete(store: Store, request: Request) -> bool:
    """Whether the audit passed for this request; a damaged mark is none."""
    try:
        mark = json.loads(store.get(COMPLETE_KEY))
    except (ValueError, RecursionError, OSError):
        return False
    return isinstance(mark, dict) and mark.get("request") == request.id

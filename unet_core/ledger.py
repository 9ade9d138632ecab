"""The ledger: one record per committed unit of work, in the output store. The truth about progress; knows no torch.

.unet/plan.json      the plan, written once
.unet/request.json   which blocks are wanted, and where image and model lie
.unet/ledger/STAGE/INDEX.json
.unet/complete.json  written by the audit alone
.unet/report.html    a page about the result, of a run that makes one
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import pydantic
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from unet_core.errors import LedgerError, ResumeError
from unet_core.plan import Plan, canonical_json
from unet_core.store import OWN_FOLDER, Store, is_remote, local_path
from unet_core.training_folder import find_training
from unet_core.validation import first_problem
from unet_core.wording import near_path

SCHEMA = 1
FOLDER = OWN_FOLDER
PLAN_KEY = f"{FOLDER}/plan.json"
REQUEST_KEY = f"{FOLDER}/request.json"
COMPLETE_KEY = f"{FOLDER}/complete.json"
REPORT_KEY = f"{FOLDER}/report.html"
_LEDGER_FOLDER = f"{FOLDER}/ledger"
_READERS = 8
_AT_ONCE = 512  # records in memory while many are read


class Identified(Protocol):
    """A plan of any kind, by what its records name."""

    @property
    def id(self) -> str: ...


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StoredShard(_Record):
    """One object of a unit: what it must contain. ``empty``: only fill values, so that no object may exist."""

    key: str
    sha256: str | None
    size_bytes: int
    empty: bool


class MaskRecord(_Record):
    """A mask that left out blocks: what it was, and how far it went.

    Args:
        kind: ``image`` (voxels that are not 0), ``outlines`` (polygons), or ``tissue`` (found on the slide itself).
        source: URL.
        sha256: of what tells the foreground: of the image's fingerprint, of the outlines' bytes, of the cells with tissue.
        scale: voxels of the segmented level that one voxel of the mask covers.
        grown: voxels by which the mask was grown before blocks without foreground were skipped.
        skipped: blocks of the finest level that were asked for and hold none.
        facts: further parameters and numbers.
    """

    kind: str
    source: str
    sha256: str
    scale: tuple[float, ...]
    grown: tuple[int, ...]
    skipped: int
    facts: dict[str, Any]

    def sentence(self) -> str:
        where = {"tissue": "that hold no tissue", "outlines": f"outside the outlines of {self.source}"}
        return f"{self.skipped} blocks skipped {where.get(self.kind, f'where mask {self.source} is 0')}"


class Request(_Record):
    """Which blocks are wanted, and where image and model lie; may grow, and is no part of the plan.

    Args:
        plan: id of the plan.
        image: URL.
        model: URL.
        further_models: likewise; written only if there are any.
        device: that workers use.
        trust_model: the user's word, for the run that wrote this, that the code in a model may run.
        roi: boxes in voxels of the level, as ((start), (stop)); None for everything. Masks leave boxes of whole blocks.
        masks: that left out the other blocks, of this run and of those before it; written only if there are any.
    """

    schema_number: int = Field(default=SCHEMA, alias="schema")
    plan: str
    image: str
    model: str
    further_models: tuple[str, ...] = ()
    device: str
    trust_model: bool = False
    roi: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] | None
    masks: tuple[MaskRecord, ...] = ()

    @pydantic.model_serializer(mode="wrap")
    def _without_defaults(self, dump: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if name not in ("further_models", "masks") or value}

    @property
    def models(self) -> tuple[str, ...]:
        return (self.model, *self.further_models)

    @property
    def id(self) -> str:
        """Hash of what is wanted."""
        return _wanted_id(self.plan, self.roi)

    @property
    def key(self) -> str:
        """Hash of everything that workers are told: also where image and model lie, and on what device."""
        return hashlib.sha256(to_bytes(self)).hexdigest()[:16]


@lru_cache(maxsize=8)
def _wanted_id(plan_id: str, roi: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] | None) -> str:
    """Kept, since every unit asks, and masks leave many boxes."""
    return hashlib.sha256(canonical_json([plan_id, roi])).hexdigest()[:16]


class Record(_Record):
    """One committed unit of work.

    Args:
        plan: id of the plan.
        request: id of the request under which it was computed.
        stage: of the plan.
        index: of the unit in the stage's grid.
        generation: of the lease that held the output; 0 without one.
        attempt: counts from 1.
        objects: every stored object of the unit.
        voxels: that were written.
        label_voxels: number of voxels by label value, over all label images.
        missing_chunks: of the input, that were read as fill value.
        decoded_bytes: of the input's voxels that were decoded for this unit, whatever it shares with others.
        seconds: spent, by phase; ``wait`` for other units, which is no work.
        hardware: instruction set or GPU model.
        software: versions.
    """

    schema_number: int = Field(default=SCHEMA, alias="schema")
    plan: str
    request: str
    stage: str
    index: int
    generation: int = 0
    attempt: int = 1
    objects: tuple[StoredShard, ...]
    voxels: int
    label_voxels: dict[str, int] = {}
    missing_chunks: tuple[str, ...] = ()
    decoded_bytes: int = 0
    seconds: dict[str, float]
    hardware: str
    software: dict[str, str]

    @property
    def work_seconds(self) -> float:
        return sum(seconds for phase, seconds in self.seconds.items() if phase != "wait")


def record_key(stage: str, index: int) -> str:
    return f"{_LEDGER_FOLDER}/{stage}/{index:08d}.json"


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


def to_bytes(record: BaseModel) -> bytes:
    return canonical_json(record.model_dump(mode="json", by_alias=True))


def iterate_records(store: Store, stage: str, plan_id: str, request_id: str | None = None) -> Iterator[Record]:
    """Records of a stage that count, ascending: of this plan, and of this request if one is named. Few are in memory at a time.

    Damaged ones are as if absent.
    """
    numbers = _listed(store, stage)

    def read(index: int) -> Record | None:
        try:
            record = Record.model_validate_json(store.get(record_key(stage, index)))
        except (pydantic.ValidationError, OSError):
            return None
        counts = (
            record.plan == plan_id and request_id in (None, record.request) and (record.stage, record.index) == (stage, index)
        )
        return record if counts else None

    with ThreadPoolExecutor(_READERS) as readers:
        for begin in range(0, len(numbers), _AT_ONCE):
            for record in readers.map(read, numbers[begin : begin + _AT_ONCE].tolist()):
                if record is not None:
                    yield record


def read_records(store: Store, stage: str, plan_id: str, request_id: str | None = None) -> dict[int, Record]:
    """The same, all of them by the number of their unit."""
    return {record.index: record for record in iterate_records(store, stage, plan_id, request_id)}


def recorded_units(store: Store, stage: str, plan_id: str, request_id: str | None = None) -> NDArray[np.int64]:
    """Numbers of the units that have one of these records, ascending."""
    return np.fromiter((record.index for record in iterate_records(store, stage, plan_id, request_id)), dtype=np.int64)


def _listed(store: Store, stage: str) -> NDArray[np.int64]:
    """Numbers of the units for which there is an object that should be a record."""
    names = (entry.key.rpartition("/")[2].partition(".") for entry in store.list(f"{_LEDGER_FOLDER}/{stage}"))
    numbers = np.fromiter((int(name) for name, _, ending in names if ending == "json" and name.isdecimal()), dtype=np.int64)
    return np.sort(numbers)


def read_record(store: Store, plan: Identified, stage: str, index: int, request_id: str | None = None) -> Record | None:
    """The record of one unit; None if there is none that can be read and counts, as in ``read_records``."""
    try:
        record = Record.model_validate_json(store.get(record_key(stage, index)))
    except (pydantic.ValidationError, OSError):
        return None
    return record if record.plan == plan.id and request_id in (None, record.request) else None


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


def withdraw(store: Store, stage: str, index: int) -> None:
    """Remove the record of a unit, so that it counts as not done."""
    store.delete(record_key(stage, index))


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

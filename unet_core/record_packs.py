"""Records of many units as one object, so that a ledger of a million is read in seconds; made by whoever coordinates a run.

.unet/ledger/STAGE/INDEX.json           one record, as its worker wrote it
.unet/ledger/STAGE/pack-N-a, pack-N-b   records of the units from N * 4096 on, of which there are 4096

A record of its own counts before the one in a pack: a unit that was done again is newer, and an object that is no record takes back what
a pack says. After each step of packing the same records count, wherever it is killed:

                      pack a     pack b       records of their own
    before            old        -            new
    written           old        old + new    new              only if there is no b; then read back
    old one deleted   -          old + new    new
    packed            -          old + new    -

A pack that is damaged counts as absent, like a record.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from threading import Lock

import numpy as np
from numcodecs import Zstd
from numpy.typing import NDArray

from unet_core.errors import LedgerError
from unet_core.plan import canonical_json
from unet_core.records import LEDGER_FOLDER, SCHEMA, Record, parse_record, record_key, to_bytes
from unet_core.store import Store

UNITS = 4096  # of a pack: what a worker opens to find one record, and what is written at a time
SLOTS = ("a", "b")
WITHDRAWN = canonical_json({"schema": SCHEMA, "withdrawn": True})  # in the place of a record: what a pack says of it is void
_ZSTD = {"level": 3, "checksum": True}
_READERS = 32  # most of them wait for an object store
_KEPT = 8  # packs, of some MB, that a process keeps to look up single records


@dataclass(frozen=True)
class Pack:
    """Records of units of one stage, by their number.

    Args:
        indices: of the units, ascending.
        requests: ids of the requests that the records name.
        request_of: for each unit, which of these.
        body: the records, compressed.
    """

    indices: NDArray[np.int64]
    requests: tuple[str, ...]
    request_of: NDArray[np.int64]
    body: bytes

    @cached_property
    def lines(self) -> list[bytes]:
        """The records as JSON, in the order of ``indices``."""
        data: bytes = Zstd(**_ZSTD).decode(self.body)
        return data.split(b"\n")[: len(self.indices)]

    def place(self, index: int) -> int | None:
        """Where the record of a unit is; None if it is not here."""
        place = int(np.searchsorted(self.indices, index))
        return place if place < len(self.indices) and self.indices[place] == index else None

    def line(self, index: int, request_id: str | None = None) -> bytes | None:
        """The record of a unit; None if it is not here, or names another request than one that is asked for."""
        place = self.place(index)
        if place is None or request_id not in (None, self.requests[self.request_of[place]]):
            return None
        return self.lines[place]

    def units(self, request_id: str | None) -> NDArray[np.int64]:
        """Numbers of the units whose records name a request; of all if none is asked for."""
        if request_id is None:
            return self.indices
        chosen = np.array([request == request_id for request in self.requests], dtype=bool)
        return self.indices[chosen[self.request_of]] if len(self.indices) else self.indices


def pack_key(stage: str, number: int, slot: str) -> str:
    return f"{LEDGER_FOLDER}/{stage}/pack-{number:08d}-{slot}"


def pack_number(name: str) -> int | None:
    """The number of the pack that an object's name stands for; None if it is another object."""
    kind, _, rest = name.partition("-")
    number, _, slot = rest.partition("-")
    return int(number) if kind == "pack" and slot in SLOTS and number.isdecimal() else None


def encode_pack(plan_id: str, stage: str, number: int, lines: Mapping[int, tuple[bytes, str]]) -> bytes:
    """A pack as it is stored: sha256 of what follows, a line with what it holds, compressed records.

    Args:
        lines: of each unit its record as JSON, and the request that it names.
    """
    indices, requests = sorted(lines), sorted({request for _, request in lines.values()})
    header = {
        "schema": SCHEMA,
        "plan": plan_id,
        "stage": stage,
        "number": number,
        "indices": indices,
        "requests": requests,
        "request_of": [requests.index(lines[index][1]) for index in indices],
    }
    body: bytes = Zstd(**_ZSTD).encode(b"".join(lines[index][0] + b"\n" for index in indices) or b"\n")
    content = canonical_json(header) + b"\n" + body
    return hashlib.sha256(content).hexdigest().encode() + b"\n" + content


def decode_pack(data: bytes, plan_id: str, stage: str, number: int) -> Pack | None:
    """The pack that was stored; None if it is damaged, or of something else."""
    sha256, _, content = data.partition(b"\n")
    if hashlib.sha256(content).hexdigest().encode() != sha256:
        return None
    text, _, body = content.partition(b"\n")
    header = json.loads(text)
    if [header.get(name) for name in ("schema", "plan", "stage", "number")] != [SCHEMA, plan_id, stage, number]:
        return None
    indices, request_of = (np.array(header[name], dtype=np.int64) for name in ("indices", "request_of"))
    return Pack(indices, tuple(header["requests"]), request_of, body)


def find_pack(store: Store, plan_id: str, stage: str, number: int) -> Pack | None:
    """The records that are packed of so many units; None if there are none that can be read."""
    for slot in (*SLOTS, SLOTS[0]):  # while it is looked for, b may take the place of a, or a that of b
        pack = _read_slot(store, plan_id, stage, number, slot)
        if pack is not None:
            return pack
    return None


def _read_slot(store: Store, plan_id: str, stage: str, number: int, slot: str) -> Pack | None:
    try:
        return decode_pack(store.get(pack_key(stage, number, slot)), plan_id, stage, number)
    except OSError:
        return None


class _KeptPacks:
    """Packs that were read of late, to look up single records; shared by the threads of a process."""

    def __init__(self) -> None:
        self._packs: OrderedDict[tuple[str, str, str, str | None, int], Pack] = OrderedDict()
        self._lock = Lock()

    def line(self, store: Store, plan_id: str, stage: str, request_id: str | None, index: int) -> bytes | None:
        """The packed record of a unit, of a request; read anew where the pack that is kept lacks it, which may be older."""
        number = index // UNITS
        key = store.url, plan_id, stage, request_id, number
        with self._lock:
            kept = self._packs.get(key)
        line = None if kept is None else kept.line(index, request_id)
        if line is None and (kept := find_pack(store, plan_id, stage, number)) is not None:
            line = kept.line(index, request_id)
            with self._lock:
                self._packs[key] = kept
                while len(self._packs) > _KEPT:
                    self._packs.popitem(last=False)
        return line

    def forget(self, store: Store) -> None:
        with self._lock:
            for key in [key for key in self._packs if key[0] == store.url]:
                del self._packs[key]


KEPT = _KeptPacks()


def packed_units(store: Store, plan_id: str, stage: str, number: int) -> NDArray[np.int64]:
    """Units of which any pack of that number has a record, ascending."""
    packs = (_read_slot(store, plan_id, stage, number, slot) for slot in SLOTS)
    found = [pack.indices for pack in packs if pack is not None]
    return np.unique(np.concatenate([np.empty(0, dtype=np.int64), *found]))


def pack_records(store: Store, plan_id: str, stage: str, number: int, candidates: Iterable[int]) -> int:
    """Move records of their own into the pack of so many units; how many were moved.

    Args:
        store: of the output.
        plan_id: of its plan; records of others are left alone.
        stage: name.
        number: of the pack.
        candidates: units of it that may have records of their own.

    Raises:
        LedgerError: if the storage does not give back what was written; nothing is deleted then.
    """
    own = _own_records(store, plan_id, stage, candidates)
    found = {slot: pack for slot in SLOTS if (pack := _read_slot(store, plan_id, stage, number, slot)) is not None}
    current = max(found, key=lambda slot: len(found[slot].indices), default=SLOTS[1])
    lines: dict[int, tuple[bytes, str]] = {}
    for pack in found.values():
        requests = [pack.requests[which] for which in pack.request_of.tolist()]
        lines |= dict(zip(pack.indices.tolist(), zip(pack.lines, requests, strict=True), strict=True))
    for index, (data, record) in own.items():
        if record is None:
            lines.pop(index, None)
        else:
            lines[index] = data if b"\n" not in data else to_bytes(record), record.request
    if not own or not (lines or found):
        return 0
    other = SLOTS[1 - SLOTS.index(current)]
    store.delete(pack_key(stage, number, other))  # damaged, or all in the current one and in records of their own
    content = encode_pack(plan_id, stage, number, lines)
    if not store.put_if_absent(pack_key(stage, number, other), content):
        return 0  # another run packs here
    if store.get(pack_key(stage, number, other)) != content:
        raise LedgerError(
            f"{pack_key(stage, number, other)} reads back otherwise than written; the storage of {store.url} is at fault."
        )
    store.delete(pack_key(stage, number, current))
    KEPT.forget(store)
    store.delete_all([record_key(stage, index) for index in own])
    return len(own)


def _own_records(store: Store, plan_id: str, stage: str, candidates: Iterable[int]) -> dict[int, tuple[bytes, Record | None]]:
    """Objects in the places of records, and the records that they are; None for what is none."""

    def read(index: int) -> tuple[int, bytes, Record | None] | None:
        try:
            data = store.get(record_key(stage, index))
        except OSError:
            return None
        record = parse_record(data, stage, index)
        return None if record is not None and record.plan != plan_id else (index, data, record)

    with ThreadPoolExecutor(_READERS) as readers:
        return {found[0]: found[1:] for found in readers.map(read, candidates) if found is not None}

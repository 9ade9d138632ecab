"""Many records of a stage, single ones and packed ones alike, ascending; what is damaged is as if absent."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
from numpy.typing import NDArray

from unet_core.record_packs import UNITS, Pack, find_pack, pack_number
from unet_core.records import LEDGER_FOLDER, Record, parse_record, record_key
from unet_core.store import Store

_READERS = 32  # most of them wait for an object store
_AT_ONCE = 512  # single records in memory while many are read


class _Gone:
    """What was listed as a single record, and is none any more since it was packed meanwhile."""


_GONE: Final = _Gone()


def iterate_records(store: Store, stage: str, plan_id: str, request_id: str | None = None) -> Iterator[Record]:
    """Records of a stage that count: of this plan, and of this request if one is named. Few are in memory at a time."""
    with ThreadPoolExecutor(_READERS) as readers:
        for number, single, has_pack in _ranges(store, stage):
            pack = find_pack(store, plan_id, stage, number) if has_pack else None
            lines = _lines(pack)
            singles, listed, later = _singles(readers, store, stage, single), set(single.tolist()), None
            for index in sorted(listed | lines.keys()):
                record = next(singles) if index in listed else _GONE
                if isinstance(record, _Gone):
                    line = lines.get(index)
                    if index in listed:
                        later = _lines(find_pack(store, plan_id, stage, number)) if later is None else later
                        line = later.get(index)
                    record = None if line is None else parse_record(line, stage, index)
                if record is not None and record.plan == plan_id and request_id in (None, record.request):
                    yield record


def read_records(store: Store, stage: str, plan_id: str, request_id: str | None = None) -> dict[int, Record]:
    """The same, all of them by the number of their unit."""
    return {record.index: record for record in iterate_records(store, stage, plan_id, request_id)}


def recorded_units(store: Store, stage: str, plan_id: str, request_id: str | None = None) -> NDArray[np.int64]:
    """Numbers of the units that have one of these records; of packs no record is read."""
    found = [np.empty(0, dtype=np.int64)]
    with ThreadPoolExecutor(_READERS) as readers:
        for number, single, has_pack in _ranges(store, stage):
            gone, counts = np.zeros(len(single), dtype=bool), np.zeros(len(single), dtype=bool)
            for place, record in enumerate(_singles(readers, store, stage, single)):
                if isinstance(record, _Gone):
                    gone[place] = True
                elif record is not None:
                    counts[place] = record.plan == plan_id and request_id in (None, record.request)
            pack = find_pack(store, plan_id, stage, number) if has_pack or gone.any() else None
            packed = np.setdiff1d(pack.units(request_id), single[~gone]) if pack is not None else single[:0]
            found.append(np.union1d(single[counts], packed))
    return np.concatenate(found)


def listed_records(store: Store, stage: str) -> tuple[NDArray[np.int64], set[int]]:
    """Numbers of the units with an object that should be a single record, ascending; and numbers of the packs."""
    single, packs = array("q"), set[int]()
    for entry in store.list(f"{LEDGER_FOLDER}/{stage}"):
        name, _, ending = entry.key.rpartition("/")[2].partition(".")
        if ending == "json" and name.isdecimal():
            single.append(int(name))
        elif not ending and (number := pack_number(name)) is not None:
            packs.add(number)
    return np.sort(np.array(single, dtype=np.int64)), packs


def _ranges(store: Store, stage: str) -> Iterator[tuple[int, NDArray[np.int64], bool]]:
    """Of each pack, or what could be one: its number, the units that have single records, and whether it is there."""
    single, packs = listed_records(store, stage)
    for number in sorted({*np.unique(single // UNITS).tolist(), *packs}):
        first, stop = np.searchsorted(single, (number * UNITS, (number + 1) * UNITS))
        yield number, single[first:stop], number in packs


def _singles(
    readers: ThreadPoolExecutor, store: Store, stage: str, indices: NDArray[np.int64]
) -> Iterator[Record | _Gone | None]:
    """Single records that were listed, in their order; None for a damaged one."""

    def read(index: int) -> Record | _Gone | None:
        try:
            return parse_record(store.get(record_key(stage, index)), stage, index)
        except FileNotFoundError:
            return _GONE
        except OSError:
            return None

    for begin in range(0, len(indices), _AT_ONCE):
        yield from readers.map(read, indices[begin : begin + _AT_ONCE].tolist())


def _lines(pack: Pack | None) -> dict[int, bytes]:
    return {} if pack is None else dict(zip(pack.indices.tolist(), pack.lines, strict=True))

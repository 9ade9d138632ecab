"""Records as they come into a ledger that somebody else fills: each is read once, and a look without news is one listing.

Packs move records without changing what counts: of a pack only what was not known before is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from unet_core.record_packs import SLOTS, Pack, decode_pack, pack_key, pack_number
from unet_core.records import LEDGER_FOLDER, Record, parse_record, record_key
from unet_core.stages import Stage
from unet_core.store import Store

SAMPLED = 64  # records of a pack that are read at the first look, to know how long a unit takes
_READERS = 8

_Packed = tuple[str, int, str]  # stage, number, slot


class Arrivals:
    """The units of an output that have a record.

    Args:
        store: of the output.
        plan_id: that records must name.
        stages: of the plan, each with the request that its records must name; None for any.
    """

    def __init__(self, store: Store, plan_id: str, stages: Mapping[Stage, str | None]) -> None:
        self._store, self._plan_id = store, plan_id
        self._requests = {stage.name: request for stage, request in stages.items()}
        self._own: dict[str, dict[int, tuple[str, bool]]] = {name: {} for name in self._requests}  # tag, whether it counts
        self._packs: dict[_Packed, tuple[str, NDArray[np.int64]]] = {}  # tag, units that count
        self._known = {stage.name: np.zeros(stage.grid.block_count, dtype=bool) for stage in stages}
        self._is_first = True
        self.done = {name: known.copy() for name, known in self._known.items()}

    def poll(self) -> list[Record]:
        """Look which units are ``done`` now; records of those that were not known, at the first look some of them."""
        own, packs = self._listed()
        fresh: dict[tuple[str, int], Record] = {}
        with ThreadPoolExecutor(_READERS, "unet-arrivals") as readers:
            changed = [
                (name, index)
                for name, tags in own.items()
                for index, tag in tags.items()
                if self._own[name].get(index, ("", False))[0] != tag
            ]
            for (name, index), record in zip(changed, readers.map(self._read, changed), strict=True):
                counts = record is not None and self._counts(record)
                self._own[name][index] = own[name][index], counts
                if record is not None and counts:
                    fresh[name, index] = record
            for name, units in self._own.items():
                for index in units.keys() - own[name].keys():
                    del units[index]
            self._packs = {place: entry for place, entry in self._packs.items() if place in packs}
            changed_packs = [place for place, tag in packs.items() if self._packs.get(place, ("",))[0] != tag]
            for place, pack in zip(changed_packs, readers.map(self._read_pack, changed_packs), strict=True):
                units_of = np.empty(0, dtype=np.int64) if pack is None else pack.units(self._requests[place[0]])
                self._packs[place] = packs[place], units_of
                fresh |= {(record.stage, record.index): record for record in self._unknown(place[0], pack, units_of)}
        self._count()
        found = [record for (name, index), record in fresh.items() if self.done[name][index] and not self._known[name][index]]
        for name, done in self.done.items():
            self._known[name] |= done
        self._is_first = False
        return found

    def _listed(self) -> tuple[dict[str, dict[int, str]], dict[_Packed, str]]:
        """Tags of single records by stage and unit, and of packs."""
        own: dict[str, dict[int, str]] = {name: {} for name in self._requests}
        packs: dict[_Packed, str] = {}
        for entry in self._store.list(LEDGER_FOLDER):
            folder, _, name = entry.key.rpartition("/")
            stage = folder.rpartition("/")[2]
            stem, _, ending = name.partition(".")
            if stage not in own:
                continue
            if ending == "json" and stem.isdecimal() and int(stem) < len(self._known[stage]):
                own[stage][int(stem)] = entry.tag
            elif not ending and (number := pack_number(name)) is not None:
                packs[stage, number, name.rpartition("-")[2]] = entry.tag
        return own, packs

    def _read(self, unit: tuple[str, int]) -> Record | None:
        try:
            return parse_record(self._store.get(record_key(*unit)), *unit)
        except OSError:  # moved into a pack meanwhile, or damaged
            return None

    def _read_pack(self, place: _Packed) -> Pack | None:
        stage, number, slot = place
        assert slot in SLOTS
        try:
            return decode_pack(self._store.get(pack_key(stage, number, slot)), self._plan_id, stage, number)
        except OSError:
            return None

    def _unknown(self, stage: str, pack: Pack | None, units: NDArray[np.int64]) -> Iterator[Record]:
        """Records of a pack that were not known."""
        wanted = units[~self._known[stage][units]]
        for index in (wanted[:SAMPLED] if self._is_first else wanted).tolist():
            line = pack.line(index) if pack is not None else None
            record = None if line is None else parse_record(line, stage, index)
            if record is not None:
                yield record

    def _counts(self, record: Record) -> bool:
        return record.plan == self._plan_id and self._requests[record.stage] in (None, record.request)

    def _count(self) -> None:
        for name, done in self.done.items():
            done[:] = False
            for (stage, _, _), (_, units) in self._packs.items():
                if stage == name:
                    done[units] = True
            for index, (_, counts) in self._own[name].items():  # newer than what a pack says
                done[index] = counts

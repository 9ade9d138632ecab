"""Whether every unit that is wanted is there, and every stored object has the bytes that its record says. Computes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, groupby, islice
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from unet_core import ledger
from unet_core.errors import LedgerError
from unet_core.geometry import Box
from unet_core.lease import fence
from unet_core.ledger import Record, Request
from unet_core.plan import Plan
from unet_core.resume import wanted_numbers, wanted_records
from unet_core.stages import boxes_made_from
from unet_core.store import Store
from unet_core.tally import Tally
from unet_core.wording import counted

_AT_ONCE = 256  # records of which the objects are read before the next word of progress
_TOLD = 5  # of a list in a message

Unit = tuple[str, int]


@dataclass(frozen=True)
class Damage:
    """A unit whose objects are not what was written, and what is wrong with one of them."""

    stage: str
    index: int
    text: str


@dataclass(frozen=True)
class Found:
    """What reading an output back has shown.

    Args:
        tally: of the records.
        seen: whether each unit of a stage has one of them.
        lacking: units that are wanted and have no record, by stage.
        damaged: those whose objects differ.
    """

    tally: Tally
    seen: dict[str, NDArray[np.bool_]]
    lacking: dict[str, NDArray[np.int64]]
    damaged: list[Damage]

    @property
    def lacking_count(self) -> int:
        return sum(map(len, self.lacking.values()))


def records_of(store: Store, plan: Plan, request: Request) -> Iterator[Record]:
    """Records of all units that a request needs, stage by stage."""
    return chain.from_iterable(wanted_records(store, plan, request, stage) for stage in plan.stages)


def read_back(
    store: Store, plan: Plan, request: Request, records: Iterable[Record], show: Callable[[int], None] = lambda done: None
) -> Found:
    """Read every object of some records, and compare it by hash; few records are in memory at a time.

    Args:
        show: is told how many records were compared so far.
    """
    seen = {stage.name: np.zeros(stage.grid.block_count, dtype=bool) for stage in plan.stages}
    tally, damaged, left = Tally(), list[Damage](), iter(records)
    while some := list(islice(left, _AT_ONCE)):
        for record in some:
            tally.add(record)
            seen[record.stage][record.index] = True
        damaged += [Damage(record.stage, record.index, text) for record, text in ledger.faults(store, some)]
        show(tally.total)
    wanted = {stage.name: wanted_numbers(plan, request, stage) for stage in plan.stages}
    lacking = {name: numbers[~seen[name][numbers]] for name, numbers in wanted.items()}
    return Found(tally, seen, lacking, damaged)


def audit(store: Store, plan: Plan, request: Request, records: Iterable[Record], withdraw: bool = False) -> Tally:
    """Check that every wanted unit has a record and every record its objects, by hash; what the records say in sum.

    Args:
        withdraw: remove the records of damaged units, and of the coarser ones that were made from them, so that the next
            run computes these again and no others.

    Raises:
        LedgerError: listing the first differences; there is no completion mark then.
        LeaseLostError: if another run has taken over the output; nothing is withdrawn then.
    """
    found = read_back(store, plan, request, records)
    if withdraw:
        fence(store, request.generation)  # reading took its time
        withdraw_damaged(store, plan, found.damaged)
    wrong = found.lacking_count + len(found.damaged)
    if not wrong:
        return found.tally
    lacking = [(name, index) for name, numbers in found.lacking.items() for index in numbers.tolist()]
    texts = (f"{name} block {index} has no record" for name, index in lacking)
    units = dict.fromkeys([*lacking, *made_from_all(plan, found.damaged)])
    again = (f"{name} block {index}" for name, index in units)
    raise LedgerError(
        f"Audit of {store.url} found {counted(wrong, 'fault')}: "
        f"{_listed(chain(texts, (damage.text for damage in found.damaged)), wrong, '; ')}. "
        f"Run the same command once more; it computes {_listed(again, len(units), ', ')} again."
    )


def withdraw_damaged(store: Store, plan: Plan, damaged: Iterable[Damage]) -> None:
    """Remove the records of units whose objects are not what was written, and of those made from them.

    The coarser units that were made from them go first, so that one killed in between leaves nothing that counts and is wrong.
    """
    units = made_from_all(plan, damaged)
    for stage, some in groupby(reversed(units), key=itemgetter(0)):
        ledger.withdraw(store, plan, stage, *(index for _, index in some))
    if units:
        store.delete(ledger.REPORT_KEY)


def made_from_all(plan: Plan, damaged: Iterable[Damage]) -> list[Unit]:
    """Damaged units and all that was made from them, each once, in the order of their stages."""
    boxes: dict[str, set[Box]] = {stage.name: set() for stage in plan.stages}
    units: dict[str, set[int]] = {stage.name: set() for stage in plan.stages}
    for damage in damaged:
        for stage, box in boxes_made_from(plan.stages, damage.stage, damage.index):
            if box not in boxes[stage.name]:  # what is made from everything is the same for each of them
                boxes[stage.name].add(box)
                units[stage.name].update(stage.grid.touching(box))
    return [(name, index) for name, indices in units.items() for index in sorted(indices)]


def _listed(texts: Iterable[str], count: int, separator: str) -> str:
    more = f"{separator}and {count - _TOLD} more" if count > _TOLD else ""
    return separator.join(islice(texts, _TOLD)) + more

"""Whether every unit that is wanted is there, and every stored object has the bytes that its record says. Computes nothing."""

from __future__ import annotations

from unet_core import ledger
from unet_core.errors import LedgerError
from unet_core.ledger import Record, Request
from unet_core.plan import Plan
from unet_core.resume import wanted_units
from unet_core.stages import made_from
from unet_core.store import Store
from unet_core.wording import counted


def audit(store: Store, plan: Plan, request: Request, records: list[Record], withdraw: bool = False) -> None:
    """Check that every wanted unit has a record and every record its objects, by hash.

    Args:
        withdraw: remove the records of damaged units, and of the coarser ones that were made from them, so that the next
            run computes these again and no others.

    Raises:
        LedgerError: listing the first differences; there is no completion mark then.
    """
    have = {(record.stage, record.index) for record in records}
    lacking = [
        (stage.name, index)
        for stage in plan.stages
        for index in wanted_units(plan, request, stage)
        if (stage.name, index) not in have
    ]
    damaged = withdraw_damaged(store, plan, records) if withdraw else ledger.faults(store, records)
    wrong = [f"{stage} block {index} has no record" for stage, index in lacking] + [text for _, text in damaged]
    if not wrong:
        return
    units = [f"{stage} block {index}" for stage, index in dict.fromkeys([*lacking, *made_from_all(plan, damaged)])]
    raise LedgerError(
        f"Audit of {store.url} found {counted(len(wrong), 'fault')}: {_listed(wrong, '; ')}. "
        f"Run the same command once more; it computes {_listed(units, ', ')} again."
    )


def withdraw_damaged(store: Store, plan: Plan, records: list[Record]) -> list[tuple[Record, str]]:
    """Remove the records of units whose objects are not what was written; which, and what is wrong with each.

    The coarser units that were made from them go first, so that one killed in between leaves nothing that counts and is wrong.
    """
    damaged = ledger.faults(store, records)
    for stage, index in reversed(made_from_all(plan, damaged)):
        ledger.withdraw(store, stage, index)
    if damaged:
        store.delete(ledger.REPORT_KEY)
    return damaged


def made_from_all(plan: Plan, damaged: list[tuple[Record, str]]) -> list[tuple[str, int]]:
    """Damaged units and all that was made from them, each once, in the order of their stages."""
    stages = plan.stages
    units = {unit for record, _ in damaged for unit in made_from(stages, record.stage, record.index)}
    order = {stage.name: number for number, stage in enumerate(plan.stages)}
    return sorted(units, key=lambda unit: (order[unit[0]], unit[1]))


def _listed(texts: list[str], separator: str) -> str:
    return separator.join(texts[:5]) + (f"{separator}and {len(texts) - 5} more" if len(texts) > 5 else "")

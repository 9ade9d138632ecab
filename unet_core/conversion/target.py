"""The target of a conversion: created or taken up, never overwritten; and whether all of it is there. Converts nothing.

.unet/conversion.json                  the plan
.unet/ledger/convert-LEVEL/INDEX.json  a record for each block
"""

from __future__ import annotations

import json

import pydantic

from unet_core import ledger
from unet_core.conversion.documents import array_documents, root_keys
from unet_core.conversion.plan import ConversionPlan, stage_name
from unet_core.differences import first_difference
from unet_core.errors import LedgerError, ResumeError
from unet_core.ledger import Record
from unet_core.store import CONVERSION_KEY, Store
from unet_core.validation import first_problem, shorten


def prepare(store: Store, plan: ConversionPlan, target: str) -> None:
    """Create the target, or take up the one that this plan began.

    A target that lacks blocks is no image, also if it was one before.

    Raises:
        ResumeError: if it holds something else.
    """
    while (existing := _find_plan(store, target)) is None:
        names = store.child_names()
        if (names and names != (ledger.FOLDER,)) or store.exists(ledger.PLAN_KEY):
            raise ResumeError(
                f"Target {target} exists and was not made by a conversion (it holds {', '.join(names[:3])}); give a new folder."
            )
        store.put_if_absent(CONVERSION_KEY, plan.canonical())
    old_plan, new_plan = (json.loads(entry.canonical()) for entry in (existing, plan))
    asked = ("ngff", "method", "input", "scale")  # what explains the rest first
    difference = next(filter(None, (first_difference(old_plan[name], new_plan[name], name) for name in asked)), None)
    difference = difference or first_difference(old_plan, new_plan)
    if difference:
        name, old, new = difference
        raise ResumeError(
            f"Target {target} was begun with another {name}: {shorten(str(old))} then, {shorten(str(new))} now; give a new target, or the "
            "old option."
        )
    store.delete_leftovers()
    for key, data in array_documents(plan).items():
        store.put(key, data)


def _find_plan(store: Store, target: str) -> ConversionPlan | None:
    try:
        return ConversionPlan.model_validate_json(store.get(CONVERSION_KEY))
    except FileNotFoundError:
        return None
    except pydantic.ValidationError as error:
        raise ResumeError(
            f"{CONVERSION_KEY} in {target} is damaged, or of another release ({first_problem(error)}); give a new target."
        ) from None


def withdraw_root(store: Store, plan: ConversionPlan) -> None:
    """Make the target no image until it is whole again."""
    for key in root_keys(plan):
        store.delete(key)


def audit(store: Store, plan: ConversionPlan, target: str) -> None:
    """Check that every block has a record, and every object its size; contents were read back and hashed when they were written.

    Raises:
        LedgerError: naming what is missing; the records of damaged blocks are removed, so that the next run writes these again.
    """
    wrong = []
    for level in range(len(plan.levels)):
        recorded = set(ledger.recorded_units(store, stage_name(level), plan.id).tolist())
        wrong += [
            f"level {level} block {number} has no record"
            for number in range(plan.grid(level).block_count)
            if number not in recorded
        ]
        sizes = {entry.key: entry.size_bytes for entry in store.list(str(level))}
        for record in ledger.iterate_records(store, stage_name(level), plan.id):
            faults = _faults(record, sizes)
            if faults:
                ledger.withdraw(store, plan, record.stage, record.index)
                wrong += faults
    if wrong:
        withdraw_root(store, plan)
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise LedgerError(f"Target {target} is not whole: {'; '.join(wrong[:5])}{more}. Run the same command once more.")


def _faults(record: Record, sizes: dict[str, int]) -> list[str]:
    return [
        f"{stored.key} is missing"
        if stored.key not in sizes
        else f"{stored.key} has {sizes[stored.key]} bytes, {stored.size_bytes} were written"
        for stored in record.objects
        if sizes.get(stored.key) != stored.size_bytes
    ]

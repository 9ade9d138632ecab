"""Whether an output still is what its ledger says, read voxel by voxel; and how it becomes so again. Computes nothing.

Reads everything; ``unet status`` asks the ledger alone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

from unet_core import ledger, output
from unet_core.attempts import release_quarantined
from unet_core.audit import made_from_all, read_back, records_of, withdraw_damaged
from unet_core.lease import Claim, HeldLease, fence, hold
from unet_core.ledger import Request
from unet_core.places import check_location, check_writable
from unet_core.plan import Plan
from unet_core.resume import wanted_numbers
from unet_core.store import Store, open_store


@dataclass(frozen=True)
class Verification:
    """What was found.

    Args:
        url: of the output.
        state: ``intact``: all that was asked for is there, as it was written, and was marked complete; ``damaged``: something is not; or
            ``unfinished``: nothing is damaged, but units are still to be computed, or the audit has not been made.
        units: done and wanted; of these, damaged ones count as done unless they were repaired.
        objects: stored ones that were read.
        size_bytes: of these.
        faults: one sentence each.
        again: units that the next run computes again since they are damaged or made from what is; of a repair alone.
    """

    url: str
    state: str
    units: tuple[int, int]
    objects: int
    size_bytes: int
    faults: list[str]
    again: list[str]


def verify(
    url: str,
    repair: bool = False,
    show: Callable[[int, int], None] = lambda done, total: None,
    claim: Claim | None = None,
) -> Verification:
    """Hash every stored object and compare it with its record; find what is missing.

    Args:
        url: of an output.
        repair: take back the records of what is damaged and of all that was made from it, and write the metadata anew, so that the next
            run of the same command computes these units and no others; what is quarantined is released.
        show: is told how many records were read, of how many.
        claim: how a repair asks for the output, which no run may write meanwhile.

    Raises:
        ResumeError: if it is not an output of this program, or is to be repaired while a run holds it.
        LeaseLostError: if a run took the output over from a repair that had stood still; nothing is repaired then.
    """
    check_location("output", url)
    store = open_store(url)
    plan, request = ledger.read_plan(store), ledger.read_request(store)
    if repair:
        check_writable(url)
    with hold(url, claim) if repair else nullcontext() as lease:
        if lease is not None:
            release_quarantined(store)
        return _verify(store, plan, request, lease, show)


def _verify(
    store: Store, plan: Plan, request: Request, lease: HeldLease | None, show: Callable[[int, int], None]
) -> Verification:
    wanted = sum(len(wanted_numbers(plan, request, stage)) for stage in plan.stages)
    found = read_back(store, plan, request, records_of(store, plan, request), lambda done: show(done, wanted))
    done = found.tally.total
    faults = _faulty_metadata(store, plan) + [damage.text for damage in found.damaged]
    is_marked = ledger.is_complete(store, request)
    if is_marked and done < wanted:
        faults.append(f"{wanted - done} of {wanted} records are gone or cannot be read, although the run was complete")
    again = list[tuple[str, int]]()
    if lease is not None and faults:
        fence(store, lease.generation)  # reading took its time
        store.delete(ledger.COMPLETE_KEY)
        output.create_output(store, plan)
        again = [unit for unit in made_from_all(plan, found.damaged) if found.seen[unit[0]][unit[1]]]
        withdraw_damaged(store, plan, found.damaged)
    finished = is_marked and done == wanted
    return Verification(
        url=store.url,
        state="damaged" if faults else "intact" if finished else "unfinished",
        units=(done - len(again), wanted),
        objects=found.tally.objects,
        size_bytes=found.tally.stored_bytes,
        faults=faults,
        again=[f"{stage} block {index}" for stage, index in again],
    )


def _faulty_metadata(store: Store, plan: Plan) -> list[str]:
    faults = []
    for key, data in output.documents(plan).items():
        try:
            if store.get(key) != data:
                faults.append(f"{key} is not as this release writes it")
        except OSError as error:
            faults.append(
                f"{key} is missing" if isinstance(error, FileNotFoundError) else f"{key} cannot be read ({error.strerror})"
            )
    return faults

"""What came out of a run, in numbers, and whether there is anything left to do. Computes no voxel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from unet_core import ledger
from unet_core.completion import Completion, find_completion, write_completion
from unet_core.instances import read_joined
from unet_core.lease import Claim, hold
from unet_core.ledger import Request
from unet_core.plan import Plan
from unet_core.resume import grown, is_finished, wanted_records
from unet_core.store import Store, open_store
from unet_core.tally import Tally

if TYPE_CHECKING:
    from unet_core.planning import Planned


def take_over(planned: Planned, output_url: str, claim: Claim | None = None) -> Completion | None:
    """What an output holds that is complete already for all that a plan wants, as it was audited; None if something is left to do.

    The mark is written anew where another job of the same plan left it, so that the next one need not be planned.

    Raises:
        LeaseHeldError: if another run holds the output, and the mark is to be written.
    """
    store, plan = open_store(output_url), planned.plan
    if planned.attachment or not is_finished(planned, output_url):
        return None
    request = ledger.read_request(store)
    found = find_completion(store, request)
    if found is None or planned.asked is None or found.asked == planned.asked.job:
        return found
    stored = Tally()
    for record in wanted_records(store, plan, request, plan.stages[0]):
        stored.add(record)
    counts, instances = label_voxels(plan, stored), count_instances(store, plan, request)
    with hold(output_url, claim) as lease:
        if find_completion(store, request) != found:  # it was taken back meanwhile
            return None
        request = grown(request, planned.request).model_copy(update={"generation": lease.generation})
        store.put(ledger.REQUEST_KEY, ledger.to_bytes(request))  # wants the same, and may name another owner
        again = mark_of(planned, request, found.units, counts, instances)
        write_completion(store, again)
    return again


def mark_of(
    planned: Planned, request: Request, units: int, label_voxels: dict[str, int], instances: dict[str, int] | None
) -> Completion:
    """What the audit leaves when it passed."""
    asked = planned.asked
    return Completion(
        plan=planned.plan.id,
        request=request.id,
        units=units,
        asked=asked.job if asked else None,
        image_tag=asked.image_tag if asked else None,
        label_voxels=label_voxels,
        instances=instances,
        owner=request.owner,
        project=request.project,
    )


def label_voxels(plan: Plan, stored: Tally) -> dict[str, int]:
    """Voxels by class name."""
    return {entry.name: stored.label_voxels[str(entry.value)] for entry in plan.model.classes}


def count_instances(store: Store, plan: Plan, request: Request) -> dict[str, int] | None:
    """How many there are of each class; None where none are made."""
    if plan.instances is None:
        return None
    values = read_joined(store, plan, request).values
    region = next(image.label_value for image in plan.images if image.path == plan.instances.labels)
    numbered = [entry for entry in plan.model.classes if entry.value and region in (None, entry.value)]
    return {entry.name: int(np.count_nonzero(values == entry.value)) for entry in numbered}

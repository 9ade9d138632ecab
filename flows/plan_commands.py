"""The command ``unet plan``: what a segmentation would do, and, if asked, what it would take. Imports nothing heavy."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from flows.options import RunOptions, Whole
from flows.printing import print_json

if TYPE_CHECKING:
    from flows.trial_run import Trial
    from unet_core.planning import Planned
    from unet_core.prices import Budget, Price
    from unet_core.trial import Amount

_MINUTE = 60.0


def plan(
    image: str,
    output: str,
    options: RunOptions,
    *,
    measure: Annotated[tuple[Whole, ...] | None, Parameter(consume_multiple=(0, 1), negative="")] = None,
) -> int:
    """Show what `segment` with the same arguments would do; runs and writes nothing, unless it is to measure.

    Args:
        image: Slide (SVS, NDPI, MRXS, SCN, DICOM ..), TIFF, PNG, JPEG, OME-Zarr, Zarr, N5 or Neuroglancer precomputed: a path, or an s3:// URL
            (not of pictures, nor of slides other than SVS).
        output: Where the OME-Zarr result would go.
        measure: Segment a few blocks, 8 unless told, for a minute at most, beside the output, remove them, and tell what the whole would take:
            time, worker hours, memory, disk, and money if there is a --price.
    """
    from flows.claims import terminal_claim
    from flows.run import check_job

    began = time.perf_counter()
    job, (budget, price) = options.job(image, output), options.prices()
    planned = check_job(job, options.cluster, options.workers, terminal_claim())
    facts, said = planned.facts(), None
    if measure is not None:
        from flows.trial_run import try_blocks
        from unet_core.trial import MOST_BLOCKS

        count = measure[0] if measure else MOST_BLOCKS
        trial = try_blocks(planned, output, options.cluster, options.workers, count, began)
        facts |= _told(trial, planned, budget, price)
        said = _numbers(trial, price)
    for name, value in facts.items():
        for number, line in enumerate(value if isinstance(value, list) else [value]):
            print(f"{'' if number else name.replace('_', ' '):>16}  {line}")
    if options.json:
        print_json(facts | ({"measured": said} if said else {}))
    return 0


def _told(trial: Trial, planned: Planned, budget: Budget | None, price: Price | None) -> dict[str, Any]:
    """The estimate in words."""
    from unet_core.memory import GIB
    from unet_core.prices import hours
    from unet_core.wording import counted

    found = trial.estimate
    if found is None:
        return {"measured": "nothing, all blocks are there"}
    work, on_gpu = found.work_seconds, planned.request.device.startswith("cuda")
    unit = "GPU hours" if on_gpu else "worker hours"
    lines = {
        "measured": f"{found.tried} of {found.blocks} blocks, {trial.seconds:.1f} s; intervals (95 %) are of the choice of blocks",
        "work": f"{hours(work.value).removesuffix(' worker hours')} {unit}, give or take {_percent(work)}",
        "time": f"about {_duration(found.wall_seconds.value)} with {counted(trial.workers, 'worker')}, give or take "
        f"{_percent(found.wall_seconds)}: {found.start_seconds:.1f} s to start, {found.audit_seconds:.1f} s for the audit",
        **({"cost": f"{price.words(work.value)}, give or take {_percent(work)}, at {price} for an hour"} if price else {}),
        "peak_memory": f"{trial.peak_bytes / GIB:.2f} GiB a worker, measured"
        + (f"; {trial.gpu_bytes / GIB:.2f} GiB of its GPU" if trial.gpu_bytes else ""),
        "stored": f"{found.stored_bytes.value / 2**20:,.2f} MiB, give or take {_percent(found.stored_bytes)}",
    }
    if found.untried:
        lines["not_measured"] = f"{', '.join(found.untried)}; there was no time for them, they come on top"
    if budget:
        share = budget.work_seconds / work.value if work.value else 1.0
        lines["budget"] = f"{budget.asked}: {budget.words(budget.work_seconds)}, " + (
            "enough"
            if work.value + work.error <= budget.work_seconds
            else f"enough for about {100 * min(1.0, share):.0f} % of it"
        )
    return lines


def _percent(amount: Amount) -> str:
    return f"{100 * amount.error / amount.value:.0f} %" if amount.value else "0 %"


def _duration(seconds: float) -> str:
    if seconds < _MINUTE:
        return f"{seconds:.1f} s"
    minutes = seconds / _MINUTE
    return f"{minutes:.1f} min" if minutes < 60 else f"{minutes / 60:.1f} h"


def _numbers(trial: Trial, price: Price | None) -> dict[str, Any]:
    """The same for programs; all in seconds and bytes."""
    found = trial.estimate
    if found is None:
        return {"blocks": 0}
    cost = {"cost": asdict(found.work_seconds.times(price.of(1.0))), "currency": price.currency} if price else {}
    peaks = {"peak_bytes": trial.peak_bytes, "gpu_bytes": trial.gpu_bytes}
    return asdict(found) | cost | peaks | {"workers": trial.workers, "seconds": trial.seconds}

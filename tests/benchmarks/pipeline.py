"""This project's pipeline as a contender: in this process, or on worker processes that run before the clock starts."""

from __future__ import annotations

import time
from collections.abc import Iterable
from importlib import import_module
from typing import Any

from tests.benchmarks.cases import Work
from tests.benchmarks.meter import Meter, read_process
from unet_core.geometry import Box
from unet_core.job import SegmentationJob, make_job
from unet_core.ledger import Record
from unet_core.model_package import load_model
from unet_core.plan import Plan
from unet_core.segment import run


def serial(work: Work, meter: Meter, **options: Any) -> None:
    """``run(job)``: planning, blocks, pyramid and audit in one process.

    Args:
        options: of the job.
    """
    records: list[Record] = []
    with meter:
        summary = run(_job(work, options), records.append)
    assert summary.status == "complete", summary.failures
    _note(work, meter, records)


def on_workers(work: Work, meter: Meter, workers: int, **options: Any) -> None:
    """The same stages on dask workers of one thread each; their start is noted, not counted."""
    from distributed import Client

    from flows.clusters import open_cluster
    from flows.run import segment_on_cluster

    began = time.perf_counter()
    with open_cluster("local", workers) as scheduler, Client(scheduler, set_as_default=False) as client:
        assert scheduler is not None
        client.wait_for_workers(workers)
        client.run(import_module, "unet_core.worker")
        client.run(_load, str(work.folder / "model"))  # imports the rest; others have loaded their model before the clock too
        meter.notes["start_seconds"] = time.perf_counter() - began
        meter.others = lambda: list(client.run(read_process).values())
        with meter:
            summary = segment_on_cluster(_job(work, options), scheduler, workers)
    assert summary.status == "complete", summary.failures
    _note(work, meter, _records(work))


def _load(model: str) -> None:
    load_model(model)


def _job(work: Work, options: dict[str, Any]) -> SegmentationJob:
    return make_job(image=work.image, output=work.output, model=str(work.folder / "model"), device="cpu", **options)


def _plan(work: Work) -> Plan:
    from unet_core.ledger import read_plan
    from unet_core.store import open_store

    return read_plan(open_store(work.output))


def _records(work: Work) -> list[Record]:
    from unet_core.ledger import read_records
    from unet_core.store import open_store

    plan = _plan(work)
    return [record for stage in plan.stages for record in read_records(open_store(work.output), stage.name, plan.id).values()]


def _note(work: Work, meter: Meter, records: Iterable[Record]) -> None:
    """Passes that the plan asks for, and the seconds that the ledger has for each phase."""
    plan, package = _plan(work), work.package
    for block in plan.stages[0].grid.blocks():
        whole = Box(block.start, block.stop)
        meter.add_pass(package.network, (1, 1, *package.footprint.read_box(whole).shape))
    phases: dict[str, float] = {}
    for record in records:
        for phase, seconds in record.seconds.items():
            phases[phase] = phases.get(phase, 0.0) + seconds
    meter.notes |= {"phases": phases, "block_shape": plan.block_shape, "strip": plan.strip}

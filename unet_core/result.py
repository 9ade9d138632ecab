"""A finished or partly finished output, to look into: where its run stands, and its images as volumes. Computes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from unet_core import ledger
from unet_core.errors import LedgerError
from unet_core.geometry import Box
from unet_core.places import check_location
from unet_core.plan import Plan
from unet_core.resume import done_units, wanted_numbers
from unet_core.store import open_store
from unet_core.volumes import Volume, open_volume


@dataclass(frozen=True)
class Status:
    """Where a run stands, from the output alone.

    Args:
        state: ``complete``, or ``unfinished``.
        model: name; of several models, their names with commas.
        stages: name to (units done, units wanted).
        owner: as the request says; None if nobody did.
        project: likewise.
    """

    state: str
    plan: str
    model: str
    stages: dict[str, tuple[int, int]]
    owner: str | None = None
    project: str | None = None


def read_status(output_url: str) -> Status:
    """Read plan, request and ledger of an output.

    Raises:
        ResumeError: if it is not an output of this program.
    """
    check_location("output", output_url)
    store = open_store(output_url)
    plan, request = ledger.read_plan(store), ledger.read_request(store)
    names = ", ".join(model.name for model in plan.models)
    stages = {}
    for stage in plan.stages:
        wanted = len(wanted_numbers(plan, request, stage))
        stages[stage.name] = (len(done_units(store, plan, request, stage)), wanted)
    state = "complete" if ledger.is_complete(store, request) else "unfinished"
    return Status(state, plan.id, names, stages, request.owner, request.project)


@dataclass(frozen=True)
class Result:
    """A finished or partly finished output, to look into."""

    url: str
    plan: Plan
    status: Status

    def volume(self, name: str | None = None, level: int = 0) -> Volume:
        """One of the output's images at one level: its first label image, or the one named ("" is the root).

        Raises:
            LedgerError: if voxels that were written are no longer there.
        """
        image = next(
            image for image in self.plan.all_images if (image.path == name if name is not None else image.kind == "labels")
        )
        # Shards of background are not stored, so that absent ones read as such; but not those that the ledger knows.
        volume = open_volume(f"{self.url.rstrip('/')}/{image.path}".rstrip("/"), level, missing="fill")
        absent = {f"{image.array_path(level)}/{key}" for key in volume.missing_chunks()}
        stage = next(stage.name for stage in self.plan.stages if stage.level == level and image in self.plan.images_of(stage))
        records = ledger.iterate_records(open_store(self.url), stage, self.plan.id) if absent else iter(())
        lost = sorted(shard.key for one in records for shard in one.objects if not shard.empty and shard.key in absent)
        if lost:
            raise LedgerError(
                f"{lost[0]} is missing in {self.url} ({len(lost)} in all); run the same command again to compute it."
            )
        return volume

    def unwanted_blocks(self) -> Iterator[Box]:
        """Blocks of the finest level that the run was not asked for, which read as background."""
        stage, request = self.plan.stages[0], ledger.read_request(open_store(self.url))
        unwanted = np.ones(stage.grid.block_count, dtype=bool)
        unwanted[wanted_numbers(self.plan, request, stage)] = False
        return (stage.grid.block(index) for index in np.flatnonzero(unwanted).tolist())

    def to_dask(self, name: str | None = None, level: int = 0) -> Any:
        """The same as a lazy dask array."""
        return self.volume(name, level).to_dask()


def open_result(url: str) -> Result:
    """Open an output of ``run``.

    Raises:
        JobError: if ``url`` is no place at all.
        ResumeError: if it is not an output of this program.
    """
    status = read_status(url)
    return Result(url, ledger.read_plan(open_store(url)), status)

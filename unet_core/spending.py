"""What runs took, by their ledgers alone: seconds of work by stage, voxels and bytes. Reads no voxel, knows no prices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from unet_core import ledger
from unet_core.ledger import Record
from unet_core.plan import Plan
from unet_core.store import Store


@dataclass
class Spending:
    """Sums over units.

    Args:
        units: of any stage.
        work_seconds: of all workers together, by the phases of their units.
        wait_seconds: for other units of the same process; no work.
        voxels: of the finest level, that were segmented.
        stored_bytes: of all objects.
    """

    units: int = 0
    work_seconds: float = 0.0
    wait_seconds: float = 0.0
    voxels: int = 0
    stored_bytes: int = 0

    def add(self, record: Record, is_finest: bool) -> None:
        self.units += 1
        self.work_seconds += record.work_seconds
        self.wait_seconds += record.seconds.get("wait", 0.0)
        self.voxels += record.voxels if is_finest else 0
        self.stored_bytes += sum(shard.size_bytes for shard in record.objects)

    def join(self, other: Spending) -> None:
        self.units += other.units
        self.work_seconds += other.work_seconds
        self.wait_seconds += other.wait_seconds
        self.voxels += other.voxels
        self.stored_bytes += other.stored_bytes


def every_record(store: Store, plan: Plan) -> Iterator[Record]:
    """Records of all stages of an output, of whatever request; few are in memory at a time."""
    for stage in plan.stages:
        yield from ledger.iterate_records(store, stage.name, plan.id)

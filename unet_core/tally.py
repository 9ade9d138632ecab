"""What many units of work came to, added up one after the other: their records need not be kept. Computes nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from unet_core.ledger import Record
from unet_core.stages import SEGMENT_STAGE

MOST_TOLD = 1000  # failures whose sentences are kept; all are counted


@dataclass
class Tally:
    """Sums over records, and failures; of the same size for a thousand blocks and for a million.

    Args:
        units: with a record, by the name of their stage.
        voxels: of these, likewise.
        decoded_bytes: likewise.
        label_voxels: by label value, of the segmentation.
        hardware: classes that computed the segmentation.
        work_seconds: of all workers together, waiting left out.
        objects: that are stored; those of background alone are not.
        stored_bytes: of these.
        failed: units without a record, since something went wrong.
        failures: a sentence for each of the first of these.
        notes: what else the user should know.
    """

    units: Counter[str] = field(default_factory=Counter)
    voxels: Counter[str] = field(default_factory=Counter)
    decoded_bytes: Counter[str] = field(default_factory=Counter)
    label_voxels: Counter[str] = field(default_factory=Counter)
    hardware: set[str] = field(default_factory=set)
    work_seconds: float = 0.0
    objects: int = 0
    stored_bytes: int = 0
    failed: int = 0
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, record: Record) -> None:
        """Count a unit that is committed."""
        self.units[record.stage] += 1
        self.voxels[record.stage] += record.voxels
        self.decoded_bytes[record.stage] += record.decoded_bytes
        self.work_seconds += record.work_seconds
        stored = [shard.size_bytes for shard in record.objects if not shard.empty]
        self.objects += len(stored)
        self.stored_bytes += sum(stored)
        if record.stage == SEGMENT_STAGE:
            self.label_voxels.update(record.label_voxels)
            self.hardware.add(record.hardware)

    def fail(self, text: str) -> None:
        """Count a unit that is not, with what went wrong."""
        self.failed += 1
        if len(self.failures) < MOST_TOLD:
            self.failures.append(text)

    def merge(self, other: Tally) -> None:
        """Take over what another one has counted."""
        self.units.update(other.units)
        self.voxels.update(other.voxels)
        self.decoded_bytes.update(other.decoded_bytes)
        self.label_voxels.update(other.label_voxels)
        self.hardware |= other.hardware
        self.work_seconds += other.work_seconds
        self.objects += other.objects
        self.stored_bytes += other.stored_bytes
        self.failed += other.failed
        self.failures = (self.failures + other.failures)[:MOST_TOLD]
        self.notes += other.notes

    @property
    def total(self) -> int:
        """Units of all stages."""
        return sum(self.units.values())

"""What the records of a stage say in sum: gathered from one after the other, so that a million of them need little memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from unet_core.ledger import Record
from unet_core.stages import Stage


@dataclass
class Recorded:
    """The units of a stage that are done.

    Args:
        done: whether each unit is.
        voxels: of these.
        label_voxels: of these, by label value.
        seconds: of all workers together, by phase; ``wait`` is no work.
        hardware: classes of it that computed them.
        software: versions that did, each as sorted pairs.
        missing_chunks: of the image, that were read as background, each once.
        lines: ``KEY SHA256`` of each stored object.
        stored_bytes: of these objects.
    """

    done: NDArray[np.bool_]
    voxels: int = 0
    label_voxels: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)
    hardware: set[str] = field(default_factory=set)
    software: set[tuple[tuple[str, str], ...]] = field(default_factory=set)
    missing_chunks: dict[str, None] = field(default_factory=dict)
    lines: list[bytes] = field(default_factory=list)
    stored_bytes: int = 0

    @classmethod
    def of(cls, stage: Stage, records: Iterable[Record]) -> Recorded:
        """Sum up records of a stage."""
        found = cls(np.zeros(stage.grid.block_count, dtype=bool))
        for record in records:
            found.done[record.index] = True
            found.voxels += record.voxels
            found.label_voxels.update(record.label_voxels)
            for phase, value in record.seconds.items():
                found.seconds[phase] = found.seconds.get(phase, 0.0) + value
            found.hardware.add(record.hardware)
            found.software.add(tuple(sorted(record.software.items())))
            found.missing_chunks |= dict.fromkeys(record.missing_chunks)
            stored = [shard for shard in record.objects if not shard.empty]
            found.lines += [f"{shard.key} {shard.sha256 or ''}\n".encode() for shard in stored]
            found.stored_bytes += sum(shard.size_bytes for shard in stored)
        return found

    @property
    def units(self) -> NDArray[np.int64]:
        """Numbers of the units that are done."""
        return np.flatnonzero(self.done)

    @property
    def work_seconds(self) -> float:
        return sum(seconds for phase, seconds in self.seconds.items() if phase != "wait")

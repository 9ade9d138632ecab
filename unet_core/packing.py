"""When records are packed: those of a range of units once the last of them is committed, and at resume what is left of earlier runs."""

from __future__ import annotations

from collections.abc import Mapping
from queue import SimpleQueue
from threading import Event, Lock, Thread
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import UnetCoreError
from unet_core.lease import fence
from unet_core.record_packs import UNITS, pack_records
from unet_core.record_reading import listed_records
from unet_core.store import Store

LEAST_OF_STAGE = 1024  # single records, below which all of a stage stay as they are: one listing of a store has as many
LEAST_OF_PACK = 64  # likewise of one pack: few are not worth to be written anew
_STOPPING_SECONDS = 5.0  # that a run which ends with an error waits for the pack at hand


def pack_stage(store: Store, plan_id: str, stage: str) -> int:
    """Pack the single records of a stage, if there are many; how many were packed.

    Raises:
        LedgerError: if the storage does not give back what was written.
    """
    single, _ = listed_records(store, stage)
    if len(single) < LEAST_OF_STAGE:
        return 0
    numbers, counts = np.unique(single // UNITS, return_counts=True)
    packed = 0
    for number in numbers[counts >= LEAST_OF_PACK].tolist():
        first, stop = np.searchsorted(single, (number * UNITS, (number + 1) * UNITS))
        packed += pack_records(store, plan_id, stage, number, single[first:stop].tolist())
    return packed


class Packer:
    """Packs records while a run goes on, in a thread of its own; stops after the pack at hand where the run ends with an error.

    Packing saves time later and changes nothing: what goes wrong with it is told, and ends no run.

    Args:
        store: of the output.
        plan_id: of its plan.
        remaining: units that the run is to do, by stage, ascending.
        generation: of the lease under which it holds the output; without it no more is packed.
    """

    def __init__(self, store: Store, plan_id: str, remaining: Mapping[str, NDArray[np.int64]], generation: int = 0) -> None:
        self._store, self._plan_id, self._generation = store, plan_id, generation
        self._remaining = {stage: numbers for stage, numbers in remaining.items() if len(numbers) >= LEAST_OF_STAGE}
        self._left = {stage: np.bincount(numbers // UNITS) for stage, numbers in self._remaining.items()}
        self._due: SimpleQueue[tuple[str, int] | None] = SimpleQueue()
        self._lock, self._stopping = Lock(), Event()
        self._thread = Thread(target=self._work, name="unet-pack", daemon=True)
        self.problems: list[str] = []  # one at most: then nothing more is packed

    def __enter__(self) -> Packer:
        if self._left:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            self._stopping.set()
        self._due.put(None)
        if self._left:
            self._thread.join(_STOPPING_SECONDS if error is not None else None)

    def committed(self, stage: str, index: int) -> None:
        """Say that a unit has its record; from any thread."""
        left = self._left.get(stage)
        if left is None:
            return
        with self._lock:
            left[index // UNITS] -= 1
            is_last = left[index // UNITS] == 0
        if is_last:
            self._due.put((stage, index // UNITS))

    def _work(self) -> None:
        while (due := self._due.get()) is not None and not self._stopping.is_set():
            stage, number = due
            remaining = self._remaining[stage]
            first, stop = np.searchsorted(remaining, (number * UNITS, (number + 1) * UNITS))
            if stop - first < LEAST_OF_PACK:
                continue
            try:
                fence(self._store, self._generation)
                pack_records(self._store, self._plan_id, stage, number, remaining[first:stop].tolist())
            except (UnetCoreError, OSError) as error:
                self.problems.append(f"Records were not packed ({error}); all are there, and the next run packs them.")
                return

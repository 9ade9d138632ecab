from __future__ import annotations

import pytest

from flows import progress
from flows.progress import Progress, Snapshot
from unet_core.ledger import Record


def test_the_time_left_does_not_count_the_start_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    shown: list[Snapshot] = []
    record = Record(
        plan="p", request="r", stage="segment", index=0, objects=(), voxels=1_000_000, seconds={}, hardware="h", software={}
    )
    counted = Progress(11, shown.append)
    clock[0] += 30  # workers start
    for _ in range(11):
        counted.add(record)
        clock[0] += 2
    assert shown[0].seconds_left is None
    assert "left" not in shown[0].sentence()
    assert shown[5].seconds_left == pytest.approx(10.0)
    assert shown[5].sentence() == "6 of 11 units, 0.15 Mvoxel/s, about 10 s left"
    assert shown[-1].sentence() == "11 of 11 units, 0.22 Mvoxel/s"

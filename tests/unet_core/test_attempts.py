"""Units that fail: tried again, then given up, told, and taken up by the next run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unet_core.test_segment import digest
from unet_core import worker
from unet_core.attempts import MOST_ATTEMPTS, Retried, read_quarantined, release_quarantined
from unet_core.errors import BlockError
from unet_core.job import SegmentationJob, make_job
from unet_core.segment import run
from unet_core.store import open_store
from unet_core.verify import verify

Maker = Callable[..., Path]


@pytest.fixture
def job(make_model: Maker, make_image: Maker, tmp_path: Path) -> SegmentationJob:
    fields = {"image": str(make_image((70, 90))), "model": str(make_model(levels=2))}
    return make_job(**fields, output=str(tmp_path / "out"), block_shape=(32, 32))


class Failing:
    """Predicts as before, but for blocks that fail so many times."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times: dict[int, int]) -> None:
        self.left, self.tried, self.predict = dict(times), list[int](), worker.predict_block
        monkeypatch.setattr(worker, "predict_block", self)

    def __call__(self, unit: Any) -> Any:
        self.tried.append(unit.index)
        if self.left.get(unit.index, 0) > 0:
            self.left[unit.index] -= 1
            raise BlockError(f"trouble {self.left[unit.index]}")
        return self.predict(unit)


def test_a_block_that_fails_twice_is_tried_again_last_and_the_run_is_complete(
    job: SegmentationJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(job.model_copy(update={"output": str(tmp_path / "undisturbed")}))
    failing = Failing(monkeypatch, {2: MOST_ATTEMPTS - 1, 4: 1})
    assert run(job).status == "complete"
    assert sorted(failing.tried) == sorted([*range(9), 2, 2, 4])
    assert failing.tried[:9] == list(range(9))  # no block waits for one that fails
    assert digest(Path(job.output)) == digest(tmp_path / "undisturbed")
    assert list(open_store(job.output).list(".unet/attempts")) == []


def test_a_block_that_always_fails_is_quarantined_with_its_reason_and_the_next_run_tries_it_anew(
    job: SegmentationJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing, store = Failing(monkeypatch, {4: MOST_ATTEMPTS + 1}), open_store(job.output)
    summary = run(job)
    assert (summary.status, summary.computed, failing.tried.count(4)) == ("partial", 8, MOST_ATTEMPTS)
    assert summary.failures == ["segment block 4 (yx 32:64, 32:64): trouble 1 (quarantined after 3 attempts)"]
    (found,) = read_quarantined(store)
    assert (found.stage, found.index, found.count, found.sentence()) == ("segment", 4, 3, summary.failures[0])
    assert verify(job.output).state == "unfinished"
    assert read_quarantined(store) == [found]
    verify(job.output, repair=True)
    assert read_quarantined(store) == []
    assert run(job).status == "complete"  # the fourth attempt is the first of this run: one more fails, then it is there
    assert failing.tried.count(4) == MOST_ATTEMPTS + 2


def test_what_is_written_down_may_be_damaged(job: SegmentationJob) -> None:
    store = open_store(job.output)
    store.put(".unet/attempts/segment/00000001.json", b"{")
    assert read_quarantined(store) == []
    assert release_quarantined(store) == 1


class Line:
    def __init__(self, units: list[tuple[str, int]]) -> None:
        self.units, self.done = units, list[tuple[str, int]]()

    def take(self) -> tuple[str, int] | None:
        return self.units.pop(0) if self.units else None

    def committed(self, stage: str, index: int) -> None:
        self.done.append((stage, index))


def test_counts_are_of_one_unit_each(tmp_path: Path) -> None:
    line = Line([("a", 0), ("a", 1), ("b", 0)])
    retried = Retried(line, open_store(str(tmp_path)), most=2)
    assert retried.take() == ("a", 0)
    assert retried.failed(("a", 0), "no") is None
    assert [retried.take() for _ in range(3)] == [("a", 1), ("b", 0), ("a", 0)]
    assert retried.failed(("b", 0), "dead", attempts=2) == "dead (quarantined after 2 attempts)"
    assert retried.failed(("a", 0), "no") == "no (quarantined after 2 attempts)"
    assert retried.take() is None
    retried.committed("a", 1)
    assert line.done == [("a", 1)]

"""Damage of every kind is found, told apart from work that is not done yet, and taken back with nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unet_core.test_earlier_outputs import EARLIER
from tests.unet_core.test_ledger import fill_in, flip, job, truncate
from tests.unet_core.test_segment import digest
from unet_core import ledger
from unet_core.audit import Damage, made_from_all
from unet_core.errors import ResumeError
from unet_core.geometry import BlockGrid, Box
from unet_core.job import SegmentationJob, make_job
from unet_core.segment import run
from unet_core.stages import made_from, stages_of
from unet_core.store import open_store
from unet_core.verify import verify

assert job  # a fixture: 5 x 2 blocks and one coarser level of 3 x 1, and a copy of it beside


def test_an_undisturbed_output_is_intact_and_left_as_it_is(job: SegmentationJob, tmp_path: Path) -> None:
    shown: list[tuple[int, int]] = []
    found = verify(job.output, repair=True, show=lambda *counts: shown.append(counts))
    stored = [path for path in (tmp_path / "out").rglob("c/*/*") if path.is_file()]
    assert (found.state, found.units, found.faults, found.again) == ("intact", (13, 13), [], [])
    assert (found.objects, found.size_bytes) == (len(stored), sum(path.stat().st_size for path in stored))
    assert shown[-1] == (13, 13)
    assert digest(tmp_path / "out") == digest(tmp_path / "undisturbed")


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink, fill_in])
@pytest.mark.parametrize(
    ("shard", "again"),
    [
        ("labels/classes/0/c/3/1", ["segment block 7", "level-1 block 1"]),
        ("labels/classes/1/c/1/0", ["level-1 block 1"]),
        ("0/c/0/0", ["segment block 0", "level-1 block 0"]),
    ],
)
def test_damage_is_named_and_a_repair_takes_back_that_alone(
    damage: Callable[[Path], None], shard: str, again: list[str], job: SegmentationJob, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    damage(output / shard)
    before = digest(output)
    found = verify(job.output)
    assert (found.state, found.units, found.again) == ("damaged", (13, 13), [])
    assert len(found.faults) == 1
    assert shard in found.faults[0]
    assert digest(output) == before
    assert ledger.is_complete(open_store(job.output), ledger.read_request(open_store(job.output)))

    repaired = verify(job.output, repair=True)
    assert (repaired.state, repaired.again, repaired.units) == ("damaged", again, (13 - len(again), 13))
    assert verify(job.output).state == "unfinished"
    computed = run(job)
    assert (computed.status, computed.computed) == ("complete", sum(unit.startswith("segment") for unit in again))
    assert verify(job.output).state == "intact"
    assert digest(output) == digest(tmp_path / "undisturbed")


@pytest.mark.parametrize("damage", [truncate, Path.unlink, fill_in])
@pytest.mark.parametrize("key", ["zarr.json", "labels/classes/1/zarr.json"])
def test_metadata_are_verified_and_repaired(
    damage: Callable[[Path], None], key: str, job: SegmentationJob, tmp_path: Path
) -> None:
    damage(tmp_path / "out" / key)
    assert verify(job.output).faults == [
        f"{key} is missing" if damage is Path.unlink else f"{key} is not as this release writes it"
    ]
    assert verify(job.output, repair=True).again == []
    assert run(job).computed == 0
    assert digest(tmp_path / "out") == digest(tmp_path / "undisturbed")


@pytest.mark.parametrize("damage", [truncate, Path.unlink, fill_in])
def test_a_lost_record_of_a_complete_run_is_damage_and_of_an_unfinished_one_is_work(
    damage: Callable[[Path], None], job: SegmentationJob, tmp_path: Path
) -> None:
    record = next((tmp_path / "out/.unet/ledger/segment").glob("*3.json"))
    damage(record)
    found = verify(job.output)
    assert (found.state, found.units) == ("damaged", (12, 13))
    assert found.faults == ["1 of 13 records are gone or cannot be read, although the run was complete"]
    (tmp_path / "out/.unet/complete.json").unlink()
    assert (verify(job.output).state, verify(job.output).faults) == ("unfinished", [])
    assert run(job).status == "complete"
    assert verify(job.output).state == "intact"


def test_an_output_of_an_earlier_release_is_intact() -> None:
    found = verify(str(EARLIER / "one-model/output"))
    assert (found.state, found.units) == ("intact", (1, 1))


def test_what_is_no_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match="is not an output of this program"):
        verify(str(tmp_path))


def test_of_many_damaged_units_each_that_was_made_from_them_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """All objects are made from each block: to name them for each of 100 took 139 s of 10,000 blocks."""
    levels = [((330, 310), (1, 1)), ((165, 155), (2, 2)), ((83, 78), (2, 2))]
    stages = stages_of(levels, (16, 16), has_instances=True, has_table=True, halo=(3, 3))
    units = [("segment", index) for index in range(0, 420, 7)] + [("instances", 5), ("level-1", 1)]
    expected = {unit for damaged in units for unit in made_from(stages, *damaged)}
    told, true_touching = list[int](), BlockGrid.touching

    def touching(grid: BlockGrid, box: Box) -> Iterator[int]:
        for index in true_touching(grid, box):
            told.append(index)
            yield index

    monkeypatch.setattr(BlockGrid, "touching", touching)
    plan: Any = SimpleNamespace(stages=stages)
    found = made_from_all(plan, [Damage(stage, index, "") for stage, index in units])
    assert set(found) == expected
    order = [stage.name for stage in stages]
    assert found == sorted(expected, key=lambda unit: (order.index(unit[0]), unit[1]))
    assert len(told) < 2 * len(expected)


def test_a_repair_names_no_unit_that_nobody_asked_for(make_image: Any, make_model: Any, tmp_path: Path) -> None:
    job = make_job(
        image=str(make_image((64, 64))), output=str(tmp_path / "roi"), model=str(make_model(levels=2)), block_shape=(16, 16),
        instances="components", roi=("0:20,0:20",),
    )  # fmt: skip
    run(job)
    (tmp_path / "roi/labels/classes/0/c/0/0").unlink()
    found = verify(job.output, repair=True)
    done, wanted = found.units
    assert done == wanted - len(found.again)
    assert done > 0
    assert verify(job.output).units == found.units

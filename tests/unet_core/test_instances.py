"""Instances over a whole output: the numbers of scikit-image, whatever the blocks, and the same bytes whatever happened on the way."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from threading import current_thread
from typing import Any

import numpy as np
import pytest
import zarr
from skimage.measure import label

from tests.conftest import describe, random_network
from tests.unet_core.test_segment import digest, labels_of
from unet_core import instances, ledger, worker
from unet_core.errors import JobError, LedgerError, MemoryBudgetError
from unet_core.instances import read_joined
from unet_core.job import make_job
from unet_core.memory import instance_bytes
from unet_core.model_package import save_model
from unet_core.networks import NETWORKS
from unet_core.pipeline import run_units
from unet_core.planning import resolve
from unet_core.segment import open_result, plan_run, prepare, read_status, run
from unet_core.stages import made_from
from unet_core.store import open_store

Maker = Callable[..., Path]


def instances_of(output: Path, level: int = 0) -> np.ndarray[Any, Any]:
    return np.asarray(zarr.open_array(output / "labels" / "instances" / str(level), mode="r")[...])


CUTS = [((75, 93), [(16, 32), (64, 8), (76, 96)], 2), ((13, 22, 37), [(4, 8, 16), (16, 8, 8), (16, 24, 40)], 3)]


@pytest.mark.parametrize(("shape", "blocks", "connectivity"), CUTS, ids=str)
def test_any_blocks_give_the_components_of_the_whole(
    shape: tuple[int, ...], blocks: list[tuple[int, ...]], connectivity: int, make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    model, image = make_model(levels=2, dims=len(shape), classes=6), make_image(shape)
    for number, block in enumerate(blocks):
        output = tmp_path / f"out-{number}"
        steps = connectivity if number else 1
        job = make_job(
            image=str(image), output=str(output), model=str(model), block_shape=block, instances="components", connectivity=steps
        )
        summary = run(job)
        expected = label(labels_of(output), background=0, connectivity=steps)
        np.testing.assert_array_equal(instances_of(output), expected)
        assert instances_of(output).dtype == np.uint64
        assert summary.instances is not None
        assert sum(summary.instances.values()) == expected.max() > 5
        store = open_store(str(output))
        joined = read_joined(store, ledger.read_plan(store), ledger.read_request(store))
        np.testing.assert_array_equal(joined.sizes, np.bincount(expected.ravel())[1:])
        assert run(job).computed == 0


@pytest.fixture
def job_of(make_model: Maker, make_image: Maker, tmp_path: Path) -> Callable[..., Any]:
    fields = {"image": str(make_image((75, 310))), "model": str(make_model(levels=2, classes=6)), "block_shape": (32, 64)}
    return lambda name, **more: make_job(**(fields | {"output": str(tmp_path / name), "instances": "components"} | more))


def test_small_ones_are_left_out_and_the_pyramid_takes_ids_as_they_are(job_of: Callable[..., Any]) -> None:
    job = job_of("out", min_voxels=7)
    run(job)
    output = Path(job.output)
    expected = label(labels_of(output), background=0, connectivity=1)
    _, ranks = np.unique(np.where(np.bincount(expected.ravel())[expected] >= 7, expected, 0), return_inverse=True)
    np.testing.assert_array_equal(instances_of(output), ranks.reshape(expected.shape))
    np.testing.assert_array_equal(instances_of(output, 1), instances_of(output)[::2, ::2])
    groups = json.loads((output / "labels" / "zarr.json").read_text())["attributes"]["ome"]["labels"]
    assert groups == ["classes", "instances"]
    np.testing.assert_array_equal(open_result(job.output).to_dask("labels/instances").compute(), instances_of(output))


_UNTIL_KILLED = """
import os, signal, sys
from unet_core import instances, ledger, worker
from unet_core.job import SegmentationJob
from unet_core.segment import run
def stop(record):
    if record.stage == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)
run(SegmentationJob.model_validate_json(sys.argv[1]), stop)
"""


@pytest.mark.slow
def test_killed_in_any_stage_and_resumed_gives_the_same_bytes(job_of: Callable[..., Any]) -> None:
    whole, killed = job_of("whole"), job_of("killed")
    run(whole)
    for stage in ("parts", "level-1", "instances", "measure"):  # after the first unit of each that is left
        process = subprocess.run(
            [sys.executable, "-c", _UNTIL_KILLED, killed.model_dump_json(), stage],
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.returncode == -signal.SIGKILL, process.stderr
        assert read_status(killed.output).state == "unfinished"
    assert run(killed).status == "complete"
    assert digest(Path(killed.output)) == digest(Path(whole.output))


def test_of_the_segmentation_only_labels_are_read_again(job_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the probabilities, which are many times larger."""
    job = job_of("out", probabilities="float32")
    read: list[str] = []
    true = worker.compute_unit

    def compute(unit: Any) -> None:
        get = type(unit.worker.store).get

        def noted(self: Any, key: str) -> bytes:
            if not current_thread().name.startswith("unet-commit"):  # which reads back what the unit before wrote
                read.append(key)
            return get(self, key)

        with monkeypatch.context() as patch:
            if unit.stage.kind in ("parts", "instances"):
                patch.setattr(type(unit.worker.store), "get", noted)
            true(unit)

    monkeypatch.setattr(worker, "compute_unit", compute)
    run(job)
    assert {key.partition("/")[0] for key in read if not key.startswith(".unet")} == {"labels"}


def test_units_in_any_order_give_the_same_bytes(job_of: Callable[..., Any]) -> None:
    whole, other = job_of("whole"), job_of("other")
    run(whole)
    planned = resolve(other)
    request = prepare(planned, other.output)
    for stage in planned.plan.stages:
        backwards = reversed(range(stage.grid.block_count))
        assert all(isinstance(one, ledger.Record) for one in run_units(other.output, request.key, stage.name, backwards))
    assert run(other).computed == 0
    assert digest(Path(other.output)) == digest(Path(whole.output))


def test_a_region_has_its_own_instances_and_growing_it_makes_all_anew(job_of: Callable[..., Any]) -> None:
    run(job_of("part", roi=("0:20,0:100",)))
    part = labels_of(Path(job_of("part").output)).copy()
    np.testing.assert_array_equal(instances_of(Path(job_of("part").output)), label(part, background=0, connectivity=1))
    assert not part[32:].any()
    run(job_of("part"))
    run(job_of("whole"))
    assert digest(Path(job_of("part").output)) == digest(Path(job_of("whole").output))


CORNERS = [
    ((64, 64), (16, 16), ("0:1,16:17", "16:17,0:1", "33:40,48:64")),
    ((12, 16, 16), (4, 8, 8), ("0:1,8:9,8:9", "4:5,0:1,0:1")),
]


@pytest.mark.parametrize(("shape", "block", "roi"), CORNERS, ids=str)
def test_regions_that_touch_at_a_corner_share_their_instances(
    shape: tuple[int, ...], block: tuple[int, ...], roi: tuple[str, ...], make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    """Of the block between them, which sees both, nothing is wanted."""
    job = make_job(
        image=str(make_image(shape)),
        output=str(tmp_path / "out"),
        model=str(make_model(levels=2, dims=len(shape), classes=6)),
        block_shape=block,
        instances="components",
        connectivity=len(shape),
        roi=roi,
    )
    run(job)
    labels = labels_of(tmp_path / "out")
    expected = label(labels, background=0, connectivity=len(shape))
    np.testing.assert_array_equal(instances_of(tmp_path / "out"), expected)
    middle = tuple(slice(size - 1, size + 1) for size in block)
    assert np.count_nonzero(expected[middle]) == 2
    assert len(set(expected[middle].ravel())) == 2, "this image has no instance across the corner, take another seed"


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:40])])
def test_a_lost_request_leaves_no_ids_of_two_requests_side_by_side(
    damage: Callable[[Path], Any], job_of: Callable[..., Any]
) -> None:
    for roi in ("0:20,0:60", "40:70,200:310"):
        run(job_of("out", roi=(roi,)))
    output = Path(job_of("out").output)
    before = digest(output)
    damage(output / ".unet/request.json")
    assert run(job_of("out", roi=("40:70,200:310",))).status == "complete"
    assert digest(output) == before
    np.testing.assert_array_equal(instances_of(output), label(labels_of(output), background=0, connectivity=1))


def test_a_unit_of_an_earlier_request_that_ends_late_is_not_joined(job_of: Callable[..., Any]) -> None:
    """Block 0 of a region sees nothing of the next block; its worker may outlive the run that sent it."""
    run(job_of("out", roi=("0:20,0:60",)))
    late = [
        Path(job_of("out").output) / ".unet" / name for name in ("instances/parts/00000000.zst", "ledger/parts/00000000.json")
    ]
    left = [path.read_bytes() for path in late]
    planned = resolve(job_of("out"))
    output, request = job_of("out").output, prepare(planned, job_of("out").output)
    stages = {stage.name: range(stage.grid.block_count) for stage in planned.plan.stages}
    for name in ("segment", "level-1", "parts"):
        assert all(isinstance(one, ledger.Record) for one in run_units(output, request.key, name, stages[name]))
    for path, data in zip(late, left, strict=True):
        assert path.read_bytes() != data
        path.write_bytes(data)
    (outcome,) = run_units(output, request.key, "join", [0])
    assert "parts block 0 has no record any more; run the same command again" in str(outcome)
    assert run(job_of("out")).status == "complete"
    run(job_of("whole"))
    assert digest(Path(output)) == digest(Path(job_of("whole").output))


@pytest.mark.parametrize("stage", ["segment", "parts", "join", "instances"])
def test_damage_anywhere_is_found_and_mended(stage: str, job_of: Callable[..., Any]) -> None:
    job, whole = job_of("out"), job_of("whole")
    run(job)
    run(whole)
    store = open_store(job.output)
    plan = ledger.read_plan(store)
    record = ledger.read_records(store, stage, plan.id)[0]
    path = Path(job.output) / next(entry.key for entry in record.objects if not entry.empty)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(LedgerError, match="Audit"):
        run(job)
    withdrawn = set(made_from(plan.stages, stage, 0))
    for unit, index in withdrawn:
        assert index not in ledger.read_records(store, unit, plan.id)
    run(job)
    assert digest(Path(job.output)) == digest(Path(whole.output))


def test_parts_that_are_numbered_otherwise_are_not_taken_for_those_that_were_joined(
    job_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by another version of what numbers them, between two runs; what the message says to do mends it."""
    job, whole = job_of("out"), job_of("whole")
    run(whole)
    run(job)
    own = Path(job.output) / ".unet" / "ledger"
    true = instances.label_parts

    def backwards(labels: Any, connectivity: int) -> Any:
        parts = true(labels, connectivity)
        return np.where(parts > 0, parts.max() + np.uint32(1) - parts, 0)

    def undo() -> None:
        for index in range(3, 15):
            (own / "instances" / f"{index:08d}.json").unlink()

    monkeypatch.setattr(instances, "label_parts", backwards)
    undo()
    assert run(job).status == "complete"  # of the parts that are stored
    undo()
    shutil.rmtree(own / "parts")
    summary = run(job)
    assert (summary.status, len(summary.failures)) == ("partial", 12)
    assert "Delete .unet/ledger/join in " in summary.failures[0]
    shutil.rmtree(own / "join")
    assert run(job).status == "complete"
    np.testing.assert_array_equal(instances_of(Path(job.output)), instances_of(Path(whole.output)))


def test_what_is_made_from_a_unit() -> None:
    from unet_core.stages import stages_of

    stages = stages_of([((64, 64), (1, 1)), ((32, 32), (2, 2))], (16, 16), has_instances=True)
    found = list(made_from(stages, "segment", 5))
    assert [index for name, index in found if name == "level-1"] == [0]
    assert [index for name, index in found if name == "parts"] == [0, 1, 4, 5]  # those before it see its first voxels
    assert [name for name, _ in found].count("instances") == 16
    assert list(islice(made_from(stages, "instances", 15), 3)) == [("instances", 15), ("instances-level-1", 3)]


def test_regions_need_a_name(job_of: Callable[..., Any], make_model: Maker, tmp_path: Path) -> None:
    model = str(make_model("regions", classes=2))
    with pytest.raises(JobError, match="class 0, class 1, which may overlap; say whose"):
        plan_run(job_of("out", model=model))
    with pytest.raises(JobError, match="'other', the model has class 0, class 1"):
        plan_run(job_of("out", model=model, instances_of="other"))
    job = job_of("out", model=model, instances_of="class 1")
    summary = run(job)
    expected = label(np.asarray(open_result(job.output).to_dask("labels/class_1")), connectivity=1)
    np.testing.assert_array_equal(instances_of(Path(job.output)), expected)
    assert summary.instances == {"class 1": expected.max()}
    none = run(job_of("none", model=model, instances_of="class 1", min_voxels=10**12))
    assert none.instances == {"class 1": 0}
    assert not instances_of(tmp_path / "none").any()


def test_a_region_may_be_called_instances(job_of: Callable[..., Any], tmp_path: Path) -> None:
    settings = {"in_channels": 1, "classes": 2, "base": 4, "levels": 2}
    description = describe("regions", **settings)
    first, second = description.classes
    named = description.model_copy(update={"classes": (first.model_copy(update={"name": "instances", "value": 255}), second)})
    save_model(tmp_path / "named", random_network(**settings), named)
    job = job_of("out", model=str(tmp_path / "named"), instances_of="instances")
    assert run(job).status == "complete"
    labels = np.asarray(open_result(job.output).to_dask("labels/instances-255"))
    assert set(np.unique(labels)) == {0, 255}
    np.testing.assert_array_equal(instances_of(Path(job.output)), label(labels, connectivity=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"instances": "none", "min_voxels": 5}, "--min-voxels is for instances, and none are asked for"),
        ({"instances": "none", "connectivity": 2}, "--connectivity is for instances"),
        ({"connectivity": 3}, "--connectivity is 3, the image has 2 axes; use 1 to 2"),
        ({"instances_of": "class 1"}, "classes of the model do not overlap"),
    ],
)
def test_what_means_nothing_is_refused(options: dict[str, Any], message: str, job_of: Callable[..., Any]) -> None:
    with pytest.raises(JobError, match=message):
        plan_run(job_of("out", **options))


@pytest.mark.parametrize("approximate", [False, True])
def test_blocks_fit_the_memory_with_their_instances(
    approximate: bool, make_model: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NETWORKS, "whole_box", "tests.unet_core.test_approximate:WholeBox")
    zarr.create_array(tmp_path / "image", shape=(20000, 20000), chunks=(512, 512), dtype="u1")
    model = make_model(network="whole_box", norm="instance") if approximate else make_model(levels=2)
    fields = {"image": str(tmp_path / "image"), "output": str(tmp_path / "out"), "model": str(model), "missing": "fill"}
    fields |= {"memory_gib": 0.7, "approximate": approximate}
    if approximate:
        fields["tile_shape"] = (24, 24)
    blocks = []
    for kind in ("none", "components"):
        planned = resolve(make_job(**fields, instances=kind))
        assert planned.memory_bytes <= 0.7 * 2**30
        blocks.append(planned.plan.block_shape)
    assert np.prod(blocks[1]) <= np.prod(blocks[0])
    assert instance_bytes(blocks[1]) < 0.7 * 2**30
    with pytest.raises(MemoryBudgetError, match=r"use a smaller --block-shape.*--memory-gib"):
        resolve(make_job(**fields, instances="components", block_shape=(6144, 6144)))


_PEAK = """
import sys, threading, time
import cc3d, psutil
from unet_core import pipeline, worker
opened = worker.open_worker(*sys.argv[1:3])
assert all(not isinstance(one, Exception) for one in pipeline.run_units(*sys.argv[1:3], "segment", [0]))
process = psutil.Process()
idle = peak = process.memory_info().rss
running = True
def watch():
    global peak
    while running:
        peak = max(peak, process.memory_info().rss)
        time.sleep(0.001)
watcher = threading.Thread(target=watch)
watcher.start()
for stage in opened.plan.stages:
    if stage.kind in ("parts", "join", "instances"):
        assert all(not isinstance(one, Exception) for one in pipeline.run_units(*sys.argv[1:3], stage.name, [0]))
running = False
watcher.join()
print(peak - idle)
"""


@pytest.mark.alone
@pytest.mark.slow
def test_a_block_of_instances_needs_no_more_than_planned(make_model: Maker, tmp_path: Path) -> None:
    """Of noise, which has as many parts as can be."""
    zarr.create_array(
        tmp_path / "noise", data=np.random.default_rng(0).integers(0, 255, (2048, 2048), dtype="u1"), chunks=(512, 512)
    )
    model = str(make_model(levels=1, base=2, classes=6))
    job = make_job(
        image=str(tmp_path / "noise"), output=str(tmp_path / "out"), model=model, block_shape=(2048, 2048), instances="components"
    )
    key = prepare(resolve(job), job.output).key
    words = [sys.executable, "-c", _PEAK, job.output, key]
    measured = int(subprocess.run(words, check=True, capture_output=True, text=True).stdout) / 2**20
    planned = instance_bytes((2048, 2048)) / 2**20
    assert 0.1 * planned < measured < planned, f"planned {planned:.0f} MiB, measured {measured:.0f} MiB"

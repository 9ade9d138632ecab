"""Watersheds over a whole output: those of the whole array, whatever the blocks, and the same bytes whatever happened on the way."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from tests.unet_core.cell_images import HEADS, register, save_cells, save_maps, save_repeating_model
from tests.unet_core.test_instances import instances_of
from tests.unet_core.test_segment import digest, labels_of
from unet_core import ledger
from unet_core.errors import JobError, LedgerError, MemoryBudgetError
from unet_core.job import make_job
from unet_core.metrics import adapted_rand, panoptic_quality
from unet_core.metrics.maps import as_map
from unet_core.pipeline import run_units
from unet_core.plan import Plan
from unet_core.planning import resolve
from unet_core.postprocess import divide, watershed_on_boundaries, watershed_on_distance, watershed_on_learnt_distance
from unet_core.segment import plan_run, prepare, read_status, run
from unet_core.stages import made_from

METHODS = ("watershed", "boundary-watershed", "learnt-distance")
CUTS = [
    ((131, 169), [(32, 32), (64, 24), (136, 176)], None),
    ((21, 61, 53), [(8, 16, 32), (24, 64, 8), (24, 64, 56)], (2.0, 0.5, 0.5)),
]


def stored(output: Path, name: str) -> np.ndarray[Any, Any]:
    return np.asarray(zarr.open_array(output / name, mode="r")[...])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("shape", "blocks", "voxel_size"), CUTS, ids=str)
def test_any_blocks_give_the_watershed_of_the_whole(
    method: str, shape: tuple[int, ...], blocks: list[tuple[int, ...]], voxel_size: tuple[float, ...] | None, tmp_path: Path
) -> None:
    cells = save_cells(tmp_path / "image", shape, 1, voxel_size)
    model = save_repeating_model(tmp_path / "model", len(shape))
    for block, kept in zip(blocks, ("uint8", "float32", "uint8"), strict=True):
        output = tmp_path / "-".join(map(str, block))
        summary = run(
            make_job(
                image=str(tmp_path / "image"),
                output=str(output),
                model=str(model),
                block_shape=block,
                instances=method,
                probabilities=kept,
                voxel_size_um=voxel_size,
            )
        )
        whole = in_memory(method, output, voxel_size)
        found = instances_of(output).astype(np.int64)
        np.testing.assert_array_equal(found, whole)
        assert adapted_rand(found, whole).error == 0
        assert panoptic_quality(found, whole).pq == 1
        assert panoptic_quality(found, cells.ids).pq > 0.75
        assert summary.instances == {"cell": whole.max()}
    assert whole.max() > 20


def in_memory(method: str, output: Path, voxel_size: tuple[float, ...] | None) -> np.ndarray[Any, Any]:
    """As ``unet evaluate --instances`` makes them of what the output holds."""
    mask = labels_of(output) > 0
    if method == "watershed":
        return watershed_on_distance(mask, voxel_size=voxel_size)
    if method == "boundary-watershed":
        return watershed_on_boundaries(1 - as_map(stored(output, "0")[1]), mask)
    return watershed_on_learnt_distance(stored(output, "heads/distance/0")[0], mask)


@pytest.fixture
def job_of(tmp_path: Path) -> Callable[..., Any]:
    save_cells(tmp_path / "image", (75, 310))
    model = save_repeating_model(tmp_path / "model", 2)
    fields = {"image": str(tmp_path / "image"), "model": str(model), "block_shape": (32, 64), "probabilities": "uint8"}
    return lambda name, **more: make_job(**(fields | {"output": str(tmp_path / name), "instances": "watershed"} | more))


_UNTIL_KILLED = """
import os, signal, sys
from tests.unet_core.cell_images import register
from unet_core.job import SegmentationJob
from unet_core.segment import run
from unet_core.postprocess.joining import Joiner
from unet_core.store import LocalStore
register()
calls = {"add": 0, "put": 0}
def counted(kind, name, last):
    true = getattr(kind, name)
    def call(self, *arguments):
        calls[name] += name == "add" or arguments[0].startswith((".unet/instances/joined", ".unet/instances/ids"))
        if calls[name] == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return true(self, *arguments)
    setattr(kind, name, call)
if sys.argv[2] == "joining":
    counted(Joiner, "add", 7)
if sys.argv[2] == "storing":
    counted(LocalStore, "put", 2)
def stop(record):
    if record.stage == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)
run(SegmentationJob.model_validate_json(sys.argv[1]), stop)
"""


@pytest.mark.slow
def test_killed_in_any_stage_and_resumed_gives_the_same_bytes(job_of: Callable[..., Any]) -> None:
    whole, killed = job_of("whole"), job_of("killed")
    run(whole)
    # After the first unit of each stage that is left; with some blocks taken in; with one of two objects of the join stored.
    for place in ("segment", "parts", "joining", "storing", "join", "instances"):
        words = [sys.executable, "-c", _UNTIL_KILLED, killed.model_dump_json(), place]
        process = subprocess.run(words, capture_output=True, text=True, check=False)
        assert process.returncode == -signal.SIGKILL, process.stderr
        assert read_status(killed.output).state == "unfinished"
    assert run(killed).status == "complete"
    assert digest(Path(killed.output)) == digest(Path(whole.output))


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
    run(job_of("part", roi=("0:20,0:100", "40:41,130:131")))
    part = labels_of(Path(job_of("part").output)) > 0
    np.testing.assert_array_equal(instances_of(Path(job_of("part").output)), watershed_on_distance(part))
    assert not part[:32, 128:].any()
    assert part[32:, 128:].any()
    run(job_of("part"))
    run(job_of("whole"))
    assert digest(Path(job_of("part").output)) == digest(Path(job_of("whole").output))


@pytest.mark.parametrize("kind", ["parts", "voxels", "ids", "joined"])
def test_damage_anywhere_is_found_and_mended(kind: str, job_of: Callable[..., Any]) -> None:
    job, whole = job_of("out"), job_of("whole")
    run(job)
    run(whole)
    path = next(
        path for path in sorted((Path(job.output) / ".unet" / "instances").rglob("*")) if path.is_file() and kind in str(path)
    )
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(LedgerError, match="Audit"):
        run(job)
    run(job)
    assert digest(Path(job.output)) == digest(Path(whole.output))


def test_what_is_made_from_a_unit_lies_within_the_halo(job_of: Callable[..., Any]) -> None:
    plan = plan_run(job_of("out", reach=20.0))
    assert plan.instances is not None
    assert plan.instances.halo == (36, 36)  # 20 of distances, 16 of slopes
    parts = {index for name, index in made_from(plan.stages, "segment", 0) if name == "parts"}
    assert parts == {index for index in range(15) if index % 5 < 2}  # 36 voxels are more than a block down, less than one along
    assert parts < set(range(15))
    learnt = plan_run(job_of("out", instances="learnt-distance"))
    assert learnt.instances is not None
    assert learnt.instances.halo == (16, 16)


def test_options_decide_what_is_divided(job_of: Callable[..., Any]) -> None:
    counts = {}
    for name, more in {
        "plain": {},
        "deep": {"depth": 6.0},
        "near": {"reach": 3.0},
        "components": {"instances": "components"},
        "large": {"min_voxels": 150},
    }.items():
        counts[name] = run(job_of(name, **more)).instances["cell"]
    assert counts["components"] < counts["deep"] < counts["plain"]
    assert counts["components"] < counts["near"] < counts["plain"]
    assert counts["large"] < counts["plain"]
    output = Path(job_of("deep").output)
    np.testing.assert_array_equal(instances_of(output), watershed_on_distance(labels_of(output) > 0, h=6.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"instances": "components", "depth": 1.0}, "--depth is 1, but components have no hills"),
        ({"instances": "learnt-distance", "reach": 5.0}, "--reach is 5, but only --instances watershed"),
        ({"reach": 1e-6}, "--reach is 1e-06, .* voxels of .*give 1 to 4,096 voxels"),
        ({"reach": 1e6}, "--reach is 1e\\+06, .* voxels of .*give 1 to 4,096 voxels"),
        ({"instances": "none", "depth": 1.0}, "--depth is for instances, and none are asked for"),
        (
            {"instances": "learnt-distance", "probabilities": "none"},
            "reads the distances of the output, which keeps none; add --prob",
        ),
        ({"instances": "boundary-watershed", "probabilities": "none"}, "reads the probabilities of the output, which keeps none"),
    ],
)
def test_what_means_nothing_is_refused(options: dict[str, Any], message: str, job_of: Callable[..., Any]) -> None:
    with pytest.raises(JobError, match=message):
        plan_run(job_of("out", **options))


def test_a_model_without_a_distance_head_is_refused_while_planning(job_of: Callable[..., Any], tmp_path: Path) -> None:
    model = str(save_repeating_model(tmp_path / "classes", 2, HEADS[:1]))
    with pytest.raises(JobError, match="needs a distance head, model 'random' has only classes; use --instances watershed"):
        plan_run(job_of("out", model=model, instances="learnt-distance"))
    assert not (tmp_path / "out").exists()
    assert run(job_of("out", model=model)).status == "complete"


def test_a_halo_that_does_not_fit_the_memory_is_refused_and_smaller_blocks_are_taken(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "image", shape=(2, 600, 600, 600), chunks=(1, 128, 128, 128), dtype="u1")
    fields = {"image": str(tmp_path / "image"), "output": str(tmp_path / "out"), "missing": "fill", "memory_gib": 1.0}
    fields |= {"model": str(save_repeating_model(tmp_path / "model", 3)), "instances": "watershed"}
    chosen = resolve(make_job(**fields))
    assert chosen.memory_bytes <= 2**30
    assert chosen.plan.block_shape != resolve(make_job(**fields | {"instances": "none"})).plan.block_shape
    assert "blocks read (40, 40, 40) voxels around" in str(chosen.facts()["instances"])
    with pytest.raises(MemoryBudgetError, match=r"use a smaller --block-shape.*--memory-gib"):
        resolve(make_job(**fields, block_shape=(256, 256, 256)))


def test_a_plan_that_does_not_fit_its_watershed_is_refused(job_of: Callable[..., Any]) -> None:
    plan = plan_run(job_of("out", instances="learnt-distance")).model_dump(mode="json", by_alias=True)
    assert Plan.model_validate(plan).instances is not None
    for change, message in (
        ({"halo": None}, "should have halo"),
        ({"heights": "labels/classes"}, "should have its heights in an image of the plan"),
        ({"reach": 3.0}, "should not have reach"),
        ({"halo": [16, 16, 16]}, "one number for each of the axes"),
        ({"ahead": 20}, "should hold the 20 of the slopes"),
        ({"method": "components"}, "should not have"),
    ):
        with pytest.raises(ValueError, match=message):
            Plan.model_validate(plan | {"instances": plan["instances"] | change})


_PEAK = """
import sys, threading, time
import cc3d, psutil
from tests.unet_core.cell_images import register
from unet_core import pipeline, worker
from unet_core.postprocess import joining
register()
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
for stage in ("parts", "join", "instances"):
    assert all(not isinstance(one, Exception) for one in pipeline.run_units(*sys.argv[1:3], stage, [0]))
running = False
watcher.join()
print(peak - idle)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "shape", "connectivity"), [("watershed", (1500, 1500), 1), ("learnt-distance", (96, 128, 128), 3)]
)
def test_a_block_of_noise_needs_no_more_than_planned(
    method: str, shape: tuple[int, ...], connectivity: int, tmp_path: Path
) -> None:
    register()
    noise = np.random.default_rng(0).normal(size=(2, *shape)).astype("f4")
    noise[0] = np.abs(noise[0]) + 0.51 if method == "learnt-distance" else noise[0] + 2.5
    save_maps(tmp_path / "image", noise)
    job = make_job(
        image=str(tmp_path / "image"),
        output=str(tmp_path / "out"),
        model=str(save_repeating_model(tmp_path / "model", len(shape))),
        block_shape=shape,
        instances=method,
        connectivity=connectivity,
        probabilities="uint8",
        measure=False,
        depth=0.01,
    )
    planned = resolve(job)
    words = [sys.executable, "-c", _PEAK, job.output, prepare(planned, job.output).key]
    measured = int(subprocess.run(words, check=True, capture_output=True, text=True).stdout) / 2**20
    allowed = planned.memory_bytes / 2**20
    print(f"planned {allowed:.0f} MiB, measured {measured:.0f} MiB")
    assert 0.1 * allowed < measured < allowed, f"planned {allowed:.0f} MiB, measured {measured:.0f} MiB"


def test_watersheds_of_several_classes_stay_apart() -> None:
    """Equal heights on both sides of a border between classes are no pass."""
    labels = np.repeat(np.array([[1, 2]], dtype=np.uint8), 6, axis=1).repeat(5, axis=0)
    assert divide(labels, np.ones(labels.shape, dtype=np.float32), 0.5).max() == 2

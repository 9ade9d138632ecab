"""Instances from affinities over a whole output: the same for any blocks, and the same bytes whatever happened on the way."""

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

from tests.unet_core.affinity_images import OFFSETS, save_cells, save_maps, save_saying_model
from tests.unet_core.cell_images import save_repeating_model
from tests.unet_core.test_instances import instances_of
from tests.unet_core.test_segment import digest, labels_of
from unet_core.errors import JobError
from unet_core.job import make_job
from unet_core.metrics import adapted_rand
from unet_core.metrics.maps import as_map
from unet_core.plan import Plan
from unet_core.planning import resolve
from unet_core.postprocess import affinities, remove_small, watershed_on_affinities
from unet_core.segment import plan_run, prepare, run

CUTS = [((131, 169), 32, [(32, 32), (64, 24), (136, 176)]), ((21, 61, 53), 16, [(16, 16, 32), (24, 64, 8), (24, 64, 56)])]


@pytest.fixture
def job_of(tmp_path: Path) -> Callable[..., Any]:
    save_cells(tmp_path / "image", (75, 310))
    model = save_saying_model(tmp_path / "model", 2, OFFSETS[2])
    fields = {"image": str(tmp_path / "image"), "model": str(model), "block_shape": (32, 64), "probabilities": "uint8"}
    return lambda name, **more: make_job(**(fields | {"output": str(tmp_path / name), "instances": "affinities"} | more))


@pytest.mark.parametrize(("shape", "tile", "blocks"), CUTS, ids=str)
def test_any_blocks_give_the_instances_of_the_whole(
    shape: tuple[int, ...], tile: int, blocks: list[tuple[int, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dims = len(shape)
    monkeypatch.setitem(affinities.TILE, dims, tile)
    ids = save_cells(tmp_path / "image", shape, 1)
    model = save_saying_model(tmp_path / "model", dims, OFFSETS[dims])
    for block, kept, least in zip(blocks, ("uint8", "float32", "uint8"), (1, 1, 30), strict=True):
        output = tmp_path / "-".join(map(str, block))
        fields = {"image": str(tmp_path / "image"), "output": str(output), "model": str(model), "block_shape": block}
        summary = run(make_job(**fields, instances="affinities", probabilities=kept, min_voxels=least))
        said = as_map(np.asarray(zarr.open_array(output / "heads/edges/0", mode="r")[...]))
        whole = remove_small(watershed_on_affinities(said, labels_of(output) > 0, OFFSETS[dims]), least)
        found = instances_of(output)
        assert found.dtype == np.uint64
        np.testing.assert_array_equal(found.astype(np.int64), whole)
        assert summary.instances == {"cell": whole.max()}
        assert adapted_rand(found.astype(np.int64), ids).error < 0.15
    assert whole.max() > 12


def test_a_2d_model_gives_each_section_of_a_stack_its_own_instances(tmp_path: Path) -> None:
    for number in range(3):
        save_cells(tmp_path / f"{number}", (45, 70), number)
    save_maps(tmp_path / "image", np.stack([zarr.open_array(tmp_path / f"{one}", mode="r")[...] for one in range(3)], axis=1))
    model, output = save_saying_model(tmp_path / "model", 2, OFFSETS[2]), tmp_path / "out"
    fields = {"image": str(tmp_path / "image"), "output": str(output), "model": str(model), "block_shape": (2, 32, 24)}
    run(make_job(**fields, instances="affinities", probabilities="uint8"))
    said = as_map(np.asarray(zarr.open_array(output / "heads/edges/0", mode="r")[...]))
    offsets = tuple((0, *offset) for offset in OFFSETS[2])
    found = instances_of(output).astype(np.int64)
    np.testing.assert_array_equal(found, watershed_on_affinities(said, labels_of(output) > 0, offsets))
    sections = [set(np.unique(section)) - {0} for section in found]
    assert all(sections)
    assert not sections[0] & sections[1]
    assert not sections[1] & sections[2]


_UNTIL_KILLED = """
import os, signal, sys
from tests.unet_core.affinity_images import register
from unet_core.job import SegmentationJob
from unet_core.segment import run
register()
def stop(record):
    if record.stage == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)
run(SegmentationJob.model_validate_json(sys.argv[1]), stop)
"""


@pytest.mark.slow
def test_killed_and_resumed_gives_the_same_bytes(job_of: Callable[..., Any]) -> None:
    whole, killed = job_of("whole"), job_of("killed")
    run(whole)
    for place in ("parts", "join"):
        words = [sys.executable, "-c", _UNTIL_KILLED, killed.model_dump_json(), place]
        process = subprocess.run(words, capture_output=True, text=True, check=False)
        assert process.returncode == -signal.SIGKILL, process.stderr
    assert run(killed).status == "complete"
    assert digest(Path(killed.output)) == digest(Path(whole.output))


def test_a_plan_has_its_tiles_and_reads_whole_ones(job_of: Callable[..., Any]) -> None:
    plan = plan_run(job_of("out"))
    assert plan.instances is not None
    assert (plan.instances.tile, plan.instances.halo) == ((75, 204), (79, 207))  # the longest offset reaches 5 and 4
    assert "in tiles of (75, 204) voxels, which decide the result" in resolve(job_of("out")).facts()["instances"]
    stated = plan.model_dump(mode="json", by_alias=True)
    for change, message in (
        ({"tile": None}, "should have tile"),
        ({"tile": [75]}, "one number for each of the axes"),
        ({"depth": 0.1}, "should not have depth"),
        ({"heights": "labels/classes"}, "should have its heights in an image of the plan"),
        ({"method": "learnt-distance"}, "should have depth"),
    ):
        with pytest.raises(ValueError, match=message):
            Plan.model_validate(stated | {"instances": stated["instances"] | change})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 0.5}, "--depth is 0.5, but --instances affinities joins"),
        ({"reach": 5.0}, "--reach is 5, but"),
        ({"connectivity": 2}, "--connectivity is 2, but"),
        ({"probabilities": "none"}, "reads the affinities of the output, which keeps none; add --probabilities uint8"),
    ],
)
def test_what_means_nothing_is_refused(options: dict[str, Any], message: str, job_of: Callable[..., Any]) -> None:
    with pytest.raises(JobError, match=message):
        plan_run(job_of("out", **options))


def test_a_model_that_does_not_say_which_voxels_belong_together_is_refused(job_of: Callable[..., Any], tmp_path: Path) -> None:
    distance = str(save_repeating_model(tmp_path / "distance", 2))
    with pytest.raises(
        JobError, match="needs an affinities head, model 'random' has only classes, distance; use --instances watershed"
    ):
        plan_run(job_of("out", model=distance, channels=(0, 1)))
    silent = str(save_saying_model(tmp_path / "silent", 2, None))
    with pytest.raises(
        JobError, match="needs the offsets of head 'edges', which the model.json of model 'random' does not state"
    ):
        plan_run(job_of("out", model=silent))
    far = str(save_saying_model(tmp_path / "far", 2, tuple((0, far) for far in range(2, 7))))
    with pytest.raises(JobError, match="Head 'edges' of model 'random': None of the offsets .* direct neighbour"):
        plan_run(job_of("out", model=far))
    assert not (tmp_path / "out").exists()


_PEAK = """
import sys, threading, time
import cc3d, mwatershed, psutil
from tests.unet_core.affinity_images import register
from unet_core import pipeline, worker
from unet_core.postprocess import blockwise_mutex, joining
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
def test_a_block_of_noise_needs_no_more_than_planned(tmp_path: Path) -> None:
    shape = (700, 600)
    maps = np.random.default_rng(0).uniform(size=(6, *shape))
    maps[0] = 1
    save_maps(tmp_path / "image", maps)
    fields = {"image": str(tmp_path / "image"), "output": str(tmp_path / "out"), "block_shape": shape, "measure": False}
    job = make_job(
        **fields,
        model=str(save_saying_model(tmp_path / "model", 2, OFFSETS[2])),
        instances="affinities",
        probabilities="float32",
    )
    planned = resolve(job)
    words = [sys.executable, "-c", _PEAK, job.output, prepare(planned, job.output).key]
    measured = int(subprocess.run(words, check=True, capture_output=True, text=True).stdout) / 2**20
    allowed = planned.memory_bytes / 2**20
    print(f"planned {allowed:.0f} MiB, measured {measured:.0f} MiB")
    assert 0.1 * allowed < measured < allowed, f"planned {allowed:.0f} MiB, measured {measured:.0f} MiB"

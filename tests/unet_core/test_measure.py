"""The table of objects: what scikit-image measures on the whole arrays, the same bytes for any blocks, and whatever happened on the way."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zarr
from scipy import ndimage

from tests.conftest import describe, random_network, textured
from tests.unet_core.measuring.test_columns import compare
from tests.unet_core.test_instances import instances_of
from tests.unet_core.test_segment import digest, labels_of
from unet_core import ledger
from unet_core.errors import JobError, LedgerError
from unet_core.job import SegmentationJob, make_job
from unet_core.measure import TABLE_KEY
from unet_core.memory import measure_bytes
from unet_core.model_package import save_model
from unet_core.planning import resolve
from unet_core.segment import open_result, plan_run, prepare, read_status, run
from unet_core.stages import made_from
from unet_core.store import open_store
from unet_core.tables import read_objects_table

Maker = Callable[..., Path]
Array = np.ndarray[Any, Any]

CUTS = [
    ((75, 93), (0.5, 0.5), [(16, 32), (64, 8), (80, 96)]),
    ((13, 22, 37), (0.04, 0.008, 0.009), [(4, 8, 16), (16, 8, 8), (16, 24, 40)]),
]


def values_of(table: pa.Table) -> dict[str, Array]:
    return {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}


@pytest.mark.parametrize(("shape", "voxel_size", "blocks"), CUTS, ids=str)
def test_any_blocks_give_the_measurements_of_the_whole(
    shape: tuple[int, ...],
    voxel_size: tuple[float, ...],
    blocks: list[tuple[int, ...]],
    make_model: Maker,
    make_image: Maker,
    tmp_path: Path,
) -> None:
    model, image = make_model(levels=2, dims=len(shape), classes=6), make_image(shape)
    job = {"image": str(image), "model": str(model), "voxel_size_um": voxel_size, "instances": "components"}
    stored = []
    for number, block in enumerate(blocks):
        output = tmp_path / f"out-{number}"
        run(make_job(output=str(output), block_shape=block, probabilities="uint8", **job))
        stored.append((output / TABLE_KEY).read_bytes())
    assert stored[0] == stored[1] == stored[2]
    ids, labels = instances_of(output), labels_of(output)
    found = values_of(read_objects_table(str(output)))
    compare(found, ids, textured(shape)[None], voxel_size)
    first = np.unique(ids, return_index=True)[1][1:]
    np.testing.assert_array_equal(found["class_value"], labels.ravel()[first])
    np.testing.assert_array_equal(found["class"], [f"class {value}" for value in labels.ravel()[first]])
    probabilities = np.asarray(open_result(str(output)).to_dask(""), dtype=np.float64) / 255
    own = np.take_along_axis(probabilities, labels[None].astype(np.int64), 0)[0]
    expected = ndimage.mean(own, ids.astype(np.int64), found["label"].astype(np.int64))
    np.testing.assert_allclose(found["class_probability"], expected, rtol=1e-12)
    for value in range(1, 6):
        np.testing.assert_array_equal(found[f"fraction_class {value}"], found["class_value"] == value)


def test_objects_of_one_region_are_of_its_class_whatever_lies_over_them(
    make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    job = make_job(
        image=str(make_image((75, 93))),
        output=str(tmp_path / "out"),
        model=str(make_model("regions", seed=4, levels=2, classes=3)),
        block_shape=(32, 32),
        instances="components",
        instances_of="class 2",
        probabilities="float32",
    )
    run(job)
    found, ids = values_of(read_objects_table(job.output)), instances_of(tmp_path / "out").astype(np.int64)
    assert set(found["class"]) == {"class 2"}
    assert set(found["class_value"]) == {3}
    result = open_result(job.output)
    for number in range(3):
        inside = np.asarray(result.to_dask(f"labels/class_{number}")) == number + 1
        expected = ndimage.mean(inside, ids, found["label"].astype(np.int64))
        np.testing.assert_array_equal(found[f"fraction_class {number}"], expected)
    assert 0 < found["fraction_class 1"].mean() < 1
    assert (found["fraction_class 2"] == 1).all()
    probability = np.asarray(result.to_dask("")[2], dtype=np.float64)
    expected = ndimage.mean(probability, ids, found["label"].astype(np.int64))
    np.testing.assert_allclose(found["class_probability"], expected, rtol=1e-12)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished output, beside its image and model."""
    folder = tmp_path_factory.mktemp("measure")
    zarr.create_array(folder / "image", data=textured((75, 150)), chunks=(32, 64))
    fields = {"in_channels": 1, "classes": 6, "levels": 2, "base": 4}
    save_model(folder / "model", random_network(0, **fields), describe(**fields))
    run(job_in(folder, str(folder / "whole")))
    return folder / "whole"


def job_in(folder: Path, output: str, **more: Any) -> SegmentationJob:
    fields = {"image": str(folder / "image"), "model": str(folder / "model"), "block_shape": (32, 64), "instances": "components"}
    return make_job(output=output, **(fields | more))


@pytest.fixture
def job_of(whole: Path, tmp_path: Path) -> Callable[..., SegmentationJob]:
    return lambda name, **more: job_in(whole.parent, str(tmp_path / name), **more)


@pytest.fixture
def copied(whole: Path, tmp_path: Path, job_of: Callable[..., SegmentationJob]) -> SegmentationJob:
    """A copy of the finished output, and its job."""
    shutil.copytree(whole, tmp_path / "copied")
    return job_of("copied")


def test_types_units_and_columns_are_those_that_are_promised(whole: Path) -> None:
    output = str(whole)
    table = read_objects_table(output)
    types = {
        "label": pa.uint64(),
        "class": pa.string(),
        "class_value": pa.uint8(),
        "voxels": pa.int64(),
        "area_um2": pa.float64(),
    }
    types |= {f"bbox_{end}_{axis}": pa.int64() for end in ("min", "max") for axis in "yx"}
    assert {name: table.schema.field(name).type for name in types} == types
    assert table["area_um2"].null_count == len(table) > 5  # nobody knows the voxel size
    assert table.schema.field("centroid_y").metadata[b"unit"] == b"voxels"
    assert read_objects_table(output, ["voxels", "label"]).column_names == ["voxels", "label"]
    with pytest.raises(JobError, match="has no column 'size'; it has label, class"):
        read_objects_table(output, ["size"])


def test_no_objects_make_an_empty_table_of_the_same_columns(whole: Path, job_of: Callable[..., SegmentationJob]) -> None:
    run(job_of("none", min_voxels=10**6))
    none = read_objects_table(job_of("none").output)
    assert len(none) == 0
    assert none.schema.equals(read_objects_table(str(whole)).schema)


_UNTIL_KILLED = """
import os, signal, sys
from unet_core import ledger
from unet_core.job import SegmentationJob
from unet_core.segment import run
write, left = ledger.write_record, int(sys.argv[3])
def stop(store, record):
    global left
    left -= record.stage == sys.argv[2]
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    write(store, record)
ledger.write_record = stop
run(SegmentationJob.model_validate_json(sys.argv[1]))
"""


@pytest.mark.slow
def test_killed_while_measuring_and_resumed_gives_the_same_bytes(whole: Path, copied: SegmentationJob) -> None:
    for name in (".unet/measure", ".unet/ledger/measure", ".unet/ledger/table", "tables"):
        shutil.rmtree(Path(copied.output) / name)
    (Path(copied.output) / ".unet/complete.json").unlink()
    for stage, count in (("measure", 3), ("table", 1)):  # when the object is there and its record is not
        words = [sys.executable, "-c", _UNTIL_KILLED, copied.model_dump_json(), stage, str(count)]
        process = subprocess.run(words, capture_output=True, text=True, check=False)
        assert process.returncode == -signal.SIGKILL, process.stderr
        done = read_status(copied.output)
        assert (done.state, done.stages["table"]) == ("unfinished", (0, 1))
        with pytest.raises(LedgerError, match="has no table of objects yet; run the same command again"):
            read_objects_table(copied.output)
        assert done.stages["measure"] == ((2, 9) if stage == "measure" else (9, 9))
    assert (Path(copied.output) / TABLE_KEY).exists()
    assert run(copied).status == "complete"
    assert digest(Path(copied.output)) == digest(whole)


@pytest.mark.parametrize("stage", ["instances", "measure", "table"])
def test_damage_anywhere_is_found_and_mended(stage: str, whole: Path, copied: SegmentationJob) -> None:
    job = copied
    store = open_store(job.output)
    plan = ledger.read_plan(store)
    record = ledger.read_records(store, stage, plan.id)[0]
    path = Path(job.output) / next(entry.key for entry in record.objects if not entry.empty)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    if stage == "table":
        with pytest.raises(LedgerError, match="objects.parquet has .* another sha256"):
            read_objects_table(job.output)
    with pytest.raises(LedgerError, match="Audit"):
        run(job)
    for unit, index in made_from(plan.stages, stage, 0):
        assert index not in ledger.read_records(store, unit, plan.id)
    run(job)
    assert digest(Path(job.output)) == digest(whole)


def test_a_region_has_its_own_table_and_growing_it_makes_it_anew(whole: Path, job_of: Callable[..., SegmentationJob]) -> None:
    job = job_of("part", roi=("0:20,0:100",))
    run(job)
    found, ids = values_of(read_objects_table(job.output)), instances_of(Path(job.output))
    np.testing.assert_array_equal(found["voxels"], np.bincount(ids.ravel().astype(np.int64))[1:])
    assert run(job_of("part")).table == "tables/objects.parquet"
    assert digest(Path(job.output)) == digest(whole)


def test_an_output_without_a_table_says_why(job_of: Callable[..., SegmentationJob]) -> None:
    unmeasured = job_of("unmeasured", measure=False, roi=("0:32,0:64",))
    assert "measure" not in plan_run(unmeasured).canonical().decode()
    assert run(unmeasured).table is None
    with pytest.raises(JobError, match="was run with --no-measure, so it has no table of objects"):
        read_objects_table(unmeasured.output)
    run(job_of("labels", instances="none", roi=("0:32,0:64",)))
    with pytest.raises(JobError, match="has no instances, so it has no table"):
        read_objects_table(job_of("labels").output)
    with pytest.raises(JobError, match="--no-measure is for instances, and none are asked for"):
        plan_run(job_of("out", instances="none", measure=False))


def test_what_is_measured_from_a_unit() -> None:
    from unet_core.stages import stages_of

    stages = stages_of([((64, 64), (1, 1))], (16, 16), has_instances=True, has_table=True)
    found = list(made_from(stages, "instances", 5))
    assert [index for name, index in found if name == "measure"] == [0, 1, 2, 4, 5, 6, 8, 9, 10]  # those around it see its border
    assert [index for name, index in found if name == "table"] == [0]


_PEAK = """
import sys, threading, time
import psutil
from unet_core import pipeline, worker
opened = worker.open_worker(*sys.argv[1:3])
def run(names):
    for name in names:
        assert all(not isinstance(one, Exception) for one in pipeline.run_units(*sys.argv[1:3], name, [0]))
run(stage.name for stage in opened.plan.stages if stage.kind in ("segment", "parts", "join", "instances"))
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
run(("measure", "table"))
running = False
watcher.join()
print(peak - idle)
"""


@pytest.mark.alone
@pytest.mark.slow
def test_measuring_needs_no_more_memory_than_planned(make_model: Maker, tmp_path: Path) -> None:
    """Of squares of 16 voxels, beside each other."""
    small = np.random.default_rng(0).integers(0, 255, (128, 256), dtype="u1")
    zarr.create_array(tmp_path / "noise", data=small.repeat(4, 0).repeat(4, 1), chunks=(512, 512))
    job = make_job(
        image=str(tmp_path / "noise"),
        output=str(tmp_path / "out"),
        model=str(make_model(levels=1, base=2, classes=6)),
        block_shape=(512, 1024),
        instances="components",
        probabilities="float32",
    )
    planned = resolve(job)
    words = [sys.executable, "-c", _PEAK, job.output, prepare(planned, job.output).key]
    measured = int(subprocess.run(words, check=True, capture_output=True, text=True).stdout) / 2**20
    expected = measure_bytes((512, 1024), 1, 25, 1, 6) / 2**20
    assert planned.memory_bytes / 2**20 >= expected
    assert 0.2 * expected < measured < expected, f"planned {expected:.0f} MiB, measured {measured:.0f} MiB"

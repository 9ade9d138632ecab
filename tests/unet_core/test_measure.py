"""The table of objects: what scikit-image measures on the whole arrays, the same bytes for any blocks, and whatever happened on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from skimage.measure import regionprops_table

from tests.unet_core.test_instances import instances_of
from tests.unet_core.test_segment import digest, labels_of
from unet_core import ledger
from unet_core.errors import JobError, LedgerError
from unet_core.job import make_job
from unet_core.measure import TABLE_KEY
from unet_core.segment import plan_run, run
from unet_core.stages import made_from
from unet_core.store import open_store
from unet_core.tables import read_objects_table

Maker = Callable[..., Path]
Array = np.ndarray[Any, Any]

CUTS = [
    ((75, 93), (0.5, 0.25), [(16, 32), (64, 8), (80, 96)]),
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
        run(make_job(output=str(output), block_shape=block, **job))
        stored.append((output / TABLE_KEY).read_bytes())
        found = values_of(read_objects_table(str(output)))
        _compare(found, instances_of(output), labels_of(output), voxel_size)
    assert stored[0] == stored[1] == stored[2]


def _compare(found: dict[str, Array], ids: Array, labels: Array, voxel_size: tuple[float, ...]) -> None:
    axes = "zyx"[-ids.ndim :]
    true = regionprops_table(ids.astype(np.int64), properties=("label", "num_pixels", "area", "bbox", "centroid"))
    np.testing.assert_array_equal(found["label"], true["label"])
    np.testing.assert_array_equal(found["voxels"], true["num_pixels"])
    size = found["volume_um3" if ids.ndim == 3 else "area_um2"]
    np.testing.assert_allclose(size, true["area"] * np.prod(voxel_size), rtol=1e-12)
    for number, axis in enumerate(axes):
        np.testing.assert_array_equal(found[f"bbox_min_{axis}"], true[f"bbox-{number}"])
        np.testing.assert_array_equal(found[f"bbox_max_{axis}"], true[f"bbox-{number + ids.ndim}"])
        np.testing.assert_allclose(found[f"centroid_{axis}"], true[f"centroid-{number}"], rtol=1e-12, atol=1e-12)
    first = np.unique(ids, return_index=True)[1][1:]
    np.testing.assert_array_equal(found["class_value"], labels.ravel()[first])
    np.testing.assert_array_equal(found["class"], [f"class {value}" for value in labels.ravel()[first]])


@pytest.fixture
def job_of(make_model: Maker, make_image: Maker, tmp_path: Path) -> Callable[..., Any]:
    fields = {"image": str(make_image((75, 150))), "model": str(make_model(levels=2, classes=6)), "block_shape": (32, 64)}
    return lambda name, **more: make_job(**(fields | {"output": str(tmp_path / name), "instances": "components"} | more))


def test_types_units_and_columns_are_those_that_are_promised(job_of: Callable[..., Any]) -> None:
    job = job_of("out")
    run(job)
    table = read_objects_table(job.output)
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
    assert read_objects_table(job.output, ["voxels", "label"]).column_names == ["voxels", "label"]
    with pytest.raises(JobError, match="has no column 'size'; it has label, class"):
        read_objects_table(job.output, ["size"])


def test_no_objects_make_an_empty_table_of_the_same_columns(job_of: Callable[..., Any]) -> None:
    run(job_of("some"))
    run(job_of("none", min_voxels=10**6))
    none = read_objects_table(job_of("none").output)
    assert len(none) == 0
    assert none.schema.equals(read_objects_table(job_of("some").output).schema)


@pytest.mark.parametrize("stage", ["segment", "instances", "measure", "table"])
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
    if stage == "table":
        with pytest.raises(LedgerError, match="objects.parquet has .* another sha256"):
            read_objects_table(job.output)
    with pytest.raises(LedgerError, match="Audit"):
        run(job)
    for unit, index in made_from(plan.stages, stage, 0):
        assert index not in ledger.read_records(store, unit, plan.id)
    run(job)
    assert digest(Path(job.output)) == digest(Path(whole.output))


def test_a_region_has_its_own_table_and_growing_it_makes_it_anew(job_of: Callable[..., Any]) -> None:
    job = job_of("part", roi=("0:20,0:100",))
    run(job)
    found = values_of(read_objects_table(job.output))
    _compare(found | {"area_um2": found["voxels"]}, instances_of(Path(job.output)), labels_of(Path(job.output)), (1.0, 1.0))
    run(job_of("part"))
    run(job_of("whole"))
    assert digest(Path(job.output)) == digest(Path(job_of("whole").output))


def test_an_output_without_a_table_says_why(job_of: Callable[..., Any]) -> None:
    unmeasured = job_of("unmeasured", measure=False)
    assert "measure" not in plan_run(unmeasured).canonical().decode()
    run(unmeasured)
    with pytest.raises(JobError, match="was run with --no-measure, so it has no table of objects"):
        read_objects_table(unmeasured.output)
    run(job_of("labels", instances="none"))
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

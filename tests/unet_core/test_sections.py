"""A stack through a 2D network: each section is what it is as an image of its own, to the bit, however the stack is cut."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaozarrs
import zarr
from numpy.typing import NDArray

from tests.conftest import textured
from tests.unet_core import test_heads
from tests.unet_core.test_footprint import one_pass
from tests.unet_core.test_segment import digest
from unet_core import worker
from unet_core.errors import GridError, JobError, VolumeError
from unet_core.geometry import Box
from unet_core.job import make_job
from unet_core.model_package import load_model
from unet_core.networks import NETWORKS
from unet_core.plan import Plan
from unet_core.planning import resolve
from unet_core.seams import measure_seams
from unet_core.sections import FEWEST_VOXELS, MOST_VOXELS, choose_depth, join, sections_of, split
from unet_core.segment import open_result, plan_run, prepare, read_status, run

Maker = Callable[..., Path]
SHAPE = (5, 37, 54)


def stored(output: Path, name: str = "labels/classes/0") -> NDArray[Any]:
    return np.asarray(zarr.open_array(output / name, mode="r")[...])


def alone(tmp_path: Path, stack: NDArray[Any], **options: Any) -> list[Path]:
    """Outputs of every section, written as an image of its own and segmented by itself."""
    outputs = []
    for number, section in enumerate(stack):
        zarr.create_array(tmp_path / f"section-{number}.zarr", data=section, chunks=(20, 30))
        outputs.append(tmp_path / f"alone-{number}")
        run(make_job(image=str(tmp_path / f"section-{number}.zarr"), output=str(outputs[-1]), **options))
    return outputs


CASES: list[tuple[dict[str, Any], int, dict[str, Any], tuple[int, ...]]] = [
    ({"levels": 3}, 1, {"strip": 8}, (2, 16, 32)),
    ({"levels": 3}, 1, {"strip": 0}, (3, 40, 24)),
    ({"levels": 3, "padding": "same"}, 1, {}, (1, 16, 32)),
    ({"levels": 2}, 2, {"symmetries": "all", "strip": 4}, (4, 40, 24)),
    ({"levels": 3, "padding": "same", "kind": "regions"}, 1, {"symmetries": "flips"}, (2, 16, 56)),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "models", "options", "block"), CASES, ids=str)
def test_every_section_is_what_it_is_alone(
    arguments: dict[str, Any], models: int, options: dict[str, Any], block: tuple[int, ...],
    make_model: Maker, make_image: Maker, tmp_path: Path,
) -> None:  # fmt: skip
    first, *others = (str(make_model(seed=seed, **arguments)) for seed in range(models))
    options = options | {"model": first, "further_models": tuple(others), "probabilities": "float32"}
    summary = run(
        make_job(image=str(make_image(SHAPE)), output=str(tmp_path / "stack"), block_shape=block, ngff="0.4", **options)
    )
    assert (summary.status, summary.voxels, summary.area_unit) == ("complete", np.prod(SHAPE), "um^3")
    yaozarrs.validate_zarr_store(str(tmp_path / "stack"))
    names = [image.path for image in open_result(str(tmp_path / "stack")).plan.images]
    seen = 0
    for number, output in enumerate(alone(tmp_path, textured(SHAPE), block_shape=block[1:], **options)):
        for name in names:
            whole, own = (stored(place, f"{name}/0".lstrip("/")) for place in (tmp_path / "stack", output))
            np.testing.assert_array_equal(whole[..., number, :, :], own)
            seen += len(np.unique(own)) > 1
    assert seen > len(names)


@pytest.mark.parametrize("mutant", ["next section", "mirrored"])
def test_a_section_that_sees_another_is_told(
    mutant: str, make_model: Maker, make_image: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison above can fail."""
    options = {"model": str(make_model(levels=2))}
    expected = alone(tmp_path, textured(SHAPE), block_shape=(20, 24), **options)
    true = worker.read_reflected
    turn = {"next section": lambda values: np.roll(values, 1, axis=1), "mirrored": lambda values: values[:, ::-1]}[mutant]
    monkeypatch.setattr(worker, "read_reflected", lambda source, box: turn(true(source, box)))
    run(make_job(image=str(make_image(SHAPE)), output=str(tmp_path / "out"), block_shape=(5, 20, 24), **options))
    same = [np.array_equal(stored(tmp_path / "out")[number], stored(output)) for number, output in enumerate(expected)]
    assert sum(same) <= 1  # the middle one of five stays when they are mirrored


def test_tiles_lie_in_sections(make_model: Maker, make_image: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "whole_box", "tests.unet_core.test_approximate:WholeBox")
    model = str(make_model(network="whole_box", norm="instance"))
    options = {"model": model, "approximate": True, "tile_shape": (16, 24), "probabilities": "float32"}
    job = make_job(image=str(make_image(SHAPE)), output=str(tmp_path / "stack"), block_shape=(2, 32, 24), **options)
    assert resolve(job).facts()["tiles"].startswith("(1, 16, 24) voxels")
    summary = run(job)
    assert sorted(summary.seams) == ["x", "y"]  # no faces between sections
    assert sorted(measure_seams(job.output)) == ["x", "y"]
    for number, output in enumerate(alone(tmp_path, textured(SHAPE), block_shape=(32, 24), **options)):
        np.testing.assert_array_equal(stored(tmp_path / "stack", "0")[:, number], stored(output, "0"))
    usual = plan_run(make_job(image=job.image, output=str(tmp_path / "usual"), model=model, approximate=True))
    assert (usual.tile_shape, usual.block_shape) == ((1, 38, 54), (4, 38, 54))
    with pytest.raises(GridError, match=r"Tile shape \(1, 16, 24\) has 3 axes, 2 are wanted \(yx\)"):
        plan_run(make_job(image=job.image, output=job.output, **(options | {"tile_shape": (1, 16, 24)})))


def test_threads_order_regions_and_going_on_change_nothing(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    base = {"image": str(make_image(SHAPE)), "model": str(make_model(levels=2)), "block_shape": (2, 16, 32)}
    run(make_job(output=str(tmp_path / "serial"), **base))
    job = make_job(output=str(tmp_path / "threads"), **base)
    planned = resolve(job)
    request = prepare(planned, job.output)
    backwards = reversed(range(planned.plan.stages[0].grid.block_count))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda index: worker.run_unit(job.output, request.key, "segment", index), backwards))
    assert run(job).computed == 0
    assert digest(tmp_path / "threads") == digest(tmp_path / "serial")

    region = run(make_job(output=str(tmp_path / "region"), roi=("3:4,0:16,40:54",), **base))
    assert (region.blocks, region.voxels) == (1, 2 * 16 * 22)
    np.testing.assert_array_equal(stored(tmp_path / "region")[2:4, :16, 32:], stored(tmp_path / "serial")[2:4, :16, 32:])
    grown = run(make_job(output=str(tmp_path / "region"), **base))
    assert (grown.blocks, grown.computed) == (18, 17)
    assert digest(tmp_path / "region") == digest(tmp_path / "serial")
    assert read_status(str(tmp_path / "region")).stages["segment"] == (18, 18)


def test_the_plan_says_that_sections_are_seen_alone(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    model = str(make_model(levels=3))
    planned = resolve(make_job(image=str(make_image(SHAPE)), output=str(tmp_path / "out"), model=model))
    facts = planned.facts()
    assert facts["sections"] == "2D model, section by section: 5 sections along z"
    assert facts["strips"].endswith("rows along y at a time")
    assert facts["margin"] == "(0, 20, 20) before, (0, 20, 20) after; stride (1, 4, 4)"
    text = json.loads(planned.plan.canonical())
    assert (text["by_section"], text["spatial_axes"], text["scale"]) == (True, "zyx", [1.0, 1.0, 1.0])
    assert Plan.model_validate_json(planned.plan.canonical()).id == planned.plan.id
    text["footprint"]["before"][0] = 1
    with pytest.raises(ValueError, match="nothing around a section along z"):
        Plan.model_validate(text)
    flat = resolve(make_job(image=str(make_image((1, 37, 54))), output=str(tmp_path / "out"), model=model))
    assert (flat.plan.spatial_axes, flat.plan.by_section) == ("yx", False)
    assert b"by_section" not in flat.plan.canonical()  # so that plans made before keep their id
    assert "sections" not in flat.facts()
    with pytest.raises(GridError, match=r"Block shape \(16, 32\) has 2 axes, 3 are wanted \(zyx\)"):
        plan_run(make_job(image=str(make_image(SHAPE)), output=str(tmp_path / "out"), model=model, block_shape=(16, 32)))


def test_only_the_voxels_of_a_section_must_fit_the_model(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    base = {
        "image": str(make_image(SHAPE)),
        "output": str(tmp_path / "out"),
        "model": str(make_model(voxel_size_um=(0.004, 0.004))),
    }
    plan = plan_run(make_job(voxel_size_um=(0.05, 0.004, 0.0041), **base))
    assert (plan.scale, plan.unit) == ((0.05, 0.004, 0.0041), "micrometer")
    unknown = plan_run(make_job(voxel_size_um=(0.004, 0.004), **base))  # how far apart the sections are is not known
    assert (unknown.scale, unknown.unit) == ((1.0, 1.0, 1.0), None)
    with pytest.raises(VolumeError, match=r"trained at 0.004 x 0.004 um.* level 0: 0.008 x 0.004 um"):
        plan_run(make_job(voxel_size_um=(0.004, 0.008, 0.004), **base))
    with pytest.raises(VolumeError, match="does not say its voxel size; state it with --voxel-size"):
        plan_run(make_job(**base))
    with pytest.raises(VolumeError, match="--voxel-size has 1 number, the image has the axes zyx"):
        plan_run(make_job(voxel_size_um=(0.004,), **base))
    with pytest.raises(JobError, match="--symmetries all swaps y and x, whose voxels are 0.004 and 0.008 um"):
        plan_run(make_job(voxel_size_um=(0.004, 0.008), symmetries="all", level=0, **base))


def test_channels_and_the_normalisation_of_the_stack(make_model: Maker, tmp_path: Path) -> None:
    """All channels of a section are seen; percentiles are those of the whole stack, and the plan says so."""
    random = np.random.default_rng(0)
    values = random.integers(0, 190, (2, 3, 21, 26)) + 30 * np.arange(3)[:, None, None]
    zarr.create_array(tmp_path / "c.zarr", data=values.astype(np.uint8), dimension_names=["c", "z", "y", "x"])
    model = make_model(in_channels=2, levels=2)
    stated = json.loads((model / "model.json").read_text())
    stated["normalisation"] = {"kind": "image", "low": 1.0, "high": 99.8}
    (model / "model.json").write_text(json.dumps(stated))
    job = make_job(image=str(tmp_path / "c.zarr"), output=str(tmp_path / "out"), model=str(model), probabilities="float32")
    planned = resolve(job)
    low, high = np.percentile(values.reshape(2, -1), (1, 99.8), axis=1)
    np.testing.assert_allclose(planned.plan.model.normalisation.offset, low)
    assert any("those of the whole stack, the same for all sections" in text for text in planned.warnings)
    run(job)
    network = load_model(model).network
    for number in range(3):
        section = (values[:, number] - low[:, None, None]) / (high - low)[:, None, None]
        logits = torch.from_numpy(np.ascontiguousarray(one_pass(network, section.astype(np.float32))))
        np.testing.assert_allclose(stored(tmp_path / "out", "0")[:, number], logits.softmax(0).numpy(), atol=1e-5)


def test_affinities_are_with_voxels_of_the_same_section(make_image: Maker, tmp_path: Path) -> None:
    model = test_heads.save(tmp_path / "model")
    output = tmp_path / "out"
    run(make_job(image=str(make_image((2, 20, 27))), output=str(output), model=str(model), probabilities="uint8"))
    heads = {image.head.name: image.head for image in open_result(str(output)).plan.images if image.head}
    assert heads["edges"].offsets == ((0, 0, 1), (0, -3, 0))
    assert heads["depth"].offsets is None
    assert stored(output, "heads/edges/0").shape == (2, 2, 20, 27)


def test_a_voxel_that_is_not_finite_is_named_with_its_section(make_model: Maker, tmp_path: Path) -> None:
    values = textured(SHAPE).astype(np.float32)
    values[3, 7, 9] = np.nan
    zarr.create_array(tmp_path / "nan.zarr", data=values)
    job = make_job(
        image=str(tmp_path / "nan.zarr"), output=str(tmp_path / "out"), model=str(make_model()), block_shape=(2, 40, 56)
    )
    summary = run(job)
    assert summary.status == "partial"
    assert [text.split(": ")[1] for text in summary.failures] == ["section 3"]


def planned(shape: tuple[int, ...], model: Path, folder: Path, **options: Any) -> Plan:
    image = folder / "x".join(map(str, shape))
    if not image.exists():
        zarr.create_array(image, shape=shape, dtype="uint8", chunks=(1, *(min(1024, size) for size in shape[1:])))
    return plan_run(make_job(image=str(image), output=str(folder / "out"), model=str(model), missing="fill", **options))


def test_blocks_hold_as_many_sections_as_make_a_usual_block(make_model: Maker, tmp_path: Path) -> None:
    model = make_model(levels=5, base=8)
    expected = {
        (30, 512, 512): (4, 512, 512),  # ISBI 2012: a megabyte of labels
        (3, 100, 120): (2, 112, 128),
        (1000, 512, 512): (128, 512, 512),
        (125, 1250, 1250): (16, 1264, 1264),
        (7, 20000, 30000): (4, 4096, 2048),
    }
    assert {shape: planned(shape, model, tmp_path).block_shape for shape in expected} == expected
    for shape in expected:
        plan = planned(shape, model, tmp_path)
        assert all(block % chunk == 0 for block, chunk in zip(plan.block_shape, plan.chunk_shape, strict=True))
    less = planned((1000, 512, 512), model, tmp_path, memory_gib=0.2).block_shape
    assert less[1:] == (512, 512)
    assert less[0] < 128  # cutting between sections computes nothing twice


@pytest.mark.parametrize("count", [1, 2, 3, 24, 1000])
@pytest.mark.parametrize("section", [(16, 16), (512, 512), (4096, 2048), (9000, 9000)])
@pytest.mark.parametrize("columns", [1, 6, 100])
def test_depths_lie_within_their_bounds(count: int, section: tuple[int, ...], columns: int) -> None:
    depth = choose_depth(section, count, columns, 8)
    voxels = depth * section[0] * section[1]
    assert 1 <= depth <= count
    assert voxels <= MOST_VOXELS or depth == 1
    if columns * -(-count // depth) < 8:  # as many blocks as shards of enough voxels allow
        assert depth == 1 or voxels < 2 * FEWEST_VOXELS


def test_a_box_is_the_sum_of_its_sections() -> None:
    box = Box((2, -3, 5), (4, 9, 7))
    assert [str(part) for part in sections_of(box, 2)] == ["2:3, -3:9, 5:7", "3:4, -3:9, 5:7"]
    assert list(sections_of(box, 3)) == [box]
    assert join(*split(box, 2)) == box == join(*split(box, 3))


def test_chunks_much_deeper_than_blocks_are_warned_of(make_model: Maker, tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "deep.zarr", shape=(128, 4096, 4096), dtype="uint8", chunks=(64, 512, 512))
    base = {"image": str(tmp_path / "deep.zarr"), "output": str(tmp_path / "out"), "missing": "fill"}
    model = str(make_model(levels=5, base=8))
    found = resolve(make_job(model=model, **base))
    depth = found.plan.block_shape[0]
    assert any(
        f"hold 64 sections, blocks {depth}, so that each chunk is decoded {64 // depth} times" in text for text in found.warnings
    )
    deeper = resolve(make_job(model=model, block_shape=(64, 512, 512), **base))
    assert not any("decoded" in text for text in deeper.warnings)

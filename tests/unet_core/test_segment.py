"""The whole path, Zarr to Zarr: any cut gives one pass, a killed run ends in the same bytes, another job is refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import pytest
import tifffile
import torch
import zarr

from tests.conftest import textured
from tests.unet_core.test_footprint import one_pass
from unet_core import inputs, ledger, sampling, worker
from unet_core.audit import audit
from unet_core.errors import ChunkError, GridError, JobError, LedgerError, ResumeError, VolumeError
from unet_core.footprint import footprint
from unet_core.geometry import BlockGrid, Box
from unet_core.job import SegmentationJob, make_job
from unet_core.model_package import load_model
from unet_core.planning import resolve
from unet_core.segment import open_result, plan_run, prepare, read_status, run
from unet_core.store import open_store

Maker = Callable[..., Path]


def labels_of(output: Path, level: int = 0) -> np.ndarray[Any, Any]:
    return np.asarray(zarr.open_array(output / "labels" / "classes" / str(level), mode="r")[...])


def digest(output: Path) -> dict[str, str]:
    """Hash of every stored voxel object and every group's metadata; not of the ledger, which holds times."""
    files = [path for path in sorted(output.rglob("*")) if path.is_file() and ".unet" not in path.parts]
    return {path.relative_to(output).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def expected_logits(model: Path, image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    package = load_model(model)
    normalised = ((image.astype(np.float32) - 100) / 50)[None]
    return one_pass(package.network, normalised)


CUTS = [
    ({"levels": 3}, (75, 93), [(16, 32), (64, 8), (76, 96)]),
    ({"levels": 2, "dims": 3}, (13, 22, 37), [(4, 8, 16), (14, 22, 6)]),
    ({"levels": 3, "dims": 3, "poolings": ((1, 2, 2), (2, 2, 2))}, (9, 33, 26), [(6, 16, 12)]),
]


@pytest.mark.parametrize(("arguments", "shape", "block_shape"), [(a, s, b) for a, s, blocks in CUTS for b in blocks], ids=str)
def test_any_cut_gives_the_labels_of_one_pass(
    arguments: dict[str, Any],
    shape: tuple[int, ...],
    block_shape: tuple[int, ...],
    make_model: Maker,
    make_image: Maker,
    tmp_path: Path,
) -> None:
    model, image = make_model(**arguments), make_image(shape)
    summary = run(
        make_job(
            image=str(image), output=str(tmp_path / "out"), model=str(model), block_shape=block_shape, probabilities="float32"
        )
    )
    assert summary.status == "complete"
    logits = expected_logits(model, textured(shape))
    assert logits.std() > 1e-2
    probabilities = torch.from_numpy(logits).softmax(0).numpy()
    stored = np.asarray(zarr.open_array(tmp_path / "out" / "0", mode="r")[...])
    np.testing.assert_allclose(stored, probabilities, atol=1e-5)
    two_best = np.sort(logits, axis=0)[-2:]
    clear = two_best[1] - two_best[0] > 1e-5 * (logits.max() - logits.min())
    labels = labels_of(tmp_path / "out")
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(labels[clear], logits.argmax(0)[clear])
    assert len(np.unique(labels)) > 1
    assert summary.label_voxels == {f"class {value}": int((labels == value).sum()) for value in range(3)}


@pytest.mark.parametrize("mutant", ["zeros", "start"])
def test_a_wrong_halo_changes_labels(
    mutant: str, make_model: Maker, make_image: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison above can fail: reading zeros in a quarter of the margin, or one voxel off, is seen."""
    model, image = make_model(levels=3), make_image((75, 93))
    true_read = worker.read_reflected

    def wrong(source: Any, box: Any) -> Any:
        values = true_read(source, box.shift((1, 1)) if mutant == "start" and any(start > 0 for start in box.start) else box)
        if mutant == "zeros":
            values[:, :5] = 0
        return values

    monkeypatch.setattr(worker, "read_reflected", wrong)
    run(make_job(image=str(image), output=str(tmp_path / "out"), model=str(model), block_shape=(16, 32)))
    assert (labels_of(tmp_path / "out") != expected_logits(model, textured((75, 93))).argmax(0)).any()


def test_dask_map_overlap_with_the_same_margins_gives_the_same_labels(
    make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    shape, block = (96, 128), (24, 32)
    model, image = make_model(levels=3), make_image(shape)
    run(make_job(image=str(image), output=str(tmp_path / "out"), model=str(model), block_shape=block))
    package = load_model(model)
    geometry = footprint(package.network)
    # After the margin comes the surplus to the next legal size, which is cropped again.
    after = tuple(
        read - size - before
        for read, size, before in zip(geometry.read_box(Box.from_shape(block)).shape, block, geometry.before, strict=True)
    )
    depth = tuple(zip(geometry.before, after, strict=True))
    padded = np.pad(textured(shape), depth, mode="reflect")  # dask's own reflection repeats the voxel at the edge
    chunks = [
        (before + size, *(size,) * (extent // size - 2), size + behind)
        for size, extent, (before, behind) in zip(block, shape, depth, strict=True)
    ]

    def predict(read: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        with torch.inference_mode():
            logits = package.network(torch.from_numpy((read.astype(np.float32) - 100) / 50)[None, None])[0].numpy()
        labels: np.ndarray[Any, Any] = logits[:, : block[0], : block[1]].argmax(0).astype(np.uint8)
        return labels

    labels = dask.array.map_overlap(
        predict,
        dask.array.from_array(padded, chunks=chunks),
        depth=dict(enumerate(depth)),
        boundary="none",
        trim=False,
        allow_rechunk=False,
        dtype=np.uint8,
        chunks=tuple((size,) * (extent // size) for size, extent in zip(block, shape, strict=True)),
        meta=np.empty((0, 0), np.uint8),
    ).compute(scheduler="synchronous")
    np.testing.assert_array_equal(labels, labels_of(tmp_path / "out"))
    assert len(np.unique(labels)) > 1


def test_channels_are_chosen_and_part_of_the_plan(make_model: Maker, tmp_path: Path) -> None:
    gray = textured((40, 50))
    zarr.create_array(
        tmp_path / "four.zarr", data=np.stack([gray // 2, gray, gray // 3, 255 - gray])[:, None], chunks=(1, 1, 16, 16)
    )
    zarr.create_array(tmp_path / "one.zarr", data=gray, chunks=(16, 16))
    model = str(make_model())
    base = {"image": str(tmp_path / "four.zarr"), "output": str(tmp_path / "out"), "model": model}
    with pytest.raises(VolumeError, match=r"wants 1 channel .* image has 4: .*--channels, e.g. --channels 0"):
        run(make_job(**base))
    with pytest.raises(VolumeError, match="channel 4 of .* does not exist; it has channels 0 to 3"):
        run(make_job(**base, channels=(4,)))
    (tmp_path / "four.zarr/c/0/0/1/1").unlink()  # of another channel
    run(make_job(**base, channels=(1,)))
    run(make_job(image=str(tmp_path / "one.zarr"), output=str(tmp_path / "single"), model=model))
    np.testing.assert_array_equal(labels_of(tmp_path / "out"), labels_of(tmp_path / "single"))
    with pytest.raises(ResumeError, match=r"another --channels: "):
        run(make_job(**base, channels=(3,)))


def test_a_worker_refuses_an_image_that_changed_after_planning(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    image = make_image((40, 50))
    planned = resolve(make_job(image=str(image), output=str(tmp_path / "out"), model=str(make_model()), block_shape=(16, 16)))
    request = prepare(planned, str(tmp_path / "out"))
    chunk = image / "c" / "0" / "1"
    chunk.write_bytes(chunk.read_bytes())
    with pytest.raises(ResumeError, match="has changed since it was planned"):
        worker.run_unit(str(tmp_path / "out"), request.key, "segment", 0)


@pytest.mark.parametrize("ngff", ["0.5", "0.4"])
def test_regions_may_overlap_and_each_is_a_label_image(ngff: str, make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    model, image = make_model("regions", classes=2), make_image((41, 50))
    run(
        make_job(
            image=str(image),
            output=str(tmp_path / "out"),
            model=str(model),
            block_shape=(16, 16),
            probabilities="uint8",
            ngff=ngff,
        )
    )
    logits = expected_logits(model, textured((41, 50)))
    probabilities = torch.from_numpy(logits).sigmoid().numpy()
    stored = np.asarray(zarr.open_array(tmp_path / "out" / "0", mode="r")[...])
    assert np.abs(stored / 255 - probabilities).max() <= 1 / 510 + 1e-5
    for number in range(2):
        labels = np.asarray(zarr.open_array(tmp_path / "out" / "labels" / f"class_{number}" / "0", mode="r")[...])
        sure = np.abs(logits[number]) > 1e-4
        np.testing.assert_array_equal(labels[sure], ((number + 1) * (logits[number] > 0))[sure])


def test_bytes_do_not_depend_on_the_order_or_on_running_a_block_twice(
    make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    model, image = make_model(), make_image((60, 70))
    first, second = (
        make_job(image=str(image), output=str(tmp_path / name), model=str(model), block_shape=(16, 16)) for name in "ab"
    )
    run(first)
    records = list((tmp_path / "a/.unet/ledger/segment").iterdir())
    assert len(records) == 20
    run(second)
    for record in records[::3]:
        record.unlink()
    again = run(first)
    assert again.computed == len(records[::3])
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


SCRIPT = """
import sys
from unet_core.job import SegmentationJob, make_job
from unet_core.segment import run
run(make_job(image=sys.argv[1], output=sys.argv[2], model=sys.argv[3], block_shape=(16, 16)))
"""


@pytest.mark.slow
def test_killed_at_random_moments_and_run_again_it_ends_in_the_same_bytes(
    make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    model, image = make_model(base=8), make_image((280, 90))  # with a coarser level
    run(make_job(image=str(image), output=str(tmp_path / "undisturbed"), model=str(model), block_shape=(16, 16)))
    output = tmp_path / "killed"
    random = np.random.default_rng(7)
    kills = 0
    for _ in range(12):
        child = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(image), str(output), str(model)], env=os.environ | {"PYTHONPATH": "."}
        )
        began = time.monotonic()
        while not (output / ledger.PLAN_KEY).exists() and child.poll() is None and time.monotonic() - began < 60:
            time.sleep(0.01)
        time.sleep(float(random.uniform(0.0, 0.6)))
        if child.poll() is None:
            child.send_signal(signal.SIGKILL)
            kills += 1
        child.wait()
    assert kills >= 3
    summary = run(make_job(image=str(image), output=str(output), model=str(model), block_shape=(16, 16)))
    assert summary.status == "complete"
    assert digest(output) == digest(tmp_path / "undisturbed")


def test_a_finished_run_computes_nothing_again(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    job = make_job(image=str(make_image((40, 40))), output=str(tmp_path / "out"), model=str(make_model()))
    assert run(job).computed == 1
    again = run(job)
    assert (again.computed, again.status) == (0, "complete")


def test_a_changed_option_model_or_image_is_refused_by_name(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    image, model, output = make_image((40, 50)), make_model(), str(tmp_path / "out")
    base = {"image": str(image), "output": output, "model": str(model)}
    run(make_job(**base))
    before = digest(tmp_path / "out")
    for change, field in [
        ({"precision": "bfloat16"}, "precision"),
        ({"block_shape": (8, 8)}, "--block-shape: 40,52 then, 8,8 now"),
        ({"model": str(make_model(seed=5))}, "another --model: random .* then, random"),
        ({"threads": 2}, "threads"),
        ({"ngff": "0.4"}, "ngff"),
    ]:
        with pytest.raises(ResumeError, match=field):
            run(make_job(**(base | change)))
    next(path for path in image.rglob("c/*/*") if path.is_file()).touch()
    with pytest.raises(ResumeError, match="fingerprint"):
        run(make_job(**base))
    assert digest(tmp_path / "out") == before


def test_a_foreign_folder_is_never_written_into(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("important")
    with pytest.raises(ResumeError, match=r"not made by this program.*thesis.txt"):
        run(make_job(image=str(make_image((20, 20))), output=str(tmp_path / "mine"), model=str(make_model())))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_output_and_image_never_share_a_place(make_model: Maker, make_image: Maker) -> None:
    image = make_image((20, 20))
    for output in (image, image / "labels", image.parent):
        with pytest.raises(JobError, match="inside each other|itself"):
            make_job(image=str(image), output=str(output), model="x")


def test_a_region_computes_its_blocks_only_and_growing_it_the_new_ones(
    make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    base = {
        "image": str(make_image((300, 64))),
        "output": str(tmp_path / "out"),
        "model": str(make_model()),
        "block_shape": (32, 32),
    }
    part = run(make_job(**base, roi=("0:40,0:20",)))
    assert (part.blocks, part.computed) == (2, 2)
    assert read_status(base["output"]).state == "complete"
    grown = run(make_job(**base, roi=("64:80,:",)))
    assert (grown.blocks, grown.computed) == (4, 2)
    whole = run(make_job(**base))
    assert (whole.blocks, whole.computed) == (20, 16)
    run(make_job(**(base | {"output": str(tmp_path / "undisturbed")})))
    assert digest(tmp_path / "out") == digest(tmp_path / "undisturbed")


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "extra record"])
def test_the_audit_finds_damage_and_says_not_complete(damage: str, make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    job = make_job(image=str(make_image((40, 50))), output=str(tmp_path / "out"), model=str(make_model()), block_shape=(16, 16))
    run(job)
    store = open_store(job.output)
    plan, request = ledger.read_plan(store), ledger.read_request(store)
    records = [record for stage in plan.stages for record in ledger.read_records(store, stage.name, plan.id).values()]
    audit(store, plan, request, records)
    shard = tmp_path / "out" / next(entry.key for entry in records[0].objects if not entry.empty)
    data = bytearray(shard.read_bytes())
    if damage == "truncate":
        shard.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
    elif damage == "delete":
        shard.unlink()
    else:
        records = records[1:]
    with pytest.raises(LedgerError, match="Audit"):
        audit(store, plan, request, records)
    if damage != "extra record":
        with pytest.raises(LedgerError, match="Audit"):
            run(job)
        assert read_status(job.output).state == "unfinished"


def test_a_damaged_ledger_record_means_the_block_is_redone(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    job = make_job(image=str(make_image((40, 50))), output=str(tmp_path / "out"), model=str(make_model()), block_shape=(16, 16))
    run(job)
    record = tmp_path / "out" / ledger.record_key("segment", 3)
    record.write_text(record.read_text()[:40])
    assert run(job).computed == 1


def test_background_blocks_are_recorded_as_empty_and_not_redone(make_model: Maker, tmp_path: Path) -> None:
    model = make_model("regions", classes=1)
    folder = tmp_path / "flat.zarr"
    zarr.create_array(folder, data=np.zeros((40, 40), np.uint8), chunks=(40, 40), config={"write_empty_chunks": True})
    package = load_model(model)
    with torch.no_grad():
        package.network.head.bias.fill_(-1e4)  # type: ignore[union-attr]
    from unet_core.model_package import save_model

    save_model(tmp_path / "none", package.network, package.description)
    job = make_job(image=str(folder), output=str(tmp_path / "out"), model=str(tmp_path / "none"), block_shape=(16, 16))
    assert run(job).computed == 9
    store = open_store(job.output)
    plan = ledger.read_plan(store)
    assert all(shard.empty for record in ledger.read_records(store, "segment", plan.id).values() for shard in record.objects)
    assert run(job).computed == 0
    assert not np.asarray(open_result(job.output).to_dask("labels/class_0").compute()).any()


def test_nan_never_becomes_a_label(make_model: Maker, tmp_path: Path) -> None:
    values = textured((40, 70)).astype(np.float32)
    values[3, 60] = np.nan
    zarr.create_array(tmp_path / "nan.zarr", data=values, chunks=(40, 70))
    job = make_job(image=str(tmp_path / "nan.zarr"), output=str(tmp_path / "out"), model=str(make_model()), block_shape=(16, 16))
    summary = run(job)
    assert summary.status == "partial"
    assert 0 < len(summary.failures) < 15
    assert "NaN" in summary.failures[0]
    assert "block" in summary.failures[0]
    assert read_status(job.output).state == "unfinished"


def test_a_missing_chunk_is_an_error_unless_filling_is_asked_for(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    image, model = make_image((40, 50)), make_model()
    (image / "c" / "0" / "1").unlink()
    base = {"image": str(image), "output": str(tmp_path / "out"), "model": str(model)}
    with pytest.raises(VolumeError, match=r"chunk c/0/1 is missing.*--missing fill"):
        run(make_job(**base))
    assert not (tmp_path / "out").exists()
    summary = run(make_job(**base, missing="fill"))
    assert summary.status == "complete"
    assert any("c/0/1" in text for text in summary.warnings)


def test_a_corrupt_chunk_is_found_before_any_work(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    image = make_image((40, 150), chunks=(40, 75))
    chunk = image / "c" / "0" / "1"
    chunk.write_bytes(chunk.read_bytes()[:-7])
    base = {"image": str(image), "output": str(tmp_path / "out"), "model": str(make_model()), "block_shape": (16, 16)}
    with pytest.raises(ChunkError, match="chunk c/0/1 corrupt"):
        run(make_job(**base))
    with pytest.raises(ChunkError, match="chunk c/0/1 corrupt"):
        run(make_job(**base, roi=("0:16,48:64",)))  # its margin reads the chunk
    assert not (tmp_path / "out").exists()
    assert run(make_job(**base, roi=("0:16,0:16",))).status == "complete"


@pytest.mark.parametrize("shape", [(7,), (33, 5), (4, 9, 6)])
def test_the_checked_chunks_are_those_of_the_region_evenly_spread(shape: tuple[int, ...]) -> None:
    chunk = (2, 3, 4)[: len(shape)]
    region = Box((1,) * len(shape), tuple(size - 1 for size in shape))
    every = [box for box in BlockGrid(shape, chunk).blocks() if not box.intersect(region).is_empty]
    found = [box.intersect(Box.from_shape(shape)) for box in sampling._spread(region, chunk, 10**6)]
    assert found == every
    few = list(sampling._spread(region, chunk, 3))
    assert len(few) == min(3, len(every))
    assert few[0].intersect(Box.from_shape(shape)) == every[0]
    assert len(few) == 1 or few[-1].intersect(Box.from_shape(shape)) == every[-1]


def test_a_corrupt_chunk_that_planning_did_not_see_fails_its_blocks_by_name_and_no_others(
    make_model: Maker, make_image: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "CHECKED_CHUNKS", 1)
    image = make_image((40, 150), chunks=(40, 75))
    chunk = image / "c" / "0" / "1"
    chunk.write_bytes(chunk.read_bytes()[:-7])
    job = make_job(image=str(image), output=str(tmp_path / "out"), model=str(make_model()), block_shape=(16, 16))
    summary = run(job)
    assert summary.status == "partial"
    assert "chunk c/0/1 corrupt" in summary.failures[0]
    assert 0 < summary.computed < summary.blocks


def test_the_level_is_chosen_by_voxel_size(make_model: Maker, tmp_path: Path) -> None:
    pyramid_image = tmp_path / "source"
    run(
        make_job(
            image=str(_scaled(tmp_path)), output=str(pyramid_image), model=str(make_model(levels=2)), voxel_size_um=(0.25, 0.25)
        )
    )
    for size, level in [((0.25, 0.25), 0), ((0.5, 0.52), 1)]:
        job = make_job(
            image=str(pyramid_image), output=str(tmp_path / "o"), model=str(make_model(voxel_size_um=size)), missing="fill"
        )
        plan = plan_run(job)
        assert plan.input.level == level
        assert plan.scale == (0.25 * 2**level,) * 2
    model = str(make_model(voxel_size_um=(0.35, 0.35)))
    with pytest.raises(VolumeError, match=r"trained at 0.35 x 0.35 um.*level 0: 0.25 x 0.25 um.*--level"):
        plan_run(make_job(image=str(pyramid_image), output=str(tmp_path / "o"), model=model, missing="fill"))
    unknown = str(_scaled(tmp_path))
    with pytest.raises(VolumeError, match=r"does not say its voxel size.*--voxel-size"):
        plan_run(make_job(image=unknown, output=str(tmp_path / "o"), model=model))


def _scaled(tmp_path: Path) -> Path:
    folder = tmp_path / "scaled.zarr"
    shutil.rmtree(folder, ignore_errors=True)
    zarr.create_array(folder, data=textured((600, 520)), chunks=(128, 128))
    return folder


def test_block_shapes_off_the_stride_are_refused_with_the_nearest(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    with pytest.raises(GridError, match=r"axis y: 30 .* stride 4; use 28 or 32"):
        plan_run(
            make_job(image=str(make_image((40, 50))), output=str(tmp_path / "o"), model=str(make_model()), block_shape=(30, 32))
        )


def test_dimensions_and_channels_must_fit_the_model(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match=r"works in 3D, the image has the axes yx .* choose a 2D model"):
        plan_run(make_job(image=str(make_image((40, 50))), output=str(tmp_path / "o"), model=str(make_model(levels=2, dims=3))))
    colour = str(make_model(levels=2, in_channels=3))
    with pytest.raises(VolumeError, match="model wants 3 channels .* image has 1"):
        plan_run(make_job(image=str(make_image((40, 50))), output=str(tmp_path / "o"), model=colour))


def test_percentiles_of_a_large_image_are_drawn_from_all_over_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unet_core.volumes import ArrayVolume

    values = textured((128, 128))
    values[:, :8] = 250  # the blank margin of a slide
    monkeypatch.setattr(sampling, "_REGION_SIDE", {2: 8})
    monkeypatch.setattr(sampling, "SAMPLED_VOXELS", 16 * 64)  # 16 of 256 regions, as many as a column has
    low, high = sampling.percentiles(inputs.Source(ArrayVolume(values), "yx"), 5, 90)
    expected = np.percentile(values[:, 8:], [5, 90])
    np.testing.assert_allclose([low[0], high[0]], expected, rtol=0.3)  # a column of regions would give 250 twice
    monkeypatch.setattr(sampling, "SAMPLED_VOXELS", 128 * 128)
    low, high = sampling.percentiles(inputs.Source(ArrayVolume(values), "yx"), 5, 90)
    np.testing.assert_allclose([low[0], high[0]], np.percentile(values, [5, 90]))


def stated_pyramid(folder: Path, shapes: list[tuple[int, ...]], sizes: list[float]) -> str:
    """An OME-Zarr whose voxel sizes are not the ratios of its shapes."""
    group = zarr.open_group(folder, mode="w")
    axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"[-len(shapes[0]) :]]
    datasets = []
    for number, (shape, size) in enumerate(zip(shapes, sizes, strict=True)):
        group.create_array(str(number), data=textured(shape), chunks=shape)
        steps = [
            {"type": "scale", "scale": [size] * len(shape)},
            {"type": "translation", "translation": [size * 10] * len(shape)},
        ]
        datasets.append({"path": str(number), "coordinateTransformations": steps})
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    return str(folder)


def test_voxel_sizes_are_those_stated_and_not_ratios_of_shapes(make_model: Maker, tmp_path: Path) -> None:
    image = stated_pyramid(tmp_path / "i", [(100, 100), (52, 52)], [1.0, 3.0])
    base = {"image": image, "output": str(tmp_path / "o")}
    plan = plan_run(make_job(**base, model=str(make_model(voxel_size_um=(3.0, 3.0)))))
    assert (plan.input.level, plan.scale, plan.translation) == (1, (3.0, 3.0), (30.0, 30.0))
    model = str(make_model(voxel_size_um=(1.92, 1.92)))
    with pytest.raises(VolumeError, match="level 1: 3 x 3 um; no level is within 10 %"):
        plan_run(make_job(**base, model=model))
    halved = plan_run(make_job(**base, model=str(make_model(voxel_size_um=(1.5, 1.5))), voxel_size_um=(0.5, 0.5)))
    assert (halved.input.level, halved.scale, halved.translation) == (1, (1.5, 1.5), (15.0, 15.0))


def test_coarser_levels_of_a_tiff_keep_their_place_when_the_user_states_the_voxel_size(make_model: Maker, tmp_path: Path) -> None:
    data = textured((200, 300))
    with tifffile.TiffWriter(tmp_path / "p.tif") as writer:
        writer.write(data, tile=(64, 64), subifds=1)
        writer.write(data[::2, ::2], tile=(64, 64), subfiletype=1)
    base = {"image": str(tmp_path / "p.tif"), "output": str(tmp_path / "o"), "model": str(make_model())}
    plan = plan_run(make_job(**base, level=1, voxel_size_um=(0.5, 0.5)))
    assert (plan.scale, plan.translation) == ((1.0, 1.0), (0.25, 0.25))


def test_edge_blocks_need_only_what_their_voxels_need(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    """The last block is one voxel wide; what a whole block would read, mirrored, reaches far back into the image."""
    image, model = make_image((40, 129), chunks=(40, 16)), make_model()
    (image / "c" / "0" / "4").unlink()  # 64:80; the margin is 20
    base = {"image": str(image), "output": str(tmp_path / "out"), "model": str(model), "block_shape": (40, 128)}
    assert run(make_job(**base, roi=("0:40,128:129",))).status == "complete"
    with pytest.raises(VolumeError, match="chunk c/0/4 is missing"):
        run(make_job(**base))


def test_chunks_that_only_the_mirror_image_needs_are_looked_for(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    image, model = make_image((40, 60), chunks=(40, 4)), make_model()
    (image / "c" / "0" / "9").unlink()  # 36:40
    base = {"image": str(image), "output": str(tmp_path / "out"), "model": str(model), "block_shape": (40, 4)}
    with pytest.raises(VolumeError, match="chunk c/0/9 is missing"):
        run(make_job(**base, roi=("0:40,56:60",)))  # reads 36:80, mirrored at 60
    assert run(make_job(**base, roi=("0:40,0:4",))).status == "complete"


def test_lost_voxels_of_a_result_are_an_error_and_background_is_not(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    run(make_job(image=str(make_image((40, 50))), output=output, model=str(make_model("regions")), block_shape=(16, 16)))
    assert open_result(output).volume().url.endswith("labels/class_0")
    record = next(iter((tmp_path / "out/.unet/ledger/segment").iterdir()))
    key = next(entry["key"] for entry in json.loads(record.read_text())["objects"] if entry["key"].startswith("labels/class_0"))
    (tmp_path / "out" / key).unlink()
    with pytest.raises(LedgerError, match=f"{key} is missing"):
        open_result(output).to_dask()


def test_one_channel_cannot_be_taken_twice(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    colour = str(make_model(in_channels=2))
    with pytest.raises(VolumeError, match="channels 0, 0 of .*: it has one"):
        plan_run(make_job(image=str(make_image((40, 50))), output=str(tmp_path / "o"), model=colour, channels=(0, 0)))


def test_running_out_of_memory_fails_the_block_alone(
    make_model: Maker, make_image: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_read = worker.read_reflected

    def read(source: Any, box: Any) -> Any:
        if box.start[0] > 0:
            raise MemoryError("no more")
        return true_read(source, box)

    monkeypatch.setattr(worker, "read_reflected", read)
    summary = run(
        make_job(image=str(make_image((40, 50))), output=str(tmp_path / "o"), model=str(make_model()), block_shape=(32, 32))
    )
    assert (summary.status, summary.computed, len(summary.failures)) == ("partial", 2, 2)
    assert "MemoryError: no more" in summary.failures[0]


def test_intensities_of_another_type_than_those_trained_on_are_refused(make_model: Maker, tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "i.zarr", data=textured((40, 50)).astype("u2") * 257, chunks=(40, 50))
    colour = np.moveaxis(np.stack([textured((40, 50))] * 3), 0, -1).astype("u2") * 257
    zarr.create_array(tmp_path / "c.zarr", data=colour, chunks=(40, 50, 3))
    plan_run(make_job(image=str(tmp_path / "i.zarr"), output=str(tmp_path / "o"), model=str(make_model())))
    with pytest.raises(
        VolumeError, match=r"'nuclei-he' was trained on uint8 intensities .* has uint16; convert the image to uint8"
    ):
        plan_run(make_job(image=str(tmp_path / "c.zarr"), output=str(tmp_path / "o"), model="nuclei-he"))


def test_a_job_that_was_not_made_by_make_job_is_checked_too(make_model: Maker, make_image: Maker) -> None:
    image = str(make_image((40, 50)))
    with pytest.raises(JobError, match="inside each other"):
        run(SegmentationJob(image=image, output=f"{image}/labels", model=str(make_model())))


def test_percentiles_are_those_of_the_whole_image(tmp_path: Path) -> None:
    from unet_core.volumes import ArrayVolume

    values = textured((70, 90))
    low, high = sampling.percentiles(inputs.Source(ArrayVolume(values), "yx"), 1, 99.8)
    np.testing.assert_allclose([low[0], high[0]], np.percentile(values, [1, 99.8]))
    broken = values.astype(np.float32)
    broken[3, 4], broken[5, 6] = np.nan, np.inf
    low, high = sampling.percentiles(inputs.Source(ArrayVolume(broken), "yx"), 1, 99.8)
    np.testing.assert_allclose([low[0], high[0]], np.percentile(broken[np.isfinite(broken)], [1, 99.8]))
    with pytest.raises(VolumeError, match="no finite voxel"):
        sampling.percentiles(inputs.Source(ArrayVolume(broken * np.nan), "yx"), 1, 99.8)

"""Segmenting at the model's voxel size: as if the resampled image had been stored, for any cut; and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaozarrs
import zarr

from tests.conftest import textured
from unet_core.conversion import convert, make_conversion
from unet_core.errors import JobError, ResumeError, VolumeError
from unet_core.exports.placing import place
from unet_core.geometry import Box
from unet_core.job import make_job
from unet_core.ledger import read_plan, read_request
from unet_core.planning import resolve
from unet_core.segment import run
from unet_core.store import open_store
from unet_core.volumes import open_volume
from unet_core.volumes.resampled import ResampledVolume

Maker = Callable[..., Path]


def image(folder: Path, shape: tuple[int, ...], size: tuple[float, ...], **options: Any) -> str:
    """An OME-Zarr with levels."""
    zarr.create_array(folder / "raw", data=textured(shape), chunks=tuple(min(part, 24) for part in shape))
    job = make_conversion(source=str(folder / "raw"), target=str(folder / "image"), voxel_size_um=size, **options)
    convert(job)
    return str(folder / "image")


CASES: list[tuple[str, dict[str, Any], tuple[int, ...], tuple[float, ...], tuple[float, ...], tuple[Fraction, ...]]] = [
    ("2D", {"levels": 3}, (141, 203), (0.25, 0.2), (0.45, 0.45), (Fraction(9, 5), Fraction(9, 4))),
    ("upwards", {"levels": 2}, (41, 53), (0.5, 0.5), (0.3, 0.4), (Fraction(3, 5), Fraction(4, 5))),
    (
        "3D",
        {"levels": 2, "dims": 3},
        (14, 45, 60),
        (0.04, 0.004, 0.004),
        (0.04, 0.01, 0.009),
        (Fraction(1), Fraction(5, 2), Fraction(9, 4)),
    ),
    ("sections", {"levels": 2}, (3, 70, 61), (0.05, 0.004, 0.004), (0.006, 0.006), (Fraction(1), Fraction(3, 2), Fraction(3, 2))),
]


@pytest.mark.parametrize(
    ("arguments", "shape", "size", "wanted", "ratios"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_any_cut_gives_what_the_stored_resampled_image_gives(
    arguments: dict[str, Any],
    shape: tuple[int, ...],
    size: tuple[float, ...],
    wanted: tuple[float, ...],
    ratios: tuple[Fraction, ...],
    make_model: Maker,
    tmp_path: Path,
) -> None:
    model, source = str(make_model(voxel_size_um=wanted, **arguments)), image(tmp_path, shape, size)
    resampled = ResampledVolume(open_volume(source), ratios)
    stored = resampled.read(Box.from_shape(resampled.spatial_shape))[0]
    zarr.create_array(tmp_path / "stored", data=stored, chunks=stored.shape)
    full = (*size[: len(shape) - len(wanted)], *wanted)
    run(make_job(image=str(tmp_path / "stored"), output=str(tmp_path / "expected"), model=model, voxel_size_um=full))
    expected = np.asarray(zarr.open_array(tmp_path / "expected/labels/classes/0", mode="r")[...])
    assert len(np.unique(expected)) > 1
    blocks = [(16, 16), (64, 32)] if len(wanted) == 2 else [(8, 16, 12), (14, 24, 28)]
    for number, block in enumerate(blocks):
        shape_of_block = (1, *block) if len(block) < len(shape) else block
        output = tmp_path / f"out-{number}"
        summary = run(make_job(image=source, output=str(output), model=model, resample=True, block_shape=shape_of_block))
        assert summary.status == "complete"
        np.testing.assert_array_equal(np.asarray(zarr.open_array(output / "labels/classes/0", mode="r")[...]), expected)
        yaozarrs.validate_zarr_store(output)
        labels = open_volume(str(output / "labels/classes"), missing="fill")
        assert labels.voxel_size == pytest.approx(full)
        moved = [float(ratio - 1) / 2 * step for ratio, step in zip(ratios, size, strict=True)]
        assert labels.translation == pytest.approx(tuple(moved), abs=1e-12)


def test_the_coarsest_level_that_loses_nothing_is_read(make_model: Maker, tmp_path: Path) -> None:
    source = image(tmp_path, (700, 610), (0.25, 0.25))
    assert [level.voxel_size for level in open_volume(source).levels] == [(0.25, 0.25), (0.5, 0.5), (1.0, 1.0)]
    model = str(make_model(voxel_size_um=(0.8, 0.8)))
    planned = resolve(make_job(image=source, output=str(tmp_path / "out"), model=model, resample=True))
    plan, facts = planned.plan, planned.facts()
    assert (plan.input.level, plan.input.shape, plan.levels[0].shape) == (1, (350, 305), (219, 191))
    assert plan.resample == ((8, 5), (8, 5))
    assert (plan.scale, plan.unit) == ((0.8, 0.8), "micrometer")
    assert facts["resampled"] == (
        "1.6 x 1.6 voxels of 0.5 x 0.5 micrometer make one: (350, 305) become (219, 191), means weighted by a triangle"
    )
    named = resolve(make_job(image=source, output=str(tmp_path / "out"), model=model, resample=True, level=0)).plan
    assert (named.input.level, named.resample) == (0, ((16, 5), (16, 5)))
    coarse = str(make_model(voxel_size_um=(0.1, 0.1)))
    warned = resolve(make_job(image=source, output=str(tmp_path / "out"), model=coarse, resample=True))
    assert any("are larger than the model's: they are interpolated" in text for text in warned.warnings)


def test_without_need_the_plan_is_that_of_a_run_without(make_model: Maker, tmp_path: Path) -> None:
    source, model = image(tmp_path, (300, 270), (0.25, 0.25)), str(make_model(voxel_size_um=(0.5, 0.5)))
    job = {"image": source, "output": str(tmp_path / "out"), "model": model}
    plain, resampled = resolve(make_job(**job)), resolve(make_job(**job, resample=True))
    assert plain.plan.id == resampled.plan.id
    assert "resample" not in json.loads(plain.plan.canonical())
    assert any("--resample changes nothing" in text for text in resampled.warnings)


def test_what_cannot_be_resampled_is_refused_before_anything_is_written(
    make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    source, plain = image(tmp_path, (300, 270), (0.25, 0.25)), str(make_image((60, 70)))
    known, unknown = str(make_model(voxel_size_um=(0.35, 0.35))), str(make_model())
    far = str(make_model(voxel_size_um=(20.0, 20.0)))
    for name, model, words in [
        (source, unknown, "does not state its voxel size, so that --resample has nothing to resample to; leave it out"),
        (plain, known, "--resample needs the voxel size of .*; state that of level 0 with --voxel-size"),
        (source, far, "more than 32 times finer or 8 times coarser is not resampled; correct the voxel size"),
    ]:
        with pytest.raises(VolumeError, match=words) as caught:
            run(make_job(image=name, output=str(tmp_path / "out"), model=model, resample=True))
        assert "\n" not in str(caught.value)
    with pytest.raises(VolumeError, match="no level is within 10 %: .* or have it resampled with --resample"):
        run(make_job(image=source, output=str(tmp_path / "out"), model=known))
    with pytest.raises(JobError, match="--attach puts labels on the voxels of the image, and with --resample they have others"):
        run(make_job(image=source, output=str(tmp_path / "out"), model=known, resample=True, attach="nuclei"))
    assert not (tmp_path / "out").exists()
    stated = make_job(image=plain, output=str(tmp_path / "out"), model=known, resample=True, voxel_size_um=(0.7, 0.35))
    assert resolve(stated).plan.resample == ((1, 2), (1, 1))


def test_a_run_with_it_is_not_continued_without_and_lies_where_its_image_lies(make_model: Maker, tmp_path: Path) -> None:
    source, model = image(tmp_path, (300, 270), (0.25, 0.25)), str(make_model(voxel_size_um=(0.65, 0.65)))
    job = {"image": source, "output": str(tmp_path / "out"), "model": model}
    run(make_job(**job, resample=True))
    with pytest.raises(ResumeError, match="another --resample: by 1.3,1.3 then, no now"):
        run(make_job(**job, level=1))
    store = open_store(str(tmp_path / "out"))
    placing = place(read_plan(store), read_request(store))
    assert placing.factor == pytest.approx((2.6, 2.6))  # pixels of level 0
    assert placing.offset == pytest.approx((0.0, 0.0))


def test_absent_chunks_are_those_that_the_resampled_region_needs(make_model: Maker, tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a", data=textured((120, 120)), chunks=(24, 24))
    (tmp_path / "a/c/4/4").unlink()
    job = {
        "image": str(tmp_path / "a"),
        "output": str(tmp_path / "out"),
        "model": str(make_model(levels=2, voxel_size_um=(0.6, 0.6))),
    }
    stated = {"voxel_size_um": (0.4, 0.4), "resample": True, "block_shape": (16, 16)}
    with pytest.raises(VolumeError, match=r"chunk c/4/4 is missing \(1 in all\)"):
        run(make_job(**job, **stated))
    summary = run(make_job(**job, **stated, roi=("0:16,0:16",)))  # of the 80 x 80 voxels of the result
    assert (summary.status, summary.computed) == ("complete", 1)

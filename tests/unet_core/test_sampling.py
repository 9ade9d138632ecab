"""Statistics of a whole image, computed region by region: those of numpy on the whole array, whatever the storage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from tests.conftest import describe, random_network, textured
from unet_core import sampling
from unet_core.errors import VolumeError
from unet_core.inputs import Source
from unet_core.job import make_job
from unet_core.model_description import ImageNormalisation, MomentsNormalisation
from unet_core.model_package import load_model, save_model
from unet_core.planning import resolve
from unet_core.volumes import ArrayVolume, open_volume


def source(values: NDArray[Any], axes: str = "cyx") -> Source:
    return Source(ArrayVolume(values, axes), axes.removeprefix("c"))


@pytest.fixture
def small_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "_REGION_SIDE", {2: 16, 3: 5})


@pytest.mark.usefixtures("small_regions")
@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize(("axes", "shape"), [("cyx", (3, 37, 53)), ("czyx", (2, 7, 11, 13)), ("cyx", (1, 1, 1))])
def test_moments_are_those_of_numpy_on_the_whole_array(axes: str, shape: tuple[int, ...], joint: bool) -> None:
    random = np.random.default_rng(0)
    values = random.normal(1e4, 1.0, shape) + 7 * np.arange(shape[0]).reshape(-1, *(1,) * (len(shape) - 1))  # a large offset
    mean, deviation = sampling.moments(source(values, axes), joint)
    over = None if joint else tuple(range(1, len(shape)))
    np.testing.assert_allclose(mean, np.broadcast_to(values.mean(over), shape[0]), rtol=1e-13)
    np.testing.assert_allclose(deviation, np.broadcast_to(values.std(over), shape[0]), rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("small_regions")
def test_moments_do_not_depend_on_chunks_by_a_single_bit(tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(100, 30, (37, 53)).astype(np.float32)
    found = set()
    for number, chunks in enumerate([(37, 53), (5, 7), (16, 3)]):
        zarr.create_array(tmp_path / f"{number}.zarr", data=values, chunks=chunks)
        mean, deviation = sampling.moments(Source(open_volume(str(tmp_path / f"{number}.zarr")), "yx"))
        found.add((float(mean[0]), float(deviation[0])))
    assert len(found) == 1


@pytest.mark.usefixtures("small_regions")
def test_only_finite_voxels_count() -> None:
    values = np.random.default_rng(2).normal(5, 2, (2, 37, 53)).astype(np.float32)
    values[0, :20] = np.nan
    values[1, 3, 4] = np.inf
    mean, deviation = sampling.moments(source(values))
    for channel in range(2):
        finite = values[channel][np.isfinite(values[channel])].astype(np.float64)
        np.testing.assert_allclose((mean[channel], deviation[channel]), (finite.mean(), finite.std()), rtol=1e-12)
    with pytest.raises(VolumeError, match="no finite voxel"):
        sampling.moments(source(values * np.nan))


def test_moments_of_a_large_image_are_drawn_from_all_over_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "_REGION_SIDE", {2: 8, 3: 8})
    monkeypatch.setattr(sampling, "SAMPLED_VOXELS", 16 * 64)  # 16 of 256 regions, as many as a column has
    values = np.tile(np.arange(128.0), (128, 1))
    assert len(list(sampling.sampled_regions(source(values[None])))) == 16
    mean, deviation = sampling.moments(source(values[None]))
    assert abs(mean[0] - values.mean()) < 20
    assert 0.6 * values.std() < deviation[0] < 1.4 * values.std()


def test_percentiles_of_all_channels_together_are_those_of_numpy() -> None:
    values = np.random.default_rng(3).integers(0, 1000, (3, 37, 53)).astype(np.uint16) * np.array([1, 3, 9], np.uint16).reshape(
        3, 1, 1
    )
    low, high = sampling.percentiles(source(values), 2, 98, joint=True)
    assert (low == np.percentile(values, 2)).all()
    assert (high == np.percentile(values, 98)).all()
    apart, _ = sampling.percentiles(source(values), 2, 98)
    assert len(set(apart)) > 1


def test_a_plan_holds_the_moments_and_a_package_keeps_the_kind(tmp_path: Path) -> None:
    arguments = {"in_channels": 2, "classes": 2, "base": 2, "levels": 2}
    stated = MomentsNormalisation(joint=True, eps=0.01)
    description = describe(**arguments).model_copy(update={"normalisation": stated})
    save_model(tmp_path / "model", random_network(**arguments), description)
    assert load_model(tmp_path / "model").description.normalisation == stated
    values = np.stack([textured((19, 23)), 255 - textured((19, 23), 1)])
    zarr.create_array(tmp_path / "image.zarr", data=values, chunks=(1, 7, 9), dimension_names=["c", "y", "x"])
    plan = resolve(make_job(image=str(tmp_path / "image.zarr"), output=str(tmp_path / "out"), model=str(tmp_path / "model"))).plan
    normalised = plan.model.normalisation.apply(values)
    np.testing.assert_allclose(normalised, (values - values.mean()) / (values.std() + 0.01), atol=1e-5)


@pytest.mark.usefixtures("small_regions")
@pytest.mark.parametrize("stated", [MomentsNormalisation(), MomentsNormalisation(joint=True), ImageNormalisation()])
@pytest.mark.parametrize("factor", [1e200, 1e155, 1e32])
def test_statistics_that_float32_cannot_hold_are_refused(stated: Any, factor: float) -> None:
    values = np.random.default_rng(0).normal(size=(2, 37, 53)) * [[[1.0]], [[factor]]]
    with pytest.raises(
        VolumeError, match=r"Channel [01] of .* would be normalised by .value - .*fit float32; rescale the image's"
    ):
        sampling.resolve_normalisation(stated, source(values))
    fitting = sampling.resolve_normalisation(stated, source(values / factor * 1e25))
    assert np.isfinite([fitting.offset, fitting.scale]).all()


def test_a_contrast_too_small_for_float32_is_refused() -> None:
    values = np.linspace(0, 1e-40, 1000).reshape(1, 20, 50)
    with pytest.raises(VolumeError, match=r"/ 9.88e-41, offset"):
        sampling.resolve_normalisation(ImageNormalisation(), source(values))
    assert sampling.resolve_normalisation(MomentsNormalisation(), source(values)).scale == pytest.approx((1e-6,))


def test_what_an_older_package_states_keeps_its_identity() -> None:
    assert ImageNormalisation(low=2).model_dump(mode="json") == {"kind": "image", "low": 2.0, "high": 99.8}
    stated = ImageNormalisation(joint=True, eps=0.5)
    assert ImageNormalisation.model_validate(json.loads(stated.model_dump_json())) == stated

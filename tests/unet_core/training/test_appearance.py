"""Intensities of crops against scipy, scikit-image and formulas."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from skimage.color import hed2rgb, rgb2hed
from skimage.exposure import match_histograms

from tests.unet_core.training.datasets import FAST, write_disks
from unet_core import networks
from unet_core.errors import InputError
from unet_core.footprint import footprint
from unet_core.geometry import Box
from unet_core.training.appearance import Appearance, Span, change_appearance, change_stains, draw_appearance, gaussian_blur
from unet_core.training.batches import BatchMaker
from unet_core.training.histograms import QUANTILES, match_histogram
from unet_core.training.options import Augmentation
from unet_core.training.planning import plan_training
from unet_core.training.recipes import make_options
from unet_core.training.setup import open_sampler

BYTES = Span((0.0,) * 3, (255.0,) * 3, is_limit=True)
STILL = Appearance(gains=(1.0,) * 3, offsets=(0.0,) * 3)
OPEN = Span((100.0, -5.0, 0.0), (300.0, 5.0, 1.0), is_limit=False)


def batch_of(shape=(33, 46), count=2, seed=0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).uniform(0, 255, (count, 3, *shape)).astype(np.float32))


def changed(batch: torch.Tensor, appearance: Appearance, span: Span = BYTES) -> np.ndarray:
    return change_appearance(batch, [appearance] * len(batch), span).numpy()


def test_an_appearance_of_nothing_changes_no_bit() -> None:
    batch = batch_of()
    assert torch.equal(change_appearance(batch, [STILL, STILL], BYTES), batch)
    nothing = Augmentation(gamma=1, gain=0, offset=0, stain=0, noise=0, blur=0)
    drawn = draw_appearance(nothing, np.random.default_rng(0), 3)
    assert replace(drawn, seed=0) == STILL


def test_curve_gain_and_offset_are_their_formulas() -> None:
    batch = batch_of()
    u = batch.numpy() / 255
    np.testing.assert_allclose(changed(batch, replace(STILL, exponent=1.7)), 255 * u**1.7, atol=1e-3)
    both = replace(STILL, gains=(1.2, 0.7, 1.0), offsets=(0.1, 0.0, -0.3))
    expected = u * np.reshape([1.2, 0.7, 1.0], (3, 1, 1)) + np.reshape([0.1, 0.0, -0.3], (3, 1, 1))
    np.testing.assert_allclose(changed(batch, both), 255 * np.clip(expected, 0, 1), atol=1e-3)


def test_only_a_data_types_span_clips_and_a_curve_is_monotone_beyond_the_span() -> None:
    values = torch.linspace(-400, 600, 501).expand(1, 3, 501)
    curve = changed(values, replace(STILL, exponent=0.6), OPEN)[0]
    assert (np.diff(curve) > 0).all()
    outside = values.numpy()[0, 0] > 300
    np.testing.assert_allclose(curve[0, outside], values[0, 0, outside], atol=1e-3)
    u = np.linspace(0, 1, 9)
    found = changed(torch.tensor(u * 10 - 5, dtype=torch.float32).expand(1, 3, 9), replace(STILL, exponent=0.6), OPEN)
    np.testing.assert_allclose(found[0, 1], u**0.6 * 10 - 5, atol=1e-4)
    shifted = changed(values, replace(STILL, gains=(2.0, 1.0, 1.0), offsets=(0.5, 0.0, 0.0)), OPEN)[0]
    np.testing.assert_allclose(shifted[0], 100 + 2 * (values[0, 0].numpy() - 100) + 0.5 * 200, atol=1e-3)
    assert changed(values, STILL, BYTES).min() == 0
    assert changed(values, STILL, BYTES).max() == 255


def test_stains_are_those_of_scikit_image() -> None:
    """Where no stain is negative; there scikit-image clips, and returns other colours even for factors of 1."""
    amounts = np.random.default_rng(0).uniform(0, 0.08, (21, 34, 3))
    colours = hed2rgb(amounts)
    expected = hed2rgb(rgb2hed(colours) * [1.3, 0.6, 1.0])
    image = torch.from_numpy(np.moveaxis(colours, -1, 0).astype(np.float32))
    np.testing.assert_allclose(change_stains(image, (1.3, 0.6)).numpy(), np.moveaxis(expected, -1, 0), atol=2e-6)
    np.testing.assert_allclose(change_stains(image, (1.0, 1.0)).numpy(), image.numpy(), atol=1e-6)
    found = changed(255 * image[None], replace(STILL, stains=(1.3, 0.6)))
    np.testing.assert_allclose(found[0] / 255, np.moveaxis(expected, -1, 0), atol=2e-6)
    assert np.abs(found[0] / 255 - image.numpy()).max() > 0.05
    assert torch.isfinite(change_stains(torch.zeros(3, 4, 5), (1.3, 0.6))).all()


@pytest.mark.parametrize(
    ("shape", "sigmas"), [((33, 46), (1.3, 0.7)), ((9, 17, 22), (0.4, 1.1, 2.0)), ((3, 5), (2.5, 2.5)), ((1, 7), (1, 1))]
)
def test_the_blur_is_scipys(shape, sigmas) -> None:
    image = batch_of(shape)[0]
    expected = ndimage.gaussian_filter(image.numpy().astype(np.float64), (0, *sigmas), mode="mirror")
    np.testing.assert_allclose(gaussian_blur(image, sigmas).numpy(), expected, atol=1e-3)


def test_a_blur_is_as_wide_in_micrometres_along_all_axes() -> None:
    batch = batch_of((9, 17, 22))
    found = changed(batch, replace(STILL, blur=1.5, voxel_size=(0.03, 0.01, 0.01)))
    np.testing.assert_allclose(found, ndimage.gaussian_filter(batch.numpy(), (0, 0, 0.5, 1.5, 1.5), mode="mirror"), atol=1e-3)
    found = changed(batch, replace(STILL, blur=1.5))
    np.testing.assert_allclose(found, ndimage.gaussian_filter(batch.numpy(), (0, 0, 1.5, 1.5, 1.5), mode="mirror"), atol=1e-3)


def test_noise_has_the_stated_deviation_and_follows_the_seed() -> None:
    flat = torch.full((2, 3, 120, 130), 200.0)
    noisy = change_appearance(flat, [replace(STILL, noise=0.03, seed=1), replace(STILL, noise=0.06, seed=2)], OPEN)
    deviations = (noisy - flat).std(dim=(2, 3)).numpy()
    np.testing.assert_allclose(deviations, np.outer([0.03, 0.06], [200, 10, 1]), rtol=0.03)
    alone = change_appearance(flat[:1], [replace(STILL, noise=0.06, seed=2)], OPEN)
    assert torch.equal(alone[0], noisy[1])
    other = change_appearance(flat[:1], [replace(STILL, noise=0.06, seed=3)], OPEN)
    assert (alone != other).float().mean() > 0.99


def test_a_sample_follows_from_its_generator_alone() -> None:
    options, batch = Augmentation(stain=0.2), batch_of(count=3)
    draws = [draw_appearance(options, np.random.default_rng([7, number]), 3) for number in range(3)]
    together = change_appearance(batch, draws, BYTES)
    assert torch.equal(together[2], change_appearance(batch[2:], draws[2:], BYTES)[0])
    assert draws[1] == draw_appearance(options, np.random.default_rng([7, 1]), 3)
    assert draws[0] != draws[1]


def test_draws_stay_in_their_ranges() -> None:
    rng = np.random.default_rng(0)
    draws = [
        draw_appearance(Augmentation(gamma=1.5, gain=0.1, offset=0.2, stain=0.3, noise=0.04, blur=2), rng, 3) for _ in range(2000)
    ]
    exponents = np.array([draw.exponent for draw in draws])
    assert 1 / 1.5 <= exponents.min() < 0.7 < 1.45 < exponents.max() <= 1.5
    assert np.std([draw.offsets for draw in draws]) == pytest.approx(0.2, rel=0.05)
    assert np.std(np.log([draw.gains for draw in draws])) == pytest.approx(0.1, rel=0.05)
    assert np.std(np.log([draw.stains for draw in draws])) == pytest.approx(0.3, rel=0.05)
    blurs = np.array([draw.blur for draw in draws])
    assert np.mean(blurs > 0) == pytest.approx(0.3, abs=0.05)
    assert 1.9 < blurs.max() <= 2
    assert 0.039 < max(draw.noise for draw in draws) <= 0.04
    with pytest.raises(InputError, match="RGB and the image has 1 channel"):
        draw_appearance(Augmentation(stain=0.1), rng, 1)


def test_histograms_are_matched_as_scikit_image_does() -> None:
    """skimage goes through the ranks of all voxels, this through 65 quantiles."""
    random = np.random.default_rng(0)
    image, other = random.gamma(2.0, 20.0, (2, 64, 70)), random.normal(120.0, 15.0, (2, 50, 60))
    own, wanted = (np.percentile(values.reshape(2, -1), QUANTILES, axis=1).T for values in (image, other))
    found = match_histogram(torch.from_numpy(image).float(), own, wanted).numpy()
    expected = match_histograms(image, other, channel_axis=0)
    inner = (image > own[:, 1, None, None]) & (image < own[:, -2, None, None])  # the last quantiles are far apart
    np.testing.assert_allclose(found[inner], expected[inner], atol=1.0)
    assert np.abs(image - expected)[inner].mean() > 50


def test_matching_to_the_own_histogram_changes_nothing() -> None:
    """Though many voxels have one intensity, and some lie outside of what was counted."""
    image = torch.tensor([[0.0, 0.0, 0.0, 5.0, 9.0, 12.0, -3.0]])
    quantiles = np.array([[0.0, 0.0, 0.0, 4.0, 10.0]])
    torch.testing.assert_close(match_histogram(image, quantiles, quantiles), image)
    plain = match_histogram(image, np.full((1, 5), 2.0), quantiles)
    torch.testing.assert_close(plain, image + (2.8 - 2.0))


def test_a_crop_gets_the_intensities_of_the_part_that_was_drawn(tmp_path: Path) -> None:
    data = write_disks(tmp_path / "data", count=3, split={"validation": 1 / 3})
    for number, path in enumerate(sorted((data.parent / "images").iterdir())):
        Image.fromarray(np.asarray(Image.open(path)) // (1 + number)).save(path)
    still = [
        f"augmentation.{name}" for name in ("gamma=1", "gain=0", "offset=0", "noise=0", "blur=0", "deformation=0", "rotation=0")
    ]
    options = make_options("default", [*FAST, *still, "augmentation.scale=[1, 1]", "augmentation.histogram=1"])
    plan = plan_training(str(data), str(tmp_path / "model"), options, threads=1)
    target = Box.from_shape(
        plan.target_shape, footprint(networks.build("unet", **plan.description.network.arguments).eval()).before
    )
    sampler = open_sampler(plan, str(tmp_path / "model"), target)
    samples = [sampler.sample(number) for number in range(16)]
    assert {(sample.part, sample.appearance.like) for sample in samples} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    for sample in samples:
        (image,) = BatchMaker(plan, target, "cpu")([sample]).image.numpy()
        normalisation = plan.training[0].normalisation
        median = float(np.median(image)) * normalisation.scale[0] + normalisation.offset[0]
        medians = [part.quantiles[0][len(part.quantiles[0]) // 2] for part in plan.training]
        assert np.argmin(np.abs(np.subtract(medians, median))) == sample.appearance.like

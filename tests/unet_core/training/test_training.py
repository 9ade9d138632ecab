"""Weight map, deformation, crops, losses and the loop, each against something independent."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from unet_core import networks
from unet_core.errors import InputError, UnetCoreError
from unet_core.metrics import bootstrap_interval, dice, iou
from unet_core.normalisation import Normalisation
from unet_core.training.augment import Augmentation, elastic_field, sample_positions, warp
from unet_core.training.crops import Annotated, draw_crop
from unet_core.training.loop import TrainingOptions, train
from unet_core.training.loss import soft_dice, weighted_cross_entropy
from unet_core.training.weight_map import border_weight_map

STILL = Augmentation(deformation=0, scale=(1, 1), rotate=False, gamma=1, colour=0, noise=0, blur=0)


def test_the_weight_map_is_equation_2_by_brute_force() -> None:
    instances = np.zeros((23, 31), dtype=np.int32)
    instances[3:9, 4:10] = 1
    instances[4:12, 12:17] = 2
    instances[15:20, 20:29] = 5
    w0, sigma = 10.0, 5.0
    cells = [np.argwhere(instances == number) for number in (1, 2, 5)]
    fraction = (instances > 0).mean()
    expected = np.empty(instances.shape)
    for voxel in np.ndindex(*instances.shape):
        if instances[voxel]:
            expected[voxel] = 0.5 / fraction
            continue
        d1, d2, *_ = sorted(np.sqrt(((cell - voxel) ** 2).sum(axis=1)).min() for cell in cells)
        expected[voxel] = 0.5 / (1 - fraction) + w0 * np.exp(-((d1 + d2) ** 2) / (2 * sigma**2))
    found = border_weight_map(instances, w0, sigma)
    np.testing.assert_allclose(found, expected, atol=w0 / 2900)
    assert found.max() > 5


def test_an_elastic_field_is_bicubic_and_keeps_its_grid_points() -> None:
    displacements = np.random.default_rng(0).normal(0, 10, (2, 3, 3))
    field = elastic_field(displacements, (41, 61))
    np.testing.assert_allclose(field[:, ::20, ::30], displacements, atol=1e-9)
    coarse = np.stack(np.meshgrid(np.linspace(0, 2, 41), np.linspace(0, 2, 61), indexing="ij"))
    np.testing.assert_allclose(field[0], ndimage.map_coordinates(displacements[0], coarse, order=3, mode="nearest"))
    assert not elastic_field(np.zeros((2, 3, 3)), (41, 61)).any()


def test_without_augmentation_a_crop_is_the_image_itself() -> None:
    image = np.random.default_rng(0).normal(size=(1, 40, 50)).astype(np.float32)
    positions = sample_positions((11, 13), (20.0, 25.0), STILL, np.random.default_rng(0))
    np.testing.assert_allclose(warp(image, positions, order=1)[0], image[0, 15:26, 19:32], atol=1e-6)


def disks(count: int = 6, seed: int = 0) -> list[Annotated]:
    random = np.random.default_rng(seed)
    images = []
    for number in range(count):
        labels = np.zeros((64, 72), np.uint8)
        for _ in range(5):
            y, x = random.uniform(0, 64), random.uniform(0, 72)
            yy, xx = np.mgrid[:64, :72]
            labels[(yy - y) ** 2 + (xx - x) ** 2 < 49] = 1
        image = (60 + 100 * labels + random.normal(0, 20, labels.shape))[None].astype(np.float32)
        weights = np.ones(labels.shape, np.float32)
        images.append(Annotated(str(number), image, labels, weights, Normalisation(offset=(100.0,), scale=(50.0,)), 255.0))
    return images


def test_sample_k_is_the_same_whatever_was_drawn_before() -> None:
    arguments = ((60, 60), (20, 20), (20, 20), Augmentation())
    first = draw_crop(disks(), 3, 0, *arguments)
    for number in (9, 1):
        draw_crop(disks(), number, 0, *arguments)
    again = draw_crop(disks(), 3, 0, *arguments)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert (draw_crop(disks(), 4, 0, *arguments).image != first.image).any()


def test_image_and_labels_move_together() -> None:
    """Bright means disk before and after deformation."""
    for number in range(5):
        crop = draw_crop(disks(), number, 0, (80, 80), (20, 20), (40, 40), Augmentation(gamma=1, colour=0, noise=0, blur=0))
        inner = crop.image[0, 20:60, 20:60]
        if 0 < crop.labels.mean() < 1:
            assert inner[crop.labels == 1].mean() > inner[crop.labels == 0].mean() + 1


def train_disks(steps: int, seed: int = 0) -> tuple[torch.nn.Module, list[float]]:
    torch.manual_seed(seed)
    network = networks.build("unet", in_channels=1, classes=2, base=4, levels=2, batch_norm=True)
    losses: list[float] = []
    options = TrainingOptions(steps=steps, seed=seed, batch_size=2, target_size=32, learning_rate=1e-2, warmup_steps=3)
    train(network, disks(), options, Augmentation(deformation=2), lambda step, loss, rate: losses.append(loss))
    return network, losses


def test_training_learns_disks() -> None:
    network, losses = train_disks(90)
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    crop = draw_crop(disks(seed=9), 0, 0, (80, 80), (8, 8), (64, 64), STILL)
    with torch.inference_mode():
        predicted = network(torch.from_numpy(crop.image)[None]).argmax(1)[0, :64, :64].numpy() == 1
    assert iou(predicted, crop.labels == 1) > 0.75


def test_the_same_seed_gives_the_same_weights() -> None:
    first, second, other = (train_disks(4, seed)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_padded_networks_are_refused() -> None:
    network = networks.build("unet", in_channels=1, classes=2, base=2, levels=2, padding="same")
    with pytest.raises(InputError, match="padding='valid'"):
        train(network, disks(1), TrainingOptions(steps=1, batch_size=1, target_size=16), STILL)


def test_a_loss_that_is_not_finite_stops_with_the_step() -> None:
    images = disks(1)
    broken = [Annotated("x", images[0].image * np.nan, images[0].labels, images[0].weights, images[0].normalisation, 255.0)]
    network = networks.build("unet", in_channels=1, classes=2, base=2, levels=2)
    with pytest.raises(UnetCoreError, match="at step 0"):
        train(network, broken, TrainingOptions(steps=2, batch_size=1, target_size=16), STILL)


def test_losses_are_their_formulas() -> None:
    torch.manual_seed(0)
    logits, labels, weights = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5)), torch.rand(2, 4, 5)
    log_p = logits.log_softmax(1)
    total = sum(-weights[n, y, x] * log_p[n, labels[n, y, x], y, x] for n in range(2) for y in range(4) for x in range(5))
    torch.testing.assert_close(weighted_cross_entropy(logits, labels, weights, "sum"), total)
    torch.testing.assert_close(weighted_cross_entropy(logits, labels, weights), total / weights.sum())
    p, g = logits.softmax(1), torch.stack([labels == k for k in range(3)], 1).float()
    scores = [2 * (p[:, k] * g[:, k]).sum() / ((p[:, k] ** 2).sum() + (g[:, k] ** 2).sum()) for k in (1, 2)]
    torch.testing.assert_close(soft_dice(logits, labels), 1 - sum(scores) / 2)


def test_scores_by_counting() -> None:
    random = np.random.default_rng(0)
    a, b = random.random((7, 9)) > 0.5, random.random((7, 9)) > 0.5
    both = sum(bool(x and y) for x, y in zip(a.flat, b.flat, strict=True))
    either = sum(bool(x or y) for x, y in zip(a.flat, b.flat, strict=True))
    assert iou(a, b) == both / either
    assert dice(a, b) == pytest.approx(2 * both / (a.sum() + b.sum()))
    assert iou(np.zeros(3), np.zeros(3)) == 1
    with pytest.raises(ValueError, match="must be equal"):
        iou(a, b[:3])
    values = list(random.normal(5, 1, 200))
    low, high = bootstrap_interval(values)
    assert low < np.mean(values) < high
    assert high - low == pytest.approx(2 * 1.96 / np.sqrt(200), rel=0.25)

"""Validation and held-out scores against whole-image passes and plain counting."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unet_core.training.datasets import FAST, write_disks
from unet_core import networks
from unet_core.errors import InputError
from unet_core.evaluation import Meaning, MeaningOptions, score_images
from unet_core.footprint import footprint
from unet_core.geometry import Box
from unet_core.metrics import iou, panoptic_quality
from unet_core.model_package import load_model
from unet_core.postprocess import remove_small, watershed_on_affinities, watershed_on_learnt_distance
from unet_core.predict import load_predictor
from unet_core.training.dataset import load_dataset, open_parts
from unet_core.training.group import single
from unet_core.training.held_out import held_out_pairs, predict_part
from unet_core.training.loop import train_rank
from unet_core.training.planning import plan_training
from unet_core.training.recipes import make_options
from unet_core.training.setup import open_tiles, open_validation
from unet_core.training.validation import Validator

SPLIT = {"split": {"validation": 0.2, "test": 0.4}}


def whole_pass(network: torch.nn.Module, image: np.ndarray, offset: float, scale: float) -> np.ndarray:
    """Logits of a whole image (Y, X), mirrored by numpy."""
    geometry = footprint(network)
    (height, width), before = image.shape, geometry.before
    shape = geometry.legal_shape(tuple(a + size + b for a, size, b in zip(before, (height, width), geometry.after, strict=True)))
    image = image.astype(np.float32)
    padding = [(first, total - first - size) for first, total, size in zip(before, shape, image.shape, strict=True)]
    padded = np.pad((image - offset) / scale, padding, mode="reflect")
    with torch.inference_mode():
        return network(torch.from_numpy(padded.astype(np.float32))[None, None])[0, :, :height, :width].numpy()


def test_validation_counts_every_voxel_of_the_part_once(tmp_path: Path) -> None:
    """Tiles of 24 do not divide images of 61x70; what hangs over is mirrored and must not count."""
    data = write_disks(tmp_path / "data", **SPLIT)
    plan = plan_training(str(data), str(tmp_path / "model"), make_options("default", FAST), threads=1)
    torch.manual_seed(3)
    network = networks.build("unet", **plan.description.network.arguments).eval()
    parts = open_validation(plan)
    geometry = footprint(network)
    tiles = open_tiles(plan, str(tmp_path / "model"), parts, geometry.stride)
    scores = Validator(plan, parts, tiles, geometry, "cpu").scores(network, single())
    normalisation = plan.description.normalisation
    confusion = np.zeros((2, 2), dtype=np.int64)
    for part in parts:
        predicted = whole_pass(network, part.read_image(part.box)[0], normalisation.offset[0], normalisation.scale[0]).argmax(0)
        np.add.at(confusion, (part.read_classes(part.box), predicted), 1)
    assert scores["accuracy"] == pytest.approx(np.trace(confusion) / confusion.sum(), abs=2e-4)
    assert scores["iou_disk"] == pytest.approx(confusion[1, 1] / (confusion.sum() - confusion[0, 0]), abs=2e-4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("held-out")
    data = write_disks(folder / "data", **SPLIT)
    plan_training(str(data), str(folder / "model"), make_options("default", [*FAST, "steps=6"]), threads=1)
    train_rank(str(folder / "model"), single())
    return data, folder / "model"


def test_a_part_is_predicted_as_by_one_pass(trained: tuple[Path, Path]) -> None:
    data, model = trained
    package = load_model(model)
    predictor = load_predictor(package, "cpu", "float32", 1)
    normalisation = package.description.normalisation
    for part in open_parts(load_dataset(data), 2, "test"):
        image = part.read_image(part.box)[0]
        logits = whole_pass(package.network, image, normalisation.offset[0], normalisation.scale[0])
        expected = torch.softmax(torch.from_numpy(logits), 0).numpy()
        np.testing.assert_allclose(predict_part(package, predictor, part), expected, atol=1e-5)
        turned = []
        for quarter, flip in product(range(4), (False, True)):
            turn = np.rot90(np.fliplr(image) if flip else image, quarter)
            logits = whole_pass(package.network, turn.copy(), normalisation.offset[0], normalisation.scale[0])
            back = np.rot90(torch.softmax(torch.from_numpy(logits), 0).numpy(), -quarter, axes=(1, 2))
            turned.append(np.flip(back, 2) if flip else back)
        np.testing.assert_allclose(predict_part(package, predictor, part, "all"), np.mean(turned, axis=0), atol=1e-5)


def test_a_region_is_predicted_as_within_its_whole_image(trained: tuple[Path, Path], tmp_path: Path) -> None:
    """It begins at voxel 31, 5, which is no multiple of the network's stride."""
    _, model = trained
    pair = {"image": "images/disks0.png", "labels": "labels/disks0.tif", "boxes": {"train": "0:30", "test": "31:61,5:70"}}
    (part,) = open_parts(load_dataset(write_disks(tmp_path, count=1, pairs=[pair], split={})), 2, "test")
    package = load_model(model)
    normalisation = package.description.normalisation
    image = part.read_image(Box.from_shape(part.image_shape))[0]
    logits = whole_pass(package.network, image, normalisation.offset[0], normalisation.scale[0])[:, 31:61, 5:70]
    found = predict_part(package, load_predictor(package, "cpu", "float32", 1), part)
    np.testing.assert_allclose(found, torch.softmax(torch.from_numpy(logits), 0).numpy(), atol=1e-5)


def test_a_model_is_scored_on_the_part_that_was_held_out(trained: tuple[Path, Path]) -> None:
    data, model = trained
    table = score_images(held_out_pairs(str(model), str(data), MeaningOptions()), ("iou", "pq"))
    package = load_model(model)
    predictor = load_predictor(package, "cpu", "float32", 1)
    parts = open_parts(load_dataset(data), 2, "test")
    each = [iou(predict_part(package, predictor, part)[1] > 0.5, part.read_classes(part.box) == 1) for part in parts]
    assert table["iou"] == pytest.approx(np.mean(each))
    assert len(table.names) == 2
    background = score_images(held_out_pairs(str(model), str(data), MeaningOptions(), foreground="background"), ("iou",))
    each = [iou(predict_part(package, predictor, part)[0] > 0.5, part.read_classes(part.box) == 0) for part in parts]
    assert background["iou"] == pytest.approx(np.mean(each))
    with pytest.raises(InputError, match="classes background, nucleus, data set .* has background, disk"):
        next(held_out_pairs("nuclei-fluorescence", str(data), MeaningOptions()))


@pytest.fixture(scope="module")
def two_headed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("two-headed")
    data = write_disks(folder / "data", **SPLIT)
    options = make_options("default", [*FAST, "steps=6", "heads=[{kind: distance, scale: 3}, {kind: classes}]"])
    plan_training(str(data), str(folder / "model"), options, threads=1)
    train_rank(str(folder / "model"), single())
    return data, folder / "model"


def test_each_head_is_predicted_by_itself(two_headed: tuple[Path, Path]) -> None:
    data, model = two_headed
    package = load_model(model)
    normalisation = package.description.normalisation
    for part in open_parts(load_dataset(data), 2, "test"):
        logits = whole_pass(package.network, part.read_image(part.box)[0], normalisation.offset[0], normalisation.scale[0])
        found = predict_part(package, load_predictor(package, "cpu", "float32", 1), part)
        np.testing.assert_allclose(found[0], logits[0], atol=1e-5)
        np.testing.assert_allclose(found[1:], torch.softmax(torch.from_numpy(logits[1:]), 0).numpy(), atol=1e-5)


def test_instances_of_a_learnt_distance_are_scored(two_headed: tuple[Path, Path]) -> None:
    data, model = two_headed
    options = MeaningOptions(instances="learnt-distance", depth=0.02, threshold=0.4, min_voxels=4)
    table = score_images(held_out_pairs(str(model), str(data), options), ("iou", "pq"))
    package = load_model(model)
    predictor = load_predictor(package, "cpu", "float32", 1)
    expected = []
    for part in open_parts(load_dataset(data), 2, "test"):
        distance, _, probability = predict_part(package, predictor, part)
        ids = remove_small(watershed_on_learnt_distance(distance, probability > np.float32(0.4), h=0.02), 4)
        expected.append(panoptic_quality(ids, part.read_labels(part.box)[1]).pq)
    assert table["pq"] == pytest.approx(np.mean(expected))


def test_instances_of_affinities_are_scored(tmp_path: Path) -> None:
    data, model = write_disks(tmp_path / "data", **SPLIT), tmp_path / "model"
    offsets = ((1, 0), (0, 1), (4, 0), (0, -4))
    heads = f"heads=[{{kind: classes}}, {{kind: affinities, offsets: {[list(offset) for offset in offsets]}}}]"
    plan_training(str(data), str(model), make_options("default", [*FAST, "steps=6", heads]), threads=1)
    train_rank(str(model), single())
    options = MeaningOptions(instances="affinities", threshold=0.4, min_voxels=4)
    table = score_images(held_out_pairs(str(model), str(data), options), ("iou", "pq"))
    package = load_model(model)
    predictor = load_predictor(package, "cpu", "float32", 1)
    expected = []
    for part in open_parts(load_dataset(data), 2, "test"):
        found = predict_part(package, predictor, part)
        ids = remove_small(watershed_on_affinities(found[2:], found[1] > np.float32(0.4), offsets), 4)
        expected.append(panoptic_quality(ids, part.read_labels(part.box)[1]).pq)
    assert table["pq"] == pytest.approx(np.mean(expected))
    with pytest.raises(InputError, match="--symmetries has no meaning for instances from affinities"):
        next(held_out_pairs(str(model), str(data), options, symmetries="flips"))


def test_instances_of_affinities_need_a_model_that_predicts_them(trained: tuple[Path, Path]) -> None:
    data, model = trained
    options = MeaningOptions(instances="affinities")
    with pytest.raises(InputError, match="needs an affinities head, model .* has only classes; use --instances watershed"):
        next(held_out_pairs(str(model), str(data), options))
    with pytest.raises(InputError, match=r"Affinities are not in an image; score the model against a dataset\.yaml"):
        Meaning("map", "ids", options)


def test_instances_of_a_distance_need_a_model_that_predicts_one(trained: tuple[Path, Path], tmp_path: Path) -> None:
    data, model = trained
    options = MeaningOptions(instances="learnt-distance")
    with pytest.raises(InputError, match="no distance head, only classes; use 'watershed'"):
        next(held_out_pairs(str(model), str(data), options))
    with pytest.raises(InputError, match=r"not in an image; score the model against a dataset\.yaml"):
        Meaning("map", "ids", options)

"""Data and options that would stop a training later, or teach it something else, are refused while planning; odd ones are learnt from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml

from tests.unet_core.training.datasets import FAST, write_disks
from unet_core.errors import InputError
from unet_core.training.crops import read_truth
from unet_core.training.group import single
from unet_core.training.loop import train_rank
from unet_core.training.planning import plan_training
from unet_core.training.recipes import make_options
from unet_core.training.setup import open_tiles, open_training, open_validation
from unet_core.training.watching import StepReport

SHORT = (*FAST, "steps=2", "validate_every=2", "checkpoint_every=2")


def write(folder: Path, truth: list[np.ndarray], images: list[np.ndarray] | None = None, **description) -> Path:
    """Images of noise unless given, the last one for validation."""
    random = np.random.default_rng(0)
    folder.mkdir()
    for number, each in enumerate(truth):
        image = images[number] if images else random.integers(0, 255, each.shape, dtype=np.uint8)
        tifffile.imwrite(folder / f"image{number}.tif", image)
        tifffile.imwrite(folder / f"labels{number}.tif", each)
    pairs = [{"image": f"image{n}.tif", "labels": f"labels{n}.tif", "part": "train"} for n in range(len(truth))]
    pairs[-1]["part"] = "validation"
    fields = {
        "schema": 1,
        "labels": "classes",
        "classes": [{"name": "no", "values": 0}, {"name": "yes", "values": 1}],
        "pairs": pairs,
    }
    (folder / "dataset.yaml").write_text(yaml.safe_dump(fields | description))
    return folder / "dataset.yaml"


def train(data: Path, out: Path, *settings: str) -> StepReport:
    plan_training(str(data), str(out), make_options("default", [*SHORT, *settings]))
    reports: list[StepReport] = []
    train_rank(str(out), single(), reports.append)
    return reports[-1]


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        (("loss.cross_entropy=0", "loss.dice=0"), {}, "classes head has a loss of factor 0"),
        (("heads=[{kind: distance}]", "loss.distance=0"), {}, "distance head has a loss of factor 0"),
        (("heads=[{kind: affinities, offsets: [[-1, 0, 0]]}]",), {}, "must be 2 voxels along yx"),
        (("network.arguments.in_channels=7",), {}, "in_channels follows from the data"),
        ((), {"ranks": -1}, "--ranks is -1"),
        ((), {"threads": 0}, "--threads is 0"),
        ((), {"threads": 100_000}, "--threads is 100000"),
    ],
)
def test_a_plan_that_would_fail_at_its_first_step_is_not_written(tmp_path: Path, settings, arguments, message: str) -> None:
    data = write_disks(tmp_path / "data")
    with pytest.raises(InputError, match=message):
        plan_training(str(data), str(tmp_path / "model"), make_options("default", [*SHORT, *settings]), **arguments)
    assert not (tmp_path / "model").exists()


def test_patience_needs_a_validation(tmp_path: Path) -> None:
    data = write_disks(tmp_path / "data", split={"validation": 0.0})
    with pytest.raises(InputError, match="patience is 2, but nothing is for validation"):
        plan_training(str(data), str(tmp_path / "model"), make_options("default", [*SHORT, "patience=2"]))


@pytest.mark.parametrize("factor", [1e37, 1e-37])
def test_intensities_out_of_range_are_told_by_their_numbers(tmp_path: Path, factor: float) -> None:
    labels = [np.eye(40, dtype=np.uint8)] * 2
    data = write(tmp_path / "data", labels, [(each * factor).astype(np.float32) for each in labels])
    with pytest.raises(InputError, match=r"(offset|scale).*e[+-]3\d.*rescale"):
        plan_training(str(data), str(tmp_path / "model"), make_options("default", SHORT))


def test_images_of_one_class_each_have_no_border_to_draw_around(tmp_path: Path) -> None:
    data = write(tmp_path / "data", [np.full((30, 41), number % 2, np.uint8) for number in range(4)])
    assert np.isfinite(train(data, tmp_path / "model").loss)  # of "mixed"
    with pytest.raises(InputError, match="set it to 'class'"):
        plan_training(str(data), str(tmp_path / "other"), make_options("default", [*SHORT, "crops.positions=border"]))


def write_dense(folder: Path) -> Path:
    """Instances without any background between them."""
    y, x = np.mgrid[:45, :50]
    labels = (1 + y // 13 * 4 + x // 15).astype(np.uint16)
    return write(folder, [labels, labels], labels="instances", classes=[{"name": "wall"}, {"name": "cell"}])


def test_instances_that_fill_the_image_are_learnt_with_borders_between_them(tmp_path: Path) -> None:
    data = write_dense(tmp_path / "data")
    plan = plan_training(
        str(data), str(tmp_path / "model"), make_options("default", [*SHORT, "weights.separate=true", "weights.balance=true"])
    )
    part = open_training(plan)[0]
    counts = np.bincount(read_truth(part, part.box, separate=True, needs_instances=False)[0].ravel())
    np.testing.assert_allclose(plan.class_weights, counts.sum() / (2 * counts))
    with pytest.raises(InputError, match="only 'cell' is present"):
        plan_training(str(data), str(tmp_path / "other"), make_options("default", SHORT))


def test_affinities_are_learnt_of_instances_that_fill_the_image(tmp_path: Path) -> None:
    settings = ("heads=[{kind: affinities, offsets: [[0, 1]]}]", "weights.balance=false")
    assert np.isfinite(train(write_dense(tmp_path / "data"), tmp_path / "model", *settings).scores["affinity_iou"])


def test_a_few_outlines_in_a_large_image_are_what_is_validated(tmp_path: Path) -> None:
    labels = np.full((700, 900), 9, np.uint8)
    labels[300:330, 500:540] = np.arange(40) // 20
    data = write(tmp_path / "data", [labels, labels], ignore=[9])
    report = train(data, tmp_path / "model", "validation_crops=3")
    assert np.isfinite(report.scores["loss"])
    plan = plan_training(str(data), str(tmp_path / "model"), make_options("default", [*SHORT, "validation_crops=3"]))
    parts = open_validation(plan)
    for most in (1, 2, 3, 1000):
        plan = plan.model_copy(update={"options": plan.options.model_copy(update={"validation_crops": most})})
        tiles = open_tiles(plan, str(tmp_path / "model"), parts, (2, 2))
        assert 1 <= len(tiles) <= most
        truth = sum(np.sum(parts[0].read_classes(tile.box.intersect(parts[0].box)) != 255) for tile in tiles)
        assert truth == 1200 if most == 1000 else truth > 0


def test_image_normalisation_of_sections_is_that_of_their_stack(tmp_path: Path) -> None:
    """A 2D model that segments a stack takes percentiles of the whole stack."""
    labels = np.tile(np.eye(30, dtype=np.uint8), (6, 1, 1))
    image = (labels * 100 + 10 * np.arange(6, dtype=np.uint8)[:, None, None]).astype(np.uint8)
    data = write(tmp_path / "data", [labels, labels], [image, image])
    described = yaml.safe_load(data.read_text())
    described["pairs"] = [{"image": "image0.tif", "labels": "labels0.tif", "boxes": {"train": "0:4", "validation": "4:6"}}]
    data.write_text(yaml.safe_dump(described))
    plan = plan_training(str(data), str(tmp_path / "model"), make_options("default", [*SHORT, "normalisation=image"]))
    low, high = np.percentile(image, (1, 99.8))
    facts = json.loads(plan.model_dump_json())
    for part in facts["training"] + facts["validation"]:
        np.testing.assert_allclose([part["normalisation"]["offset"][0], part["normalisation"]["scale"][0]], [low, high - low])

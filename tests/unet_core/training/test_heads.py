"""Heads of every kind are trained, validated, drawn, saved and loaded, in 2D and 3D, alone and beside others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml
import zarr
from PIL import Image

from tests.unet_core.training.datasets import FAST, write_disks
from unet_core.job import SegmentationJob
from unet_core.model_package import load_model
from unet_core.segment import run
from unet_core.training.group import single
from unet_core.training.loop import train_rank
from unet_core.training.planning import plan_training
from unet_core.training.recipes import make_options
from unet_core.training.setup import open_validation
from unet_core.training.validation import score_names
from unet_core.training.watching import StepReport, read_log

CLASSES, DISTANCE = "{kind: classes}", "{kind: distance, scale: 2}"
REGIONS = "{kind: regions, regions: {all: [background, disk], disk: [disk]}}"
AFFINITIES = {2: "{kind: affinities, offsets: [[-1, 0], [0, 3]]}", 3: "{kind: affinities, offsets: [[-1, 0, 0], [0, 0, 3]]}"}
SHORT = ("steps=2", "validate_every=2", "checkpoint_every=2", "validation_crops=3")


def write_balls(folder: Path) -> Path:
    """A volume of 15 x 31 x 26 with instances, of which the last sections are for validation; its ``dataset.yaml``."""
    folder.mkdir()
    random = np.random.default_rng(0)
    shape = (15, 31, 26)
    grid = np.moveaxis(np.indices(shape), 0, -1)
    labels = np.zeros(shape, np.uint16)
    for ball in range(1, 12):
        labels[np.linalg.norm((grid - random.uniform(0, shape)) * (2, 1, 1), axis=-1) < 5] = ball
    tifffile.imwrite(folder / "image.tif", (labels > 0).astype(np.float32) + random.normal(0, 0.2, shape).astype(np.float32))
    tifffile.imwrite(folder / "labels.tif", labels)
    pair = {"image": "image.tif", "labels": "labels.tif", "boxes": {"train": "0:9", "validation": "9:15"}}
    fields = {"schema": 1, "labels": "instances", "voxel_size_um": [0.2, 0.1, 0.1], "pairs": [pair]}
    fields["classes"] = [{"name": "background"}, {"name": "disk"}]
    (folder / "dataset.yaml").write_text(yaml.safe_dump(fields))
    return folder / "dataset.yaml"


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kinds", ["classes", "regions", "affinities", "distance", "all", "all, backwards"])
def test_every_kind_of_head_is_trained_validated_drawn_and_saved(tmp_path: Path, dims: int, kinds: str) -> None:
    one = {"classes": CLASSES, "regions": REGIONS, "affinities": AFFINITIES[dims], "distance": DISTANCE}
    heads = [one[kinds]] if kinds in one else list(one.values())[:: -1 if "backwards" in kinds else 1]
    data = write_disks(tmp_path / "data", count=2) if dims == 2 else write_balls(tmp_path / "data")
    volume = ("network.arguments={base: 4, levels: 2, dims: 3}", "crops.target=7") if dims == 3 else ()
    plan = plan_training(
        str(data), str(tmp_path / "model"), make_options("default", [*FAST, *volume, *SHORT, f"heads=[{', '.join(heads)}]"])
    )
    reports: list[StepReport] = []
    train_rank(str(tmp_path / "model"), single(), reports.append)
    assert tuple(reports[-1].scores) == score_names(plan.options.heads, plan.dataset.class_names)
    assert np.isfinite(list(reports[-1].scores.values())).all()
    assert {f"validation_{name}" for name in reports[-1].scores} <= read_log(tmp_path / "model" / "training")[-1].keys()
    with Image.open(tmp_path / "model" / str(reports[-1].picture)) as picture:
        assert len(picture.getcolors(1 << 20) or ()) > 10
    package = load_model(tmp_path / "model")
    assert [head.kind for head in package.description.heads] == [head.kind for head in plan.options.heads]
    channels = {"classes": 2, "regions": 2, "affinities": 2, "distance": 1}
    assert [len(head.channels) for head in package.description.heads] == [channels[head.kind] for head in plan.options.heads]


@pytest.mark.parametrize("dims", [2, 3])
def test_a_segmentation_scores_what_the_validation_of_its_model_said(tmp_path: Path, dims: int) -> None:
    """Reading, normalising and cutting while training against the pipeline that segments."""
    data = write_disks(tmp_path / "data", count=2) if dims == 2 else write_balls(tmp_path / "data")
    volume = ("network.arguments={base: 4, levels: 2, dims: 3}", "crops.target=7") if dims == 3 else ()
    plan = plan_training(
        str(data), str(tmp_path / "model"), make_options("default", [*FAST, *volume, *SHORT, "validation_crops=1000"])
    )
    train_rank(str(tmp_path / "model"), single())
    part = open_validation(plan)[0]
    run(SegmentationJob(image=part.source.pair.image, model=str(tmp_path / "model"), output=str(tmp_path / "out"),
                        voxel_size_um=part.voxel_size))  # fmt: skip
    labels = zarr.open_array(tmp_path / "out" / "labels" / "classes" / "0", mode="r")[...][part.box.slices()]
    scores = load_model(tmp_path / "model").description.provenance["validation"]
    assert np.mean(labels == part.read_classes(part.box)) == pytest.approx(scores["accuracy"], abs=1e-9)

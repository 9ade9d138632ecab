"""Intensities of a training: as the data set states them, by the whole image, or by the training's own; never by the box that is used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.unet_core.training.conftest import MakeDataset
from tests.unet_core.training.datasets import FAST, write_disks
from unet_core.errors import InputError, JobError
from unet_core.model_description import FixedNormalisation, ImageNormalisation, MomentsNormalisation, NoNormalisation
from unet_core.training.dataset import load_dataset, open_parts
from unet_core.training.planning import plan_training
from unet_core.training.recipes import make_options
from unet_core.training.stated_normalisation import normalisations

LABELS = np.zeros((20, 31), np.uint8)
FIXED = {"kind": "fixed", "offset": [70.0], "scale": [31.5], "dtype": "uint8"}


def noise(shape: tuple[int, ...] = (20, 31)) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 255, shape).astype(np.uint8)


def plan(data: Path, model: Path, *settings: str):
    return plan_training(str(data), str(model), make_options("default", [*FAST, *settings]), threads=1)


def test_a_training_keeps_the_normalisation_that_its_data_set_states(tmp_path: Path) -> None:
    own = plan(write_disks(tmp_path / "own"), tmp_path / "a")
    stated = plan(write_disks(tmp_path / "stated", normalisation=FIXED), tmp_path / "b")
    assert stated.description.normalisation == FixedNormalisation(**FIXED)
    assert {fact.normalisation.offset for fact in (*stated.training, *stated.validation)} == {(70.0,)}
    assert own.description.normalisation.offset != (70.0,)


def test_a_crop_is_normalised_by_the_image_that_it_was_cut_out_of(make_data: MakeDataset) -> None:
    """A box of an image, by the whole image; a pair that states numbers, by those."""
    image = noise()
    image[:, :10] //= 8
    box = {"boxes": {"train": [":,0:10"]}, "part": None}
    own = {"normalisation": {"offset": [3.0], "scale": [200.0]}}
    data = make_data({"a": (image, LABELS), "b": (image, LABELS), "c": (image, LABELS)}, a=box, b=own)
    first, second, third = normalisations(open_parts(data, 2, "train"), ImageNormalisation(low=5, high=95, eps=0.5))
    low, high = np.percentile(image, [5, 95])
    assert first == third
    assert first.offset[0] == pytest.approx(low, abs=1)
    assert first.scale[0] == pytest.approx(high - low + 0.5, abs=1)
    assert (second.offset, second.scale) == ((3.0,), (200.0,))
    none = normalisations(open_parts(data, 2, "train"), NoNormalisation())
    assert {(each.offset, each.scale) for each in none} == {((0.0,), (1.0,))}
    with pytest.raises(InputError, match=r"state offset and scale in the normalisation of .*a\.tif"):
        normalisations(open_parts(data, 2, "train"), MomentsNormalisation())


def test_a_setting_beside_the_data_sets_normalisation_is_refused(tmp_path: Path) -> None:
    data = write_disks(tmp_path / "data", normalisation=FIXED)
    with pytest.raises(JobError, match="--set normalisation=image, but the data set states its normalisation"):
        plan(data, tmp_path / "model", "normalisation=image")
    other = write_disks(tmp_path / "other", normalisation=FIXED | {"dtype": "uint16"})
    with pytest.raises(JobError, match="is of uint16 intensities, .* has uint8"):
        plan(other, tmp_path / "model")
    content = json.dumps(
        {
            "schema": 1,
            "labels": "instances",
            "pairs": [
                {
                    "image": "images/disks0.png",
                    "labels": "labels/disks0.tif",
                    "part": "train",
                    "normalisation": {"offset": [1], "scale": [2]},
                }
            ],
        }
    )
    (tmp_path / "data" / "one.yaml").write_text(content)
    with pytest.raises(JobError, match="normalises all images alike"):
        plan(tmp_path / "data" / "one.yaml", tmp_path / "model")
    assert plan(tmp_path / "data" / "one.yaml", tmp_path / "model", "normalisation=image").training[0].normalisation.scale == (
        2.0,
    )


@pytest.mark.parametrize(
    ("normalisation", "own", "message"),
    [
        (FIXED, {"offset": [1.0], "scale": [1.0]}, "leave one of them away"),
        ({"kind": "moments"}, None, "moments of each image"),
        ({"kind": "image", "joint": True}, None, "joint percentiles"),
        ({"kind": "image"}, {"offset": [1.0], "scale": [0.0]}, "scales above 0"),
        ({"kind": "image"}, {"offset": [1.0], "scale": [float("inf")]}, "scales above 0"),
        ({"kind": "mean"}, None, "normalisation"),
    ],
)
def test_what_contradicts_itself_is_refused_as_it_is_read(make_data: MakeDataset, normalisation, own, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_data({"a": (noise(), LABELS)}, {"normalisation": normalisation}, a={"normalisation": own})


def test_numbers_of_other_channels_are_refused(make_data: MakeDataset) -> None:
    own = {"normalisation": {"offset": [1.0, 2.0], "scale": [1.0, 1.0]}}
    data = make_data({"a": (noise(), LABELS)}, {"normalisation": {"kind": "image"}}, a=own)
    with pytest.raises(InputError, match="has 2 offsets and 2 scales, the image has 1 channel"):
        normalisations(open_parts(data, 2, "train"), ImageNormalisation())


def test_a_description_without_it_is_written_as_before(tmp_path: Path) -> None:
    """The id of a training is the hash of its JSON."""
    data = load_dataset(write_disks(tmp_path))
    dumped = data.model_dump(mode="json")
    assert "normalisation" not in dumped
    assert all("normalisation" not in pair for pair in dumped["pairs"])
    assert type(data).model_validate(dumped | {"schema": 1}) == data

"""Who is on which side."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from tests.unet_core.training.conftest import TWO, MakeDataset
from unet_core.errors import InputError
from unet_core.training.dataset_description import Dataset, make_dataset
from unet_core.training.near_duplicates import near_duplicates, thumbnail
from unet_core.training.splits import purposes
from unet_core.volumes import ArrayVolume


def dataset(
    count: int, split: dict[str, Any], groups: dict[int, str] | None = None, parts: dict[int, str] | None = None
) -> Dataset:
    pairs = [
        {"image": f"/r/{n}.tif", "labels": "l.tif", "group": (groups or {}).get(n), "part": (parts or {}).get(n)}
        for n in range(count)
    ]
    return make_dataset({"schema": 1, "labels": "classes", "classes": TWO, "root": "/r", "pairs": pairs, "split": split})


def test_fractions_are_of_the_pairs_and_the_seed_decides() -> None:
    sides = purposes(dataset(20, {"validation": 0.1, "test": 0.25, "seed": 3}))
    assert [sides.count(side) for side in ("train", "validation", "test")] == [13, 2, 5]
    assert sides == purposes(dataset(20, {"validation": 0.1, "test": 0.25, "seed": 3}))
    assert sides != purposes(dataset(20, {"validation": 0.1, "test": 0.25, "seed": 4}))


def test_the_split_depends_on_names_not_on_their_order_or_root() -> None:
    first = dataset(11, {"seed": 1})
    moved = first.model_copy(
        update={
            "root": "/x",
            "pairs": tuple(p.model_copy(update={"image": p.image.replace("/r/", "/x/")}) for p in first.pairs[::-1]),
        }
    )
    assert purposes(first) == purposes(moved)[::-1]


def test_each_pair_is_for_validation_in_one_fold() -> None:
    folded = dataset(13, {"folds": 5, "test": 0.2}, groups={0: "g", 4: "g", 5: "g"})
    each = [purposes(folded, fold) for fold in range(5)]
    times = [[fold[pair] for fold in each].count("validation") for pair in range(13)]
    tests = [pair for pair in range(13) if each[0][pair] == "test"]
    assert len(tests) == 3
    assert all(times[pair] == (0 if pair in tests else 1) for pair in range(13))
    assert all(fold.count("validation") >= 1 for fold in each)
    assert all(len({fold[0], fold[4], fold[5]}) == 1 for fold in each)


@pytest.mark.parametrize("seed", range(8))
def test_groups_stay_on_one_side(seed: int) -> None:
    groups = {number: f"g{number // 3}" for number in range(12)}
    sides = purposes(dataset(15, {"validation": 0.3, "test": 0.3, "seed": seed}, groups))
    assert all(len(set(sides[first : first + 3])) == 1 for first in range(0, 12, 3))


def test_a_group_follows_its_member_that_is_fixed() -> None:
    sides = purposes(dataset(5, {}, groups={1: "g", 3: "g"}, parts={3: "test"}))
    assert sides[1] == sides[3] == "test"
    with pytest.raises(InputError, match="is for train, another image of its group 'g' for test; keep them together"):
        purposes(dataset(5, {}, groups={1: "g", 3: "g"}, parts={1: "train", 3: "test"}))


@pytest.mark.parametrize(
    ("split", "fold", "words"),
    [
        ({}, 0, "fold is 0, but the split of the data set has no folds"),
        ({"folds": 3}, None, "fold is None; the split of the data set has 3 folds"),
        ({"folds": 3}, 3, "choose one of 0 to 2"),
        ({"folds": 9}, 0, "7 groups of images for 9 folds; a fold would be empty"),
    ],
)
def test_folds_that_are_none_are_refused(split: dict[str, Any], fold: int | None, words: str) -> None:
    with pytest.raises(InputError, match=words):
        purposes(dataset(7, split), fold)


def scene(seed: int, shape: tuple[int, int] = (70, 95)) -> np.ndarray:
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(0, 900, shape), 6) + 120


def test_near_duplicates_are_found_and_others_are_not(make_data: MakeDataset) -> None:
    noise = np.random.default_rng(9).normal(0, 4, (70, 95))
    images = {
        "a": scene(0),
        "b": scene(1),
        "c": scene(0) * 0.8 + 30 + noise,
        "d": scene(2),
        "e": scene(1) + noise,
        "f": scene(0)[:, :94],
    }
    labels = np.zeros((70, 95), np.uint8)
    pairs = {name: (image.clip(0, 255).astype(np.uint8), labels) for name, image in images.items()}
    found = make_data(pairs, {"groups": "near-duplicates"}, a={"part": None}, d={"group": "mine"})
    assert [pair.group for pair in found.pairs] == ["a.tif", "b.tif", "a.tif", "d.tif", "b.tif", "f.tif"]


def test_what_is_alike_by_steps_is_one_group() -> None:
    turn = np.linspace(0, 1.2, 4)
    a, b = np.random.default_rng(0).normal(size=(2, 32, 32))
    chain = [np.cos(angle) * a + np.sin(angle) * b for angle in turn]
    assert near_duplicates([chain[0], chain[3], chain[1], chain[2]], [(9, 9)] * 4) == [0, 0, 0, 0]
    assert near_duplicates([chain[0], chain[3]], [(9, 9)] * 2) == [0, 1]


@pytest.mark.parametrize("shape", [(64, 96), (71, 45), (5, 33), (1, 1)])
def test_a_thumbnail_is_the_mean_of_each_field(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(0).normal(size=(2, 3, *shape))
    rows, columns = ([n * size // 32 for n in range(33)] for size in shape)
    plane = image[:, 1].mean(axis=0)
    expected = [
        [
            plane[rows[y] : max(rows[y] + 1, rows[y + 1]), columns[x] : max(columns[x] + 1, columns[x + 1])].mean()
            for x in range(32)
        ]
        for y in range(32)
    ]
    whole = thumbnail(ArrayVolume(image, axes="czyx"))
    np.testing.assert_allclose(whole, expected)
    monkeypatch.setattr("unet_core.training.near_duplicates._STRIP_VOXELS", 1)
    np.testing.assert_allclose(thumbnail(ArrayVolume(image, axes="czyx")), whole)

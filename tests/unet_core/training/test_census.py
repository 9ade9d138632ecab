"""Counts against the whole arrays, and draws against the probabilities that they should have."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from scipy import ndimage, stats

from tests.unet_core.training.conftest import MakeDataset, polygon
from unet_core.errors import InputError, ResumeError
from unet_core.geometry import Box
from unet_core.store import open_store
from unet_core.training import census as census_module
from unet_core.training.census import Census, take_census
from unet_core.training.dataset import open_parts
from unet_core.training.options import IGNORE

RANDOM = np.random.default_rng(1)
THREE = [{"name": "a", "values": 0}, {"name": "b", "values": 1}, {"name": "c", "values": 2}]


def blobs(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    return np.digitize(field, np.quantile(field, [0.3, 0.7, 0.9])).astype(np.uint8)  # 3 is ignored


def borders(classes: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Face neighbours, one at a time."""
    out = np.zeros(classes.shape, bool)
    for voxel in np.ndindex(*classes.shape):
        for axis in range(classes.ndim):
            for step in (-1, 1):
                other = tuple(index + step * (axis == number) for number, index in enumerate(voxel))
                inside = all(0 <= index < size for index, size in zip(other, classes.shape, strict=True))
                if inside and IGNORE not in (classes[voxel], classes[other]) and ids[voxel] != ids[other]:
                    out[voxel] = True
    return out


@pytest.fixture
def small_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(census_module, "CELL_SIDE", {2: 5, 3: 4})
    monkeypatch.setattr(census_module, "_BLOCK_CELLS", {2: 2, 3: 2})


@pytest.mark.usefixtures("small_cells")
@pytest.mark.parametrize("dims", [2, 3])
def test_counts_are_those_of_the_whole_arrays_for_every_cell(make_data: MakeDataset, dims: int) -> None:
    labels = blobs((7, 23, 31))
    boxes = {"part": None, "boxes": {"train": ["1:6,2:20", "6:7,:,3:30"]}}
    dataset = make_data({"s": (np.zeros(labels.shape, np.uint8), labels)}, {"classes": THREE, "ignore": 3}, s=boxes)
    parts = open_parts(dataset, dims, "train")
    census = take_census(parts)
    first, side = 0, {2: 5, 3: 4}[dims]
    for part, grid in zip(parts, census.grids, strict=True):
        classes = labels[part.section if dims == 2 else slice(None)][part.box.slices()]
        classes = np.where(classes == 3, IGNORE, classes)
        border = borders(classes, classes)
        for number in range(grid.block_count):
            cell = tuple(slice(i * side, (i + 1) * side) for i in grid.coordinates(number))
            assert census.counts[first + number].tolist() == [(classes[cell] == k).sum() for k in range(3)]
            assert census.ignored[first + number] == (classes[cell] == IGNORE).sum()
            assert census.border[first + number] == border[cell].sum()
        first += grid.block_count
    assert len(census.counts) == first
    assert census.class_counts.sum() + census.ignored_count == sum(part.box.voxel_count for part in parts)


@pytest.mark.usefixtures("small_cells")
def test_instances_that_touch_have_a_border(make_data: MakeDataset) -> None:
    ids = np.kron(RANDOM.integers(0, 6, (4, 5)), np.ones((5, 6), int)).astype(np.uint16)
    dataset = make_data({"s": (np.zeros(ids.shape, np.uint8), ids)}, {"labels": "instances", "classes": None, "ignore": 4})
    census = take_census(open_parts(dataset, 2, "train"))
    classes = np.where(ids == 4, IGNORE, ids > 0)
    assert census.border_count == borders(classes, ids).sum()
    assert census.border_count > borders(classes, classes).sum()


@pytest.mark.usefixtures("small_cells")
@pytest.mark.parametrize("kind", ["uniform", "class", "border"])
def test_draws_have_exactly_their_probabilities(make_data: MakeDataset, kind: Any) -> None:
    labels = blobs((2, 9, 12))
    labels[1, 4:] = 3
    boxes = {"part": None, "boxes": {"train": ["0:2,1:8,:"]}}
    dataset = make_data({"s": (np.zeros(labels.shape, np.uint8), labels)}, {"classes": THREE, "ignore": 3}, s=boxes)
    census = take_census(open_parts(dataset, 2, "train"))
    rng = np.random.default_rng(5)
    draws = 8_000
    counts = Counter((part, *position) for part, position in (census.draw(rng, kind) for _ in range(draws)))
    expected = np.zeros(labels.shape)
    inside = labels[:, 1:8]
    if kind == "uniform":
        expected[:, 1:8] = inside != 3
    elif kind == "border":
        for z in range(2):
            classes = np.where(inside[z] == 3, IGNORE, inside[z])
            expected[z, 1:8] = borders(classes, classes)
    else:
        for k in range(3):
            expected[:, 1:8] += (inside == k) / (inside == k).sum()
    expected *= draws / expected.sum()
    assert set(counts) <= set(zip(*map(list, np.nonzero(expected)), strict=True))
    found = np.array([counts[tuple(place)] for place in np.argwhere(expected)])
    assert stats.chisquare(found, expected[expected > 0]).pvalue > 0.001
    biased = np.where(np.arange(len(found)) < len(found) // 2, 0.8, 1.2) * expected[expected > 0]
    assert stats.chisquare(found, biased * draws / biased.sum()).pvalue < 1e-6  # the test would see a fifth


def test_a_census_is_stored_and_belongs_to_its_parts(make_data: MakeDataset, tmp_path: Path) -> None:
    labels = blobs((3, 23, 31))
    dataset = make_data({"s": (np.zeros(labels.shape, np.uint8), labels)}, {"classes": THREE, "ignore": 3})
    parts = open_parts(dataset, 2, "train")
    census, store = take_census(parts), open_store(str(tmp_path / "out"))
    census.save(store, "census.npz")
    again = Census.load(store, "census.npz", parts)
    for kind in ("uniform", "class", "border"):
        assert [census.draw(np.random.default_rng(n), kind) for n in range(9)] == [
            again.draw(np.random.default_rng(n), kind) for n in range(9)
        ]
    with pytest.raises(ResumeError, match="are of other parts of the data set"):
        Census.load(store, "census.npz", parts[:2])
    store.put("census.npz", b"PK no zip")
    with pytest.raises(ResumeError, match="cannot be read"):
        Census.load(store, "census.npz", parts)


def test_labels_that_changed_since_are_noticed(make_data: MakeDataset, tmp_path: Path) -> None:
    labels = blobs((70, 80))
    dataset = make_data({"s": (np.zeros(labels.shape, np.uint8), labels)}, {"classes": THREE, "ignore": 3})
    census = take_census(open_parts(dataset, 2, "train"))
    tifffile.imwrite(tmp_path / "s_labels.tif", np.full((70, 80), 3, np.uint8), photometric="minisblack")
    changed = Census(open_parts(dataset, 2, "train"), census.counts, census.ignored, census.border)
    for kind in ("uniform", "class", "border"):
        with pytest.raises(InputError, match="Labels of s.tif have changed since they were counted"):
            changed.draw(np.random.default_rng(0), kind)


def test_one_class_is_nothing_to_tell_apart(make_data: MakeDataset) -> None:
    dataset = make_data({name: (np.zeros((9, 11), np.uint8), np.ones((9, 11), np.uint8)) for name in "abcde"})
    parts = open_parts(dataset, 2, "train")
    with pytest.raises(
        InputError, match=r"Of the 2 classes only 'cell' is present in what is for train \(a.tif, b.tif, c.tif and 2 more\)"
    ):
        take_census(parts)
    census = take_census(parts, least_classes=1)
    assert census.class_counts.tolist() == [0, 495]
    assert labels_at(census, np.random.default_rng(0)) == 1
    with pytest.raises(InputError, match="have none for 'border'"):
        census.draw(np.random.default_rng(0), "border")
    ignored = make_data({"a": (np.zeros((9, 11), np.uint8), np.full((9, 11), 5, np.uint8))}, {"ignore": 5})
    with pytest.raises(InputError, match="no class is present"):
        take_census(open_parts(ignored, 2, "train"))
    for kind in ("uniform", "class"):
        with pytest.raises(InputError, match=f"have none for '{kind}'"):
            take_census(open_parts(ignored, 2, "train"), least_classes=0).draw(np.random.default_rng(0), kind)


def labels_at(census: Census, rng: np.random.Generator) -> int:
    part, position = census.draw(rng, "class")
    return int(census.parts[part].read_classes(Box.from_shape((1,) * len(position), position)).item())


def test_the_census_finds_a_label_outside_the_class_map(make_data: MakeDataset) -> None:
    labels = RANDOM.integers(0, 2, (3, 40, 50)).astype(np.uint8)
    labels[2, 39, 49] = 77
    with pytest.raises(InputError, match=r"Label value 77 at voxel \(2, 39, 49\) of .*s_labels.tif is not in the class map"):
        take_census(open_parts(make_data({"s": (labels, labels)}), 2, "train"))


def test_outlines_are_counted_as_the_raster_that_they_are(make_data: MakeDataset) -> None:
    rings = [[(3.3, 2.1), (70.2, 9.7), (35.5, 80.4)], [(40, 30), (90, 30), (90, 99), (40, 99)]]
    features = [polygon(ring, name=None) for ring in rings]
    dataset = make_data(
        {"a": (np.zeros((101, 93), np.uint8), features)}, {"labels": "instances", "classes": None, "unlabelled": "background"}
    )
    parts = open_parts(dataset, 2, "train")
    census = take_census(parts)
    ids = parts[0].read_instances(parts[0].box)
    assert census.class_counts.tolist() == [(ids == 0).sum(), (ids > 0).sum()]
    assert census.border_count == borders((ids > 0).astype(int), ids).sum()

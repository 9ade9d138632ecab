"""Stored border weights against those of the whole image in memory; components of snakes that wind through blocks."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from unet_core.errors import ResumeError
from unet_core.geometry import BlockGrid, Box, Shape
from unet_core.training.border_weights import border_weights
from unet_core.training.components import Components
from unet_core.training.options import IGNORE, WeightMapOptions
from unet_core.training.separation import separate_touching
from unet_core.training.stored_weights import StoredBorderWeights, _separated, labels_fingerprint, store_border_weights

BLOCK = {2: (16, 32), 3: (16, 16, 16)}
OPTIONS = WeightMapOptions(sigma=1.5)


@dataclass(frozen=True)
class Labels:
    """A part whose labels lie in memory, over its box only."""

    instances: NDArray[np.int64]
    box: Box
    image_shape: Shape
    has_instances: bool = True
    voxel_size: tuple[float, ...] | None = None
    name: str = "labels.tif"

    def read_instances(self, box: Box) -> NDArray[np.int64]:
        assert self.box.contains(box)
        return self.instances[box.shift(tuple(-first for first in self.box.start)).slices()]

    def read_classes(self, box: Box) -> NDArray[np.uint8]:
        instances = self.read_instances(box)
        return np.where(instances < 0, IGNORE, instances > 0).astype(np.uint8)


def snakes(shape: Shape) -> NDArray[np.int64]:
    """Two spirals, one voxel wide, that turn around each other in the last two axes, connected along the first; an ignored corner."""
    plane = np.zeros(shape[-2:], dtype=np.int64)
    y, x, ends, turn = 0, 0, [0, 0, shape[-2] - 1, shape[-1] - 1], 0
    while ends[0] <= ends[2] and ends[1] <= ends[3]:  # around, six voxels further in each turn
        top, left, bottom, right = ends
        plane[top, max(left - 3, 0) : right + 1] = plane[top : bottom + 1, right] = 1
        plane[bottom, left : right + 1] = plane[min(top + 3, bottom) : bottom + 1, left] = 1
        y, x, turn = y + 1, x + 1, turn + 1
        ends = [top + 3, left + 3, bottom - 3, right - 3]
        if turn == 2:
            plane[top, max(left - 3, 0) : left] = 0
    instances = np.broadcast_to(plane, shape).copy()
    instances[tuple(slice(0, size // 5) for size in shape)] = -1
    return instances


def same_partition(found, expected) -> bool:
    pairs = np.unique(np.stack([found.ravel(), expected.ravel()]), axis=1)
    return all(len(np.unique(side)) == pairs.shape[1] for side in pairs)


@pytest.mark.parametrize("shape", [(70, 101), (20, 37, 35)])
@pytest.mark.parametrize("kind", ["snakes", "noise"])
def test_components_of_any_cut_are_those_of_the_whole(tmp_path: Path, shape, kind) -> None:
    noise = (np.random.default_rng(0).random(shape) < (0.58 if len(shape) == 2 else 0.3)).astype(np.int64)
    labels = snakes(shape) if kind == "snakes" else noise
    bounds = Box.from_shape(shape, (3,) * len(shape))
    origin = (-3,) * len(shape)
    components = Components(
        lambda box: labels[box.shift(origin).slices()].astype(np.int8), bounds, str(tmp_path), BLOCK[len(shape)]
    )
    expected, count = ndimage.label(labels > 0)
    assert components.count == count > 1
    expected[labels < 0] = -1
    found = components.read(bounds)
    assert same_partition(found, expected)
    per_block = [ndimage.label(labels[box.slices()] > 0)[1] for box in BlockGrid(shape, BLOCK[len(shape)]).blocks()]
    assert sum(per_block) > 1.1 * count  # blocks do cut components
    box = Box(tuple(4 + size // 5 for size in shape), tuple(size - 2 for size in shape))
    np.testing.assert_array_equal(components.read(box), found[box.shift(origin).slices()])


def part_of(shape: Shape, has_instances: bool) -> Labels:
    image_shape = tuple(size + 9 for size in shape)
    random = np.random.default_rng(1)
    instances = snakes(shape)
    instances[instances > 0] *= ndimage.label(instances > 0)[0][instances > 0]
    if has_instances:
        instances[(instances == 0) & (random.random(shape) < 0.004)] = 77
    return Labels(instances, Box.from_shape(shape, (0, 5, 6)[-len(shape) :]), image_shape, has_instances)


@pytest.mark.parametrize("shape", [(70, 101), (20, 37, 35)])
@pytest.mark.parametrize("has_instances", [True, False])
@pytest.mark.parametrize("separate", [True, False])
def test_stored_weights_are_those_of_the_whole_mirrored_like_the_image(tmp_path: Path, shape, has_instances, separate) -> None:
    part = part_of(shape, has_instances)
    options = WeightMapOptions(sigma=1.5, separate=separate)
    url = str(tmp_path / "weights")
    stored = store_border_weights(url, part, options, "abc", block_shape=BLOCK[len(shape)])
    cells = part.instances
    if not has_instances:
        cells = np.where(cells < 0, -1, ndimage.label(cells > 0)[0])
    elif separate:
        cells = separate_touching(cells)
    image = np.zeros(part.image_shape, np.float32)
    image[part.box.slices()] = border_weights(cells, options.w0, options.sigma)
    assert (image > 0.1).sum() > 50
    far = Box(tuple(-size - 3 for size in part.image_shape), tuple(2 * size + 4 for size in part.image_shape))
    pads = [(-first, last - size) for first, last, size in zip(far.start, far.stop, part.image_shape, strict=True)]
    expected = np.pad(image, pads, "reflect")
    reader = pickle.loads(pickle.dumps(stored))
    for box in (Box.from_shape(part.image_shape), far, Box((-7,) * len(shape), (11,) * len(shape))):
        found = reader.read(box)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected[box.shift(tuple(-first for first in far.start)).slices()])
    assert not list((tmp_path / "weights" / "components").rglob("*.json"))


def test_instances_of_a_box_are_separated_as_in_the_whole_part() -> None:
    """A weight at a block's face hangs on this by a millionth only, so it is looked at directly."""
    part = Labels(np.random.default_rng(0).integers(0, 3, (9, 14)).repeat(3, 0).repeat(3, 1), Box((2, 5), (29, 47)), (40, 50))
    expected, read = separate_touching(part.instances), _separated(part)
    assert (expected != part.instances).any()
    for local in BlockGrid((27, 42), (4, 5)).blocks():
        np.testing.assert_array_equal(read(local.shift(part.box.start)), expected[local.slices()])


class Killed(Exception):
    pass


def test_weights_of_a_killed_run_are_found_unfinished_and_done_again(tmp_path: Path) -> None:
    part, url = part_of((70, 101), False), str(tmp_path)
    expected = store_border_weights(str(tmp_path / "other"), part, OPTIONS, "abc").read(part.box)
    url = str(tmp_path / "killed")

    def kill(done: int, count: int) -> None:
        assert count > 9
        if done == 7:
            raise Killed

    with pytest.raises(Killed):
        store_border_weights(url, part, OPTIONS, "abc", block_shape=BLOCK[2], on_block=kill)
    with pytest.raises(ResumeError, match="not complete"):
        StoredBorderWeights(url).read(part.box)
    stored = store_border_weights(url, part, OPTIONS, "abc", block_shape=BLOCK[2], threads=3)
    np.testing.assert_array_equal(stored.read(part.box), expected)


def test_finished_weights_are_reused_without_reading_labels(tmp_path: Path) -> None:
    part = part_of((70, 101), True)
    first = store_border_weights(str(tmp_path), part, OPTIONS, "abc").read(part.box)
    unread = replace(part, instances=np.empty((0, 0), np.int64))
    again = store_border_weights(f"{tmp_path}/", unread, OPTIONS, "abc", on_block=lambda *_: pytest.fail("computed again"))
    np.testing.assert_array_equal(again.read(part.box), first)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": "xyz"}, "labels 'abc', wanted is 'xyz'"),
        ({"options": WeightMapOptions(sigma=2)}, "sigma 1.5, wanted is 2.0"),
        ({"options": WeightMapOptions(sigma=1.5, separate=True)}, "separate False"),
        ({"background": 1}, "cells"),
    ],
)
def test_weights_of_other_labels_or_options_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    part = part_of((70, 101), "background" not in changes)
    arguments: dict[str, Any] = {"url": str(tmp_path), "part": part, "options": OPTIONS, "labels": "abc"}
    store_border_weights(**arguments)
    with pytest.raises(ResumeError, match=words):
        store_border_weights(**arguments | changes)


def test_a_lost_object_or_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    part, url = part_of((70, 101), True), str(tmp_path / "weights")
    store_border_weights(url, part, OPTIONS, "abc", block_shape=BLOCK[2])
    sorted((tmp_path / "weights" / "weights" / "c").rglob("[0-9]"))[-1].unlink()
    with pytest.raises(ResumeError, match="lack objects"):
        StoredBorderWeights(url).read(part.box)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ResumeError, match="no record.json"):
        store_border_weights(str(tmp_path / "mine"), part, OPTIONS, "abc")
    (tmp_path / "mine" / "record.json").write_text("{}")
    with pytest.raises(ResumeError, match="is no record of border weights"):
        store_border_weights(str(tmp_path / "mine"), part, OPTIONS, "abc")
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_the_fingerprint_of_labels_changes_with_any_voxel() -> None:
    part = part_of((70, 101), True)
    changed = part.instances.copy()
    changed[-1, -1] += 1
    assert labels_fingerprint(part) == labels_fingerprint(replace(part, instances=part.instances.copy()))
    assert labels_fingerprint(part) != labels_fingerprint(replace(part, instances=changed))


@pytest.mark.parametrize("shape", [(70, 101), (20, 37, 35)])
def test_weights_are_decoded_once_and_stored_anew_are_read_anew(tmp_path: Path, shape) -> None:
    part, url = part_of(shape, True), str(tmp_path / "weights")
    stored = store_border_weights(url, part, OPTIONS, "abc")
    before = stored.read(part.box)
    before_copy = before.copy()
    before += 1  # what is read is the caller's
    shutil.rmtree(url)
    np.testing.assert_array_equal(stored.read(part.box), before_copy)
    again = store_border_weights(url, part, WeightMapOptions(sigma=1.5, w0=3.0), "abc")
    assert 0 < again.read(part.box).max() < before_copy.max()

"""Parts against whole arrays in memory, and every check before the first step by its words."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.unet_core.training.conftest import TWO, MakeDataset, polygon
from unet_core.errors import InputError
from unet_core.geometry import Box
from unet_core.training.dataset import open_parts
from unet_core.training.opened import Opened
from unet_core.training.options import IGNORE

RANDOM = np.random.default_rng(0)
STACK = RANDOM.integers(0, 255, (5, 13, 17), dtype=np.uint8)
LABELS = RANDOM.integers(0, 2, (5, 13, 17), dtype=np.uint8)


def mirrored(array: np.ndarray, box: Box) -> np.ndarray:
    """As numpy pads the whole array, over its last axes."""
    rim = 40
    lead = array.ndim - box.ndim
    padded = np.pad(array, [(0, 0)] * lead + [(rim, rim)] * box.ndim, mode="reflect")
    return padded[(slice(None),) * lead + box.shift((rim,) * box.ndim).slices()]


def test_each_section_of_a_stack_is_a_part_of_a_2d_network(make_data: MakeDataset) -> None:
    boxes = {"part": None, "boxes": {"train": ["0:2", "3:4,2:9"], "validation": "2:3,:,3:17", "test": "4:"}}
    dataset = make_data({"s": (STACK, LABELS)}, s=boxes)
    parts = open_parts(dataset, 2, "train")
    assert [part.name for part in parts] == ["s.tif z=0", "s.tif z=1", "s.tif z=3 [2:9, 0:17]"]
    part = parts[2]
    assert (part.box, part.image_shape, part.channels, part.dtype) == (Box((2, 0), (9, 17)), (13, 17), 1, np.uint8)
    assert not part.has_instances
    truth = np.full((13, 17), IGNORE, np.uint8)
    truth[2:9] = LABELS[3, 2:9]
    for box in (Box((0, 0), (13, 17)), Box((-20, -5), (30, 21)), Box((3, 4), (5, 6)), Box((-3, 0), (1, 4))):
        np.testing.assert_array_equal(part.read_image(box), mirrored(STACK[3][None], box))
        np.testing.assert_array_equal(part.read_classes(box), mirrored(truth, box))
    assert [part.section for part in open_parts(dataset, 2, "test")] == [4]
    assert open_parts(dataset, 2, "validation")[0].box == Box((0, 3), (13, 17))


def test_a_3d_network_sees_boxes_of_the_stack(make_data: MakeDataset) -> None:
    dataset = make_data({"s": (STACK, LABELS)}, s={"part": None, "boxes": {"train": "0:3", "test": "3:5"}})
    (part,) = open_parts(dataset, 3, "train")
    assert part.box == Box((0, 0, 0), (3, 13, 17))
    truth = LABELS.copy()
    truth[3:] = IGNORE
    box = Box((-4, -3, 1), (8, 6, 20))
    np.testing.assert_array_equal(part.read_classes(box), mirrored(truth, box))
    np.testing.assert_array_equal(part.read_image(box), mirrored(STACK[None], box))


def test_parts_travel_to_other_processes_and_are_read_by_threads(make_data: MakeDataset) -> None:
    dataset = make_data({"s": (STACK, LABELS)})
    parts = open_parts(dataset, 2, "train")
    text = pickle.dumps(parts)
    assert len(text) < 4000
    again = pickle.loads(text)
    boxes = [(part, Box((y, x), (y + 5, x + 6))) for part in again for y in range(6) for x in range(6)]
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(lambda each: each[0].read_image(each[1]), boxes))
    for (part, box), image in zip(boxes, images, strict=True):
        np.testing.assert_array_equal(image[0], STACK[part.section][box.slices()])
    assert again[0].fingerprint() == parts[0].fingerprint()


def test_a_fingerprint_follows_image_and_labels(make_data: MakeDataset) -> None:
    outlines = [[polygon([(1, 1), (9, 1), (9, size)])] for size in (5, 6)]
    prints = []
    for image, labels in (
        (STACK[0], LABELS[0]),
        (STACK[0] + 1, LABELS[0]),
        (STACK[0], 1 - LABELS[0]),
        *((STACK[0], o) for o in outlines),
    ):
        fields = {"unlabelled": "background"} if isinstance(labels, list) else {}
        prints.append(open_parts(make_data({"s": (image, labels)}, fields), 2, "train")[0].fingerprint())
    assert len({tuple(sorted(each.items())) for each in prints}) == 5


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.int32, np.uint32, np.int64, np.uint64])
def test_values_become_class_numbers(make_data: MakeDataset, dtype: Any) -> None:
    signed = np.dtype(dtype).kind == "i"
    values = [0, 3, 100, 7] + ([-5] if signed else [])
    labels = np.array(values)[RANDOM.integers(0, len(values), (9, 11))].astype(dtype)
    classes = [{"name": "a", "values": [100]}, {"name": "b", "values": [3, *([-5] if signed else [])]}]
    dataset = make_data({"a": (STACK[0, :9, :11], labels)}, {"classes": classes, "ignore": [7], "unlabelled": "background"})
    expected = np.vectorize({0: 0, 100: 0, 3: 1, -5: 1, 7: IGNORE}.get)(labels.astype(int))
    np.testing.assert_array_equal(open_parts(dataset, 2, "train")[0].read_classes(Box((0, 0), (9, 11))), expected)


@pytest.mark.parametrize("unlabelled", [None, "ignore", "background"])
@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.uint64])
def test_ids_become_instances_and_objects(make_data: MakeDataset, dtype: Any, unlabelled: str | None) -> None:
    labels = RANDOM.integers(0, 5, (9, 11)).astype(dtype)
    fields = {"labels": "instances", "classes": None, "ignore": 4, "unlabelled": unlabelled}
    (part,) = open_parts(make_data({"a": (STACK[0, :9, :11], labels)}, fields), 2, "train")
    ids = labels.astype(np.int64)
    ids[labels == 4] = -1
    if unlabelled == "ignore":
        ids[labels == 0] = -1
    box = Box((0, 0), (9, 11))
    np.testing.assert_array_equal(part.read_instances(box), ids)
    assert part.read_instances(box).dtype == np.int64
    np.testing.assert_array_equal(part.read_classes(box), np.where(ids < 0, IGNORE, ids > 0))
    around = Box((-2, -3), (12, 9))
    np.testing.assert_array_equal(part.read_instances(around), mirrored(ids, around))
    classes, instances = part.read_labels(around)
    np.testing.assert_array_equal(classes, part.read_classes(around))
    np.testing.assert_array_equal(instances, mirrored(ids, around))


CELL, GONE = [(1.0, 1.0), (6.0, 1.0), (6.0, 7.0), (1.0, 7.0)], [(4.0, 5.0), (9.0, 5.0), (9.0, 9.0), (4.0, 9.0)]
REGION = [(0.0, 0.0), (8.0, 0.0), (8.0, 13.0), (0.0, 13.0)]


@pytest.mark.parametrize("unlabelled", ["ignore", "background"])
@pytest.mark.parametrize("labels", ["classes", "instances"])
def test_outlines_have_classes_ids_regions_and_what_is_ignored(make_data: MakeDataset, unlabelled: str, labels: str) -> None:
    features = [
        polygon(CELL),
        polygon(REGION, name="Region*"),
        polygon(GONE, name="Ignore*"),
        polygon([(6, 9), (11, 9), (11, 12)]),
    ]
    fields = {"ignore": "Ignore*", "regions": "Region*", "unlabelled": unlabelled, "labels": labels}
    fields["classes"] = [{"name": "background"}, {"name": "cell"}]
    (part,) = open_parts(make_data({"a": (STACK[0], features)}, fields), 2, "train")
    ids = np.full((13, 17), 0 if unlabelled == "background" else -1)
    ids[1:7, 1:6] = 1
    ids[5:9, 4:9] = -1
    for y in range(13):
        for x in range(17):
            if 9 <= y + 0.5 < 12 and 6 + (y + 0.5 - 9) * 5 / 3 <= x + 0.5 < 11:
                ids[y, x] = 4
    ids[:, 8:] = -1
    box = Box((0, 0), (13, 17))
    np.testing.assert_array_equal(part.read_classes(box), np.where(ids < 0, IGNORE, ids > 0))
    assert part.read_labels(box)[0].tolist() == part.read_classes(box).tolist()
    if labels == "instances":
        np.testing.assert_array_equal(part.read_instances(box), ids)
        np.testing.assert_array_equal(part.read_labels(box)[1], ids)
    else:
        with pytest.raises(InputError, match="labels of classes, which do not tell objects apart"):
            part.read_instances(box)


def test_outlines_are_in_pixels_of_the_finest_level(make_data: MakeDataset, tmp_path: Path) -> None:
    image = RANDOM.integers(0, 255, (32, 48), dtype=np.uint8)
    with tifffile.TiffWriter(tmp_path / "p.tif") as file:
        file.write(image, subifds=1, tile=(16, 16), photometric="minisblack")
        file.write(image[::2, ::2], subfiletype=1, tile=(16, 16), photometric="minisblack")
    dataset = make_data({"a": (STACK[0], [polygon([(4, 8), (20, 8), (20, 30), (4, 30)])])}, {"unlabelled": "background"})
    pair = dataset.pairs[0].model_copy(update={"image": str(tmp_path / "p.tif"), "level": 1})
    (part,) = open_parts(dataset.model_copy(update={"pairs": (pair,)}), 2, "train")
    expected = np.zeros((16, 24), np.uint8)
    expected[4:15, 2:10] = 1
    np.testing.assert_array_equal(part.read_classes(Box((0, 0), (16, 24))), expected)
    assert part.name == "p.tif level 1"


def test_a_picture_with_a_palette_holds_its_numbers(make_data: MakeDataset, tmp_path: Path) -> None:
    dataset = make_data({"a": (STACK[0], LABELS[0])})
    picture = Image.fromarray(LABELS[0], mode="P")
    picture.putpalette([9, 9, 9, 200, 0, 0])
    picture.save(tmp_path / "l.png")
    pair = dataset.pairs[0].model_copy(update={"labels": str(tmp_path / "l.png")})
    (part,) = open_parts(dataset.model_copy(update={"pairs": (pair,)}), 2, "train")
    np.testing.assert_array_equal(part.read_classes(part.box), LABELS[0])


RGB = RANDOM.integers(0, 255, (13, 17, 3), dtype=np.uint8)
ONE = (STACK[0], LABELS[0])


@pytest.mark.parametrize(
    ("arrays", "fields", "per_pair", "words"),
    [
        ({"a": (STACK[0], LABELS[0, :12])}, {}, {}, r"a.tif has \(13, 17\) voxels and its labels .*a_labels.tif have \(12, 17\)"),
        ({"a": (STACK, LABELS[0])}, {}, {}, r"a.tif has \(5, 13, 17\) voxels and its labels"),
        ({"a": (STACK[0], RGB)}, {}, {}, "a_labels.tif have 3 channels; labels are one channel"),
        ({"a": (STACK[0], LABELS[0].astype(np.float32))}, {}, {}, "a_labels.tif are float32; labels are whole numbers"),
        ({"a": ONE, "b": (RGB, LABELS[0])}, {}, {}, "b.tif has 3 channels and .*a.tif has 1"),
        ({"a": ONE, "b": (STACK[0].astype(np.uint16), LABELS[0])}, {}, {}, "b.tif is uint16 and .*a.tif is uint8"),
        ({"a": (STACK[0].astype(np.float64), LABELS[0])}, {}, {}, "float32 holds exactly"),
        ({"a": ONE, "b": ONE}, {}, {"b": {"image": "a.tif"}}, "a.tif is there twice among the pairs"),
        ({"a": ONE}, {}, {"a": {"image": "c.tif"}}, "input not found: .*c.tif.*start from .*say where the data lie with --root FOLDER"),
        ({"a": ONE}, {}, {"a": {"labels": "a_lables.tif"}}, "did you mean .*a_labels.tif"),
        ({"a": ONE}, {}, {"a": {"part": "test"}}, "Nothing is for train: of 1 pair 0 for train, 0 for validation, 1 for test"),
        ({"a": ONE}, {}, {"a": {"part": None, "boxes": {"test": ":"}}}, "Nothing is for train"),
        ({"a": ONE}, {}, {"a": {"part": None, "boxes": {"train": "0:14"}}}, r"'0:14' of .*a.tif does not lie inside .* \(13, 17\)"),
        ({"a": ONE}, {}, {"a": {"part": None, "boxes": {"train": "3:3"}}}, "or is empty"),
        ({"a": ONE}, {}, {"a": {"part": None, "boxes": {"train": "0-4"}}}, "is none of 2 axes; write first:last for each, e.g. '0:13,0:17'"),
        ({"a": ONE}, {}, {"a": {"part": None, "boxes": {"train": "0:8", "test": "7:9"}}}, "train 0:8 and test 7:9 share 7:8, 0:17"),
        ({"a": ONE, "b": ONE}, {}, {"b": {"voxel_size_um": [1, 1]}}, "a.tif does not say its voxel size, .*b.tif does"),
        ({"a": ONE, "b": ONE}, {"voxel_size_um": [1, 1]}, {"b": {"voxel_size_um": [2, 1]}}, "b.tif has voxels of 2 x 1 um, .*of 1 x 1 um"),
        ({"a": (STACK[0], [polygon(CELL, name="Cel")])}, {"unlabelled": "background"}, {}, "feature 0 has the .* 'Cel'.*did you mean 'cell'"),
        ({"a": (STACK[0], [polygon(CELL, name=None)])}, {"unlabelled": "background"}, {}, "feature 0 has no classification"),
        ({"a": (STACK[0], [polygon([(50, 5), (60, 5), (60, 9)])])}, {"unlabelled": "background"}, {}, "All 1 outlines of .* lie outside"),
    ],
)  # fmt: skip
def test_what_could_not_be_learnt_from_is_refused_before_the_first_step(
    make_data: MakeDataset, arrays: Any, fields: Any, per_pair: Any, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        open_parts(make_data(arrays, fields, **per_pair), 2, "train")


def test_a_picture_is_nothing_for_a_3d_network(make_data: MakeDataset) -> None:
    with pytest.raises(InputError, match="a.tif has the axes yx, the network 3 spatial axes"):
        open_parts(make_data({"a": ONE}), 3, "train")


def test_a_stated_voxel_size_that_the_image_denies_is_refused_unless_stated_at_the_pair(
    make_data: MakeDataset, tmp_path: Path
) -> None:
    dataset = make_data({"a": ONE}, {"voxel_size_um": [0.5, 0.5]})
    tifffile.imwrite(tmp_path / "a.tif", STACK[0], resolution=(1e4, 1e4), resolutionunit="CENTIMETER", photometric="minisblack")
    with pytest.raises(InputError, match="a.tif says that its voxels have 1 x 1 um, voxel_size_um of the data set 0.5 x 0.5 um"):
        open_parts(dataset, 2, "train")
    pair = dataset.pairs[0].model_copy(update={"voxel_size_um": (0.5, 0.5)})
    assert open_parts(dataset.model_copy(update={"pairs": (pair,)}), 2, "train")[0].voxel_size == (0.5, 0.5)
    alone = dataset.model_copy(update={"voxel_size_um": None})
    assert open_parts(alone, 2, "train")[0].voxel_size == pytest.approx((1, 1))


def test_a_label_outside_the_class_map_is_named_with_its_position(make_data: MakeDataset) -> None:
    labels = LABELS.copy()
    labels[3, 4, 5] = 9
    part = open_parts(make_data({"s": (STACK, labels)}), 2, "train")[3]
    words = r"Label value 9 at voxel \(3, 4, 5\) of .*s_labels.tif is not .* has 0 \(background\), 1 \(cell\)"
    with pytest.raises(InputError, match=words):
        part.read_classes(Box((2, 2), (9, 9)))


@pytest.mark.parametrize(
    ("value", "dtype", "words"), [(-3, np.int16, "is negative, and no id"), (1 << 63, np.uint64, "does not fit 64 bits")]
)
def test_an_id_that_is_none_is_named_with_its_position(make_data: MakeDataset, value: int, dtype: Any, words: str) -> None:
    labels = LABELS[0].astype(dtype)
    labels[4, 5] = value
    (part,) = open_parts(make_data({"a": (STACK[0], labels)}, {"labels": "instances", "classes": None}), 2, "train")
    for read in (part.read_classes, part.read_instances):
        with pytest.raises(InputError, match=rf"Label value {value} at voxel \(4, 5\) of .*a_labels.tif {words}"):
            read(part.box)


def test_what_is_open_stays_within_its_bounds() -> None:
    opened, calls = Opened(limit_bytes=100, limit_count=3), []

    def opening(key: int, size: int) -> int:
        return opened.get(key, lambda: (calls.append(key) or key, size))

    for key in (0, 1, 2, 0, 3, 0, 1):
        opening(key, 10)
    assert calls == [0, 1, 2, 3, 1]
    calls.clear()
    opening(7, 95)
    opening(1, 10)
    assert calls == [7, 1]


def test_class_names_of_the_description_reach_the_parts(make_data: MakeDataset) -> None:
    assert open_parts(make_data({"a": ONE}, {"classes": TWO}), 2, "train")[0].class_names == ("background", "cell")

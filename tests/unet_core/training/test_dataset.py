"""What a data set may say, and what is refused with words that help."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from tests.unet_core.training.conftest import TWO
from unet_core.errors import InputError
from unet_core.store import open_store
from unet_core.training.dataset import Dataset, load_dataset, open_parts
from unet_core.training.dataset_description import make_dataset
from unet_core.training.dataset_folder import starting_yaml

BASE: dict[str, Any] = {"schema": 1, "labels": "classes", "classes": TWO, "pairs": [{"image": "a.tif", "labels": "b.tif"}]}
DRAWN = [{"image": "a.tif", "labels": "a.geojson"}]
NAMES = [{"name": "a"}, {"name": "b"}]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"clases": 1}, "unknown key 'clases', did you mean 'classes'?"),
        ({"pairs": [{"image": "a", "labels": "b", "lable": 1}]}, "unknown key 'lable' in pairs.0, did you mean 'labels'?"),
        ({"pairs": [{"image": "a", "labels": "b", "boxes": {"trian": "0:1"}}]}, "in pairs.0.boxes, did you mean 'train'?"),
        ({"classes": [{"name": "a", "colour": "#000000"}]}, "did you mean 'color'?"),
        ({"classes": [{"name": "a", "values": 0, "color": None}, *TWO[1:]]}, "write it in quotes"),
        ({"split": {"fold": 3}}, "unknown key 'fold' in split, did you mean 'folds'?"),
        ({"schema": 2}, "schema: Input should be 1 (got 2)"),
        ({"pairs": []}, "pairs: Tuple should have at least 1 item"),
        ({"pairs": [{"image": "a"}]}, "the key 'labels' is missing in pairs.0"),
        ({"labels": "semantic"}, "labels: Input should be 'classes' or 'instances' (got 'semantic')"),
        ({"classes": TWO[:1]}, "classes has 1 entry; name at least two"),
        ({"classes": [TWO[0], {"name": "background", "values": 3}]}, "two classes are named 'background'"),
        ({"classes": [TWO[0], {"name": "b", "values": 0}]}, "0 is stated for class 'background' and for class 'b'"),
        ({"ignore": 1}, "1 is stated for ignore and for class 'cell'"),
        ({"classes": [TWO[0], {"name": "b"}]}, "class 'b' has no values"),
        (
            {"classes": [{"name": "a", "values": 1}, {"name": "b", "values": 2}]},
            "no class has the value 0; write unlabelled: ignore",
        ),
        ({"unlabelled": "ignore"}, "the value 0 has a meaning already"),
        ({"pairs": DRAWN}, "a.geojson are outlines, and what a voxel outside all of them is has to be said"),
        ({"labels": "instances"}, "labels are instances, where every id above 0 is one object"),
        ({"labels": "instances", "classes": [*NAMES, {"name": "c"}]}, "3 classes (a, b, c) for instance ids as in b.tif"),
        ({"split": {"validation": 0.5, "test": 0.5}}, "split takes 0.5 + 0.5 of the pairs away"),
        ({"split": {"folds": 5, "validation": 0.1}}, "folds: 5 and validation: 0.1"),
        ({"pairs": [{"image": "a", "labels": "b", "part": "train", "boxes": {"test": "0:1"}}]}, "has part: train and boxes"),
        ({"pairs": [{"image": "a", "labels": "b", "boxes": {}}]}, "has boxes for nothing"),
        ({"voxel_size_um": [0.0, 1.0]}, "voxel_size_um.0: Input should be greater than or equal to 0.000001 (got 0.0)"),
    ],
)
def test_what_cannot_be_is_refused_with_words_that_help(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        make_dataset(BASE | change, "dataset.yaml")
    assert words in str(caught.value)
    assert str(caught.value).startswith("dataset.yaml: ")


def test_instances_have_a_class_map_and_colours_of_their_own_accord() -> None:
    dataset = make_dataset({"schema": 1, "labels": "instances", "pairs": BASE["pairs"]})
    assert dataset.class_names == ("background", "object")
    assert len({entry.color for entry in dataset.classes}) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("schema: 1\nlabels: classes\nlabels: instances\n", "the key 'labels' is there twice"),
        ("- 1\n", "holds no keys with values"),
        ("a: [1\n", "is not readable YAML"),
        ("a: !!python/object/apply:os.system [ls]\n", "is not readable YAML"),
        ("a: &a [1,1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
         "d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e,*e]\n"
         "g: [*f,*f,*f,*f,*f,*f,*f,*f,*f,*f]\n", "more than 2000000 entries"),
        ("a: &a [*a]\n", "more than 2000000 entries"),
    ],
)  # fmt: skip
def test_yaml_is_read_as_plain_data(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "dataset.yaml").write_text(text)
    with pytest.raises(InputError, match=words):
        load_dataset(tmp_path / "dataset.yaml")


def write(folder: Path, name: str, values: Any) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(folder / name, np.asarray(values), photometric="minisblack")


def test_wildcards_and_roots_give_absolute_pairs(tmp_path: Path) -> None:
    image, labels = np.arange(35, dtype=np.uint8).reshape(5, 7), np.eye(5, 7, dtype=np.uint8)
    for name in ("b.1", "a", "c"):
        write(tmp_path / "data", f"images/{name}.tif", image)
        write(tmp_path / "data", f"truth/{name}.tif", labels)
    (tmp_path / "dataset.yaml").write_text(
        "schema: 1\nlabels: classes\nroot: data\nclasses: [{name: 'no', values: 0}, {name: diagonal, values: 1}]\n"
        "pairs: [{image: 'images/?*.tif', labels: 'truth/{name}.tif', part: train}]\n"
    )
    dataset = load_dataset(tmp_path / "dataset.yaml")
    assert [Path(pair.image).name for pair in dataset.pairs] == ["a.tif", "b.1.tif", "c.tif"]
    assert [part.name for part in open_parts(dataset, 2, "train")] == ["images/a.tif", "images/b.1.tif", "images/c.tif"]
    assert Dataset.model_validate_json(dataset.model_dump_json()) == dataset
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="no file matches images/"):
        load_dataset(tmp_path / "dataset.yaml")
    moved = load_dataset(tmp_path / "dataset.yaml", root=tmp_path / "elsewhere")
    assert [Path(pair.image).parent.parent.name for pair in moved.pairs] == ["elsewhere"] * 3
    with pytest.raises(InputError, match="not found"):
        load_dataset(tmp_path / "other.yaml")


def test_a_folder_of_equal_names_works_directly(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path, f"images/{name}.tif", np.full((6, 9), 7, np.uint8))
        (tmp_path / "labels").mkdir(exist_ok=True)
        Image.fromarray(np.eye(6, 9, dtype=np.uint8) * 255).save(tmp_path / f"labels/{name}.png")
    dataset = load_dataset(tmp_path)
    assert dataset.labels == "classes"
    assert [entry.values for entry in dataset.classes] == [(0,), (255,)]
    assert len(open_parts(dataset, 2, "train")) == len(open_parts(dataset, 2, "validation")) == 1
    (tmp_path / "images/c.tif").write_bytes((tmp_path / "images/a.tif").read_bytes())
    with pytest.raises(InputError, match="c.tif has no labels of the same name"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("ending", ["_mask", "_labels", "_seg"])
def test_a_folder_of_images_beside_their_masks_works_directly(tmp_path: Path, ending: str) -> None:
    for name in ("a", "b"):
        write(tmp_path, f"{name}.tif", np.zeros((6, 9), np.uint8))
        write(tmp_path, f"{name}{ending}.tif", np.arange(54, dtype=np.uint16).reshape(6, 9) * 9)
    assert load_dataset(tmp_path).labels == "instances"  # no byte holds 477


@pytest.mark.parametrize("count", [3, 54])
def test_labels_that_may_mean_two_things_are_asked_about_with_a_yaml_that_works(tmp_path: Path, count: int) -> None:
    for name in ("a", "b"):
        write(tmp_path, f"{name}.tif", np.zeros((6, 9), np.uint8))
        write(tmp_path, f"{name}_mask.tif", (np.arange(54, dtype=np.uint8) % count).reshape(6, 9))
    with pytest.raises(InputError, match="may be classes or numbers of single objects.*labels: classes") as caught:
        load_dataset(tmp_path)
    text = starting_yaml(tmp_path)
    assert caught.value.__notes__ == [text]
    (tmp_path / "dataset.yaml").write_text(text)
    dataset = load_dataset(tmp_path)
    assert dataset.labels == ("classes" if count == 3 else "instances")
    assert len(dataset.pairs) == 2


def test_many_pairs_of_two_folders_are_one_line_of_the_yaml(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for number in range(6):
        write(tmp_path / "images", f"t{number}.tif", np.zeros((6, 9), np.uint8))
        write(tmp_path / "labels", f"t{number}_labels.tif", np.arange(54, dtype=np.uint8).reshape(6, 9))
    text = starting_yaml(tmp_path)
    assert "- {image: 'images/*.tif', labels: 'labels/{name}_labels.tif'}" in text
    (tmp_path / "dataset.yaml").write_text(text)
    assert len(load_dataset(tmp_path).pairs) == 6


@pytest.mark.parametrize("labels", [np.zeros((6, 9), np.float32), np.zeros((6, 9, 3), np.uint8)])
def test_a_folder_with_labels_that_are_none_is_refused(tmp_path: Path, labels: Any) -> None:
    write(tmp_path, "a.tif", np.zeros((6, 9), np.uint8))
    Image.fromarray(labels).save(tmp_path / "a_mask.tif") if labels.ndim == 3 else write(tmp_path, "a_mask.tif", labels)
    with pytest.raises(InputError, match="labels are one channel of whole numbers"):
        load_dataset(tmp_path)


def test_a_folder_without_pairs_says_what_it_looked_for(tmp_path: Path) -> None:
    write(tmp_path, "a.tif", np.zeros((6, 9), np.uint8))
    with pytest.raises(InputError, match="neither folders images and labels, nor files like a.tif with a_mask.tif"):
        load_dataset(tmp_path)
    write(tmp_path, "a_mask.tif", np.zeros((6, 9), np.uint8))
    write(tmp_path, "b.tif", np.zeros((6, 9), np.uint8))
    with pytest.raises(InputError, match="b.tif has no labels"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("name", ["isbi2012", "nuclei-fluorescence", "nuclei-he", "nuclei-he-10", "gala"])
def test_the_data_sets_of_the_documentation_are_read(name: str) -> None:
    dataset = load_dataset(Path(__file__).parents[3] / f"docs/datasets/{name}.yaml", root="/data")
    assert dataset.name == name
    assert all(pair.image.startswith("/data/") and (pair.part or pair.boxes) for pair in dataset.pairs)
    assert dataset.source


def test_a_data_set_on_an_object_store_is_read(bucket: str) -> None:
    image = np.arange(35, dtype=np.uint8).reshape(5, 7)
    outline = {"geometry": {"type": "Polygon", "coordinates": [[[1, 1], [5, 1], [5, 4], [1, 4]]]}}
    for name in ("a", "b"):
        array = zarr.create_array(
            open_store(f"{bucket}/data/images/{name}.zarr").as_zarr(read_only=False), shape=(5, 7), dtype="uint8"
        )
        array[:] = image
        open_store(f"{bucket}/data/truth").put(f"{name}.geojson", json.dumps([outline]).encode())
    text = "{schema: 1, labels: instances, unlabelled: background, pairs: [{image: images/*.zarr, labels: 'truth/{name}.geojson', part: train}]}"
    open_store(f"{bucket}/data").put("dataset.yaml", text.encode())
    parts = open_parts(load_dataset(f"{bucket}/data/dataset.yaml"), 2, "train")
    assert [part.name for part in parts] == ["images/a.zarr", "images/b.zarr"]
    np.testing.assert_array_equal(parts[1].read_image(parts[1].box)[0], image)
    expected = np.zeros((5, 7), int)
    expected[1:4, 1:5] = 1
    np.testing.assert_array_equal(parts[1].read_instances(parts[1].box), expected)
    with pytest.raises(InputError, match="not found: s3://bucket/data/other.yaml"):
        load_dataset(f"{bucket}/data/other.yaml")

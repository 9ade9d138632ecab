"""Crops of real results: what a training sees of them is what the network saw there, and the labels are the result's, in every format."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaozarrs
import zarr
from PIL import Image
from scipy.stats import entropy

from tests.conftest import describe, random_network, textured
from unet_core.corrections import make_sample_job, sample
from unet_core.corrections.records import box_of, read_records
from unet_core.errors import InputError
from unet_core.geometry import Box
from unet_core.job import make_job
from unet_core.model_package import load_model, save_model
from unet_core.segment import open_result, run
from unet_core.training.dataset import load_dataset, open_parts
from unet_core.training.options import IGNORE
from unet_core.training.parts import Part
from unet_core.training.recipes import make_options

Maker = Callable[..., Path]
SHAPE = (150, 131)


def segment(image: Path, output: Path, model: Path, **options: Any) -> Path:
    run(make_job(image=str(image), output=str(output), model=str(model), device="cpu", **options))
    return output


def take(output: Path, folder: Path, **options: Any):
    return sample(make_sample_job(**{"output": str(output), "folder": str(folder), "n": 3} | options))


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a 2D image, with probabilities, in blocks of 32; read by many tests."""
    folder = tmp_path_factory.mktemp("result")
    arguments = {"in_channels": 1, "classes": 3, "base": 4, "levels": 3}
    save_model(folder / "model", random_network(0, "unet", **arguments), describe(**arguments))
    zarr.create_array(folder / "image.zarr", data=textured(SHAPE), chunks=(75, 65))
    return segment(folder / "image.zarr", folder / "out.zarr", folder / "model", probabilities="uint8", block_shape=(32, 32))


@pytest.fixture
def own_result(result: Path, tmp_path: Path) -> Path:
    """Of an image that may be moved."""
    request = open_request(result)
    shutil.copytree(request["image"], tmp_path / "image.zarr")
    return segment(tmp_path / "image.zarr", tmp_path / "out.zarr", Path(request["model"]), probabilities="uint8")


def parts_of(folder: Path, dims: int) -> dict[str, Part]:
    """What a training draws crops from, by the name of the crop."""
    data = load_dataset(folder / "dataset.yaml")
    parts = open_parts(data, dims, "train") + (
        open_parts(data, dims, "validation") if any(pair.boxes and pair.boxes.validation for pair in data.pairs) else ()
    )
    return {Path(part.source.pair.image).name.partition(".")[0]: part for part in parts}


def check_as_segmented(folder: Path, image: np.ndarray, labels: np.ndarray, margin: tuple[int, ...]) -> None:
    """Every crop against the whole image (C, *spatial), mirrored at its ends, and the whole label image."""
    dims = len(margin)
    reach = max(margin)
    spread = np.pad(image, [(0, 0)] * (image.ndim - dims) + [(reach, reach)] * dims, mode="reflect")
    parts = parts_of(folder, dims)
    records = read_records(folder)
    assert set(parts) == {record.crop for record in records}
    for record in records:
        part, where = parts[record.crop], record.labelled
        lead, inner = where.slices()[: where.ndim - dims], Box(where.start[-dims:], where.stop[-dims:])
        seen = part.read_image(part.box.grow(margin, margin))
        around = inner.shift((reach,) * dims).grow(margin, margin)
        np.testing.assert_array_equal(seen, spread[(slice(None), *lead, *around.slices())].reshape(seen.shape))
        known = part.read_classes(part.box.grow((3,) * dims, (3,) * dims))
        expected = np.full(known.shape, IGNORE)
        expected[(slice(3, -3),) * dims] = labels[where.slices()].reshape(part.box.shape)
        outside = Box.from_shape(part.image_shape)
        kept = part.box.grow((3,) * dims, (3,) * dims)
        if outside.contains(kept):  # else the labels are mirrored, as the image is
            np.testing.assert_array_equal(known, expected)
        np.testing.assert_array_equal(part.read_classes(part.box), labels[where.slices()].reshape(part.box.shape))


@pytest.mark.parametrize("form", ["tiff", "zarr", "geojson"])
def test_a_training_sees_of_a_crop_what_the_network_saw(result: Path, tmp_path: Path, form: str) -> None:
    summary = take(result, tmp_path / "crops", n=5, size=(32,), format=form)
    assert (len(summary.crops), summary.total) == (5, 5)
    margin = max(load_model(open_request(result)["model"]).footprint.before)
    check_as_segmented(
        tmp_path / "crops", textured(SHAPE)[None], open_result(str(result)).volume().read(whole(SHAPE))[0], (margin,) * 2
    )
    assert [crop["purpose"] for crop in summary.crops] == ["train"] * 4 + ["validation"]


def open_request(output: Path) -> dict[str, Any]:
    return json.loads((output / ".unet" / "request.json").read_text())


def whole(shape: tuple[int, ...]) -> Box:
    return Box.from_shape(shape)


@pytest.mark.parametrize("form", ["tiff", "zarr", "geojson"])
def test_crops_of_a_volume(make_model: Maker, make_image: Maker, tmp_path: Path, form: str) -> None:
    shape = (20, 41, 37)
    model = make_model(dims=3, levels=2, voxel_size_um=(2.0, 0.5, 0.5))
    output = segment(
        make_image(shape),
        tmp_path / "out",
        model,
        probabilities="float32",
        level=0,
        voxel_size_um=(2.0, 0.5, 0.5),
        block_shape=(8, 16, 16),
    )
    take(output, tmp_path / "crops", size=(9, 14, 15), format=form, n=4)
    labels = open_result(str(output)).volume().read(whole(shape))[0]
    check_as_segmented(tmp_path / "crops", textured(shape)[None], labels, load_model(model).footprint.before)
    assert {part.voxel_size for part in parts_of(tmp_path / "crops", 3).values()} == {(2.0, 0.5, 0.5)}


def test_a_2d_model_on_a_stack_gives_single_sections(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    shape = (5, 60, 51)
    output = segment(make_image(shape), tmp_path / "out", make_model(), probabilities="uint8", block_shape=(2, 32, 32))
    take(output, tmp_path / "crops", size=(24,), n=6)
    labels = open_result(str(output)).volume().read(whole(shape))[0]
    margin = load_model(open_request(output)["model"]).footprint.before
    for record in read_records(tmp_path / "crops"):
        assert record.labelled.shape == (1, 24, 24)
        section = record.labelled.start[0]
        image = box_of(record.image_box)
        assert (image.start[0], image.stop[0]) == (section, section + 1)
    check_stack(tmp_path / "crops", textured(shape), labels, margin)


def check_stack(folder: Path, image: np.ndarray, labels: np.ndarray, margin: tuple[int, ...]) -> None:
    reach = max(margin)
    spread = np.pad(image, [(0, 0), (reach, reach), (reach, reach)], mode="reflect")
    parts = parts_of(folder, 2)
    for record in read_records(folder):
        part, where = parts[record.crop], record.labelled
        inner = Box(where.start[1:], where.stop[1:])
        around = inner.shift((reach, reach)).grow(margin, margin)
        np.testing.assert_array_equal(
            part.read_image(part.box.grow(margin, margin))[0], spread[(where.start[0], *around.slices())]
        )
        np.testing.assert_array_equal(part.read_classes(part.box), labels[where.slices()][0])


@pytest.mark.parametrize(
    ("dtype", "channels", "form"),
    [
        ("uint8", (0, 1, 2), "tiff"),
        ("uint16", (2, 0), "tiff"),
        ("uint16", (1,), "zarr"),
        ("int16", (0, 1), "tiff"),
        ("float32", (0, 1, 2), "tiff"),
        ("bool", (0,), "zarr"),
    ],
)
def test_channels_keep_their_order_and_intensities_their_type(
    make_model: Maker, tmp_path: Path, dtype: str, channels: tuple[int, ...], form: str
) -> None:
    image = np.stack([textured(SHAPE, seed) for seed in range(3)]).astype(dtype)
    group = zarr.open_group(tmp_path / "image.zarr", mode="w", zarr_format=2)
    group.create_array("0", data=image, chunks=(1, 40, 40))
    group.create_array("1", data=image[:, ::2, ::2], chunks=(1, 40, 40))
    axes = [{"name": "c", "type": "channel"}] + [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "yx"]
    levels = [
        {"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": [1.0, 0.25 * 2**level, 0.25 * 2**level]}]}
        for level in range(2)
    ]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": levels}]
    model = make_model(in_channels=len(channels), voxel_size_um=(0.5, 0.5))
    output = segment(tmp_path / "image.zarr", tmp_path / "out", model, channels=channels)
    take(output, tmp_path / "crops", by="random", size=(20,), format=form)
    labels = open_result(str(output)).volume().read(whole((75, 66)))[0]
    check_as_segmented(tmp_path / "crops", image[list(channels), ::2, ::2], labels, load_model(model).footprint.before)
    parts = parts_of(tmp_path / "crops", 2).values()
    assert {(part.dtype.name, part.channels, part.voxel_size) for part in parts} == {(dtype, len(channels), (0.5, 0.5))}
    record = read_records(tmp_path / "crops")[0]
    assert (record.level, record.channels) == (1, ",".join(map(str, channels)))


def test_the_most_uncertain_place_comes_first_whatever_the_blocks(
    result: Path, make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    """Against the entropy of the whole array by scipy; and another cut of the image gives the same files."""
    stored = open_result(str(result)).volume("").read(whole(SHAPE)).astype(np.float64)
    undecided = entropy(stored, axis=0, base=3)
    summary = take(result, tmp_path / "a", size=(32,), n=4)
    scores = [crop["score"] for crop in summary.crops]
    assert scores == sorted(scores, reverse=True)
    for crop in summary.crops:
        assert crop["score"] == pytest.approx(undecided[box_of(crop["box"]).slices()].mean(), abs=2e-5)
    starts = [sorted({*range(0, extent - 31, 8), extent - 32}) for extent in SHAPE]
    best = max(undecided[y : y + 32, x : x + 32].mean() for y in starts[0] for x in starts[1])
    assert scores[0] == pytest.approx(best, abs=2e-5)
    assert summary.mean_score == pytest.approx(undecided.mean(), abs=2e-5)
    request = open_request(result)
    other = segment(Path(request["image"]), tmp_path / "o", Path(request["model"]), probabilities="uint8", block_shape=(64, 128))
    assert take(other, tmp_path / "b", size=(32,), n=4).crops == summary.crops
    for file in sorted((tmp_path / "a").rglob("*.tif")):
        assert file.read_bytes() == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes()


def test_random_places_follow_the_seed_and_lie_in_the_region_that_was_segmented(
    make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    output = segment(make_image(SHAPE), tmp_path / "out", make_model(), block_shape=(32, 32), roi=("0:64,32:131", "90:128,0:64"))
    regions = [Box((0, 32), (64, 131)), Box((64, 0), (128, 64))]  # whole blocks
    found = {}
    for seed in range(12):
        summary = take(output, tmp_path / str(seed), by="random", size=(20,), seed=seed)
        boxes = [box_of(crop["box"]) for crop in summary.crops]
        found[seed] = boxes
        covered = np.zeros(SHAPE, dtype=int)
        for region in regions:
            covered[region.slices()] += 1
        assert all(covered[box.slices()].all() for box in boxes)
        assert all(first.intersect(second).is_empty for first in boxes for second in boxes if first is not second)
        assert [crop["score"] for crop in summary.crops] == [None] * 3
    assert len({tuple(boxes) for boxes in found.values()}) == 12
    assert any(box.start[0] >= 64 for boxes in found.values() for box in boxes)
    again = take(output, tmp_path / "again", by="random", size=(20,), seed=3)
    assert [box_of(crop["box"]) for crop in again.crops] == found[3]


def test_disagreement_is_the_share_of_voxels_that_differ(result: Path, make_model: Maker, tmp_path: Path) -> None:
    """Of the blocks that both have: the other one was cut otherwise and made of a part."""
    request = open_request(result)
    other = segment(Path(request["image"]), tmp_path / "b", make_model(seed=1), block_shape=(48, 48), roi=("0:150,0:90",))
    summary = take(result, tmp_path / "crops", by="disagreement", other=str(other), size=(24,), n=5)
    labels = [open_result(str(url)).volume().read(whole(SHAPE))[0] for url in (result, other)]
    differ = labels[0] != labels[1]
    for crop in summary.crops:
        box = box_of(crop["box"])
        assert box.stop[1] <= 96
        assert crop["score"] == pytest.approx(differ[box.slices()].mean(), abs=1e-6)
    starts = [sorted({*range(0, extent - 23, 6), extent - 24}) for extent in SHAPE]
    shares = [differ[y : y + 24, x : x + 24].mean() for y in starts[0] for x in starts[1] if x + 24 <= 96]
    assert summary.crops[0]["score"] == pytest.approx(max(shares), abs=1e-6)
    assert {record.other for record in read_records(tmp_path / "crops")} == {str(other)}


def test_overlapping_regions_become_classes_of_their_combinations(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    model = make_model("regions", classes=2)
    output = segment(make_image(SHAPE), tmp_path / "out", model, probabilities="uint8")
    summary = take(output, tmp_path / "crops", size=(40,), n=2)
    masks = [open_result(str(output)).volume(f"labels/class_{number}").read(whole(SHAPE))[0] != 0 for number in range(2)]
    combined = masks[0] + 2 * masks[1]
    assert set(np.unique(combined)) == {0, 1, 2, 3}
    check_as_segmented(tmp_path / "crops", textured(SHAPE)[None], combined, load_model(model).footprint.before)
    setting = re.search(r"--set '(heads=.*?)'", summary.command)[1]
    (head,) = make_options("default", [setting]).heads
    data = load_dataset(tmp_path / "crops")
    assert data.class_names == ("background", "class 0", "class 1", "class 0+class 1")
    assert head.regions == {"class 0": ("class 0", "class 0+class 1"), "class 1": ("class 1", "class 0+class 1")}


def test_combinations_of_one_name_are_refused(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    model = make_model("regions", classes=3)
    description = json.loads((model / "model.json").read_text())
    for entry, name in zip(description["classes"], ("CD4", "CD8", "CD4+CD8"), strict=True):
        entry["name"] = name
    (model / "model.json").write_text(json.dumps(description))
    output = segment(make_image((60, 70)), tmp_path / "out", model)
    with pytest.raises(InputError, match=r"two combinations would both be the class 'CD4\+CD8'; rename a region") as caught:
        take(output, tmp_path / "crops", by="random", n=1, size=(32,))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "crops").exists()


def test_ids_of_objects_are_exported_where_they_are_asked_for(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    output = segment(make_image(SHAPE), tmp_path / "out", make_model(classes=2), probabilities="uint8", instances="components")
    for form in ("tiff", "zarr", "geojson"):
        take(output, tmp_path / form, size=(40,), labels="instances", format=form)
        ids = open_result(str(output)).volume("labels/instances").read(whole(SHAPE))[0]
        parts = parts_of(tmp_path / form, 2)
        for record in read_records(tmp_path / form):
            expected = ids[record.labelled.slices()]
            found = parts[record.crop].read_instances(parts[record.crop].box)
            assert (
                len(np.unique(found)) == len(np.unique(expected)) == len(np.unique(expected * 100_000 + found.astype(np.uint64)))
            )
            np.testing.assert_array_equal(found == 0, expected == 0)
    other = segment(make_image(SHAPE), tmp_path / "three", make_model(), probabilities="uint8", instances="components")
    with pytest.raises(InputError, match="ids tell background and one class"):
        take(other, tmp_path / "no", labels="instances")


def test_the_normalisation_of_the_model_is_carried_over(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    """That of a model which normalises by the image is the image's, not that of the crop."""
    from unet_core.model_description import ImageNormalisation, read_description, write_description

    model = make_model()
    description, weights = read_description(str(model))
    write_description(str(model), description.model_copy(update={"normalisation": ImageNormalisation(low=2, high=97)}), weights)
    output = segment(make_image(SHAPE), tmp_path / "out", model, probabilities="uint8")
    take(output, tmp_path / "crops", size=(32,))
    data = load_dataset(tmp_path / "crops")
    assert data.normalisation == ImageNormalisation(low=2, high=97)
    low, high = np.percentile(textured(SHAPE), [2, 97])
    for pair in data.pairs:
        assert pair.normalisation.offset[0] == pytest.approx(low, abs=1)
        assert pair.normalisation.scale[0] == pytest.approx(high - low, abs=1)


def test_a_second_round_leaves_the_first_as_it_is(result: Path, tmp_path: Path) -> None:
    folder = tmp_path / "crops"
    take(result, folder, size=(24,), n=5)
    first = read_records(folder)
    edited = folder / first[1].labels
    labels = tifffile.imread(edited)
    labels[15:20] = 2
    tifffile.imwrite(edited, labels)
    yaml_file = folder / "dataset.yaml"
    yaml_file.write_text(yaml_file.read_text().replace("pairs:", "# mine\nsplit: {seed: 3}\npairs:"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"holds 5 crops already, 1 of them with edited labels, which are never overwritten"):
        take(result, folder, size=(24,))
    with pytest.raises(InputError, match="holds crops as tiff, not as zarr"):
        take(result, folder, size=(24,), add=True, format="zarr")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    summary = take(result, folder, size=(24,), n=4, add=True)
    assert (len(summary.crops), summary.total) == (4, 9)
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert all(after[path] == content for path, content in before.items() if path.suffix == ".tif")
    assert after[yaml_file].startswith(before[yaml_file])
    records = read_records(folder)
    assert records[:5] == first
    assert [record.crop for record in records] == [f"crop-{number:03d}" for number in range(1, 10)]
    boxes = [record.labelled for record in records]
    assert all(one.intersect(other).is_empty for one in boxes for other in boxes if one is not other)
    assert len(load_dataset(folder).pairs) == 9
    elsewhere = take(result, tmp_path / "new", size=(24,), n=3, exclude=(str(folder),))
    assert all(box_of(crop["box"]).intersect(box).is_empty for crop in elsewhere.crops for box in boxes)
    assert len(list(tmp_path.glob(".*.part"))) == 0


def test_crops_of_another_image_are_added_and_do_not_stand_in_the_way(
    result: Path, make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    other = segment(make_image(SHAPE, seed=1), tmp_path / "two", Path(open_request(result)["model"]), probabilities="uint8")
    take(result, tmp_path / "crops", size=(60,), n=2)
    alone = take(other, tmp_path / "alone", size=(60,), n=2)
    added = take(other, tmp_path / "crops", size=(60,), n=2, add=True)
    assert [crop["box"] for crop in added.crops] == [crop["box"] for crop in alone.crops]
    stranger = segment(make_image(SHAPE), tmp_path / "three", make_model(classes=2), probabilities="uint8")
    with pytest.raises(InputError, match="has another classes than these crops"):
        take(stranger, tmp_path / "crops", size=(20,), add=True)


def test_a_list_that_cannot_be_added_to_is_left_alone(result: Path, tmp_path: Path) -> None:
    folder = tmp_path / "crops"
    take(result, folder, size=(24,))
    text = (folder / "dataset.yaml").read_text() + "split: {seed: 1}\n"
    (folder / "dataset.yaml").write_text(text)
    files = sorted(folder.rglob("*"))
    with pytest.raises(InputError, match="move the key 'pairs' to its end"):
        take(result, folder, size=(24,), add=True)
    assert sorted(folder.rglob("*")) == files
    assert (folder / "dataset.yaml").read_text() == text


def test_crops_say_where_they_come_from(result: Path, tmp_path: Path) -> None:
    take(result, tmp_path / "crops", size=(24,))
    with (tmp_path / "crops" / "crops.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    status = open_result(str(result)).status
    assert {(row["plan"], row["output"], row["by"], row["level"]) for row in rows} == {(status.plan, str(result), "entropy", "0")}
    assert {row["source"] for row in rows} == {open_request(result)["image"]}
    assert all(float(row["score"]) > 0 for row in rows)


def test_a_moved_image_is_named_and_another_one_refused(own_result: Path, make_image: Maker, tmp_path: Path) -> None:
    result, image = own_result, Path(open_request(own_result)["image"])
    image.rename(tmp_path / "moved.zarr")
    with pytest.raises(InputError, match="say where it lies now with --image"):
        take(result, tmp_path / "crops", size=(24,))
    assert take(result, tmp_path / "crops", size=(24,), image=str(tmp_path / "moved.zarr")).total == 3
    with pytest.raises(InputError, match="has changed since it was planned"):
        take(result, tmp_path / "no", size=(24,), image=str(make_image(SHAPE, seed=9)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 40, "size": (32,)}, r"40 crops of \(32, 32\) voxels do not fit side by side .* 16 do"),
        ({"size": (151, 20)}, r"larger than the image of \(150, 131\); use --size 150,20"),
        ({"size": (2, 20, 20)}, "--size has 3 numbers, the model works in 2D"),
        ({"size": (0,)}, "size"),
        ({"n": 0}, "n: Input should be greater than or equal to 1"),
        ({"validation": 1.0}, "validation"),
        ({"by": "disagreement"}, "name it with --other"),
        ({"other": "x.zarr"}, "places are picked by entropy"),
        ({"labels": "instances"}, "has no ids of objects"),
        ({"exclude": ("nowhere",)}, "has no crops.csv"),
        ({"folder": "s3://bucket/crops"}, "is not on this machine"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(
    result: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as told:
        take(result, options.pop("folder", tmp_path / "crops"), **options)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "crops").exists()
    assert not list(tmp_path.glob(".*"))


def test_results_that_cannot_be_sampled_are_refused(result: Path, make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    image, model = Path(open_request(result)["image"]), Path(open_request(result)["model"])
    plain = segment(image, tmp_path / "plain", model)
    with pytest.raises(InputError, match="--probabilities uint8, or sample --by random"):
        take(plain, tmp_path / "crops")
    with pytest.raises(InputError, match="not an output of this program|no plan"):
        take(image, tmp_path / "crops")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "keep").touch()
    with pytest.raises(InputError, match="is not empty .it holds keep"):
        take(result, tmp_path / "full", size=(24,))
    with pytest.raises(InputError, match="lie inside each other"):
        take(result, result / "crops", size=(24,))
    for other, message in [
        (segment(make_image((150, 130)), tmp_path / "a", model), "shape"),
        (segment(make_image(SHAPE, seed=4), tmp_path / "b", model), "not of the same voxels .images of"),
        (segment(image, tmp_path / "c", make_model(classes=2)), "have other classes"),
    ]:
        with pytest.raises(InputError, match=message):
            take(result, tmp_path / "crops", by="disagreement", other=str(other), size=(24,))
    assert not (tmp_path / "crops").exists()


def test_an_unfinished_result_is_sampled_where_it_is_done_if_that_is_asked(
    make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    class StopError(Exception):
        pass

    def stop(record: Any) -> None:
        if record.index == 9:
            raise StopError

    job = make_job(
        image=str(make_image(SHAPE)),
        output=str(tmp_path / "out"),
        model=str(make_model()),
        block_shape=(32, 32),
        probabilities="uint8",
        device="cpu",
    )
    with pytest.raises(StopError):
        run(job, stop)
    with pytest.raises(InputError, match=r"is not complete \(10 of 25 blocks are done\).*--partial"):
        take(tmp_path / "out", tmp_path / "crops", size=(32,))
    summary = take(tmp_path / "out", tmp_path / "crops", size=(32,), partial=True, n=4)
    assert all(box_of(crop["box"]).stop[0] <= 64 for crop in summary.crops)


def test_a_new_folder_is_there_whole_or_not_at_all(result: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unet_core.corrections import export

    written = export.write_crop
    calls: list[str] = []

    def fail(folder: Path, name: str, *rest: Any) -> tuple[str, str]:
        calls.append(name)
        if len(calls) == 3:
            raise OSError(28, "No space left on device", str(folder / name))
        return written(folder, name, *rest)

    monkeypatch.setattr(export, "write_crop", fail)
    with pytest.raises(InputError, match="cannot be written .No space left"):
        take(result, tmp_path / "crops", size=(24,))
    assert not (tmp_path / "crops").exists()
    assert not list(tmp_path.glob(".*"))


def test_napari_reads_a_crop_with_its_labels(result: Path, tmp_path: Path) -> None:
    from napari_ome_zarr import napari_get_reader

    take(result, tmp_path / "crops", size=(40,), format="zarr", n=1)
    record = read_records(tmp_path / "crops")[0]
    for path in (record.image, record.labels):
        yaozarrs.validate_zarr_store(str(tmp_path / "crops" / path))
    reader = napari_get_reader(str(tmp_path / "crops" / record.image))
    assert reader is not None
    layers = {layer[2]: np.asarray(layer[0][0]) for layer in reader(str(tmp_path / "crops" / record.image))}
    labels = open_result(str(result)).volume().read(record.labelled)[0]
    outer = box_of(record.image_box)
    inner = record.labelled.shift(tuple(-first for first in outer.start))
    np.testing.assert_array_equal(layers["image"], textured(SHAPE)[outer.slices()])
    np.testing.assert_array_equal(layers["labels"][inner.slices()], labels)
    assert (layers["labels"] == 255).sum() == outer.voxel_count - inner.voxel_count


def test_a_colour_image_stays_one_that_programs_show(make_model: Maker, tmp_path: Path) -> None:
    colours = np.stack([textured(SHAPE, seed) for seed in range(3)], axis=-1)
    Image.fromarray(colours).save(tmp_path / "image.png")
    output = segment(tmp_path / "image.png", tmp_path / "out", make_model(in_channels=3), probabilities="uint8")
    take(output, tmp_path / "crops", size=(24,))
    with tifffile.TiffFile(tmp_path / "crops" / "images" / "crop-001.tif") as file:
        assert file.pages[0].photometric.name == "RGB"
    with tifffile.TiffFile(tmp_path / "crops" / "labels" / "crop-001.tif") as file:
        assert file.is_imagej
        assert np.squeeze(file.imagej_metadata["LUTs"]).shape == (3, 256)

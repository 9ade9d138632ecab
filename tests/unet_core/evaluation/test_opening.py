"""Paths become pairs, or one sentence with a remedy; results of runs are opened by what they hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from tests.unet_core.metrics.partitions import alike, blur, partition
from unet_core import metrics
from unet_core.errors import InputError
from unet_core.evaluation import MeaningOptions, OpeningOptions, open_pairs, score_images
from unet_core.job import make_job
from unet_core.segment import run

Maker = Callable[..., Path]
IDS = partition((33, 47), 0)
OTHER = alike(IDS, 1)
KNOWN = OpeningOptions(prediction_is="ids", reference_is="ids")


def write(path: Path, values: np.ndarray) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(values.astype(np.uint8)).save(path)
    elif path.suffix == ".zarr":
        zarr.create_array(path, data=values, chunks=(11,) * values.ndim)
    else:
        tifffile.imwrite(path, values, photometric="minisblack")
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Images that many refusals need."""
    return {
        "ids": write(tmp_path / "ids.tif", IDS.astype(np.uint16)),
        "other": write(tmp_path / "other.png", OTHER),
        "map": write(tmp_path / "map.tif", blur(OTHER, 0)),
        "counts": write(tmp_path / "counts.tif", blur(OTHER, 0) * 100),
        "wide": write(tmp_path / "wide.tif", np.ones((33, 48), np.uint8)),
        "empty": write(tmp_path / "empty.tif", np.zeros((33, 47), np.uint8)),
        "colour": write(tmp_path / "colour.png", np.zeros((33, 47, 3), np.uint8)),
        "nothing": str(tmp_path / "nothing.tif"),
        "folder": str(tmp_path),
        "sparse": write(tmp_path / "zarr" / "sparse.zarr", np.pad(IDS, ((0, 20), (0, 20))).astype(np.uint16)),
        "large": write(tmp_path / "zarr" / "large.tif", np.pad(IDS, ((0, 20), (0, 20))).astype(np.uint16)),
    }


BAD: list[tuple[str, str, str, OpeningOptions, str]] = [
    ("wide", "ids", "iou", KNOWN, r"wide.tif has \(33, 48\) voxels and reference .*ids.tif \(33, 47\)"),
    ("other", "ids", "iou", OpeningOptions(), "uint8 numbers of prediction .* say --prediction-is map"),
    (
        "other",
        "ids",
        "pq,iou",
        replace(KNOWN, reference_is=None),
        "reference .* is not known, and pq depend on it: say --reference-is",
    ),
    ("other", "ids", "iou", replace(KNOWN, reference_is=None, foreground="1"), "a class is named: say --reference-is"),
    ("other", "ids", "iou", replace(KNOWN, foreground="2"), "--class is 2, but the prediction holds ids and the reference ids"),
    ("other", "ids", "iou,dise", KNOWN, "no metric 'dise'. Did you mean dice"),
    ("other", "ids", "", KNOWN, "No metric is named"),
    ("other", "empty", "iou", KNOWN, "has no foreground .*--invert-reference"),
    ("other", "ids", "iou", replace(KNOWN, reference_is="classes", foreground="77"), "no foreground .*class 77"),
    ("other", "map", "iou", KNOWN, "Reference .*map.tif is of type float32; labels are whole numbers"),
    ("colour", "ids", "iou", KNOWN, "colour.png has 3 channels"),
    ("colour", "ids", "iou", replace(KNOWN, prediction_is="map"), "3 channels and one is scored; name it with --class"),
    ("colour", "ids", "iou", OpeningOptions(prediction_is="map", reference_is="mask", foreground="3"), "channels 0 to 2"),
    ("ids", "ids", "iou", OpeningOptions(prediction_is="map"), "ids.tif is of type uint16; a probability map is uint8"),
    ("other", "ids", "iou", replace(KNOWN, foreground="nucleus"), "names are known of results of `unet segment` only"),
    ("nothing", "ids", "iou", KNOWN, "input not found: .*nothing.tif"),
    ("other", "folder", "iou", KNOWN, "is a folder of images and .*other.png is one image"),
    ("folder", "nothing", "iou", KNOWN, "input not found: .*nothing.tif"),
    ("map", "ids", "iou", OpeningOptions(prediction_is="ids"), "Prediction .*map.tif is of type float32"),
    ("map", "ids", "pq", OpeningOptions(reference_is="ids", meaning=MeaningOptions(instances="given")), "are not given"),
    ("other", "ids", "warping_error", replace(KNOWN, memory_bytes=1000), "whole sections need"),
    ("large", "sparse", "iou", KNOWN, "is missing in .*--missing fill"),
]


@pytest.mark.parametrize(("prediction", "reference", "names", "options", "words"), BAD)
def test_what_cannot_be_scored_is_refused_before(
    files: dict[str, str], prediction: str, reference: str, names: str, options: OpeningOptions, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        score_images(
            open_pairs(files[prediction], files[reference], [name for name in names.split(",") if name], options), ["iou"]
        )


def test_a_map_that_is_none_is_refused_while_it_is_read(files: dict[str, str]) -> None:
    pairs = open_pairs(files["counts"], files["ids"], ["iou"], OpeningOptions())
    with pytest.raises(InputError, match="^counts.tif: A probability map with values from 0 to 100"):
        score_images(pairs, ["iou"])


def test_absent_chunks_are_background_if_the_user_says_so(files: dict[str, str]) -> None:
    options = replace(KNOWN, missing="fill")
    assert score_images(open_pairs(files["large"], files["sparse"], ["iou"], options), ["iou"])["iou"] == 1


def test_types_that_tell_what_they_are_need_no_options(files: dict[str, str], tmp_path: Path) -> None:
    (pair,) = open_pairs(files["map"], files["ids"], ["iou"], OpeningOptions())
    assert (pair.meaning.prediction_is, pair.meaning.reference_is) == ("map", "mask")
    masks = [write(tmp_path / "masks" / f"{name}.zarr", values > 0) for name, values in (("a", OTHER), ("b", IDS))]
    (pair,) = open_pairs(*masks, ["pq"], replace(OpeningOptions(), missing="fill"))
    assert (pair.meaning.prediction_is, pair.meaning.reference_is) == ("mask", "mask")


def test_one_channel_of_a_map_is_scored(tmp_path: Path, files: dict[str, str]) -> None:
    colours = np.stack([np.zeros(IDS.shape), (OTHER > 0) * 255.0, np.zeros(IDS.shape)], -1)
    url = write(tmp_path / "colours" / "a.png", colours)
    options = OpeningOptions(prediction_is="map", reference_is="mask", foreground="1")
    assert score_images(open_pairs(url, files["ids"], ["iou"], options), ["iou"])["iou"] == metrics.iou(OTHER, IDS)


def test_folders_are_paired_by_name(tmp_path: Path) -> None:
    for number in range(3):
        ids = partition((23, 31), number)
        write(tmp_path / "truth" / f"image-{number}.tif", ids.astype(np.uint16))
        write(tmp_path / "found" / f"image-{number}.png", alike(ids, number))
    folders = str(tmp_path / "found"), str(tmp_path / "truth")
    table = score_images(open_pairs(*folders, ["seg"], KNOWN), ["seg"])
    assert table.names == ("image-0", "image-1", "image-2")
    expected = [metrics.seg(alike(partition((23, 31), n), n), partition((23, 31), n)).score for n in range(3)]
    assert [row["seg"] for row in table.rows] == expected
    (tmp_path / "found" / "image-1.png").unlink()
    with pytest.raises(InputError, match=r"image-1.tif of .*truth has no partner in .*found \(1 of 3"):
        open_pairs(*folders, ["seg"], KNOWN)
    write(tmp_path / "found" / "image-1.png", ids)
    write(tmp_path / "found" / "image-1.tif", ids)
    with pytest.raises(InputError, match="image-1.png and image-1.tif"):
        open_pairs(*folders, ["seg"], KNOWN)


def test_empty_images_among_others_are_allowed(tmp_path: Path) -> None:
    for name, ids in (("a", IDS), ("b", np.zeros_like(IDS))):
        write(tmp_path / "truth" / f"{name}.png", ids)
        write(tmp_path / "found" / f"{name}.png", ids)
    folders = str(tmp_path / "found"), str(tmp_path / "truth")
    assert score_images(open_pairs(*folders, ["iou"], KNOWN), ["iou"])["iou"] == 1


def test_options_in_plain_values_are_checked() -> None:
    options = OpeningOptions.of({"reference_is": "ids", "meaning": {"ignore": 255, "thresholds": [0.1, 0.5]}})
    assert options.meaning == MeaningOptions(ignore=255, thresholds=(0.1, 0.5))
    for values, words in (
        ({"reference_is": "map"}, "reference_is"),
        ({"meaning": {"ignores": 1}}, "ignores"),
        ({"meaning": {"threshold": 2.0}}, "0 to below 1"),
    ):
        with pytest.raises(InputError, match=words):
            OpeningOptions.of(values)


def segmented(make_model: Maker, make_image: Maker, tmp_path: Path, **options: Any) -> tuple[str, np.ndarray, np.ndarray | None]:
    """A result, its label image, and its probabilities if kept."""
    output = str(tmp_path / f"out-{len(list(tmp_path.iterdir()))}")
    arguments = {"image": str(make_image((70, 90))), "model": str(make_model()), "output": output, "block_shape": (32, 32)}
    run(make_job(**arguments, **options))
    group = zarr.open_group(output, mode="r")
    return output, group["labels/classes/0"][:], group["0"][:] if options else None  # type: ignore[index]


def test_results_of_runs_are_opened_by_class_and_kind(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    output, labels, probabilities = segmented(make_model, make_image, tmp_path, probabilities="uint8")
    assert probabilities is not None
    reference = write(tmp_path / "truth" / "classes.tif", np.roll(labels, 2, axis=1))
    truth = np.roll(labels, 2, axis=1)
    options = OpeningOptions(reference_is="classes", foreground="class 2")
    (pair,) = open_pairs(output, reference, ["iou"], options)
    assert pair.meaning.prediction_is == "classes"
    assert score_images([pair], ["iou"])["iou"] == metrics.iou(labels, truth, label=2)
    (pair,) = open_pairs(output, reference, ["mean_iu"], OpeningOptions(reference_is="classes"))
    assert score_images([pair], ["mean_iu"])["mean_iu"] == metrics.fcn_scores(labels, truth).mean_iu
    (pair,) = open_pairs(output, reference, ["pixel_error_max_f"], options)
    assert pair.meaning.prediction_is == "map"
    found = score_images([pair], ["pixel_error_max_f"])["pixel_error_max_f"]
    assert found == metrics.pixel_error_max_f(probabilities[2], truth == 2)
    with pytest.raises(InputError, match=r"no class nuclei in the result; its model has class 0 \(0\), class 1 \(1\)"):
        open_pairs(output, reference, ["iou"], replace(options, foreground="nuclei"))
    with pytest.raises(InputError, match="several classes .*name it with --class"):
        open_pairs(output, reference, ["pixel_error_fiji"], OpeningOptions())
    with pytest.raises(InputError, match="holds classes or a map, not ids"):
        open_pairs(output, reference, ["iou"], replace(options, prediction_is="ids"))


def test_results_without_probabilities_or_unfinished_are_told(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    output, labels, _ = segmented(make_model, make_image, tmp_path)
    reference = write(tmp_path / "truth" / "classes.tif", labels)
    options = OpeningOptions(reference_is="classes", foreground="1")
    with pytest.raises(InputError, match="holds no probabilities; segment again with --probabilities"):
        open_pairs(output, reference, ["iou"], replace(options, prediction_is="map"))
    assert score_images(open_pairs(output, reference, ["warping_error"], options), ["warping_error"])["warping_error"] == 0
    for record in (Path(output) / ".unet").rglob("complete*"):
        record.unlink()
    with pytest.raises(InputError, match="is unfinished.*would count as background"):
        open_pairs(output, reference, ["iou"], options)


def test_what_a_run_was_not_asked_for_is_not_scored_as_background(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    output, labels, _ = segmented(make_model, make_image, tmp_path, roi=("0:64,0:32",))
    assert not labels[:, 64:].any()
    marked = np.full(labels.shape, 255, np.uint8)
    marked[:64, :32] = 1 + (labels[:64, :32] > 0)
    options = OpeningOptions(reference_is="classes", meaning=MeaningOptions(ignore=255))
    (pair,) = open_pairs(output, write(tmp_path / "truth" / "marked.tif", marked), ["mean_iu"], options)
    expected = metrics.fcn_scores(labels[:64, :32], marked[:64, :32]).mean_iu
    assert score_images([pair], ["mean_iu"])["mean_iu"] == expected
    marked[69, 89] = 1
    with pytest.raises(InputError, match=r"not computed at 64:70, 64:90.*without --roi.*--ignore"):
        open_pairs(output, write(tmp_path / "truth" / "more.tif", marked), ["mean_iu"], options)

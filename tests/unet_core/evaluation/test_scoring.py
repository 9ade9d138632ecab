"""Scores of stored images are those of the whole arrays, however they are read; tables hold means, intervals and pools."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from tests.unet_core.metrics.partitions import alike, blur, partition
from unet_core import metrics
from unet_core.errors import InputError, MemoryBudgetError
from unet_core.evaluation import METRICS, Meaning, MeaningOptions, Pair, pair_of_arrays, pairs, score_images
from unet_core.evaluation.evidence import _INSTANCE_BYTES, gather
from unet_core.evaluation.meaning import Instances
from unet_core.evaluation.pairs import Channel
from unet_core.geometry import Box
from unet_core.postprocess import connected_components, remove_small, watershed_on_boundaries, watershed_on_distance
from unet_core.volumes import open_volume
from unet_core.volumes.array import ArrayVolume

SHAPE = (3, 29, 37)
REFERENCE = np.stack([partition(SHAPE[1:], seed, 6, 0.3) for seed in range(3)])
PREDICTION = alike(REFERENCE, 1)
MAP = np.stack([blur(section, seed) for seed, section in enumerate(PREDICTION)])


def stored(tmp_path: Path, name: str, values: np.ndarray, chunks: tuple[int, ...] = (2, 7, 11)) -> Path:
    folder = tmp_path / f"{name}.zarr"
    zarr.create_array(folder, data=values, chunks=chunks, config={"write_empty_chunks": True})
    return folder


def stored_pair(tmp_path: Path, prediction: np.ndarray, reference: np.ndarray, meaning: Meaning) -> Pair:
    urls = [str(stored(tmp_path, name, values)) for name, values in (("prediction", prediction), ("reference", reference))]
    return Pair("stored", open_volume(urls[0]), open_volume(urls[1]), meaning)


@pytest.mark.parametrize("block_voxels", [50, 700, 10**6])
def test_scores_of_ids_read_in_blocks_are_those_of_the_whole(
    block_voxels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "_BLOCK_VOXELS", block_voxels)
    marked = np.where(REFERENCE == 2, 200, REFERENCE).astype(np.uint16)
    pair = stored_pair(tmp_path, PREDICTION.astype(np.uint32), marked, Meaning("ids", "ids", MeaningOptions(ignore=200)))
    assert len(list(pair.blocks())) > 1 or block_voxels == 10**6
    table = score_images([pair], ["iou", "dice", "adapted_rand", "v_rand", "v_info", "voi", "seg", "pq"])
    arguments = (PREDICTION, marked, 200)
    quality, voi = metrics.panoptic_quality(*arguments), metrics.voi(*arguments)
    adapted, v_rand, v_info = metrics.adapted_rand(*arguments), metrics.v_rand(*arguments), metrics.v_info(*arguments)
    assert table.rows[0] == {
        "iou": metrics.iou(*arguments),
        "dice": metrics.dice(*arguments),
        "adapted_rand_error": adapted.error,
        "adapted_rand_precision": adapted.precision,
        "adapted_rand_recall": adapted.recall,
        "v_rand": v_rand.f_score,
        "v_rand_precision": v_rand.precision,
        "v_rand_recall": v_rand.recall,
        "v_info": v_info.f_score,
        "v_info_precision": v_info.precision,
        "v_info_recall": v_info.recall,
        "voi_split": voi.split,
        "voi_merge": voi.merge,
        "seg": metrics.seg(*arguments).score,
        "pq": quality.pq,
        "sq": quality.sq,
        "rq": quality.rq,
    }


def test_scores_of_maps_are_those_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "_BLOCK_VOXELS", 300)
    stored_map = np.round(MAP * 255).astype(np.uint8)
    options = MeaningOptions(threshold=0.4, thresholds=(0.2, 0.4, 0.7))
    pair = stored_pair(tmp_path, stored_map, REFERENCE.astype(np.uint8), Meaning("map", "mask", options))
    names = [name for name, metric in METRICS.items() if metric.needs not in ("instances", "classes", "foreground")]
    assert len(names) == 7
    levels = {"thresholds": options.thresholds}
    assert score_images([pair], names).rows[0] == pytest.approx(
        {
            "pixel_error_max_f": metrics.pixel_error_max_f(stored_map, REFERENCE, **levels),
            "pixel_error_fiji": metrics.pixel_error_fiji(stored_map, REFERENCE, threshold=0.4),
            "rand_error_2012": metrics.rand_error_2012(stored_map, REFERENCE, **levels),
            "v_rand_thinned": metrics.v_rand_thinned(stored_map, REFERENCE, **levels),
            "v_info_thinned": metrics.v_info_thinned(stored_map, REFERENCE, **levels),
            "warping_error": metrics.warping_error(stored_map, REFERENCE, threshold=0.4),
            "warping_error_splits_mergers": metrics.warping_error_splits_mergers(stored_map, REFERENCE, **levels),
        }
    )


def test_scores_of_classes_are_those_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "_BLOCK_VOXELS", 300)
    prediction, reference = (PREDICTION % 4).astype(np.uint8), (REFERENCE % 4).astype(np.uint8)
    pair = stored_pair(tmp_path, prediction, reference, Meaning("classes", "classes"))
    table = score_images([pair], ["pixel_accuracy", "mean_accuracy", "mean_iu", "frequency_weighted_iu"])
    expected = metrics.fcn_scores(prediction, reference)
    assert table.rows[0] == vars(expected)
    assert np.mean(list(table.class_iou.values())) == pytest.approx(expected.mean_iu)
    one = Pair("one", pair.prediction, pair.reference, Meaning("classes", "classes", MeaningOptions(label=2)))
    assert score_images([one], ["iou"])["iou"] == metrics.iou(prediction, reference, label=2)


@pytest.mark.parametrize("instances", ["components", "watershed", "boundary-watershed"])
def test_instances_are_those_of_postprocess(instances: str) -> None:
    options = MeaningOptions(instances=instances, depth=0.5, min_voxels=5)  # type: ignore[arg-type]
    found = score_images([pair_of_arrays("a", MAP, REFERENCE, Meaning("map", "ids", options))], ["pq"])
    mask = np.float32(0.5) < MAP
    ids = {
        "components": lambda: connected_components(mask),
        "watershed": lambda: watershed_on_distance(mask, h=0.5),
        "boundary-watershed": lambda: watershed_on_boundaries(1 - MAP, mask, h=0.5),
    }[instances]()
    assert found["pq"] == metrics.panoptic_quality(remove_small(ids, 5), REFERENCE).pq


def test_what_is_foreground_can_be_turned_round() -> None:
    cells = REFERENCE > 0
    plain = score_images([pair_of_arrays("a", cells, REFERENCE, Meaning("mask", "ids"))], ["iou", "pixel_error_fiji"])
    assert (plain["iou"], plain["pixel_error_fiji"]) == (1, 0)
    for prediction, reference, options in (
        (1 - cells.astype(np.float32), cells, MeaningOptions(invert_prediction=True)),
        (cells.astype(np.uint8) * 255, ~cells, MeaningOptions(invert_reference=True)),
    ):
        kind = "map" if prediction.dtype == np.float32 else "mask"
        turned = score_images([pair_of_arrays("a", prediction, reference, Meaning(kind, "mask", options))], ["iou"])  # type: ignore[arg-type]
        assert (turned["iou"], turned.looks_inverted) == (1, False)
    classes = Meaning("classes", "classes", MeaningOptions(invert_reference=True))
    numbers = score_images([pair_of_arrays("a", cells.astype(int), (~cells).astype(int), classes)], ["iou", "mean_iu"])
    assert (numbers["iou"], numbers["mean_iu"]) == (1, 1)
    table = score_images([pair_of_arrays("a", ~cells, cells, Meaning("mask", "mask"))], ["iou"])
    assert (table["iou"], table.looks_inverted) == (0, True)
    assert table.foreground == pytest.approx((1 - cells.mean(), cells.mean()))


def test_several_images_have_a_mean_an_interval_and_a_pool() -> None:
    images = [pair_of_arrays(f"z{z}", PREDICTION[z], REFERENCE[z], Meaning("ids", "ids")) for z in range(3)]
    table = score_images(images, ["iou", "seg", "pq", "adapted_rand"])
    assert table.names == ("z0", "z1", "z2")
    by_name = {entry.name: entry for entry in table.summary}
    each = [metrics.seg(PREDICTION[z], REFERENCE[z]) for z in range(3)]
    assert table["seg"] == by_name["seg"].mean == pytest.approx(np.mean([found.score for found in each]))
    assert by_name["seg"].pooled == pytest.approx((each[0] + each[1] + each[2]).score)
    low, high = by_name["seg"].interval or (1, 0)
    assert low <= table["seg"] <= high
    assert by_name["iou"].pooled == metrics.iou(PREDICTION, REFERENCE)
    qualities = [metrics.panoptic_quality(PREDICTION[z], REFERENCE[z]) for z in range(3)]
    assert by_name["rq"].pooled == pytest.approx((qualities[0] + qualities[1] + qualities[2]).rq)
    assert by_name["adapted_rand_error"].pooled is None
    assert [by_name[f"adapted_rand_{name}"].best for name in ("error", "precision", "recall")] == ["low", "high", "high"]


def test_images_without_objects_are_left_out_of_means_that_mean_nothing_there() -> None:
    images = [
        pair_of_arrays("full", PREDICTION, REFERENCE, Meaning("ids", "ids")),
        pair_of_arrays("empty", np.zeros((5, 7), int), np.zeros((5, 7), int), Meaning("ids", "ids")),
    ]
    table = score_images(images, ["iou", "adapted_rand", "seg", "pq"])
    assert {entry.name: entry.images for entry in table.summary} == {
        "iou": 2, "adapted_rand_error": 1, "adapted_rand_precision": 1, "adapted_rand_recall": 1, "seg": 1, "pq": 1, "sq": 1, "rq": 1,
    }  # fmt: skip
    assert table["seg"] == metrics.seg(PREDICTION, REFERENCE).score
    assert table["sq"] == metrics.panoptic_quality(PREDICTION, REFERENCE).sq


def test_sections_that_are_ignored_everywhere_are_in_no_score() -> None:
    marked = np.concatenate([REFERENCE, np.full((1, *SHAPE[1:]), 200)])
    pair = pair_of_arrays("a", np.concatenate([MAP, MAP[:1]]), marked, Meaning("map", "mask", MeaningOptions(ignore=200)))
    chosen = [name for name, metric in METRICS.items() if metric.needs not in ("classes", "instances")]
    table = score_images([pair], chosen)
    alone = score_images([pair_of_arrays("a", MAP, REFERENCE, Meaning("map", "mask"))], chosen)
    assert table.rows == alone.rows
    last = score_images(list(pair.sections())[-1:], chosen).rows[0]
    assert np.isnan(list(last.values())).all(), last


def test_sections_are_pairs_of_their_own(tmp_path: Path) -> None:
    pair = stored_pair(tmp_path, PREDICTION.astype(np.int32), REFERENCE.astype(np.int32), Meaning("ids", "ids"))
    table = score_images(pair.sections(), ["pq"])
    assert table.names == ("stored z=0", "stored z=1", "stored z=2")
    assert [row["pq"] for row in table.rows] == [metrics.panoptic_quality(PREDICTION[z], REFERENCE[z]).pq for z in range(3)]


@given(
    shape=st.tuples(*[st.integers(1, 40)] * 3),
    chunk=st.tuples(*[st.integers(1, 12)] * 3),
    limit=st.sampled_from([1, 17, 500, 5000, 10**5]),
)
def test_blocks_are_whole_chunks_where_they_fit_and_never_too_large(
    shape: tuple[int, ...], chunk: tuple[int, ...], limit: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "_BLOCK_VOXELS", limit)
        block = pairs._block_shape(shape, chunk)
    assert np.prod(block) <= limit
    chunk = tuple(min(pair) for pair in zip(chunk, shape, strict=True))
    if np.prod(chunk) <= limit:
        assert all(size % step == 0 or size == extent for size, step, extent in zip(block, chunk, shape, strict=True))


def test_what_does_not_fit_in_memory_is_refused_with_both_numbers() -> None:
    pair = pair_of_arrays("a", MAP, REFERENCE, Meaning("map", "ids"))
    with pytest.raises(MemoryBudgetError, match="need the whole image in memory.*--by-section"):
        gather(pair, {"instances"}, memory_bytes=150 * MAP.size - 1)
    with pytest.raises(MemoryBudgetError, match="whole sections need"):
        gather(pair, {"warping"}, memory_bytes=1000)
    gather(pair, {"foreground", "pixels"}, memory_bytes=0)


@pytest.mark.parametrize("instances", ["components", "watershed", "boundary-watershed", "given"])
def test_instances_need_no_more_memory_than_is_planned_for_them(instances: Instances) -> None:
    shape = (30, 64, 70)
    values = np.random.default_rng(0).random(shape, dtype=np.float32)
    reference = np.arange(values.size, dtype=np.uint64).reshape(shape)  # an id a voxel
    options = MeaningOptions(instances=instances, min_voxels=2)
    meaning = Meaning("ids" if instances == "given" else "map", "ids", options)
    pair = pair_of_arrays("a", reference if instances == "given" else values, reference, meaning)
    tracemalloc.start()
    gather(pair, {"instances"})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= _INSTANCE_BYTES * values.size


def test_one_channel_does_not_keep_the_others_in_memory() -> None:
    image = ArrayVolume(np.zeros((9, 17, 33), np.float32), axes="cyx", url="a")
    read = Channel(image, 5).read(Box((2, 3), (11, 20)))
    assert read.shape == (1, 9, 17)
    assert read.base is None


def test_contradictions_are_refused() -> None:
    for arguments, words in (
        (("ids", "mask", MeaningOptions(invert_prediction=True)), "cannot be inverted"),
        (("mask", "mask", MeaningOptions(instances="given")), "are not given"),
        (("mask", "mask", MeaningOptions(instances="boundary-watershed")), "needs a probability map"),
        (("ids", "mask", MeaningOptions(instances="watershed")), "leave 'watershed' away"),
    ):
        with pytest.raises(InputError, match=words):
            Meaning(*arguments)  # type: ignore[arg-type]
    for values, words in (
        ({"threshold": 1.0}, "0 to below 1"),
        ({"threshold": float("nan")}, "0 to below 1"),
        ({"thresholds": (0.5, 0.2)}, "ascending"),
        ({"depth": 0.0}, "more than 0"),
        ({"connectivity": 4}, "Connectivity is 4"),
    ):
        with pytest.raises(InputError, match=words):
            MeaningOptions(**values)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"\(3, 4\) voxels.*\(4, 3\)"):
        pair_of_arrays("a", np.zeros((3, 4)), np.zeros((4, 3)), Meaning("map", "mask"))
    with pytest.raises(InputError, match="no image to score"):
        score_images([], ["iou"])
    with pytest.raises(InputError, match="no metric 'diec'. Did you mean dice"):
        score_images([], ["diec"])


def test_reading_a_section_reads_its_box_only() -> None:
    section = list(pair_of_arrays("a", PREDICTION, REFERENCE, Meaning("ids", "ids")).sections())[2]
    np.testing.assert_array_equal(section.read(Box((3, 4), (9, 20)))[1], REFERENCE[2, 3:9, 4:20])

"""SEG against py-ctcmetrics, PQ against torchmetrics, both by hand at their limits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from ctc_metrics.metrics import seg as seg_of_the_challenge
from ctc_metrics.utils.representations import match
from torchmetrics.detection import PanopticQuality

from tests.unet_core.metrics.partitions import SHAPES, alike, partition
from unet_core.metrics import panoptic_quality, seg


@pytest.mark.parametrize("shape", SHAPES)
def test_seg_is_that_of_the_cell_tracking_challenge_over_all_frames(shape: tuple[int, ...], tmp_path: Path) -> None:
    matches, own = [], []
    for frame, segments in enumerate((5, 9, 21)):
        reference = partition(shape, frame, segments)
        prediction = alike(reference, frame)
        paths = [str(tmp_path / f"{name}{frame}.tif") for name in ("reference", "prediction")]
        for path, ids in zip(paths, (reference, prediction), strict=True):
            tifffile.imwrite(path, ids.astype(np.uint16))
        matches.append(match(*paths))
        own.append(seg(prediction, reference))
    expected = seg_of_the_challenge([entry[0] for entry in matches], [entry[4] for entry in matches])
    assert 0.2 < expected < 0.95
    assert (own[0] + own[1] + own[2]).score == pytest.approx(expected)
    assert np.mean([entry.score for entry in own]) != pytest.approx(expected)  # not the mean of the frames' means


@pytest.mark.parametrize("shape", SHAPES)
def test_pq_is_that_of_torchmetrics(shape: tuple[int, ...]) -> None:
    reference = partition(shape, 7, 17)
    prediction = alike(reference, 8)
    as_pairs = [torch.from_numpy(np.stack([(ids > 0).astype(int), ids], -1))[None] for ids in (prediction, reference)]
    if len(shape) == 3:  # torchmetrics takes any number of spatial axes
        assert as_pairs[0].ndim == 5
    quality = PanopticQuality(things={1}, stuffs={0}, return_sq_and_rq=True, return_per_class=True)
    expected = quality(*as_pairs)[0].tolist()  # the things, then the stuff
    found = panoptic_quality(prediction, reference)
    assert min(found.true_positives, found.false_positives, found.false_negatives) > 0
    assert [found.pq, found.sq, found.rq] == pytest.approx(expected)
    assert found.pq == pytest.approx(found.sq * found.rq)


def test_half_an_overlap_is_no_match() -> None:
    reference = np.array([1, 1, 1, 1, 0, 2, 2, 2, 2])
    exactly_half = np.array([5, 5, 0, 0, 0, 6, 6, 6, 0])
    assert seg(exactly_half, reference).iou_sum == 3 / 4
    quality = panoptic_quality(exactly_half, reference)
    assert (quality.true_positives, quality.false_positives, quality.false_negatives) == (1, 1, 1)
    # Three of four covered, but by an object that covers as much beside: SEG takes it, PQ does not.
    large = np.array([7, 7, 7, 7, 7, 7, 7, 7, 0])
    assert seg(large, np.array([1, 1, 1, 0, 0, 0, 0, 0, 0])).score == 3 / 8
    assert panoptic_quality(large, np.array([1, 1, 1, 0, 0, 0, 0, 0, 0])).pq == 0


def test_objects_too_many_lower_pq_and_not_seg() -> None:
    reference = np.array([1, 1, 0, 0, 0])
    assert seg(np.array([1, 1, 0, 2, 3]), reference).score == 1
    assert panoptic_quality(np.array([1, 1, 0, 2, 3]), reference).pq == 1 / 2
    assert np.isnan(seg(reference, np.zeros(5, int)).score)
    assert panoptic_quality(reference, np.zeros(5, int)).pq == 0
    assert panoptic_quality(reference, np.zeros(5, int)).sq == 0
    nothing = panoptic_quality(np.zeros(5, int), np.zeros(5, int))
    assert np.isnan([nothing.pq, nothing.sq, nothing.rq]).all()

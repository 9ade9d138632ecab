"""Where a prediction and its reference differ, voxel by voxel: read in boxes, with the objects that fit each other. Knows no page."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.evaluation import Evidence, Meaning, Pair
from unet_core.geometry import Box
from unet_core.metrics.contingency import Contingency
from unet_core.volumes.array import ArrayVolume


@dataclass(frozen=True)
class Differences:
    """A box of a pair; all arrays have its shape.

    Args:
        false_positive: foreground of the prediction where the reference has none.
        false_negative: the other way round.
        confused: foreground of both, but another class, or an object that is merged or split.
        ignored: what counts nowhere.
        prediction: class numbers, ids or a mask, 0 on background.
        reference: likewise.
    """

    false_positive: NDArray[np.bool_]
    false_negative: NDArray[np.bool_]
    confused: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    prediction: NDArray[Any]
    reference: NDArray[Any]

    @property
    def wrong(self) -> NDArray[np.bool_]:
        return self.false_positive | self.false_negative | self.confused

    @property
    def right(self) -> NDArray[np.bool_]:
        """Foreground of both, and the same."""
        return (self.reference != 0) & ~self.wrong & ~self.ignored


class Compared:
    """A pair whose differences are read in boxes.

    Args:
        pair: of images.
        evidence: that was counted of it.
        by_object: whether objects are compared: those of the whole image are made where they are not given, in memory, as their
            scores do.
    """

    def __init__(self, pair: Pair, evidence: Evidence, by_object: bool) -> None:
        self.pair = pair
        self.by_object = by_object
        self._fitting: tuple[NDArray[np.uint64], NDArray[np.uint64]] | None = None
        if by_object:
            self.pair = _of_objects(pair)
            self._fitting = fitting_objects(evidence.instances)

    def read(self, box: Box) -> Differences:
        meaning = self.pair.meaning
        predicted, truth = self.pair.read(box)
        inside, found = meaning.reference_foreground(truth), meaning.predicted_foreground(predicted)
        ignored = inside < 0
        both = found & (inside > 0)
        if self._fitting is not None:
            confused = both & ~_fits(predicted, truth, *self._fitting)
        elif meaning.has_classes:
            confused = both & (predicted != truth)
        else:
            confused = np.zeros_like(both)
        shown = (predicted, truth) if self.by_object or meaning.has_classes else (found, inside > 0)
        return Differences(
            found & (inside == 0),
            ~found & (inside > 0),
            confused,
            ignored,
            np.where(found, shown[0], 0),
            np.where(inside > 0, shown[1], 0),
        )


def fitting_objects(table: Contingency) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Pairs of objects of which each is the one that the other shares most voxels with: ids of the reference and of the prediction."""
    objects = (table.reference != 0) & (table.prediction != 0)
    reference, prediction, counts = table.reference[objects], table.prediction[objects], table.counts[objects]
    best = _is_most(reference, counts) & _is_most(prediction, counts)
    return reference[best], prediction[best]


def _is_most(ids: NDArray[np.uint64], counts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which pairs have the most voxels of all with the same id; one of several that have."""
    order = np.lexsort((-counts, ids))
    first = np.ones(len(ids), dtype=bool)
    first[1:] = ids[order][1:] != ids[order][:-1]
    result = np.zeros(len(ids), dtype=bool)
    result[order[first]] = True
    return result


def _fits(
    predicted: NDArray[Any], truth: NDArray[Any], references: NDArray[np.uint64], predictions: NDArray[np.uint64]
) -> NDArray[np.bool_]:
    """Whether each voxel's two objects fit each other."""
    order = np.argsort(references)
    sorted_references = references[order]
    unsigned = np.where(truth > 0, truth, 0).astype(np.uint64)
    place = np.searchsorted(sorted_references, unsigned)
    place = np.minimum(place, max(0, len(sorted_references) - 1))
    if not len(sorted_references):
        return np.zeros(truth.shape, dtype=bool)
    known = sorted_references[place] == unsigned
    return known & (predictions[order][place] == predicted.astype(np.uint64))


def _of_objects(pair: Pair) -> Pair:
    """The same with ids in both."""
    meaning = pair.meaning
    if meaning.ids_are_given:
        return pair
    predicted, truth = pair.read(Box.from_shape(pair.shape))
    voxel_size = pair.prediction.voxel_size or pair.reference.voxel_size
    ids, references = meaning.predicted_instances(predicted, voxel_size), meaning.reference_instances(truth)
    axes = "zyx"[-len(pair.shape) :]
    ignore = None if not meaning.is_ignored(truth).any() else -1
    ignored = np.where(meaning.is_ignored(truth), -1, np.asarray(references, dtype=np.int64))
    options = replace(
        meaning.options, instances=None, ignore=ignore, label=None, invert_prediction=False, invert_reference=False, min_voxels=0
    )
    return replace(
        pair,
        prediction=ArrayVolume(np.asarray(ids), axes, pair.prediction.voxel_size, pair.prediction.url),
        reference=ArrayVolume(ignored, axes, pair.reference.voxel_size, pair.reference.url),
        meaning=Meaning("ids", "ids", options),
    )

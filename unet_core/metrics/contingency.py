"""How often each pair of a predicted and a reference number meets: what most scores are computed from, block by block.

Nothing here knows of scores or storage.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unet_core.errors import InputError

_FEW = 256  # numbers up to which a table of all pairs is small


def check_same_shape(prediction: NDArray[Any], reference: NDArray[Any]) -> None:
    """Refuse arrays that do not cover the same voxels.

    Raises:
        InputError: naming both shapes.
    """
    if prediction.shape != reference.shape:
        raise InputError(f"Prediction has shape {prediction.shape} and reference {reference.shape}; they must be equal.")


@dataclass(frozen=True)
class Contingency:
    """Counts n_ij of voxels with number j in the prediction and i in the reference; only pairs that occur.

        prediction   1 1 2 2        reference   1 1 3        prediction  1 2 2
        reference    1 1 1 3                                 counts      2 1 1

    Numbers are classes or instances, 0 the background. Tables of disjoint parts of an image add up to the table of the
    whole, whatever the parts, so that scores do not depend on how an image is cut.

    Args:
        reference: of each pair; pairs are in ascending order of the reference, then of the prediction.
        prediction: of each pair.
        counts: voxels of each pair, at least 1.
    """

    reference: NDArray[np.uint64]  # (P,)
    prediction: NDArray[np.uint64]  # (P,)
    counts: NDArray[np.int64]  # (P,)

    @classmethod
    def of(cls, prediction: ArrayLike, reference: ArrayLike, ignore: int | None = None) -> Contingency:
        """Count the pairs of two arrays of one shape, of any number of dimensions.

        Args:
            prediction: bool or integers from 0, up to 2^64 - 1.
            reference: likewise.
            ignore: value of the reference whose voxels are left out; may be negative.

        Raises:
            InputError: if shapes differ, or a value is no whole number from 0.
        """
        predicted, truth = np.asarray(prediction), np.asarray(reference)
        check_same_shape(predicted, truth)
        predicted, truth = predicted.ravel(), truth.ravel()
        if ignore is not None:
            kept = truth != ignore
            if not kept.all():
                predicted, truth = predicted[kept], truth[kept]
        predicted, truth = _numbers(predicted, "prediction"), _numbers(truth, "reference")
        if not predicted.size:
            return cls._sorted(truth.astype(np.uint64), predicted.astype(np.uint64), np.zeros(0, np.int64))
        if max(predicted.max(), truth.max()) < _FEW:  # classes: counted without sorting, however noisy they are
            counts = np.bincount(truth.astype(np.intp) * _FEW + predicted.astype(np.intp))
            keys = np.flatnonzero(counts)
            return cls((keys // _FEW).astype(np.uint64), (keys % _FEW).astype(np.uint64), counts[keys])
        # Instances are constant along most of a row, so runs of equal pairs are sorted, not voxels.
        changes = (predicted[1:] != predicted[:-1]) | (truth[1:] != truth[:-1])
        starts = np.concatenate(([0], np.flatnonzero(changes) + 1))
        lengths = np.diff(starts, append=predicted.size)
        return cls._sorted(truth[starts].astype(np.uint64), predicted[starts].astype(np.uint64), lengths)

    @classmethod
    def merge(cls, tables: Iterable[Contingency]) -> Contingency:
        """The table of several disjoint parts of an image together."""
        parts = list(tables)
        empty = Contingency(np.zeros(0, np.uint64), np.zeros(0, np.uint64), np.zeros(0, np.int64))
        return cls._sorted(
            np.concatenate([empty.reference, *(part.reference for part in parts)]),
            np.concatenate([empty.prediction, *(part.prediction for part in parts)]),
            np.concatenate([empty.counts, *(part.counts for part in parts)]),
        )

    @classmethod
    def _sorted(cls, reference: NDArray[np.uint64], prediction: NDArray[np.uint64], counts: NDArray[np.int64]) -> Contingency:
        if not counts.size:
            return cls(reference, prediction, counts)
        order = _order(reference, prediction)
        reference, prediction, counts = reference[order], prediction[order], counts[order]
        is_first = np.concatenate(([True], (reference[1:] != reference[:-1]) | (prediction[1:] != prediction[:-1])))
        firsts = np.flatnonzero(is_first)
        return cls(reference[firsts], prediction[firsts], np.add.reduceat(counts, firsts).astype(np.int64))

    @property
    def voxels(self) -> int:
        return int(self.counts.sum())

    @cached_property
    def reference_sums(self) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.intp]]:
        """Numbers of the reference, their voxels, and for each pair where its number stands among them."""
        return _sums(self.reference, self.counts)

    @cached_property
    def prediction_sums(self) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.intp]]:
        """Numbers of the prediction, their voxels, and for each pair where its number stands among them."""
        return _sums(self.prediction, self.counts)

    def on_reference_foreground(self) -> Contingency:
        """The same without the voxels that are background (0) in the reference."""
        kept = self.reference != 0
        return Contingency(self.reference[kept], self.prediction[kept], self.counts[kept])

    def count(self, prediction: int | None, reference: int | None) -> int:
        """Voxels that have these numbers; None for any but 0."""
        chosen = self.prediction != 0 if prediction is None else self.prediction == prediction
        chosen = chosen & (self.reference != 0 if reference is None else self.reference == reference)
        return int(self.counts[chosen].sum())


def _order(reference: NDArray[np.uint64], prediction: NDArray[np.uint64]) -> NDArray[np.intp]:
    limit = np.uint64(1 << 32)
    if reference.max() < limit and prediction.max() < limit:
        return np.argsort((reference << np.uint64(32)) | prediction)  # one key sorts in half the time of two
    return np.lexsort((prediction, reference))


def _sums(
    numbers: NDArray[np.uint64], counts: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.intp]]:
    names, positions = np.unique(numbers, return_inverse=True)
    sums = np.zeros(len(names), dtype=np.int64)
    np.add.at(sums, positions, counts)
    return names, sums, positions


def _numbers(values: NDArray[Any], what: str) -> NDArray[Any]:
    if values.dtype.kind == "b":
        return values.view(np.uint8)
    if values.dtype.kind not in "iu":
        raise InputError(f"The {what} is of type {values.dtype}; classes and instances are whole numbers. Threshold a map first.")
    if values.dtype.kind == "i" and values.size and values.min() < 0:
        raise InputError(
            f"The {what} holds {values.min()}; numbers begin at 0. If it marks what is not annotated, pass it as ignore."
        )
    return values

"""Scores of a probability map at thresholds: the pixel errors and Rand scores of the ISBI challenges.

A map is ``bool``, ``uint8`` (0..255 stands for 0..1) or floating-point in 0..1, high on foreground. Of a reference, anything but 0 is
foreground (cells, not membranes, in the challenges). Both are one section (Y, X) or a stack (Z, Y, X) of sections, each scored
by itself. Foreground of a map at threshold t is map > t.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from skimage.segmentation import watershed

from unet_core.errors import InputError
from unet_core.metrics.contingency import Contingency, check_same_shape
from unet_core.metrics.partitions import Information, PairCounts, rand_2012_of, v_info_of, v_rand_of
from unet_core.postprocess import connected_components

THRESHOLDS = tuple(step / 10 for step in range(10))  # 0 to 0.9, as in the challenges
Average = Literal["micro", "macro"]


def as_map(values: ArrayLike) -> NDArray[np.float32]:
    """A map as probabilities in 0..1.

    Raises:
        InputError: if the values are no probabilities.
    """
    array = np.asarray(values)
    if array.dtype == np.uint8:
        return array.astype(np.float32) / np.float32(255)
    if array.dtype.kind not in "bf":
        raise InputError(f"A probability map of type {array.dtype}; it is uint8 (0 to 255), or floating-point in 0 to 1.")
    found = array.astype(np.float32)
    if found.size and not (found.min() >= 0 and found.max() <= 1):  # NaN fails too
        raise InputError(f"A probability map with values from {found.min():g} to {found.max():g}; they must lie in 0 to 1.")
    return found


@dataclass(frozen=True)
class PixelCounts:
    """Right and wrong pixels at each threshold; those of several parts of an image add up.

    Args:
        true_positives: foreground in both, one number a threshold.
        false_positives: foreground in the map only.
        false_negatives: foreground in the reference only.
        pixels: that count.
    """

    true_positives: NDArray[np.int64]
    false_positives: NDArray[np.int64]
    false_negatives: NDArray[np.int64]
    pixels: int

    @classmethod
    def of(
        cls, prediction: ArrayLike, reference: ArrayLike, thresholds: Sequence[float], ignore: int | None = None
    ) -> PixelCounts:
        """Count the pixels of two arrays of one shape, at ascending thresholds."""
        values, truth, counted = _checked(prediction, reference, ignore)
        # A pixel is foreground at the thresholds below its value.
        below = np.searchsorted(_levels(thresholds), values[counted], side="left")
        inside = truth[counted]
        cells = np.bincount(below + (len(thresholds) + 1) * inside, minlength=2 * len(thresholds) + 2).reshape(2, -1)
        above = cells[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]  # pixels with more than k thresholds below them
        return cls(above[1], above[0], cells[1].sum() - above[1], int(counted.sum()))

    def __add__(self, other: PixelCounts) -> PixelCounts:
        return PixelCounts(
            self.true_positives + other.true_positives,
            self.false_positives + other.false_positives,
            self.false_negatives + other.false_negatives,
            self.pixels + other.pixels,
        )

    @property
    def max_f_error(self) -> float:
        """1 - the largest F-score; 0 if neither map nor reference has foreground, NaN without pixels."""
        if not self.pixels:
            return float("nan")
        wrong = self.false_positives + self.false_negatives
        total = 2 * self.true_positives + wrong
        return float(1 - np.max(np.where(total > 0, 2 * self.true_positives / np.maximum(total, 1), 1.0)))

    @property
    def squared_difference(self) -> float:
        """Mean squared difference of the two binary images, of the first threshold; NaN without pixels."""
        return float((self.false_positives[0] + self.false_negatives[0]) / self.pixels) if self.pixels else float("nan")


def pixel_error_max_f(
    prediction: ArrayLike, reference: ArrayLike, ignore: int | None = None, thresholds: Sequence[float] = THRESHOLDS
) -> float:
    """Pixel error as on the page of the ISBI 2012 challenge: 1 - max over thresholds of the F-score of foreground pixels.

    ``pixel_error_fiji`` is another quantity of the same name.

    Args:
        prediction: map.
        reference: of the same shape.
        ignore: value of the reference whose pixels are left out.
        thresholds: ascending.
    """
    return PixelCounts.of(prediction, reference, thresholds, ignore).max_f_error


def pixel_error_fiji(prediction: ArrayLike, reference: ArrayLike, ignore: int | None = None, threshold: float = 0.5) -> float:
    """Pixel error as in Fiji's Trainable Segmentation: mean of (a - b)^2 of the two binary images, the share of wrong pixels.

    ``pixel_error_max_f`` is another quantity of the same name.
    """
    return PixelCounts.of(prediction, reference, (threshold,), ignore).squared_difference


def rand_error_2012(
    prediction: ArrayLike,
    reference: ArrayLike,
    ignore: int | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
    average: Average = "micro",
) -> float:
    """Rand error of ISBI 2012: 1 - max over thresholds of the F-score of ``rand_2012`` on 4-connected components, unthinned.

    Args:
        prediction: map.
        reference: of the same shape.
        ignore: value of the reference whose pixels are left out.
        thresholds: at which the map is cut.
        average: ``micro`` adds up the pairs of all sections (as Fiji does here), ``macro`` takes the mean of their F-scores.
    """
    return 1 - best_over_thresholds(
        pair_tables(prediction, reference, ignore, thresholds, thin=False), lambda table: rand_2012_of(table), average
    )


def v_rand_thinned(
    prediction: ArrayLike,
    reference: ArrayLike,
    ignore: int | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
    average: Average = "macro",
) -> float:
    """V_rand of the ISBI challenge since 2015: max over thresholds, borders of the map thinned to one pixel. Arguments as above."""
    return best_over_thresholds(
        pair_tables(prediction, reference, ignore, thresholds, thin=True), lambda table: v_rand_of(table), average
    )


def v_info_thinned(
    prediction: ArrayLike,
    reference: ArrayLike,
    ignore: int | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
    average: Average = "macro",
) -> float:
    """V_info of the ISBI challenge since 2015: max over thresholds, borders of the map thinned to one pixel. Arguments as above."""
    return best_over_thresholds(
        pair_tables(prediction, reference, ignore, thresholds, thin=True), lambda table: v_info_of(table), average
    )


def pair_tables(
    prediction: ArrayLike, reference: ArrayLike, ignore: int | None, thresholds: Sequence[float], *, thin: bool
) -> list[list[Contingency]]:
    """For each section and threshold, the contingency table of 4-connected components of map and reference."""
    values, truth, counted = _checked(prediction, reference, ignore)
    tables = []
    for section, inside, kept in zip(_sections(values), _sections(truth), _sections(counted), strict=True):
        objects = np.where(kept, connected_components(inside), -1)
        tables.append(
            [
                Contingency.of(thin_borders(section > level) if thin else connected_components(section > level), objects, -1)
                for level in _levels(thresholds)
            ]
        )
    return tables


def thin_borders(foreground: NDArray[np.bool_]) -> NDArray[np.int64]:
    """4-connected components of a section (Y, X), grown until only lines of one pixel lie between them.

    Where there is no foreground at all, nothing grows.
    """
    seeds = connected_components(foreground)
    if not seeds.any():
        return seeds
    grown: NDArray[np.int64] = watershed(~foreground, seeds, connectivity=1, watershed_line=True).astype(np.int64)
    return grown


def best_over_thresholds(
    tables: Iterable[Sequence[Contingency]],
    measure: Callable[[Contingency], PairCounts | Information],
    average: Average,
) -> float:
    """The largest F-score over the thresholds, of tables one a section and threshold.

    Sections without foreground in the reference have no pairs and are left out; NaN if none is left.
    """
    sections = [[measure(table) for table in row] for row in tables if row[0].on_reference_foreground().voxels]
    if not sections:
        return float("nan")
    if average == "macro":
        return float(np.max(np.mean([[counts.score.f_score for counts in row] for row in sections], axis=0)))
    return max(_total(column).score.f_score for column in zip(*sections, strict=True))


def _total(parts: Sequence[Any]) -> Any:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _levels(thresholds: Sequence[float]) -> NDArray[np.float32]:
    levels = np.asarray(thresholds, dtype=np.float32)
    if not levels.size or (np.diff(levels) <= 0).any() or levels[0] < 0 or levels[-1] >= 1:
        raise InputError(f"Thresholds are {', '.join(f'{value:g}' for value in thresholds)}; give ascending ones, 0 to below 1.")
    return levels


def _checked(
    prediction: ArrayLike, reference: ArrayLike, ignore: int | None
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
    """Probabilities, foreground of the reference, and which pixels count."""
    values, truth = as_map(prediction), np.asarray(reference)
    check_same_shape(values, truth)
    counted = np.ones(truth.shape, dtype=bool) if ignore is None else truth != ignore
    return values, (truth != 0) & counted, counted


def _sections(array: NDArray[Any]) -> NDArray[Any]:
    if array.ndim not in (2, 3):
        raise InputError(f"An array of {array.ndim} dimensions; sections are (Y, X), stacks of them (Z, Y, X).")
    return array if array.ndim == 3 else array[None]

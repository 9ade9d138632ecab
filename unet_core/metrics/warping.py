"""Warping error: what is wrong with the topology of a segmentation, and no more than that (2D, section by section).

Jain et al. 2010 (CVPR, "Boundary learning by optimization with topological constraints"). The reference is changed towards the
prediction one pixel at a time, only where that changes no topology (simple points: foreground 4-connected, background
8-connected); mismatches that are left are errors of topology: objects joined, divided, lost or made up, holes. An outline
that is displaced costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from unet_core.metrics.maps import THRESHOLDS, _checked, _levels, _sections
from unet_core.postprocess import connected_components

# Neighbours of a pixel, clockwise from the upper left: bit k of a neighbourhood's code.
_RING = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))
_RADIUS = 20  # pixels around a mismatch in which a removal may divide an object, as in the challenge


@dataclass(frozen=True)
class Warped:
    """A section's reference after warping, and what is still wrong.

    Args:
        reference: bool (Y, X), as near to the prediction as its topology allows.
        mismatches: bool (Y, X).
    """

    reference: NDArray[np.bool_]
    mismatches: NDArray[np.bool_]


def warping_error(prediction: ArrayLike, reference: ArrayLike, ignore: int | None = None, threshold: float = 0.5) -> float:
    """Pixels that differ after warping, as a share of the section; mean over sections, NaN if all are ignored.

    Args:
        prediction: map, (Y, X) or (Z, Y, X): bool, uint8 or floating-point in 0..1, high on foreground.
        reference: of the same shape; anything but 0 is foreground.
        ignore: value of the reference whose pixels are background, never changed and never wrong; sections of nothing else are
            left out.
        threshold: foreground of the map is above it.
    """
    sections = warp_sections(prediction, reference, threshold, ignore)
    return mean_of_sections([float(np.mean(section.mismatches)) for section in sections])


def warping_error_splits_mergers(
    prediction: ArrayLike,
    reference: ArrayLike,
    ignore: int | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
) -> float:
    """The number of the ISBI 2012 challenge: of what differs after warping, only pixels that split or merge objects count.

    The smallest over the thresholds of their share, mean over sections. Arguments as of ``warping_error``.
    """
    return min(
        mean_of_sections(
            [float(np.mean(splits_and_mergers(section))) for section in warp_sections(prediction, reference, level, ignore)]
        )
        for level in thresholds
    )


def mean_of_sections(shares: Sequence[float]) -> float:
    """Their mean; NaN of none."""
    return float(np.mean(shares)) if shares else float("nan")


def warp_sections(prediction: ArrayLike, reference: ArrayLike, threshold: float, ignore: int | None = None) -> list[Warped]:
    """Warp the reference towards the prediction, section by section; sections that are ignored everywhere are left out."""
    values, truth, counted = _checked(prediction, reference, ignore)
    level = float(_levels((threshold,))[0])
    stacks = (_sections(values), _sections(truth), _sections(counted))
    return [_warp(*section, level) for section in zip(*stacks, strict=True) if section[2].any()]


def _warp(values: NDArray[np.float32], truth: NDArray[np.bool_], counted: NDArray[np.bool_], level: float) -> Warped:
    # Lists of a flat, padded section: Python reads single elements of them several times faster than of arrays.
    width = values.shape[1] + 2
    source = np.pad(truth, 1).ravel().astype(np.uint8)
    target = np.pad(values > level, 1).ravel().astype(np.uint8)
    may_change = np.pad(counted, 1).ravel()
    certainty = np.abs(np.pad(values, 1).ravel() - np.float32(level))
    wrong = np.flatnonzero((source != target) & may_change)
    # From the most to the least certain pixel; the order of equal ones is that of the scan.
    left = wrong[np.argsort(-certainty[wrong], kind="stable")].tolist()
    pixels, simple = source.tolist(), simple_points()
    a, b, c, d, e, f, g, h = (row * width + column for row, column in _RING)
    while left:
        still: list[int] = []
        for at in left:
            code = (
                pixels[at + a]
                | pixels[at + b] << 1
                | pixels[at + c] << 2
                | pixels[at + d] << 3
                | pixels[at + e] << 4
                | pixels[at + f] << 5
                | pixels[at + g] << 6
                | pixels[at + h] << 7
            )
            if simple[code]:
                pixels[at] ^= 1
            else:
                still.append(at)
        if len(still) == len(left):
            break
        left = still
    shape = (values.shape[0] + 2, width)
    mismatches = np.zeros(shape, dtype=bool)
    mismatches.ravel()[left] = True
    warped = np.array(pixels, dtype=bool).reshape(shape)
    return Warped(warped[1:-1, 1:-1], mismatches[1:-1, 1:-1])


@cache
def simple_points() -> tuple[bool, ...]:
    """For each code of 8 neighbours (bit k is neighbour k of a ring that begins at the upper left), whether the pixel is simple.

    It is if its 8 neighbours hold one 4-connected part of foreground that touches one of the 4 nearest of them, and one
    8-connected part of background that touches the pixel (Bertrand and Malandain 1994).
    """
    return tuple(_is_simple(code) for code in range(256))


def _is_simple(code: int) -> bool:
    ring = [bool(code >> place & 1) for place in range(8)]
    nearest = (1, 3, 5, 7)
    # Along the ring, neighbours of odd place are the 4 nearest. Foreground steps along the ring only; background may also
    # step from one nearest neighbour to the next, across the corner between them.
    return _parts(ring, False, nearest) == 1 and _parts([not value for value in ring], True, tuple(range(8))) == 1


def _parts(ring: list[bool], across_corners: bool, counted: tuple[int, ...]) -> int:
    part = list(range(8))
    steps = [(place, (place + 1) % 8) for place in range(8)]
    if across_corners:
        steps += [(place, (place + 2) % 8) for place in (1, 3, 5, 7)]
    for _ in range(8):
        for one, other in steps:
            if ring[one] and ring[other]:
                part[one] = part[other] = min(part[one], part[other])
    return len({part[place] for place in counted if ring[place]})


def splits_and_mergers(warped: Warped) -> NDArray[np.bool_]:
    """Which mismatches of a warped section would merge or split objects of the reference if they were changed too.

    A background pixel merges if its 8 neighbours belong to several objects. A foreground pixel splits if they do, or if they
    belong to several objects once it is removed, seen in the 41 x 41 pixels around it (as in the challenge).
    """
    found = np.zeros_like(warped.mismatches)
    objects = np.pad(connected_components(warped.reference), 1)
    pixels = np.pad(warped.reference, _RADIUS)
    for row, column in np.argwhere(warped.mismatches):
        around = objects[row : row + 3, column : column + 3]
        if _object_count(around) > 1:
            found[row, column] = True
        elif warped.reference[row, column]:
            near = pixels[row : row + 2 * _RADIUS + 1, column : column + 2 * _RADIUS + 1].copy()
            near[_RADIUS, _RADIUS] = False
            parts, _ = ndimage.label(near)  # 4-connected
            found[row, column] = _object_count(parts[_RADIUS - 1 : _RADIUS + 2, _RADIUS - 1 : _RADIUS + 2]) > 1
    return found


def _object_count(ids: NDArray[Any]) -> int:
    """Different objects among the neighbours of the middle of (3, 3) ids."""
    return len(set(ids.ravel().tolist()[:4] + ids.ravel().tolist()[5:]) - {0})

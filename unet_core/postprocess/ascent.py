"""Which top every voxel's steepest way up leads to, and the passes between the hills so found. Arrays only, no blocks and no storage.

Of two equal heights the voxel that a scan meets first counts as higher, so that no two are equal, every way is told, and the hills
depend on nothing but the heights. (The drop of water of Cousty et al. 2009, upside down.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import InputError
from unet_core.geometry import Shape
from unet_core.postprocess.merging import Highest
from unet_core.postprocess.neighbours import both_ends, flat_step, steps_around, steps_forward

_LOW_HALF = np.uint64(0xFFFFFFFF)


class Cut(NamedTuple):
    """Where an array was cut out of a larger one: 1 for each axis at whose first, or last, voxels more follow; 0 for the others."""

    before: Shape
    after: Shape


@dataclass(frozen=True)
class Hills:
    """A landscape cut into hills, numbered from 1.

    Args:
        of: number of each voxel's hill, of the shape of the landscape; 0 on background.
        tops: height of the top of hill 0 (none), 1, 2, ..
        is_open: whether a hill may go on beyond the array, so that its top and its passes are not all known.
    """

    of: NDArray[np.int32]
    tops: NDArray[np.float32]
    is_open: NDArray[np.bool_]


def climb(labels: NDArray[np.uint8], heights: NDArray[np.float32], connectivity: int, cut: Cut | None = None) -> Hills:
    """Give every voxel to the top that it reaches by always going on to its highest neighbour of the same label.

    Args:
        labels: 0 is background, which belongs to no hill.
        heights: of the same shape, finite.
        connectivity: how many axes a step may change.
        cut: ends of the array beyond which the landscape goes on; voxels there are hills by themselves.
    """
    cut = cut or Cut((0,) * labels.ndim, (0,) * labels.ndim)
    ahead = _highest_neighbours(labels, heights, connectivity)
    alone = _near(labels, cut, 1)
    ahead[alone] = alone
    inside = np.flatnonzero(labels).astype(np.int32)
    tops = inside[ahead[inside] == inside]
    while True:
        beyond = ahead[ahead[inside]]
        if np.array_equal(beyond, ahead[inside]):
            break
        ahead[inside] = beyond
    numbers = np.zeros(labels.size, dtype=np.int32)
    numbers[tops] = np.arange(1, len(tops) + 1, dtype=np.int32)
    of = np.zeros(labels.size, dtype=np.int32)
    of[inside] = numbers[beyond]
    is_open = np.zeros(len(tops) + 1, dtype=bool)
    # Where a voxel alone really leads is not known: to the hill beside it perhaps, which then has passes beyond the array.
    is_open[of[_near(labels, cut, 2)]] = True
    heights_of_tops = np.concatenate(([np.float32(-np.inf)], heights.ravel()[tops])).astype(np.float32)
    return Hills(of.reshape(labels.shape), heights_of_tops, is_open)


def _near(labels: NDArray[np.uint8], cut: Cut, distance: int) -> NDArray[np.int32]:
    """Places in a scan of the foreground voxels that are less than ``distance`` from where the array was cut."""
    near = labels > 0
    near[tuple(slice(distance * first, size - distance * last) for first, last, size in zip(*cut, labels.shape, strict=True))] = (
        False
    )
    return np.flatnonzero(near).astype(np.int32)


def _highest_neighbours(labels: NDArray[np.uint8], heights: NDArray[np.float32], connectivity: int) -> NDArray[np.int32]:
    """Position in a scan of each voxel's highest neighbour, or of itself if it is higher; flat."""
    shape = labels.shape
    places = np.arange(labels.size, dtype=np.int32).reshape(shape)
    highest = np.full(shape, -np.inf, dtype=np.float32)
    ahead = np.zeros(shape, dtype=np.int32)
    for step in steps_around(labels.ndim, connectivity):  # in the order of a scan: among equals the first stays
        here, there = both_ends(shape, step)
        is_higher = heights[there] > highest[here]
        if any(step):
            is_higher &= labels[there] == labels[here]
        np.copyto(highest[here], heights[there], where=is_higher)
        np.copyto(ahead[here], places[there], where=is_higher)
    return ahead.ravel()


class VoxelPasses:
    """The passes between hills: pairs of neighbouring voxels of two hills with the same label; the lower one is the pass.

    Of equal passes the one is higher that a scan meets first. Held as four bytes a pair.

    Raises:
        InputError: if the array has more voxels than these hold.
    """

    def __init__(
        self, labels: NDArray[np.uint8], heights: NDArray[np.float32], hills: NDArray[np.int32], connectivity: int
    ) -> None:
        steps = steps_forward(labels.ndim, connectivity)
        if labels.size * len(steps) > int(_LOW_HALF):
            raise InputError(
                f"A watershed over {labels.shape} voxels with {2 * len(steps)} neighbours is more than one array can be; "
                "segment in blocks (unet segment --instances)."
            )
        self._hills, self._heights = hills.ravel(), heights.ravel()
        self._steps = [flat_step(labels.shape, step) for step in steps]
        places = np.arange(labels.size, dtype=np.int32).reshape(labels.shape)
        self._begins: list[NDArray[np.int32]] = []
        for step in steps:
            here, there = both_ends(labels.shape, step)
            self._begins.append(places[here][(hills[here] != hills[there]) & (labels[here] == labels[there])])

    def highest(self, owner: NDArray[Any]) -> Highest:
        """Of each owner of hills the highest pass to another one; passes within an owner are dropped for good."""
        hills, heights, steps = self._hills, self._heights, np.array(self._steps)
        best = np.zeros(len(owner), dtype=np.uint64)
        for number, step in enumerate(self._steps):
            begins = self._begins[number]
            one, other = owner[hills[begins]], owner[hills[begins + step]]
            apart = one != other
            begins, one, other = begins[apart], one[apart], other[apart]
            self._begins[number] = begins
            ranks = pass_ranks(heights[begins], heights[begins + step], begins, number, len(steps))
            np.maximum.at(best, one, ranks)
            np.maximum.at(best, other, ranks)
        found = np.flatnonzero(best)
        places, numbers = np.divmod((_LOW_HALF - (best[found] & _LOW_HALF)).astype(np.int64), len(steps))
        ends = places + steps[numbers]
        one, other = owner[hills[places]], owner[hills[ends]]
        return Highest(found, np.where(one == found, other, one), np.minimum(heights[places], heights[ends]))


def pass_ranks(
    one: NDArray[np.float32], other: NDArray[np.float32], places: NDArray[Any], number: int, count: int
) -> NDArray[np.uint64]:
    """A number for each pass that is greater where it is higher; among equals where it is met first.

    Args:
        one: heights at the first voxels.
        other: at the second.
        places: of the first in a scan.
        number: of the step between them.
        count: of all steps.
    """
    ranks = (_ordered(np.minimum(one, other))).astype(np.uint64) << np.uint64(32)
    ranks |= _LOW_HALF - (places.astype(np.uint64) * np.uint64(count) + np.uint64(number))
    return ranks


def rank_parts(ranks: NDArray[np.uint64], count: int) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Height, place and number of the step of each pass, from ``pass_ranks``."""
    places, numbers = np.divmod((_LOW_HALF - (ranks & _LOW_HALF)).astype(np.int64), count)
    bits = (ranks >> np.uint64(32)).astype(np.uint32)
    return np.where(bits >> 31, bits & np.uint32(0x7FFFFFFF), ~bits).view(np.float32), places, numbers


def _ordered(heights: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Whole numbers in the order of the heights; never 0."""
    bits = (heights + np.float32(0)).view(np.uint32)  # -0 becomes 0
    return np.where(bits >> 31, ~bits, bits | np.uint32(0x80000000))

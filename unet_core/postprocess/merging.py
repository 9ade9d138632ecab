"""Hills that rise little above the way to the next one become part of it. Knows numbers of hills and their passes, no voxels.

    a hill whose top rises at most ``depth`` above its highest pass joins the hill behind that pass; again, until there is none

What is left are the hills that a flood from the h-maxima would find (their dynamics, Grimaud 1992). One after the other or all at once
is the same, and so is merging some before others are known: nothing else can join a hill before it goes over its highest pass, and where
its top becomes that of the hill behind, it is too low to count at every pass of that hill which is higher than the one between them. So
a block merges those hills of which it knows all passes, and the rest follows when all blocks are known.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class Highest(NamedTuple):
    """The highest pass of each hill that has one, in equal places of three arrays.

    Args:
        hills: their numbers.
        beyond: the hill behind the pass.
        heights: of the pass.
    """

    hills: NDArray[Any]
    beyond: NDArray[Any]
    heights: NDArray[np.float32]


class Passes(Protocol):
    def highest(self, owner: NDArray[Any]) -> Highest:
        """Of each owner of hills the highest pass to another one, where no two passes are equally high."""


def merge_low(
    passes: Passes, tops: NDArray[np.float32], depth: float, is_open: NDArray[np.bool_], is_seen: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Merge hills until every one rises more than ``depth`` above its highest pass, or is not to be merged.

    Args:
        passes: between hills.
        tops: height of the top of each hill.
        depth: in the unit of the heights.
        is_open: hills whose passes are not all known; they stay, others may join them.
        is_seen: hills that are not to join any that is not seen. Nobody would be told of that hill, only that this one is so high.

    Returns:
        For each hill the one that owns it now, and the tops of the owners.
    """
    every = np.arange(len(tops))
    owner, tops, is_open, is_seen = every, tops.copy(), is_open.copy(), is_seen.copy()
    while True:
        found = passes.highest(owner)
        low = tops[found.hills].astype(np.float64) - found.heights <= depth
        low &= ~is_open[found.hills] & (is_seen[found.beyond] | ~is_seen[found.hills])
        if not low.any():
            return owner, tops
        target = every.copy()
        target[found.hills[low]] = found.beyond[low]
        mutual = (target[target] == every) & (every < target)
        target[mutual] = every[mutual]
        target = roots(target)
        np.maximum.at(tops, target, tops.copy())
        is_open[target[is_open]] = True
        is_seen[target[is_seen]] = True
        owner = target[owner]


def roots(target: NDArray[Any]) -> NDArray[Any]:
    """Where one ends that goes on from target to target; each way ends in what is its own target."""
    while True:
        beyond = target[target]
        if np.array_equal(beyond, target):
            return beyond
        target = beyond


class ListedPasses:
    """Passes as lists.

    Args:
        one: hill on one side of each.
        other: on the other side.
        heights: of the passes.
        ties: of equal passes the one with the least is the highest.
    """

    def __init__(self, one: NDArray[Any], other: NDArray[Any], heights: NDArray[np.float32], ties: NDArray[np.uint64]) -> None:
        order = np.lexsort((~ties, heights))
        self._one, self._other, self._heights = one[order], other[order], heights[order]
        self._ranks = np.arange(len(order))
        self._sorted_heights = self._heights

    def highest(self, owner: NDArray[Any]) -> Highest:
        """As in ``Passes``; passes within an owner are dropped for good."""
        one, other = owner[self._one], owner[self._other]
        apart = one != other
        self._one, self._other, self._ranks = self._one[apart], self._other[apart], self._ranks[apart]
        one, other = one[apart], other[apart]
        best = np.full(len(owner), -1)
        np.maximum.at(best, one, self._ranks)
        np.maximum.at(best, other, self._ranks)
        found = np.flatnonzero(best >= 0)
        places = np.searchsorted(self._ranks, best[found])
        beyond = np.where(one[places] == found, other[places], one[places])
        return Highest(found, beyond, self._sorted_heights[best[found]])

"""Sums of several blocks put together by object. The sums of an object are exact, as those of its parts are. Arrays only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.measuring.exact import Exact, whole_sums
from unet_core.measuring.sums import POWER, Sums, axis_pairs, below_each_other, sorted_by_label


@dataclass(frozen=True)
class Rows:
    """Sums of several blocks, sorted by label: a row for each block that holds a part of an object.

    Args:
        sums: rows of all blocks.
        origins: (rows, axes): the voxel of the image that the positions of a row count from.
        firsts: first row of each object.
    """

    sums: Sums
    origins: NDArray[np.int64]
    firsts: NDArray[np.int64]

    @property
    def labels(self) -> NDArray[np.uint64]:
        return self.sums["label"][self.firsts]

    @cached_property
    def voxels(self) -> NDArray[np.int64]:
        return self.total(self.sums["voxels"])

    @cached_property
    def start(self) -> NDArray[np.int64]:
        """First corner of the smallest box, (objects, axes), in the image."""
        return self.least(self.sums["start"] + self.origins)

    @cached_property
    def stop(self) -> NDArray[np.int64]:
        return self.most(self.sums["stop"] + self.origins)

    @cached_property
    def positions(self) -> Exact:
        """Sums of positions in the image, (objects, axes)."""
        count, own = self._whole("voxels")[:, None], self._whole("positions")
        return self.total(own + count * self.origins.astype(object))

    @cached_property
    def covariances(self) -> dict[tuple[int, int], Exact]:
        """Of two positions in the image, by pair of axes; times the square of the number of voxels."""
        count, own, products = self._whole("voxels"), self._whole("positions"), self._whole("products")
        origin, whole, sums = self.origins.astype(object), self.voxels.astype(object), self.positions
        found = {}
        for column, (a, b) in enumerate(axis_pairs(own.shape[1])):
            moved = origin[:, a] * own[:, b] + origin[:, b] * own[:, a] + count * origin[:, a] * origin[:, b]
            found[a, b] = whole * self.total(products[:, column] + moved) - sums[:, a] * sums[:, b]
        return found

    def exact(self, name: str) -> tuple[Exact, int]:
        """The sums of numbers that were added in pieces: integers, and the power of two, at most 0, that they are to be multiplied by."""
        head = f"{name}{POWER}"
        columns = {int(key.removeprefix(head)): values for key, values in self.sums.items() if key.startswith(head)}
        width = self.sums["classes" if name == "probability" else "intensity_min"].shape[1]
        return whole_sums({power: self.total(values) for power, values in columns.items()}, (len(self.firsts), width))

    def total(self, values: NDArray[Any]) -> NDArray[Any]:
        """Sums over the rows of each object; of what may pass the largest int64 as Python's integers."""
        return self._over(np.add, values)

    def least(self, values: NDArray[Any]) -> NDArray[Any]:
        return self._over(np.minimum, values)

    def most(self, values: NDArray[Any]) -> NDArray[Any]:
        return self._over(np.maximum, values)

    def _over(self, reduction: np.ufunc, values: NDArray[Any]) -> NDArray[Any]:
        return reduction.reduceat(values, self.firsts, axis=0) if len(self.firsts) else values[:0]

    def _whole(self, name: str) -> Exact:
        return self.sums[name].astype(object)


def rows_of(blocks: Sequence[tuple[tuple[int, ...], Sums]]) -> Rows:
    """Put the sums of blocks one below the other.

    Args:
        blocks: at least one: the first voxel of each, and its sums.
    """
    sums = below_each_other([own for _, own in blocks])
    origins = [np.tile(np.array(first, dtype=np.int64), (len(own["label"]), 1)) for first, own in blocks]
    order, firsts = sorted_by_label(sums["label"])
    return Rows({name: values[order] for name, values in sums.items()}, np.concatenate(origins)[order], firsts)

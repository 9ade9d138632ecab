"""Fragments of all blocks put together: one mutex watershed over the graph of them. Knows keys and sums, no voxels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.postprocess.block_parts import Bonds
from unet_core.postprocess.mutex import FULL, mutex_clusters


def bound(bonds: list[Bonds]) -> NDArray[np.int64]:
    """For each part of each block, in their order, the number of what it belongs to.

    Two fragments attract each other if the mean affinity of all edges between them is above one half, and some are direct neighbours; they
    repel if it is below; by how much it is so. Of equally strong bonds that of the fragment which a scan meets first comes first.

    Args:
        bonds: of the blocks.
    """
    keys, nodes = np.unique(_of(bonds, "keys", np.uint64), return_inverse=True)
    begins = np.repeat(np.cumsum([0, *(len(part.keys) for part in bonds)])[:-1] - 1, [len(part.one) for part in bonds])
    one, other = nodes[_of(bonds, "one", np.int64) + begins], nodes[_of(bonds, "other", np.int64) + begins]
    pairs = (np.minimum(one, other).astype(np.uint64) << np.uint64(32)) | np.maximum(one, other).astype(np.uint64)
    order = np.argsort(pairs, kind="stable")
    pairs = pairs[order]
    starts = np.flatnonzero(np.concatenate((np.ones(min(1, len(pairs)), dtype=bool), pairs[1:] != pairs[:-1])))
    if not len(starts):
        return nodes
    # Sums of whole numbers, so that neither blocks nor their order decide a last bit.
    count, touching, total = (
        np.add.reduceat(_of(bonds, name, np.int64)[order], starts) for name in ("count", "touching", "total")
    )
    lean = (2 * total - FULL * count) / count
    lean[(lean > 0) & (touching == 0)] = 0
    chosen = np.flatnonzero(lean)
    chosen = chosen[np.argsort(-np.abs(lean[chosen]), kind="stable")]
    ends = pairs[starts][chosen]
    first, second = (ends >> np.uint64(32)).astype(np.int64), (ends & np.uint64(0xFFFFFFFF)).astype(np.int64)
    return mutex_clusters(len(keys), first, second, lean[chosen] > 0)[nodes]


def _of(bonds: list[Bonds], name: str, dtype: Any) -> NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype=dtype), *(getattr(part, name) for part in bonds)]).astype(dtype, copy=False)

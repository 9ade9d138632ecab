"""The mutex watershed: attraction joins, repulsion keeps apart for good, the strongest first. Of an array, and of a graph. No blocks.

Wolf et al. 2018, "The Mutex Watershed" (ECCV), and 2020 (arXiv:1904.12654). An edge between direct neighbours attracts, by its affinity; one
that reaches further repels, by one minus its affinity. Of equally strong edges the one of the voxel that a scan meets first comes first, of
this voxel's the one whose offset is listed first: no two are equal, so that the parts depend on nothing but the affinities. The
library mwatershed runs over the edges; it is given their ranks for weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import InputError
from unet_core.geometry import Shape
from unet_core.postprocess.components import in_scan_order
from unet_core.postprocess.neighbours import both_ends

FULL = 65535  # what an affinity of 1 is; a byte's 255 steps are among these
_MOST_EDGES = 1 << 31


def whole_numbers(affinities: NDArray[Any]) -> NDArray[np.uint16]:
    """Affinities in steps of 1 / FULL, so that sums of them do not depend on their order.

    Args:
        affinities: uint8 (255 is 1), or floating-point in 0 to 1.
    """
    if affinities.dtype == np.uint8:
        return affinities.astype(np.uint16) * np.uint16(FULL // 255)
    return np.rint(affinities.astype(np.float64) * FULL).astype(np.uint16)


def attracts(offset: Shape) -> bool:
    """Whether the voxel at an offset is a direct neighbour."""
    return sum(map(abs, offset)) == 1


def check_offsets(offsets: tuple[Shape, ...], ndim: int) -> None:
    """Refuse offsets of which none attracts, or which are not those of an array of so many dimensions.

    Raises:
        InputError: naming them.
    """
    if any(len(offset) != ndim for offset in offsets):
        raise InputError(f"The offsets {offsets} are not all of the {ndim} axes of the array.")
    if not any(map(attracts, offsets)):
        raise InputError(
            f"None of the offsets {offsets} is that of a direct neighbour, so that nothing would join; a mutex watershed needs those, e.g. "
            f"{(0,) * (ndim - 1) + (1,)}."
        )


def mutex_watershed(labels: NDArray[np.uint8], affinities: NDArray[Any], offsets: tuple[Shape, ...]) -> NDArray[np.int64]:
    """Part an array by the affinities between its voxels. Every foreground voxel is in a part; parts are of one label.

    Args:
        labels: 0 is background; of 1 to 3 dimensions.
        affinities: of shape (offsets, *labels.shape), uint8 (255 is 1) or floating-point in 0 to 1: of each voxel with the one at each
            offset. An affinity of 0 does not attract.
        offsets: in voxels along the axes.

    Returns:
        Parts in scan order from 1, 0 on background.
    """
    import mwatershed

    # The library panics at offsets that no two voxels have.
    fitting = [
        number
        for number, offset in enumerate(offsets)
        if all(abs(step) < size for step, size in zip(offset, labels.shape, strict=True))
    ]
    offsets = tuple(offsets[number] for number in fitting)
    strengths, is_edge = _edges(labels, [affinities[number] for number in fitting], offsets)
    if strengths.size > _MOST_EDGES:
        raise InputError(f"{labels.shape} voxels with {len(offsets)} affinities each are more than one tile can be.")
    present = np.flatnonzero(is_edge.ravel())
    order = np.argsort(~strengths.ravel()[present], kind="stable")
    ranks = np.zeros(strengths.shape, dtype=np.float64)
    ranks.reshape(-1)[present[order]] = np.arange(len(order), 0, -1)
    ranks[..., [not attracts(offset) for offset in offsets]] *= -1
    found = np.zeros(labels.shape, dtype=np.int64)
    if len(order):
        found = mwatershed.agglom(np.moveaxis(ranks, -1, 0), [list(offset) for offset in offsets]).astype(np.int64)
    return in_scan_order(np.where(labels > 0, _numbered(found, ranks, offsets), 0))


def _edges(
    labels: NDArray[np.uint8], affinities: list[NDArray[Any]], offsets: tuple[Shape, ...]
) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
    """How strong the edge of each voxel with the one at each offset is, and whether there is one; of shape (*labels.shape, offsets)."""
    strengths = np.zeros((*labels.shape, len(offsets)), dtype=np.uint16)
    is_edge = np.zeros(strengths.shape, dtype=bool)
    for number, offset in enumerate(offsets):
        here, there = both_ends(labels.shape, offset)
        values = whole_numbers(affinities[number][here])
        if not attracts(offset):
            values = FULL - values
        strengths[here][..., number] = values
        is_edge[here][..., number] = (labels[here] > 0) & (labels[here] == labels[there]) & (values > 0)
    return strengths, is_edge


def _numbered(found: NDArray[np.int64], ranks: NDArray[np.float64], offsets: tuple[Shape, ...]) -> NDArray[np.int64]:
    """A number above 0 for each part; what nothing attracts has not got one of its own from the library."""
    attracted = np.zeros(found.shape, dtype=bool)
    for number, offset in enumerate(offsets):
        if attracts(offset):
            here, there = both_ends(found.shape, offset)
            pulled = ranks[here][..., number] > 0
            attracted[here] |= pulled
            attracted[there] |= pulled
    alone = np.arange(found.size, dtype=np.int64).reshape(found.shape) + found.size
    return np.where(attracted, found, alone) + 1


def mutex_clusters(count: int, one: NDArray[Any], other: NDArray[Any], is_pull: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each node of a graph a node of its cluster, the same for all of the cluster.

    Args:
        count: of the nodes, numbered from 0.
        one: of each edge, the strongest first: a node.
        other: the other node.
        is_pull: whether the edge attracts.
    """
    import mwatershed

    owner = np.arange(count)
    if len(one):
        nodes = owner.tolist()  # one object a node, not one an end
        ends = ((pull, nodes[first], nodes[second]) for pull, first, second in zip(is_pull.tolist(), one, other, strict=True))
        pairs = mwatershed.cluster(list(ends))
        owner[[node for node, _ in pairs]] = [cluster for _, cluster in pairs]
    return owner

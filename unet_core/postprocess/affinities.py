"""Instances from affinities in memory, by mutex watersheds in tiles.

``unet segment --instances affinities`` gives the same partition in blocks: ``blockwise_mutex``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unet_core.errors import InputError
from unet_core.geometry import BlockGrid, Box, Shape
from unet_core.postprocess.blockwise_mutex import describe_fragments
from unet_core.postprocess.joining import Joiner
from unet_core.postprocess.mutex import check_offsets

TILE = {2: 256, 3: 64}  # voxels along each axis, at most
_STEP = 4


def usual_tile(shape: Shape, offsets: tuple[Shape, ...]) -> Shape:
    """The tile of a volume of ``shape``: at most ``TILE``, and so that the last one along an axis is no thin slice.

    What lies in a slice that is thinner than the offsets are long attracts and is not kept apart. Along an axis that no offset goes along, as
    of sections that a network sees one by one, it is one voxel.
    """
    seen = [any(steps) for steps in zip(*offsets, strict=True)]
    most = TILE[max(2, sum(seen))]
    return tuple(_usual_size(size, most) if along else 1 for size, along in zip(shape, seen, strict=True))


def _usual_size(size: int, most: int) -> int:
    if size <= most:
        return size
    sizes = range(most, most // 2, -_STEP)
    return next((step for step in sizes if size % step == 0 or 2 * (size % step) >= step), most)


def watershed_on_affinities(
    affinities: NDArray[Any], mask: ArrayLike, offsets: tuple[Shape, ...], *, tile: Shape | None = None
) -> NDArray[np.int64]:
    """Divide a mask by what a network says of every two voxels at an offset: whether they belong to one instance.

    A mutex watershed parts each tile of a grid from the origin, another the graph of all fragments (see ``blockwise_mutex``). That is
    not the mutex watershed of the whole array (``mutex.mutex_watershed``).

    Args:
        affinities: probabilities of shape (offsets, *mask.shape), of each voxel with the one at each offset; taken in steps of 1/65535.
        mask: of 2 or 3 dimensions; anything but 0 is foreground.
        offsets: in voxels along the axes; those of length 1 attract, the others repel.
        tile: shape of a tile; ``usual_tile`` unless told.

    Returns:
        Ids in scan order, 0 on background. Every foreground voxel is in an instance.

    Raises:
        InputError: if the shapes differ, the values are no probabilities, or no offset attracts.
    """
    labels = np.ascontiguousarray(np.asarray(mask) != 0).astype(np.uint8)
    check_offsets(offsets, labels.ndim)
    if affinities.shape != (len(offsets), *labels.shape):
        raise InputError(
            f"The affinities have shape {affinities.shape}, {len(offsets)} offsets of a mask of {labels.shape} have "
            f"{(len(offsets), *labels.shape)}; they must be equal."
        )
    if affinities.dtype != np.uint8 and not ((affinities >= 0) & (affinities <= 1)).all():  # NaN fails too
        raise InputError("The affinities are no probabilities in 0 to 1, which a mutex watershed needs everywhere.")
    shape = labels.shape
    described, parts = describe_fragments(
        labels, affinities, Box.from_shape(shape), shape, offsets=offsets, tile=tile or usual_tile(shape, offsets)
    )
    joiner = Joiner(BlockGrid(shape, shape))
    joiner.add(0, parts)
    ids = np.concatenate((np.zeros(1, dtype=np.int64), joiner.join().ids_of(0).astype(np.int64)))
    return described.replaced(ids, shape)

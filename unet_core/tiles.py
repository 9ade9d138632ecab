"""Tiles: the boxes in which a network runs whose result depends on the whole box. Knows no images and runs nothing.

    |<-- tile -->|<-- tile -->|<-- tile -->|<-- tile -->|     from the image's origin, the last one beyond its end
    |<------- block --------->|<------- block ----|           whole tiles, so that nothing is computed twice

A tile is read with the network's margin and always whole, so that what it gives depends on its position alone: not on blocks,
regions of interest or workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from unet_core.block_shapes import check_block_shape, fit_block_shape
from unet_core.errors import GridError, JobError, MemoryBudgetError
from unet_core.geometry import BlockGrid, Box, Shape
from unet_core.memory import GIB

TILE_SIZES = {2: (512, 384, 256, 128), 3: (64, 48, 32)}  # tried in this order until one fits the memory


def tiles_of(block: Box, tile_shape: Shape) -> Iterator[Box]:
    """The tiles that meet ``block``, each whole, in C order."""
    cover = block.scale_down(tile_shape)
    for box in BlockGrid(cover.shape, (1,) * cover.ndim).blocks():
        yield box.shift(cover.start).scale_up(tile_shape)


def choose_tile_shape(
    stated: Shape | None,
    stride: Shape,
    image_shape: Shape,
    network_bytes: Callable[[Shape], int],
    voxel_bytes: int,
    allowed_bytes: int,
) -> tuple[Shape, int]:
    """The tile shape asked for, or the largest usual one that fits the memory, cut down to the image in whole strides.

    Args:
        stated: what the user asked, None for the usual ones.
        stride: of the networks.
        image_shape: in voxels.
        network_bytes: that the passes over a tile of a shape need.
        voxel_bytes: of a finished tile, for each voxel; at most, whatever the job keeps, so that keeping probabilities does not
            change the tiles and with them the labels.
        allowed_bytes: that one forward pass and the finished tile may need.

    Returns:
        The shape, and the bytes that its passes need.

    Raises:
        GridError: if the one asked for is not a multiple of the network's stride.
        MemoryBudgetError: if none fits, with both numbers.
    """
    if stated is not None:
        check_block_shape(stated, stride, "Tile")
        candidates = [stated]
    else:
        candidates = [tuple(-(-size // step) * step for step in stride) for size in TILE_SIZES[len(stride)]]
    for candidate in candidates:
        tile = fit_block_shape(candidate, image_shape, stride)
        needed = network_bytes(tile)
        finished = Box.from_shape(tile).voxel_count * voxel_bytes
        if needed + finished <= allowed_bytes:
            return tile, needed
    raise MemoryBudgetError(
        f"A tile of {tile} voxels needs {(needed + finished) / GIB:.2f} GiB, the worker may use {allowed_bytes / GIB:.2f} GiB; "
        "use a smaller --tile-shape, or allow more with --memory-gib."
    )


def choose_block_shape(
    stated: Shape | None,
    usual: list[Shape],
    tile_shape: Shape,
    stride: Shape,
    image_shape: Shape,
    finished_bytes: Callable[[Shape], int],
    allowed_bytes: int,
) -> tuple[Shape, int]:
    """The block shape asked for, or the largest usual one that fits the memory, in whole tiles.

    Args:
        stated: what the user asked, None for the usual ones.
        usual: shapes to try, in this order; a single tile is tried last.
        tile_shape: in voxels, cut down to the image.
        stride: of the network.
        image_shape: in voxels.
        finished_bytes: that a finished block of a shape needs.
        allowed_bytes: that a finished block may need.

    Returns:
        The shape, and the bytes that a finished block needs.

    Raises:
        GridError: if the one asked for is not a multiple of the network's stride.
        JobError: if it is no whole number of tiles, with the nearest that is.
        MemoryBudgetError: if none fits, with both numbers.
    """
    if stated is not None:
        check_block_shape(stated, stride)
        _check_whole_tiles(stated, tile_shape, image_shape)
        candidates = [stated]
    else:
        candidates = [
            tuple(max(1, size // step) * step for size, step in zip(shape, tile_shape, strict=True)) for shape in usual
        ] + [tile_shape]
    for candidate in candidates:
        block = fit_block_shape(candidate, image_shape, tile_shape)
        needed = finished_bytes(block)
        if needed <= allowed_bytes:
            return block, needed
    raise MemoryBudgetError(
        f"A finished block of {block} voxels needs {needed / GIB:.2f} GiB, beside its tiles of {tile_shape} the worker may use "
        f"{allowed_bytes / GIB:.2f} GiB; use a smaller --block-shape or --tile-shape, or allow more with --memory-gib."
    )


def _check_whole_tiles(block_shape: Shape, tile_shape: Shape, image_shape: Shape) -> None:
    # Along an axis where it covers the image, a block is cut down to the tiles there are.
    steps = (1 if block >= size else tile for block, tile, size in zip(block_shape, tile_shape, image_shape, strict=True))
    try:
        check_block_shape(block_shape, tuple(steps), "Block", "the tile of")
    except GridError as error:
        raise JobError(
            f"{error} Tiles do not follow the blocks, so that the result does not either; --tile-shape changes them."
        ) from None

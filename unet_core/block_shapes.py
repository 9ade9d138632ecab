"""What shapes blocks and chunks may have: whole strides, and no larger than the image. Integers only."""

from __future__ import annotations

from unet_core.errors import GridError
from unet_core.geometry import Shape
from unet_core.wording import counted

# Longest sides of a chunk. Stacks of sections are mostly looked at section by section, and sampled finer along y and x.
CHUNK_LIMITS, STACK_CHUNK_LIMITS = {2: (256, 256), 3: (64, 64, 64)}, (16, 128, 128)


def chunk_shape_for(block_shape: Shape, by_section: bool = False) -> Shape:
    """The largest chunk that divides a block and is no longer than 256 voxels in 2D, 64 in 3D; in a stack, 16 sections of 128."""
    limits = STACK_CHUNK_LIMITS if by_section else CHUNK_LIMITS[len(block_shape)]
    return tuple(
        max(size for size in range(1, min(limit, block) + 1) if block % size == 0)
        for limit, block in zip(limits, block_shape, strict=True)
    )


def check_block_shape(block_shape: Shape, stride: Shape, what: str = "Block", of: str = "the network's stride") -> None:
    """Refuse a shape that does not keep pooling windows, or tiles, on one grid.

    Args:
        block_shape: what the user asked.
        stride: of which it is to be a multiple.
        what: the shape is of, for the message.
        of: what the stride is, for the message.

    Raises:
        GridError: with the nearest sizes that do.
    """
    if len(block_shape) != len(stride):
        raise GridError(
            f"{what} shape {block_shape} has {counted(len(block_shape), 'axis', 'axes')}, {len(stride)} are wanted "
            f"({'zyx'[-len(stride) :]}); give one size an axis."
        )
    for name, size, step in zip("zyx"[-len(stride) :], block_shape, stride, strict=True):
        if size % step:
            lower = size // step * step
            nearest = f"{lower} or {lower + step}" if lower else f"{step}"
            raise GridError(f"{what} axis {name}: {size} voxels is not a multiple of {of} {step}; use {nearest}.")


def fit_block_shape(block_shape: Shape, image_shape: Shape, stride: Shape) -> Shape:
    """A block shape cut down to the image, in whole strides."""
    return tuple(min(block, -(-size // step) * step) for block, size, step in zip(block_shape, image_shape, stride, strict=True))

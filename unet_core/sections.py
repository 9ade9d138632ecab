"""A stack that a 2D network sees section by section: boxes of the stack, and of its sections. Integers only.

    stack (z, y, x)    /_______/|      a block of a stack is a run of sections, each with the same box (y, x) of it
                      /_______/||      the network sees one section at a time, with its margin in y and x
                     |  block |||      nothing is read before or after the block along z, and nothing is mirrored there
                     |________|//

Where a network sees all axes of the image, a box is its own only "section", and nothing here changes anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from unet_core.geometry import BlockGrid, Box, Shape

# What a usual block of a volume has, so that shards are no smaller than others; and what is not cut further for more blocks: a shard
# of a megabyte before compression.
MOST_VOXELS, FEWEST_VOXELS = 1 << 25, 1 << 20


def split(box: Box, dims: int) -> tuple[Box, Box]:
    """Which sections a box holds, and its box in each of them: the last ``dims`` axes, which the network sees."""
    cut = box.ndim - dims
    return Box(box.start[:cut], box.stop[:cut]), Box(box.start[cut:], box.stop[cut:])


def join(sections: Box, inside: Box) -> Box:
    """The box of the stack that ``split`` took apart."""
    return Box(sections.start + inside.start, sections.stop + inside.stop)


def sections_of(box: Box, dims: int) -> Iterator[Box]:
    """The parts of a box of the stack that the network sees one after another: each one section thick."""
    along, inside = split(box, dims)
    for one in BlockGrid(along.shape, (1,) * along.ndim).blocks() if along.ndim else [along]:
        yield join(one.shift(along.start), inside)


def choose_depth(section_shape: Shape, section_count: int, columns: int, fewest_blocks: int) -> int:
    """How many sections a block has: a power of two, so that chunks of several sections fit into it.

    Cutting a stack between sections computes nothing twice, so blocks are cut there first where more of them are wanted.

    Args:
        section_shape: what a block covers of a section, in voxels.
        section_count: of the stack.
        columns: blocks that one section is cut into.
        fewest_blocks: that are wanted, where shards stay large enough.
    """
    depth, voxels = 1, prod(section_shape)
    while 2 * depth <= section_count and 2 * depth * voxels <= MOST_VOXELS:
        depth *= 2
    while depth > 1 and columns * -(-section_count // depth) < fewest_blocks and depth // 2 * voxels >= FEWEST_VOXELS:
        depth //= 2
    return depth


def thinner(block_shape: Shape) -> Iterator[Shape]:
    """A block and those of half as many sections each, down to one, for less memory."""
    depth = block_shape[0]
    while depth:
        yield (depth, *block_shape[1:])
        depth //= 2

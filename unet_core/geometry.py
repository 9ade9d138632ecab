"""Boxes and grids of blocks: integer geometry in voxels. Nothing here knows of images, networks or storage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from math import prod

from unet_core.errors import GridError

Shape = tuple[int, ...]


@dataclass(frozen=True, order=True)
class Box:
    """A half-open region ``start <= position < stop``, in voxels.

    Starts may be negative and stops may pass the image's end: a read box hangs over the edge of the image by
    the network's margin. An axis with ``start == stop`` makes the box empty.

    Args:
        start: first voxel, one integer an axis.
        stop: one past the last voxel.

    Raises:
        GridError: if the two differ in length, or a stop lies before its start.

    Example:
        >>> Box((2, 0), (5, 4)).shape
        (3, 4)
    """

    start: Shape
    stop: Shape

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", tuple(int(value) for value in self.start))
        object.__setattr__(self, "stop", tuple(int(value) for value in self.stop))
        if len(self.start) != len(self.stop):
            raise GridError(f"Box start has {len(self.start)} axes and stop has {len(self.stop)}; give one of each an axis.")
        if any(stop < start for start, stop in zip(self.start, self.stop, strict=True)):
            raise GridError(f"Box stop {self.stop} lies before its start {self.start}; swap them.")

    @classmethod
    def from_shape(cls, shape: Shape, start: Shape | None = None) -> Box:
        """The box of ``shape`` that begins at ``start`` (the origin unless told)."""
        start = (0,) * len(shape) if start is None else start
        return cls(start, tuple(first + size for first, size in zip(start, shape, strict=True)))

    @property
    def shape(self) -> Shape:
        return tuple(stop - start for start, stop in zip(self.start, self.stop, strict=True))

    @property
    def ndim(self) -> int:
        return len(self.start)

    @property
    def voxel_count(self) -> int:
        return prod(self.shape)

    @property
    def is_empty(self) -> bool:
        return self.voxel_count == 0

    def intersect(self, other: Box) -> Box:
        """What both boxes cover; empty, at the later start, where they do not meet."""
        start = tuple(max(a, b) for a, b in zip(self.start, other.start, strict=True))
        stop = tuple(min(a, b) for a, b in zip(self.stop, other.stop, strict=True))
        return Box(start, tuple(max(first, last) for first, last in zip(start, stop, strict=True)))

    def contains(self, other: Box) -> bool:
        return all(a <= b for a, b in zip(self.start, other.start, strict=True)) and all(
            a >= b for a, b in zip(self.stop, other.stop, strict=True)
        )

    def shift(self, offset: Shape) -> Box:
        return Box(
            tuple(value + step for value, step in zip(self.start, offset, strict=True)),
            tuple(value + step for value, step in zip(self.stop, offset, strict=True)),
        )

    def grow(self, before: Shape, after: Shape) -> Box:
        """The box with ``before`` and ``after`` voxels added at its faces.

        read   |<- before ->|<---- box ---->|<- after ->|
        """
        return Box(
            tuple(value - more for value, more in zip(self.start, before, strict=True)),
            tuple(value + more for value, more in zip(self.stop, after, strict=True)),
        )

    def scale_down(self, factor: Shape) -> Box:
        """The smallest box of a level coarser by ``factor`` that covers this one."""
        return Box(
            tuple(value // step for value, step in zip(self.start, factor, strict=True)),
            tuple(-(-value // step) for value, step in zip(self.stop, factor, strict=True)),
        )

    def scale_up(self, factor: Shape) -> Box:
        """The same region on a level finer by ``factor``."""
        return Box(
            tuple(value * step for value, step in zip(self.start, factor, strict=True)),
            tuple(value * step for value, step in zip(self.stop, factor, strict=True)),
        )

    def slices(self) -> tuple[slice, ...]:
        return tuple(slice(start, stop) for start, stop in zip(self.start, self.stop, strict=True))

    def __str__(self) -> str:
        return ", ".join(f"{start}:{stop}" for start, stop in zip(self.start, self.stop, strict=True))


@dataclass(frozen=True)
class BlockGrid:
    """The partition of an array into blocks, numbered in C order (the last axis fastest).

        |<- block ->|<- block ->|<- bl>|      the last block of an axis is cut off by the array's end

    Args:
        shape: of the array, in voxels; every axis at least 1.
        block_shape: of a whole block, in voxels.

    Raises:
        GridError: if an axis is empty, or the numbers of axes differ.

    Example:
        >>> grid = BlockGrid(shape=(5, 9), block_shape=(4, 4))
        >>> grid.counts, grid.block_count, str(grid.block(5))
        ((2, 3), 6, '4:5, 8:9')
    """

    shape: Shape
    block_shape: Shape

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(value) for value in self.shape))
        object.__setattr__(self, "block_shape", tuple(int(value) for value in self.block_shape))
        if len(self.shape) != len(self.block_shape):
            raise GridError(
                f"Block shape {self.block_shape} has {len(self.block_shape)} axes and the array {len(self.shape)}; "
                "give one size an axis."
            )
        if min(self.shape, default=0) < 1 or min(self.block_shape, default=0) < 1:
            raise GridError(f"Array shape {self.shape} and block shape {self.block_shape} must be at least 1 on every axis.")

    @property
    def counts(self) -> Shape:
        """Number of blocks along each axis."""
        return tuple(-(-size // step) for size, step in zip(self.shape, self.block_shape, strict=True))

    @property
    def block_count(self) -> int:
        return prod(self.counts)

    def coordinates(self, block_index: int) -> Shape:
        """Position of a block in the grid, in blocks."""
        if not 0 <= block_index < self.block_count:
            raise GridError(f"Block {block_index} does not exist; the grid has blocks 0 to {self.block_count - 1}.")
        position: list[int] = []
        for count in reversed(self.counts):
            block_index, remainder = divmod(block_index, count)
            position.append(remainder)
        return tuple(reversed(position))

    def index(self, coordinates: Shape) -> int:
        """The number of the block at ``coordinates``, in blocks."""
        number = 0
        for coordinate, count in zip(coordinates, self.counts, strict=True):
            if not 0 <= coordinate < count:
                raise GridError(f"Block position {coordinates} lies outside the grid of {self.counts} blocks.")
            number = number * count + coordinate
        return number

    def block(self, block_index: int) -> Box:
        """The box of a block, cut off at the array's end."""
        start = tuple(coordinate * step for coordinate, step in zip(self.coordinates(block_index), self.block_shape, strict=True))
        return Box.from_shape(self.block_shape, start).intersect(Box.from_shape(self.shape))

    def blocks(self) -> Iterator[Box]:
        """Every block, in order of its number."""
        return (self.block(block_index) for block_index in range(self.block_count))

    def touching(self, box: Box) -> Iterator[int]:
        """Numbers of the blocks that share a voxel with ``box``, ascending."""
        box = box.intersect(Box.from_shape(self.shape))
        if box.is_empty:
            return
        cover = box.scale_down(self.block_shape)
        for offset in range(cover.voxel_count):
            local = BlockGrid(cover.shape, (1,) * cover.ndim).coordinates(offset)
            yield self.index(tuple(a + b for a, b in zip(local, cover.start, strict=True)))


def positions_in(box: Box) -> Iterator[Shape]:
    """Every position inside a box, the last axis fastest."""
    return product(*(range(first, last) for first, last in zip(box.start, box.stop, strict=True)))


def boxes_of(positions: Iterable[Shape]) -> Iterator[Box]:
    """Few boxes that hold each of ``positions`` once, and no other.

    Example:
        >>> [str(box) for box in boxes_of([(0, 1), (0, 2), (1, 1), (1, 2), (2, 2)])]
        ['0:2, 1:3', '2:3, 2:3']
    """
    left = set(positions)
    for first in sorted(left):
        if first not in left:
            continue
        region = Box.from_shape((1,) * len(first), first)
        for axis in reversed(range(region.ndim)):
            while left.issuperset(positions_in(beyond := _next_layer(region, axis))):
                region = Box(region.start, beyond.stop)
        left.difference_update(positions_in(region))
        yield region


def _next_layer(region: Box, axis: int) -> Box:
    """The positions just after ``region`` along an axis."""
    start, stop = list(region.start), list(region.stop)
    start[axis], stop[axis] = region.stop[axis], region.stop[axis] + 1
    return Box(tuple(start), tuple(stop))

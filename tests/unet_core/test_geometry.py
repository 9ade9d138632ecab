from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_core.errors import GridError
from unet_core.geometry import BlockGrid, Box


@st.composite
def grids(draw: st.DrawFn) -> BlockGrid:
    axes = draw(st.integers(1, 3))
    shape = tuple(draw(st.integers(1, 19)) for _ in range(axes))
    return BlockGrid(shape, tuple(draw(st.integers(1, 23)) for _ in range(axes)))


@given(grids())
def test_every_voxel_lies_in_exactly_one_block(grid: BlockGrid) -> None:
    written = np.zeros(grid.shape, dtype=int)
    for block in grid.blocks():
        assert not block.is_empty
        assert all(start % step == 0 for start, step in zip(block.start, grid.block_shape, strict=True))
        written[block.slices()] += 1
    assert (written == 1).all()


@given(grids(), st.data())
def test_touching_finds_the_blocks_that_share_a_voxel(grid: BlockGrid, data: st.DataObject) -> None:
    start = tuple(data.draw(st.integers(-5, size + 5)) for size in grid.shape)
    box = Box.from_shape(tuple(data.draw(st.integers(0, 30)) for _ in grid.shape), start)
    expected = [index for index, block in enumerate(grid.blocks()) if not block.intersect(box).is_empty]
    assert list(grid.touching(box)) == expected


@given(grids())
def test_index_and_coordinates_are_inverse(grid: BlockGrid) -> None:
    assert [grid.index(grid.coordinates(index)) for index in range(grid.block_count)] == list(range(grid.block_count))


def test_scaling_a_box_down_covers_it() -> None:
    assert Box((3, 8), (5, 9)).scale_down((2, 4)) == Box((1, 2), (3, 3))
    assert Box((1, 2), (3, 3)).scale_up((2, 4)) == Box((2, 8), (6, 12))


@pytest.mark.parametrize(("shape", "block"), [((0, 4), (2, 2)), ((4, 4), (0, 2)), ((4,), (2, 2))])
def test_empty_or_unequal_axes_are_refused(shape: tuple[int, ...], block: tuple[int, ...]) -> None:
    with pytest.raises(GridError, match="at least 1|axes"):
        BlockGrid(shape, block)


def test_a_box_that_ends_before_it_starts_is_refused() -> None:
    with pytest.raises(GridError, match="before its start"):
        Box((3,), (2,))

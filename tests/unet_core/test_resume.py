"""Which units regions need, against every voxel of small volumes."""

from __future__ import annotations

import time
from itertools import product
from operator import add
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from unet_core.geometry import Box
from unet_core.postprocess.block_parts import seen_box
from unet_core.resume import is_wanted, wanted_units
from unet_core.stages import stages_of

Shape = tuple[int, ...]


def planned(shape: Shape, block: Shape, factors: list[Shape]) -> Any:
    levels = [SimpleNamespace(shape=shape, factor=(1,) * len(shape))]
    for factor in factors:
        coarser = tuple(-(-size // step) for size, step in zip(levels[-1].shape, factor, strict=True))
        levels.append(SimpleNamespace(shape=coarser, factor=factor))
    stages = stages_of([(level.shape, level.factor) for level in levels], block, has_instances=True)
    return SimpleNamespace(
        levels=levels, block_shape=block, stages=stages, stage=lambda name: next(one for one in stages if one.name == name)
    )


def voxels_of(box: Box) -> set[Shape]:
    return set(product(*(range(first, last) for first, last in zip(box.start, box.stop, strict=True))))


def covered(plan: Any, regions: list[Box], level: int) -> set[Shape]:
    """By brute force: the voxels of a level that the blocks which regions touch hold."""
    finest = [voxels_of(block) for block in plan.stages[0].grid.blocks()]
    voxels = {voxel for block in finest for region in regions if block & voxels_of(region) for voxel in block}
    for coarser in plan.levels[1 : level + 1]:
        voxels = {tuple(place // step for place, step in zip(voxel, coarser.factor, strict=True)) for voxel in voxels}
    return voxels


def check_parts(listed: list[int], wanted: list[int], stage: Any, voxels: set[Shape]) -> None:
    """Every two neighbouring voxels are seen by one block, and no block is there for nothing."""
    steps = [step for step in product((-1, 0, 1), repeat=len(stage.shape)) if any(step)]
    pairs = {frozenset((voxel, tuple(map(add, voxel, step)))) for voxel in voxels for step in steps}
    pairs = {pair for pair in pairs if pair <= voxels}
    seen = {index: voxels_of(seen_box(stage.grid.block(index), stage.shape)) for index in listed}
    assert set(wanted) <= set(listed)
    assert all(any(pair <= seen[index] for index in listed) for pair in pairs)
    for more in set(listed) - set(wanted):
        assert any(pair <= seen[more] and not any(pair <= seen[index] for index in set(listed) - {more}) for pair in pairs)


@pytest.mark.parametrize(
    ("shape", "block", "factors"),
    [((11, 9), (2, 3), [(2, 2), (2, 1)]), ((5, 6, 4), (2, 2, 2), [(1, 2, 2)]), ((3, 7, 5), (1, 3, 2), [(2, 2, 2), (1, 2, 2)])],
    ids=str,
)
def test_units_are_wanted_that_hold_what_regions_need(shape: Shape, block: Shape, factors: list[Shape]) -> None:
    random, plan = np.random.default_rng(3), planned(shape, block, factors)
    more = 0
    for count in (1, 1, 2, 3, 4, 5):
        starts = [tuple(int(random.integers(size)) for size in shape) for _ in range(count)]
        regions = [Box(start, tuple(first + int(random.integers(1, 3)) for first in start)) for start in starts]
        request: Any = SimpleNamespace(roi=tuple((box.start, box.stop) for box in regions))
        for stage in plan.stages:
            listed = list(wanted_units(plan, request, stage))
            voxels = covered(plan, regions, stage.level)
            wanted = [index for index in range(stage.grid.block_count) if voxels & voxels_of(stage.grid.block(index))]
            if stage.kind == "parts":
                check_parts(listed, wanted, stage, voxels)
                more += len(listed) - len(wanted)
            else:
                assert listed == wanted, (stage.name, regions)
            assert listed == [index for index in range(stage.grid.block_count) if is_wanted(plan, request, stage, index)]
        more += len(list(wanted_units(plan, request, plan.stage("parts")))) - len(
            list(wanted_units(plan, request, plan.stages[0]))
        )
    assert more, "in none of these regions met at a corner, take another seed"


def test_a_region_for_every_second_block_is_looked_at_once() -> None:
    """A mask may leave thousands of regions, and each unit asks for its neighbours."""
    plan = planned((20_000, 20_000), (100, 100), [(2, 2)])
    grid = plan.stages[0].grid
    request: Any = SimpleNamespace(roi=tuple((box.start, box.stop) for box in grid.blocks() if sum(box.start) % 200 == 0))
    assert (
        len(list(wanted_units(plan, request, plan.stage("parts")))) == 39_800
    )  # all but those at the end, where two cannot meet
    began = time.process_time()
    told = [is_wanted(plan, request, plan.stages[0], index) for index in range(1000)]
    assert told == [sum(grid.coordinates(index)) % 2 == 0 for index in range(1000)]
    assert time.process_time() - began < 2  # 6 ms each, where every region was looked at

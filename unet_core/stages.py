"""The passes of a run over its output, in their order, and what each is made from. Computes nothing.

segment ---> level-1 ---> level-2 ..                          voxels of the images, each level from the one before
        \\--> parts ---> join ---> instances ---> instances-level-1 ..      the last need all blocks, through the one unit of join
                                       \\--> measure ---> table             sums over the objects of a block; the one table of all
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from unet_core.geometry import BlockGrid, Box, Shape

SEGMENT_STAGE = "segment"
PARTS_STAGE = "parts"
JOIN_STAGE = "join"
INSTANCES_STAGE = "instances"
MEASURE_STAGE = "measure"
TABLE_STAGE = "table"

_TITLES = {
    SEGMENT_STAGE: "segmentation",
    PARTS_STAGE: "objects in blocks",
    JOIN_STAGE: "objects joined",
    INSTANCES_STAGE: "objects numbered",
    MEASURE_STAGE: "objects measured",
    TABLE_STAGE: "table of objects",
}

StageKind = Literal["segment", "level", "parts", "join", "instances", "instances-level", "measure", "table"]


class Stage(BaseModel):
    """A pass over one level of the output, in units that write whole objects.

    Args:
        name: of its records.
        kind: what its units do.
        level: that they belong to.
        shape: of the level.
        block_shape: of a unit.
        factor: of the level; how much coarser than the one before.
        around: voxels before and after its block that a unit of ``parts`` reads of the segmentation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: StageKind
    level: int
    shape: Shape
    block_shape: Shape
    factor: Shape
    around: tuple[Shape, Shape] = ((), ())

    @property
    def grid(self) -> BlockGrid:
        return BlockGrid(self.shape, self.block_shape)

    @property
    def writes_instances(self) -> bool:
        """Whether its units hold voxels of the instances, rather than of the other images."""
        return self.kind in ("instances", "instances-level")


def stages_of(
    levels: Sequence[tuple[Shape, Shape]],
    block_shape: Shape,
    has_instances: bool,
    has_table: bool = False,
    halo: Shape | None = None,
) -> tuple[Stage, ...]:
    """Segmentation first, then one stage for each coarser level; then instances, their levels, and their table.

    Args:
        levels: shape and factor of each, the finest first.
        block_shape: of units.
        has_instances: whether instances are made.
        has_table: whether they are measured.
        halo: voxels that parts look further than the one after their block; none unless told.
    """
    halo = halo or (0,) * len(block_shape)
    around = halo, tuple(more + 1 for more in halo)

    def stage(name: str, kind: StageKind, level: int, block_shape: Shape = block_shape) -> Stage:
        shape, factor = levels[level]
        return Stage(name=name, kind=kind, level=level, shape=shape, block_shape=block_shape, factor=factor)

    coarser = range(1, len(levels))
    stages = [stage(SEGMENT_STAGE, "segment", 0), *(stage(f"level-{level}", "level", level) for level in coarser)]
    if has_instances:
        stages += [
            stage(PARTS_STAGE, "parts", 0).model_copy(update={"around": around}),
            stage(JOIN_STAGE, "join", 0, levels[0][0]),
            stage(INSTANCES_STAGE, "instances", 0),
            *(stage(f"{INSTANCES_STAGE}-level-{level}", "instances-level", level) for level in coarser),
        ]
    if has_table:
        stages += [stage(MEASURE_STAGE, "measure", 0), stage(TABLE_STAGE, "table", 0, levels[0][0])]
    return tuple(stages)


def title_of(name: str) -> str:
    """The name of a stage in words, for those who watch a run.

    Example:
        >>> title_of("segment"), title_of("level-2"), title_of("instances-level-1")
        ('segmentation', 'coarser image 2', 'coarser objects 1')
    """
    kind, _, number = name.rpartition("level-")
    if number.isdecimal():
        return f"coarser {'objects' if kind else 'image'} {number}"
    return _TITLES.get(name, name)


def made_from(stages: Sequence[Stage], name: str, index: int) -> Iterator[tuple[str, int]]:
    """A unit, and those that were computed from it: they may hold what it held when it was damaged. In the order of the stages.

    Args:
        stages: all of the plan.
        name: of the unit's stage.
        index: of the unit.
    """
    for stage, box in boxes_made_from(stages, name, index):
        yield from ((stage.name, unit) for unit in stage.grid.touching(box))


def boxes_made_from(stages: Sequence[Stage], name: str, index: int) -> Iterator[tuple[Stage, Box]]:
    """What of each stage is affected by a unit, that of its own stage first."""
    boxes: dict[str, Box] = {}
    for stage in stages:
        source = source_of(stages, stage)
        if stage.name == name:
            boxes[name] = stage.grid.block(index)
        elif source is not None and source.name in boxes:
            boxes[stage.name] = reached(boxes[source.name], stage)
        else:
            continue
        yield stage, boxes[stage.name]


def source_of(stages: Sequence[Stage], stage: Stage) -> Stage | None:
    """The stage whose units are read; None for the segmentation, which reads the image."""
    wanted = {
        "segment": None,
        "level": "segment" if stage.level == 1 else f"level-{stage.level - 1}",
        "parts": SEGMENT_STAGE,
        "join": PARTS_STAGE,
        "instances": JOIN_STAGE,
        "measure": INSTANCES_STAGE,
        "table": MEASURE_STAGE,
        "instances-level": INSTANCES_STAGE if stage.level == 1 else f"{INSTANCES_STAGE}-level-{stage.level - 1}",
    }[stage.kind]
    return next((other for other in stages if other.name == wanted), None)


def measure_ring(dims: int) -> Shape:
    """Voxels around a block that measuring sees: of flat objects those that tell how a border runs, see ``measuring.perimeter``."""
    return (2, 2) if dims == 2 else (0,) * dims


def read_box(stage: Stage, index: int) -> Box | None:
    """What a unit reads of its source; None if that is everything, so that all must be there first. May pass the source's end."""
    box = stage.grid.block(index)
    match stage.kind:
        case "level" | "instances-level":
            return box.scale_up(stage.factor)
        case "parts":
            return box.grow(*stage.around)
        case "measure":
            ring = measure_ring(box.ndim)
            return box.grow(ring, ring)
        case _:
            return None


def reached(box: Box, stage: Stage) -> Box:
    """What of a stage depends on a box of its source."""
    match stage.kind:
        case "level" | "instances-level":
            return box.scale_down(stage.factor)
        case "parts":
            before, after = stage.around
            return box.grow(after, before).intersect(Box.from_shape(stage.shape))
        case "measure":
            ring = measure_ring(box.ndim)
            return box.grow(ring, ring).intersect(Box.from_shape(stage.shape))
        case _:
            return Box.from_shape(stage.shape)

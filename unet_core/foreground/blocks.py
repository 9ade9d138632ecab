"""The blocks that hold foreground, from masks of any kind. Knows no file format.

mask        . . # # .        one voxel of the mask covers many of the image
grown       . # # # #        by one of its own voxels, and by some of the image
blocks     |   |###|###|     wanted: all whose write box meets the grown mask; the others are neither read nor computed
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil
from typing import Any, Protocol

from unet_core.errors import VolumeError
from unet_core.geometry import BlockGrid, Box, Shape, boxes_of

GROWN_VOXELS = 16  # of the image in y and x, at least: what crosses the border of a mask by less is whole


class Foreground(Protocol):
    """Where what is looked for lies, in voxels of the image that is segmented.

    Args:
        kind: of mask.
        source: where it comes from.
        sha256: of what tells it.
        scale: voxels of the image that one of its own covers, along the image's axes.
        facts: parameters and numbers that the output records.
    """

    kind: str
    source: str
    sha256: str
    scale: tuple[float, ...]
    facts: dict[str, Any]

    def touches(self, box: Box) -> bool:
        """Whether anything of it lies in a box, which may hang over the image."""


@dataclass(frozen=True)
class Chosen:
    """The blocks that one mask leaves.

    Args:
        foreground: the mask.
        grown: voxels of the image by which it was grown, along each axis.
        skipped: blocks that were asked for and hold nothing of it.
    """

    foreground: Foreground
    grown: Shape
    skipped: int = field(default=0)


def blocks_with_foreground(masks: list[Foreground], grid: BlockGrid, wanted: list[Box]) -> tuple[list[Box], list[Chosen]]:
    """Boxes of whole blocks that hold foreground of every mask, few of them; and what each mask leaves out.

    Args:
        masks: at least one.
        grid: of the finest level's blocks.
        wanted: regions that are asked for; empty for the whole image.

    Raises:
        VolumeError: if no block is left.
    """
    asked = {index for box in wanted for index in grid.touching(box)} if wanted else range(grid.block_count)
    left, chosen = sorted(asked), []
    for mask in masks:
        grown = _grown(mask.scale)
        kept = [index for index in left if mask.touches(grid.block(index).grow(grown, grown))]
        if not kept:
            raise VolumeError(_nothing_left(mask, bool(wanted)))
        chosen.append(Chosen(mask, grown, len(left) - len(kept)))
        left = kept
    boxes = boxes_of(grid.coordinates(index) for index in left)
    whole = Box.from_shape(grid.shape)
    return [box.scale_up(grid.block_shape).intersect(whole) for box in boxes], chosen


def _grown(scale: tuple[float, ...]) -> Shape:
    sizes = [ceil(step) for step in scale]
    return tuple(sizes[:-2] + [max(size, GROWN_VOXELS) for size in sizes[-2:]])


def _nothing_left(mask: Foreground, has_regions: bool) -> str:
    where = "inside --roi" if has_regions else "anywhere"
    if mask.kind == "tissue":
        return f"No tissue was found {where} in {mask.source} ({mask.facts}); say where it is with --mask, or leave out --tissue."
    return f"Mask {mask.source} marks nothing {where} in the image; give a mask whose voxels are not all 0, or leave out --mask."

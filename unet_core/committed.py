"""Voxels and tables of units that are committed, checked against their records. Knows the ledger, no network."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core import ledger, output
from unet_core.errors import LedgerError
from unet_core.geometry import Box
from unet_core.ledger import Request
from unet_core.plan import ImagePlan, Plan
from unet_core.pulse import PULSE
from unet_core.resume import is_wanted
from unet_core.stages import Stage
from unet_core.store import Store


def read_voxels(
    store: Store, plan: Plan, request: Request, stage: Stage, images: tuple[ImagePlan, ...], box: Box
) -> list[NDArray[Any]]:
    """Voxels of a box at the level of a stage, of shape ([C,] *box.shape) for each image; 0 where no block is wanted.

    Raises:
        LedgerError: if a unit that is wanted has no record, or its objects are not what was written.
    """
    folders = tuple(f"{image.array_path(stage.level)}/" for image in images)
    numbers = list(stage.grid.touching(box))
    if len(numbers) == 1:
        stored = read_objects(store, plan, request, stage, numbers[0], folders)
        return [output.decode_shards(plan, image, stage.level, stored, box) for image in images]
    voxels: list[NDArray[Any]] = [
        np.zeros((*((image.channels,) if image.channels else ()), *box.shape), dtype=image.dtype) for image in images
    ]
    for number in numbers:  # one after the other: of blocks that are wider than what is wanted of them, few bytes are held
        part = stage.grid.block(number).intersect(box)
        stored = read_objects(store, plan, request, stage, number, folders)
        place: tuple[Any, ...] = (Ellipsis, *part.shift(tuple(-first for first in box.start)).slices())
        for image, values in zip(images, voxels, strict=True):
            values[place] = output.decode_shards(plan, image, stage.level, stored, part)
    return voxels


def read_objects(
    store: Store, plan: Plan, request: Request, stage: Stage, index: int, folders: tuple[str, ...] = ("",)
) -> dict[str, bytes]:
    """Objects of a unit by their key; none if it is not wanted. All but the segmentation's are those of this very request.

    Args:
        folders: with a slash at their end; what lies in no one of them is not read.

    Raises:
        LedgerError: likewise.
    """
    PULSE.beat()  # what is made from many blocks may take long
    if not is_wanted(plan, request, stage, index):
        return {}
    # A worker that was sent for an earlier request may end late, and leave a unit that saw less.
    objects = ledger.read_unit(store, plan, stage.name, index, None if stage.kind == "segment" else request.id, folders)
    if objects is None:
        raise LedgerError(
            f"{stage.name} block {index} has no record any more; run the same command again, it computes this again"
        )
    return objects

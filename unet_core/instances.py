"""What units of the stages that make instances compute, from what is committed before them. Knows the ledger, no network.

labels of a block ---> its parts ---\\
labels of a block ---> its parts -----> join: the id of every part ---> ids of a block
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unet_core import ledger
from unet_core.committed import read_voxels
from unet_core.errors import LedgerError
from unet_core.geometry import Box
from unet_core.instance_objects import packed_joined, packed_parts, read_ids, read_joined, read_parts
from unet_core.ledger import Request
from unet_core.plan import InstancesPlan, Plan
from unet_core.postprocess.block_parts import describe_parts, mark_of, own_part, own_voxels, seen_box
from unet_core.postprocess.blockwise import label_parts
from unet_core.postprocess.joining import Joiner
from unet_core.resume import wanted_units
from unet_core.stages import JOIN_STAGE, PARTS_STAGE, SEGMENT_STAGE
from unet_core.store import Store

__all__ = ["instance_values", "joined_objects", "parts_objects", "read_joined"]


def parts_objects(store: Store, plan: Plan, request: Request, index: int) -> dict[str, bytes]:
    """The object of a unit of stage ``parts``: what joining needs of one block."""
    own = plan.stage(PARTS_STAGE).grid.block(index)
    labels, parts = _labelled(store, plan, request, own)
    return packed_parts(index, describe_parts(labels, parts, own, plan.levels[0].shape))


def joined_objects(store: Store, plan: Plan, request: Request) -> dict[str, bytes]:
    """The objects of the one unit of stage ``join``: the id of every part of every block, and label and size of every instance."""
    stage = plan.stage(PARTS_STAGE)
    joiner = Joiner(stage.grid)
    for index, parts in read_parts(store, plan, request, wanted_units(plan, request, stage)):
        joiner.add(index, parts)
    return packed_joined(joiner.join(_options(plan).min_voxels))


def instance_values(store: Store, plan: Plan, request: Request, index: int) -> NDArray[np.uint64]:
    """Ids of one block, 0 on background.

    Raises:
        LedgerError: if its parts are no longer those that were joined.
    """
    own = plan.stage(PARTS_STAGE).grid.block(index)
    _, seen = _labelled(store, plan, request, own)
    ids, mark = read_ids(store, plan, request, index)
    parts = own_part(seen, own)
    if seen.max(initial=0) != len(ids) or mark_of(*own_voxels(parts, len(ids), own, plan.levels[0].shape)) != mark:
        raise LedgerError(
            f"The parts of block {index} are not those that were joined: another version of connected-components-3d numbers them otherwise. "
            f"Delete {ledger.FOLDER}/ledger/{PARTS_STAGE} and {ledger.FOLDER}/ledger/{JOIN_STAGE} in {store.url} and run the same "
            "command again."
        )
    return np.concatenate((np.zeros(1, dtype=np.uint64), ids))[parts]


def _labelled(store: Store, plan: Plan, request: Request, own: Box) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    """Labels and numbered parts of what a block sees."""
    options = _options(plan)
    images = tuple(image for image in plan.images if image.path == options.labels)
    seen = seen_box(own, plan.levels[0].shape)
    (labels,) = read_voxels(store, plan, request, plan.stage(SEGMENT_STAGE), images, seen)
    return labels, label_parts(labels, options.connectivity)


def _options(plan: Plan) -> InstancesPlan:
    assert plan.instances is not None
    return plan.instances

"""What units of the stages that make instances compute, from what is committed before them. Knows the ledger, no network.

labels of a block ---> its parts ---\\
labels of a block ---> its parts -----> join: the id of every part ---> ids of a block
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core import ledger
from unet_core.committed import read_objects, read_voxels
from unet_core.errors import LedgerError
from unet_core.geometry import Box
from unet_core.ledger import Request
from unet_core.plan import InstancesPlan, Plan
from unet_core.postprocess.blockwise import (
    BlockParts,
    Joined,
    describe_parts,
    join_blocks,
    label_parts,
    mark_of,
    own_part,
    own_voxels,
    seen_box,
)
from unet_core.resume import wanted_units
from unet_core.stages import JOIN_STAGE, PARTS_STAGE, SEGMENT_STAGE
from unet_core.store import Store

_FOLDER = f"{ledger.FOLDER}/instances"
_JOINED_KEY = f"{_FOLDER}/joined.npz"
_PART_FIELDS = ("first", "size", "value", "before", "after")
_READERS = 8
_OPENING = Lock()
_opened: dict[tuple[str, str | None], Joined] = {}  # the one that this process used last, for its next block


def parts_objects(store: Store, plan: Plan, request: Request, index: int) -> dict[str, bytes]:
    """The object of a unit of stage ``parts``: what joining needs of one block."""
    own = plan.stage(PARTS_STAGE).grid.block(index)
    labels, parts = _labelled(store, plan, request, own)
    found = describe_parts(labels, parts, own, plan.levels[0].shape)
    return {_parts_key(index): _packed({name: getattr(found, name) for name in _PART_FIELDS})}


def joined_objects(store: Store, plan: Plan, request: Request) -> dict[str, bytes]:
    """The object of the one unit of stage ``join``: the id of every part of every block, and label and size of every instance."""
    stage = plan.stage(PARTS_STAGE)
    wanted = list(wanted_units(plan, request, stage))
    with ThreadPoolExecutor(_READERS) as readers:
        blocks = list(zip(wanted, readers.map(lambda index: _read_parts(store, plan, request, index), wanted), strict=True))
    joined = join_blocks(blocks, _options(plan).min_voxels)
    counts = [len(joined.ids[index]) for index in wanted]
    arrays = {
        "blocks": np.array(wanted, dtype=np.int64),
        "offsets": np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        "ids": np.concatenate([joined.ids[index] for index in wanted]),
        "marks": np.frombuffer(b"".join(joined.marks[index] for index in wanted), dtype=np.uint8).reshape(len(wanted), -1),
        "values": joined.values,
        "sizes": joined.sizes,
    }
    return {_JOINED_KEY: _packed(arrays)}


def instance_values(store: Store, plan: Plan, request: Request, index: int) -> NDArray[np.uint64]:
    """Ids of one block, 0 on background.

    Raises:
        LedgerError: if its parts are no longer those that were joined.
    """
    own = plan.stage(PARTS_STAGE).grid.block(index)
    _, parts = _labelled(store, plan, request, own)
    joined = read_joined(store, plan, request)
    if joined.marks[index] != mark_of(*own_voxels(parts, own, plan.levels[0].shape)):
        raise LedgerError(
            f"The parts of block {index} are not those that were joined: another version of connected-components-3d numbers them otherwise. "
            f"Delete {ledger.FOLDER}/ledger/{PARTS_STAGE} and {ledger.FOLDER}/ledger/{JOIN_STAGE} in {store.url} and run the same "
            "command again."
        )
    table = np.concatenate((np.zeros(1, dtype=np.uint64), joined.ids[index]))
    return np.asarray(table[own_part(parts, own)])


def read_joined(store: Store, plan: Plan, request: Request) -> Joined:
    """The ids of all parts, and label and size of all instances.

    Raises:
        LedgerError: if they are not there.
    """
    record = ledger.read_record(store, plan, JOIN_STAGE, 0, request.id)
    key = (store.url, record.objects[0].sha256 if record else None)
    with _OPENING:
        if key not in _opened:
            found = _unpacked_joined(read_objects(store, plan, request, plan.stage(JOIN_STAGE), 0)[_JOINED_KEY])
            _opened.clear()
            _opened[key] = found
        return _opened[key]


def _unpacked_joined(data: bytes) -> Joined:
    arrays = _unpacked(data)
    offsets = arrays["offsets"]
    blocks = arrays["blocks"].tolist()
    spans = zip(blocks, offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    ids = {index: arrays["ids"][first:last] for index, first, last in spans}
    marks = {index: mark.tobytes() for index, mark in zip(blocks, arrays["marks"], strict=True)}
    return Joined(ids, marks, arrays["values"], arrays["sizes"])


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


def _parts_key(index: int) -> str:
    return f"{_FOLDER}/parts/{index:08d}.npz"


def _read_parts(store: Store, plan: Plan, request: Request, index: int) -> BlockParts:
    objects = read_objects(store, plan, request, plan.stage(PARTS_STAGE), index)
    return BlockParts(**_unpacked(objects[_parts_key(index)]))


def _packed(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Arrays as one object; the same bytes for the same arrays."""
    target = io.BytesIO()
    np.savez_compressed(target, allow_pickle=False, **arrays)
    return target.getvalue()


def _unpacked(data: bytes) -> dict[str, NDArray[Any]]:
    with np.load(io.BytesIO(data), allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}

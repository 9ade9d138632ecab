"""What the stages that make instances store beside the images: parts of each block, and what they were joined to. Knows the ledger.

.unet/instances/parts/BLOCK.zst     what joining needs of one block
.unet/instances/voxels/BLOCK.zst    part of each voxel of one block, as runs
.unet/instances/ids/GROUP.npz       the id of every part, of so many consecutive blocks that a worker reads few objects and holds little
.unet/instances/joined.npz          label and size of every instance
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar

import numpy as np
from numcodecs import Zstd
from numpy.typing import NDArray

from unet_core import ledger
from unet_core.array_file import read_arrays, write_arrays
from unet_core.committed import read_objects
from unet_core.errors import LedgerError
from unet_core.ledger import Request
from unet_core.plan import Plan
from unet_core.postprocess.block_parts import BlockParts, Bonds, Runs, Slopes
from unet_core.postprocess.joining import Joined
from unet_core.stages import JOIN_STAGE, PARTS_STAGE
from unet_core.store import Store

GROUP = 256  # blocks whose ids are one object; part of the bytes of an output

_FOLDER = f"{ledger.FOLDER}/instances"
_JOINED_KEY = f"{_FOLDER}/joined.npz"
_FIELDS = {"first": "<u8", "size": "<i8", "value": "|u1", "before": "<u4", "after": "<u4"}
_SLOPE_FIELDS = {"tops": "<f4", "one": "<u4", "other": "<u4", "heights": "<f4", "ties": "<u8"}
_BOND_FIELDS = {
    "keys": "<u8",
    "one": "<u4",
    "other": "<u4",
    "count": "<u4",
    "touching": "<u4",
    "total": "<u8",
}
_ZSTD = {"level": 3, "checksum": True}
_READERS, _READ_AHEAD = 16, 64
_OPENING = Lock()
_opened: dict[tuple[str, str], dict[str, NDArray[Any]]] = {}  # the group of ids that this process used last, for its next block
_Item = TypeVar("_Item")
_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Instances:
    """Label and size of instance 1, 2, .."""

    values: NDArray[np.uint8]
    sizes: NDArray[np.int64]


def packed_parts(index: int, voxels: Runs, parts: BlockParts) -> dict[str, bytes]:
    """The objects of a unit of stage ``parts``."""
    arrays = [np.asarray(getattr(parts, name), dtype=dtype) for name, dtype in _FIELDS.items()]
    if parts.slopes is not None:
        arrays += [np.asarray(getattr(parts.slopes, name), dtype=dtype) for name, dtype in _SLOPE_FIELDS.items()]
    if parts.bonds is not None:
        arrays += [np.asarray(getattr(parts.bonds, name), dtype=dtype) for name, dtype in _BOND_FIELDS.items()]
    return {
        _parts_key(index): _packed(arrays),
        _voxels_key(index): _packed([voxels.lengths.astype("<u4"), voxels.parts.astype("<u4")]),
    }


def read_runs(store: Store, plan: Plan, request: Request, index: int) -> Runs:
    """The part of each voxel of a block.

    Raises:
        LedgerError: if they are not there.
    """
    key = _voxels_key(index)
    return Runs(*_unpacked(store, _parts_object(store, plan, request, index, key), key, ["<u4", "<u4"]))


def read_parts(store: Store, plan: Plan, request: Request, indices: Iterable[int]) -> Iterator[tuple[int, BlockParts]]:
    """The parts of blocks, in their order; a few are read ahead.

    Raises:
        LedgerError: if one is not there, or not as this release writes it.
    """

    has_slopes = plan.instances is not None and plan.instances.depth is not None
    has_bonds = plan.instances is not None and plan.instances.tile is not None
    dtypes = [*_FIELDS.values(), *(_SLOPE_FIELDS.values() if has_slopes else _BOND_FIELDS.values() if has_bonds else ())]

    def read(index: int) -> BlockParts:
        key = _parts_key(index)
        arrays = _unpacked(store, _parts_object(store, plan, request, index, key), key, dtypes)
        first, size, value, before, after = arrays[: len(_FIELDS)]
        slopes = Slopes(*arrays[len(_FIELDS) :]) if has_slopes else None
        bonds = Bonds(*arrays[len(_FIELDS) :]) if has_bonds else None
        return BlockParts(first, size, value, before.reshape(-1, 2), after.reshape(-1, 2), slopes, bonds)

    return _read_ahead(read, indices)


def packed_joined(joined: Joined) -> dict[str, bytes]:
    """The objects of the one unit of stage ``join``."""
    objects = {_JOINED_KEY: write_arrays({"values": joined.values, "sizes": joined.sizes})}
    groups, begins = np.unique(joined.blocks // GROUP, return_index=True)
    for group, begin, end in zip(groups.tolist(), begins, [*begins[1:], len(joined.blocks)], strict=True):
        offsets = joined.offsets[begin : end + 1]
        arrays = {
            "blocks": joined.blocks[begin:end],
            "marks": joined.marks[begin:end],
            "offsets": offsets - offsets[0],
            "ids": joined.ids[offsets[0] : offsets[-1]],
        }
        objects[_ids_key(group * GROUP)] = write_arrays(arrays)
    return objects


def read_joined(store: Store, plan: Plan, request: Request) -> Instances:
    """Label and size of all instances.

    Raises:
        LedgerError: if they are not there.
    """
    arrays = read_arrays(read_objects(store, plan, request, plan.stage(JOIN_STAGE), 0, (_JOINED_KEY,))[_JOINED_KEY])
    return Instances(arrays["values"], arrays["sizes"])


def read_ids(store: Store, plan: Plan, request: Request, index: int) -> tuple[NDArray[np.uint64], bytes]:
    """Id of each part of a block, and the mark of the parts that were joined.

    Raises:
        LedgerError: if they are not there.
    """
    key = _ids_key(index)
    record = ledger.read_record(store, plan, JOIN_STAGE, 0, request.id)
    sha256 = next((entry.sha256 for entry in record.objects if entry.key == key), None) if record else None
    with _OPENING:
        arrays = _opened.get((store.url, sha256 or ""))
        if arrays is None:
            arrays = read_arrays(read_objects(store, plan, request, plan.stage(JOIN_STAGE), 0, (key,))[key])
            _opened.clear()
            _opened[store.url, sha256 or ""] = arrays
    place = int(np.searchsorted(arrays["blocks"], index))
    begin, end = arrays["offsets"][place : place + 2]
    return arrays["ids"][begin:end], arrays["marks"][place].tobytes()


def _parts_object(store: Store, plan: Plan, request: Request, index: int, key: str) -> bytes | None:
    return read_objects(store, plan, request, plan.stage(PARTS_STAGE), index, (key,)).get(key)


def _packed(arrays: list[NDArray[Any]]) -> bytes:
    """How many values each array has, then the values; a zip file of arrays would take ten times as long to open."""
    counts = np.array([array.size for array in arrays], dtype="<u8")
    data: bytes = Zstd(**_ZSTD).encode(b"".join(array.tobytes() for array in (counts, *arrays)))
    return data


def _unpacked(store: Store, data: bytes | None, key: str, dtypes: list[str]) -> list[NDArray[Any]]:
    raw = b"" if data is None else Zstd(**_ZSTD).decode(data)
    counts = np.frombuffer(raw[: 8 * len(dtypes)], dtype="<u8").tolist()
    sizes = [count * np.dtype(dtype).itemsize for count, dtype in zip(counts, dtypes, strict=False)]
    if 8 * len(dtypes) + sum(sizes) != len(raw):
        raise LedgerError(
            f"Object {key} is not as this release writes it; delete {ledger.FOLDER}/ledger/{PARTS_STAGE} in {store.url} and run the same "
            "command again."
        )
    arrays, begin = [], 8 * len(dtypes)
    for count, dtype, size in zip(counts, dtypes, sizes, strict=True):
        arrays.append(np.frombuffer(raw, dtype=dtype, count=count, offset=begin))
        begin += size
    return arrays


def _parts_key(index: int) -> str:
    return f"{_FOLDER}/parts/{index:08d}.zst"


def _voxels_key(index: int) -> str:
    return f"{_FOLDER}/voxels/{index:08d}.zst"


def _ids_key(index: int) -> str:
    return f"{_FOLDER}/ids/{index // GROUP:06d}.npz"


def _read_ahead(read: Callable[[_Item], _Found], items: Iterable[_Item]) -> Iterator[tuple[_Item, _Found]]:
    """What ``read`` gives of each item, in their order, with only so many in memory as are read ahead."""
    waiting: deque[tuple[_Item, Future[_Found]]] = deque()
    with ThreadPoolExecutor(_READERS) as readers:
        for item in items:
            waiting.append((item, readers.submit(read, item)))
            if len(waiting) == _READ_AHEAD:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()

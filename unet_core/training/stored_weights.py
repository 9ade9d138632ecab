"""Border weights of an image of any size, computed once, block by block, and stored; read by box while training. Knows no network.

URL/record.json      of what these are the weights; "complete" once every block is stored
URL/weights          Zarr array over the part's box
URL/components       while they are computed, ids of cells, where the labels have none
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cached_property
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import ResumeError
from unet_core.geometry import BlockGrid, Box, Shape
from unet_core.store import open_store, redacted
from unet_core.training.border_weights import border_weights_of_box
from unet_core.training.components import Components
from unet_core.training.opened import Opened
from unet_core.training.options import IGNORE, WeightMapOptions
from unet_core.training.separation import SEPARATION_MARGIN, separate_touching
from unet_core.training.stored_array import BLOCK, StoredArray, StoredVolume
from unet_core.volumes.chunk_cache import ChunkCache
from unet_core.volumes.reflect import read_reflected

_CHUNK_BYTES = 256 << 20  # decoded chunks kept of one image, at most
_KEPT = Opened(limit_count=1 << 20)  # no file stays open
VERSION = 1  # raised when a release changes a stored weight
RECORD = "record.json"


class LabelledPart(Protocol):
    """An image with its truth, as far as weights need it; see ``Part``."""

    @property
    def name(self) -> str: ...
    @property
    def box(self) -> Box: ...
    @property
    def image_shape(self) -> Shape: ...
    @property
    def voxel_size(self) -> tuple[float, ...] | None: ...
    @property
    def has_instances(self) -> bool: ...
    def read_classes(self, box: Box) -> NDArray[np.uint8]: ...
    def read_instances(self, box: Box) -> NDArray[np.int64]: ...


class StoredBorderWeights:
    """Border weights of one part; may be pickled, and read from several threads.

    Args:
        url: where ``store_border_weights`` put them.

    Raises:
        ResumeError: when they are first read, if they are not complete or an object is missing.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url}

    def read(self, box: Box) -> NDArray[np.float32]:
        """Weights of ``box``, which may hang over the image: mirrored like it, and 0 outside the part's box; a copy."""
        return read_reflected(self._opened, box)[0]

    @cached_property
    def _opened(self) -> _OverImage:
        record = _record(self.url)
        if record is None or not record["complete"]:
            raise ResumeError(f"Border weights at {redacted(self.url)} are not complete; store them again before they are read.")
        array = _array(self.url, Box(*record["box"]), record["block_shape"])
        if array.checksum() != record["objects"]:
            raise ResumeError(
                f"Border weights at {redacted(self.url)} lack objects, or have others than were stored; "
                "remove the folder, and they are computed again."
            )
        return _OverImage(array, tuple(record["image_shape"]))


class _OverImage:
    """The array as a volume of the image's shape, with one channel; decoded chunks are kept."""

    def __init__(self, array: StoredArray, image_shape: Shape) -> None:
        self.spatial_shape = image_shape
        self._array = array

    def read(self, box: Box) -> NDArray[np.float32]:
        bounds = self._array.bounds
        cache = _KEPT.get(self, self._cache)
        weights = np.zeros((1, *box.shape), dtype=np.float32)
        inside = box.intersect(bounds)
        if not inside.is_empty:
            place: Any = inside.shift(tuple(-first for first in box.start)).slices()
            weights[(0, *place)] = cache.read(inside.shift(tuple(-first for first in bounds.start)))[0][0]
        return weights

    def _cache(self) -> tuple[ChunkCache, int]:
        volume = StoredVolume(self._array)
        whole = BlockGrid(volume.shape, volume.chunk_shape).block_count * prod(volume.chunk_shape) * volume.dtype.itemsize
        limit = min(_CHUNK_BYTES, whole)
        return ChunkCache(volume, limit), limit


def store_border_weights(
    url: str,
    part: LabelledPart,
    options: WeightMapOptions,
    labels: str,
    background: int = 0,
    block_shape: Shape | None = None,
    threads: int = 1,
    on_block: Callable[[int, int], None] | None = None,
) -> StoredBorderWeights:
    """Compute and store the border weights of a part, unless they are there; one process at a time.

    Cells are the instances; without instances, the connected components of what is neither background nor ignored. Cells outside the
    part's box do not count. Work that was killed is found unfinished and done again.

    Args:
        url: of a folder of its own.
        part: whose labels are read.
        options: ``separate`` changes instances only: components do not touch.
        labels: fingerprint of the labels, as ``labels_fingerprint`` or of their volume.
        background: number of the background's class.
        block_shape: of a block, at least; rounded up to whole chunks.
        threads: that compute blocks, each with memory of its own: some 60 bytes a voxel of a block and its surroundings.
        on_block: called with the blocks done and their number.

    Raises:
        ResumeError: if the folder holds weights of other labels or options, with both values, or what is no record of ours.
        InputError: if the options have no meaning, see ``border_weights``.
    """
    url = url.rstrip("/")
    wanted = _wanted(part, options, labels, background)
    found = _record(url)
    if found is not None:
        _check_same(url, part.name, found, wanted)
        if found["complete"]:
            return StoredBorderWeights(url)
    store = open_store(url)
    array = _array(url, part.box, block_shape)
    record = wanted | {"block_shape": block_shape, "objects": None, "complete": False}
    store.put(RECORD, _to_bytes(record))
    array.create()
    components = None if part.has_instances else _components(url, part, background, block_shape)
    read = components.read if components is not None else _separated(part) if options.separate else part.read_instances

    def compute(block_index: int) -> None:
        box = array.box(block_index)
        array.write(block_index, border_weights_of_box(read, part.box, box, options.w0, options.sigma, part.voxel_size))

    count = array.grid.block_count
    with ThreadPoolExecutor(threads) as pool:
        pending = [pool.submit(compute, block_index) for block_index in range(count)]
        try:
            for done, block in enumerate(as_completed(pending), start=1):
                block.result()
                if on_block is not None:
                    on_block(done, count)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    store.put(RECORD, _to_bytes(record | {"objects": array.checksum(), "complete": True}))
    if components is not None:
        components.remove()
    return StoredBorderWeights(url)


def labels_fingerprint(part: LabelledPart) -> str:
    """sha256 of everything in the labels that border weights depend on; reads them once, a block at a time."""
    digest = hashlib.sha256()
    grid = BlockGrid(part.box.shape, (BLOCK[part.box.ndim],) * part.box.ndim)
    for block in grid.blocks():
        box = block.shift(part.box.start)
        values = part.read_instances(box) if part.has_instances else part.read_classes(box)
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _components(url: str, part: LabelledPart, background: int, block_shape: Shape | None) -> Components:
    def foreground(box: Box) -> NDArray[np.int8]:
        classes = part.read_classes(box)
        return np.where(classes == IGNORE, -1, classes != background).astype(np.int8)

    return Components(foreground, part.box, f"{url}/components", block_shape)


def _separated(part: LabelledPart) -> Callable[[Box], NDArray[np.int64]]:
    def read(box: Box) -> NDArray[np.int64]:
        more = (SEPARATION_MARGIN,) * box.ndim
        grown = box.grow(more, more).intersect(part.box)
        return separate_touching(part.read_instances(grown))[box.shift(tuple(-first for first in grown.start)).slices()]

    return read


def _array(url: str, bounds: Box, block_shape: Shape | None) -> StoredArray:
    return StoredArray(f"{url}/weights", bounds, "float32", None if block_shape is None else tuple(block_shape))


def _wanted(part: LabelledPart, options: WeightMapOptions, labels: str, background: int) -> dict[str, Any]:
    return {
        "kind": "border weights",
        "version": VERSION,
        "labels": labels,
        "cells": "instances" if part.has_instances else f"components of all but class {background}",
        "w0": options.w0,
        "sigma": options.sigma,
        "separate": options.separate and part.has_instances,
        "voxel_size": None if part.voxel_size is None else list(part.voxel_size),
        "box": [list(part.box.start), list(part.box.stop)],
        "image_shape": list(part.image_shape),
    }


def _record(url: str) -> dict[str, Any] | None:
    """The record under a URL; None if there is nothing at all."""
    store = open_store(url)
    try:
        record = json.loads(store.get(RECORD))
    except FileNotFoundError:
        if next(iter(store.list()), None) is not None:
            raise ResumeError(
                f"{redacted(url)} holds objects, but no {RECORD} of border weights; remove them, or give another place."
            ) from None
        return None
    except ValueError:
        record = None
    if not isinstance(record, dict) or record.get("kind") != "border weights":
        raise ResumeError(f"{redacted(url)}/{RECORD} is no record of border weights; remove the folder, or give another place.")
    return record


def _check_same(url: str, name: str, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for key, value in wanted.items():
        if found.get(key) != value:
            raise ResumeError(
                f"Border weights of {name} at {redacted(url)} were stored for {key} {found.get(key)!r}, wanted is {value!r}; "
                "remove the folder to compute them again, or give another place."
            )


def _to_bytes(record: dict[str, Any]) -> bytes:
    return json.dumps(record, indent=1).encode()

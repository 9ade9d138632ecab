"""One array under a URL, written block by block, each a whole Zarr shard, and read by box. Knows nothing of what its values mean."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core import shards
from unet_core.geometry import BlockGrid, Box, Shape
from unet_core.store import Store, open_store
from unet_core.volumes.protocol import LaidOut, Layout, Level

CHUNK = {2: 256, 3: 64}  # voxels along each axis that are decoded at once
BLOCK = {2: 1024, 3: 128}  # that are computed and stored at once


class StoredArray:
    """Values of ``bounds`` as a Zarr v3 array; its position 0 is the start of ``bounds``. May be pickled.

    Args:
        url: of the array's folder.
        bounds: positions that it has, in voxels of the image.
        dtype: of its values.
        block_shape: of a stored object; made whole chunks, which are of at least 16 voxels, and no longer than the array.
    """

    def __init__(self, url: str, bounds: Box, dtype: str, block_shape: Shape | None = None) -> None:
        self.url, self.bounds = url, bounds
        dims = bounds.ndim
        wanted = (BLOCK[dims],) * dims if block_shape is None else block_shape
        sides = [-(-min(side, size) // 16) * 16 for side, size in zip(wanted, bounds.shape, strict=True)]
        chunk = tuple(min(CHUNK[dims], side) for side in sides)
        shard = tuple(-(-side // part) * part for side, part in zip(sides, chunk, strict=True))
        self._layout = shards.ShardLayout(bounds.shape, shard, chunk, dtype, "zyx"[-dims:])

    @property
    def chunk_shape(self) -> Shape:
        """Voxels that are decoded at once."""
        return self._layout.chunk_shape or self._layout.shard_shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values."""
        return np.dtype(self._layout.dtype)

    @property
    def grid(self) -> BlockGrid:
        """The blocks, of positions that count from the start of ``bounds``."""
        return BlockGrid(self._layout.shape, self._layout.shard_shape)

    @cached_property
    def _store(self) -> Store:
        return open_store(self.url)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_store"}

    def create(self) -> None:
        """Remove what was there, and write the metadata."""
        self.remove()
        for key, data in shards.metadata(self._layout).items():
            self._store.put(key, data)

    def remove(self) -> None:
        """Delete every object of the array."""
        for entry in list(self._store.list()):
            self._store.delete(entry.key)

    def box(self, block_index: int) -> Box:
        """A block in voxels of the image."""
        return self.grid.block(block_index).shift(self.bounds.start)

    def write(self, block_index: int, values: NDArray[Any]) -> None:
        """Store a block, seen whole or not at all; one of zeros has no object."""
        data = shards.encode(self._layout, np.ascontiguousarray(values))
        if data is not None:
            self._store.put(shards.object_name(self._layout, self.grid.coordinates(block_index)), data)

    def read(self, box: Box) -> NDArray[Any]:
        """Values of a box in voxels of the image, inside ``bounds``; 0 where nothing was stored."""
        local = box.shift(tuple(-first for first in self.bounds.start))
        objects = {}
        for block_index in self.grid.touching(local):
            name = shards.object_name(self._layout, self.grid.coordinates(block_index))
            try:
                objects[name] = self._store.get(name)
            except FileNotFoundError:
                continue
        return shards.decode(self._layout, objects, local)

    def checksum(self) -> str:
        """Of the names and sizes of the stored objects: whether any is missing or was cut off, without reading them."""
        listed = sorted(f"{entry.key} {entry.size_bytes}" for entry in self._store.list())
        return hashlib.sha256("\n".join(listed).encode()).hexdigest()


class StoredVolume(LaidOut):
    """A stored array as a volume of one channel, whose position 0 is the start of the array's ``bounds``."""

    def __init__(self, array: StoredArray) -> None:
        self._array = array
        shape = array.bounds.shape
        self.layout = Layout(
            url=array.url,
            level=0,
            axes="zyx"[-len(shape) :],
            shape=shape,
            dtype=array.dtype,
            voxel_size=None,
            scale=(1.0,) * len(shape),
            unit=None,
            translation=(0.0,) * len(shape),
            levels=(Level(0, shape, None),),
            chunk_shape=array.chunk_shape,
        )

    def read(self, box: Box) -> NDArray[Any]:
        return self._array.read(box.shift(self._array.bounds.start))[None]

    def fingerprint(self) -> dict[str, str]:
        return {"objects": self._array.checksum()}

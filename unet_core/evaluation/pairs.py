"""A prediction and its reference, whole or one section of them, ready to be read in boxes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unet_core.errors import InputError
from unet_core.evaluation.meaning import Meaning
from unet_core.geometry import BlockGrid, Box, Shape
from unet_core.volumes.array import ArrayVolume
from unet_core.wording import counted

_BLOCK_VOXELS = 1 << 22  # that are read and counted at once


class Readable(Protocol):
    """What is read of an image; a ``Volume`` is one."""

    @property
    def url(self) -> str: ...
    @property
    def spatial_shape(self) -> Shape: ...
    @property
    def chunk_shape(self) -> Shape: ...
    @property
    def channel_count(self) -> int: ...
    @property
    def voxel_size(self) -> tuple[float, ...] | None: ...

    def read(self, box: Box) -> NDArray[Any]:
        """Voxels of ``box``, of shape (C, *box.shape)."""


class Shown(Protocol):
    """What is read of an image to be looked at."""

    @property
    def spatial_shape(self) -> Shape: ...

    def read(self, box: Box) -> NDArray[Any]:
        """Voxels of ``box``, of shape (C, *box.shape)."""


@dataclass(frozen=True)
class Pair:
    """Two images of one shape, with one channel each.

    Args:
        name: of the pair, for tables.
        prediction: see ``meaning``.
        reference: see ``meaning``.
        meaning: of their numbers.
        image: gives what both are labels of, to be looked at; None, or gives None, where it is not at hand.

    Raises:
        InputError: if they do not cover the same voxels, or have several channels.
    """

    name: str
    prediction: Readable
    reference: Readable
    meaning: Meaning
    image: Callable[[], Shown | None] | None = None

    def __post_init__(self) -> None:
        if self.prediction.spatial_shape != self.reference.spatial_shape:
            raise InputError(
                f"Prediction {self.prediction.url} has {self.prediction.spatial_shape} voxels and reference {self.reference.url} "
                f"{self.reference.spatial_shape}; a score needs the same voxels of both."
            )
        for what, image in (("Prediction", self.prediction), ("Reference", self.reference)):
            if image.channel_count != 1:
                raise InputError(f"{what} {image.url} has {counted(image.channel_count, 'channel')}; one is scored, choose it.")

    @property
    def shape(self) -> Shape:
        return self.reference.spatial_shape

    def read(self, box: Box) -> tuple[NDArray[Any], NDArray[Any]]:
        """Prediction and reference in ``box``."""
        return self.prediction.read(box)[0], self.reference.read(box)[0]

    def open_image(self) -> Shown | None:
        """The image, if it is at hand and covers the same voxels."""
        found = None if self.image is None else self.image()
        return found if found is not None and found.spatial_shape == self.shape else None

    def blocks(self) -> Iterator[Box]:
        """Boxes that cover the image, whole chunks of the reference where they are not too large."""
        return BlockGrid(self.shape, _block_shape(self.shape, self.reference.chunk_shape)).blocks()

    def section_boxes(self) -> Iterator[Box]:
        """The planes of the last two axes."""
        leading = len(self.shape) - 2
        return BlockGrid(self.shape, (1,) * leading + self.shape[leading:]).blocks()

    def sections(self) -> Iterator[Pair]:
        """Each section as a pair of its own."""
        for box in self.section_boxes():
            name = f"{self.name} z={box.start[0]}" if box.ndim == 3 else self.name
            yield Pair(
                name, _Section(self.prediction, box), _Section(self.reference, box), self.meaning, self._image_section(box)
            )

    def _image_section(self, box: Box) -> Callable[[], Shown | None]:
        def open_section() -> Shown | None:
            image = self.open_image()
            return None if image is None else _ShownSection(image, box)

        return open_section

    def has_foreground(self) -> bool:
        """Whether the reference has any."""
        return any(bool((self.meaning.reference_foreground(self.reference.read(box)[0]) > 0).any()) for box in self.blocks())


def pair_of_arrays(name: str, prediction: ArrayLike, reference: ArrayLike, meaning: Meaning) -> Pair:
    """A pair in memory: arrays of shape (Y, X) or (Z, Y, X)."""
    images = []
    for what, values in (("prediction", np.asarray(prediction)), ("reference", np.asarray(reference))):
        if values.ndim not in (2, 3):
            raise InputError(f"The {what} of {name} has {values.ndim} dimensions; give (Y, X) or (Z, Y, X).")
        images.append(ArrayVolume(values, axes="zyx"[-values.ndim :], url=f"{what} of {name}"))
    return Pair(name, images[0], images[1], meaning)


class Channel:
    """One channel of an image, as an image of one."""

    def __init__(self, image: Readable, number: int) -> None:
        self._image, self._number = image, number
        self.url = image.url
        self.channel_count = 1
        self.spatial_shape, self.chunk_shape = image.spatial_shape, image.chunk_shape
        self.voxel_size = image.voxel_size

    def read(self, box: Box) -> NDArray[Any]:
        return self._image.read(box)[self._number : self._number + 1].copy()  # a view would keep the other channels


class _ShownSection:
    """One plane of an image, as an image of two dimensions."""

    def __init__(self, image: Shown, box: Box) -> None:
        self._image, self._box = image, box
        self.spatial_shape = box.shape[-2:]

    def read(self, box: Box) -> NDArray[Any]:
        leading = self._box.ndim - 2
        within = Box(self._box.start[:leading] + box.start, self._box.stop[:leading] + box.stop)
        return self._image.read(within).reshape(-1, *box.shape)


class _Section(_ShownSection):
    """The same of labels."""

    def __init__(self, image: Readable, box: Box) -> None:
        super().__init__(image, box)
        self.url = image.url
        self.channel_count = image.channel_count
        self.chunk_shape = image.chunk_shape[-2:]
        self.voxel_size = None if image.voxel_size is None else image.voxel_size[-2:]


def _block_shape(shape: Shape, chunk_shape: Shape) -> Shape:
    """As many whole chunks as fit into the limit, the last axes first; parts of one chunk where it does not fit."""
    block = [min(size, extent) for size, extent in zip(chunk_shape, shape, strict=True)]
    for axis in reversed(range(len(block))):
        others = int(np.prod(block)) // block[axis]
        allowed = max(1, _BLOCK_VOXELS // others)
        if allowed >= block[axis]:
            block[axis] = min(shape[axis], allowed // block[axis] * block[axis])
    for axis in range(len(block)):
        others = int(np.prod(block)) // block[axis]
        block[axis] = min(block[axis], max(1, _BLOCK_VOXELS // others))
    return tuple(block)

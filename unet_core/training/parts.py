"""A part: one image, a region of it, or one section of a stack, with its truth, used for one purpose. Knows no network.

image      0 ............................. shape
part            |<-------- box -------->|             classes are known here, the image is read beyond
crop       |<-- read -->|                             mirrored where it leaves the image
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unet_core.errors import InputError
from unet_core.geometry import Box, Shape
from unet_core.store import is_remote, local_path
from unet_core.training.annotations import IGNORED_INSTANCE, Annotation, ClassMap, DrawnLabels, LabelImage, classes_of
from unet_core.training.dataset_description import Pair, Purpose
from unet_core.training.geojson import outlines_hash, read_outlines
from unet_core.training.opened import Opened
from unet_core.training.options import IGNORE
from unet_core.volumes import ArrayVolume, Volume, open_volume, read_reflected
from unet_core.volumes.chunk_cache import CachedVolume, ChunkCache

_CHUNK_BYTES = 256 << 20  # decoded chunks kept of one image, at most
_OPENED = Opened()


@dataclass(frozen=True)
class AnnotatedImage:
    """An image and its truth by their places, opened in each process when they are first read.

    Args:
        pair: with absolute paths.
        meaning: of its labels.
        token: of the data set's opening, so that files changed since are read anew.
    """

    pair: Pair
    meaning: ClassMap
    token: str

    def image(self) -> Volume:
        """The image at its level."""
        return _OPENED.get((self.token, "image", self.pair), self._open_image)

    def annotation(self) -> Annotation:
        """Its truth."""
        return _OPENED.get((self.token, "labels", self.pair), self._open_annotation)

    def _open_image(self) -> tuple[Volume, int]:
        pair = self.pair
        return _cached(open_volume(pair.image, pair.level, series=pair.series, time=pair.time, channels=pair.channels))

    def _open_annotation(self) -> tuple[Annotation, int]:
        pair = self.pair
        if pair.is_drawn:
            image = self.image()
            finest = image.levels[0].shape[-2:]
            scale = tuple(here / whole for here, whole in zip(image.spatial_shape[-2:], finest, strict=True))
            outlines = read_outlines(pair.labels, (scale[0], scale[1]))
            return DrawnLabels(outlines, image.spatial_shape, self.meaning), outlines.byte_count
        volume, size = _cached(_numbers_of_palette(open_volume(pair.labels, pair.labels_level, series=pair.labels_series)))
        return LabelImage(volume, self.meaning), size


@dataclass(frozen=True)
class Part:
    """One image, or one section of a stack for a 2D network, with its truth. May be sent to other processes, and read by threads.

    Args:
        name: unique, for messages.
        purpose: what it is for.
        box: what may be predicted in training, in voxels of the image.
        image_shape: along the network's axes.
        channels: of the image.
        dtype: of its intensities.
        voxel_size: along the network's axes in micrometre, or None.
        class_names: the background first.
        has_instances: whether its truth tells objects apart.
        source: image and truth.
        section: z of the section, None for the whole image.
    """

    name: str
    purpose: Purpose
    box: Box
    image_shape: Shape
    channels: int
    dtype: np.dtype[Any]
    voxel_size: tuple[float, ...] | None
    class_names: tuple[str, ...]
    has_instances: bool
    source: AnnotatedImage
    section: int | None = None

    def read_image(self, box: Box) -> NDArray[Any]:
        """Intensities of shape (C, *box.shape), in their own type; mirrored where ``box`` hangs over the image.

        Raises:
            VolumeError: if the image cannot be read.
        """
        return read_reflected(_Intensities(self), box)

    def read_classes(self, box: Box) -> NDArray[np.uint8]:
        """Class numbers of shape ``box.shape``, mirrored as the image; ``IGNORE`` outside of ``self.box`` and where there is no truth.

        Raises:
            InputError: if a label is not in the class map, with its position.
        """
        return read_reflected(_Classes(self), box)[0]

    def read_instances(self, box: Box) -> NDArray[np.int64]:
        """Ids of shape ``box.shape``, mirrored as the image; 0 the background, -1 where classes are ``IGNORE``.

        Raises:
            InputError: if the labels tell classes only, or hold what is no id.
        """
        if not self.has_instances:
            raise InputError(
                f"{self.source.pair.labels} are labels of classes, which do not tell objects apart; give instance ids (labels: instances)."
            )
        return read_reflected(_Instances(self), box)[0]

    def read_labels(self, box: Box) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
        """Class numbers, and ids where there are any, as the two above give them; in one read where one follows from the other."""
        ids = self.read_instances(box) if self.has_instances else None
        if ids is None or self.source.pair.is_drawn:
            return self.read_classes(box), ids
        return classes_of(ids), ids

    def fingerprint(self) -> dict[str, str]:
        """Hashes that change when the image or its labels do."""
        pair = self.source.pair
        hashes = {f"image {key}": value for key, value in self.source.image().fingerprint().items()}
        if pair.is_drawn:
            return hashes | {"labels": outlines_hash(pair.labels)}
        labels = open_volume(pair.labels, pair.labels_level, series=pair.labels_series)
        return hashes | {f"labels {key}": value for key, value in labels.fingerprint().items()}

    def whole_image(self) -> Part:
        """The image that this is a part of, with all its axes."""
        shape = self.source.image().spatial_shape
        return replace(self, box=Box.from_shape(shape), image_shape=shape, section=None)

    def in_image(self, box: Box) -> Box:
        """The box in voxels of the whole image, which has one axis more where the part is a section."""
        return box if self.section is None else Box((self.section, *box.start), (self.section + 1, *box.stop))


class _View:
    """Reads of a part inside its image, of shape (C, *box.shape)."""

    def __init__(self, part: Part) -> None:
        self.part = part

    @property
    def spatial_shape(self) -> Shape:
        return self.part.image_shape


class _Intensities(_View):
    def read(self, box: Box) -> NDArray[Any]:
        values = self.part.source.image().read(self.part.in_image(box))
        return values.reshape(values.shape[0], *box.shape)


class _Classes(_View):
    def read(self, box: Box) -> NDArray[np.uint8]:
        return _inside(self.part, box, np.uint8, IGNORE, self.part.source.annotation().classes)


class _Instances(_View):
    def read(self, box: Box) -> NDArray[np.int64]:
        return _inside(self.part, box, np.int64, IGNORED_INSTANCE, self.part.source.annotation().instances)


def _inside(part: Part, box: Box, dtype: Any, outside: int, read: Any) -> NDArray[Any]:
    """Labels of ``box``, ``outside`` beyond the part's own box; of shape (1, *box.shape)."""
    inner = box.intersect(part.box)
    values = np.full((1, *box.shape), outside, dtype=dtype)
    if not inner.is_empty:
        place: Any = inner.shift(tuple(-first for first in box.start)).slices()
        values[(0, *place)] = read(part.in_image(inner)).reshape(inner.shape)
    return values


def _cached(volume: Volume) -> tuple[Volume, int]:
    """The volume with its decoded chunks kept, and the bytes that it may come to hold."""
    whole = prod(volume.shape) * volume.dtype.itemsize
    if isinstance(volume, ArrayVolume):
        return volume, whole
    if volume.layout.is_mapped:
        return volume, 0
    limit = min(_CHUNK_BYTES, whole)
    return CachedVolume(ChunkCache(volume, limit)), limit


def _numbers_of_palette(volume: Volume) -> Volume:
    """The numbers of a picture whose colours only show them, as many label images are; the volume itself if it is none."""
    if volume.channel_count != 3 or is_remote(volume.url) or not volume.url.lower().endswith(".png"):
        return volume
    with Image.open(local_path(volume.url)) as picture:
        return ArrayVolume(np.asarray(picture), axes="yx", url=volume.url) if picture.mode == "P" else volume

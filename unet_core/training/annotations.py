"""The truth about an image, read box by box as class numbers and instance ids: from a label image, or from outlines.

Class numbers are places in the class map; ``IGNORE`` is what is neither learnt nor scored. Knows no split and no network.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import InputError
from unet_core.geometry import Box, Shape
from unet_core.training.dataset_description import Dataset
from unet_core.training.geojson import Outlines, paint
from unet_core.training.options import IGNORE
from unet_core.volumes import Volume
from unet_core.wording import counted

IGNORED_INSTANCE = -1
_UNKNOWN = 254  # in tables: a value that the class map does not have


@dataclass(frozen=True)
class ClassMap:
    """What labels mean.

    Args:
        labels: whether label images hold class values or instance ids.
        names: of the classes, the background first.
        values: pairs of a label value and the class number that it has, or ``IGNORE``.
        annotations: pairs of the name of a classification and a class number, or ``IGNORE``.
        regions: names of the classifications that outline what was annotated.
        unlabelled: class number of what no annotation covers; None where there is nothing of the kind.
    """

    labels: Literal["classes", "instances"]
    names: tuple[str, ...]
    values: tuple[tuple[int, int], ...]
    annotations: tuple[tuple[str, int], ...]
    regions: tuple[str, ...]
    unlabelled: int | None

    @classmethod
    def of(cls, dataset: Dataset) -> ClassMap:
        unlabelled = None if dataset.unlabelled is None else 0 if dataset.unlabelled == "background" else IGNORE
        values = {value: number for number, entry in enumerate(dataset.classes) for value in entry.values}
        values |= {entry: IGNORE for entry in dataset.ignore if isinstance(entry, int)}
        if unlabelled is not None:
            values.setdefault(0, unlabelled)
        named = {name: number for number, entry in enumerate(dataset.classes) for name in entry.annotations or (entry.name,)}
        named |= {entry: IGNORE for entry in dataset.ignore if isinstance(entry, str)}
        return cls(dataset.labels, dataset.class_names, tuple(values.items()), tuple(named.items()), dataset.regions, unlabelled)


class Annotation(Protocol):
    """The truth about one image; boxes lie inside it."""

    @property
    def spatial_shape(self) -> Shape: ...

    def classes(self, box: Box) -> NDArray[np.uint8]:
        """Class numbers of shape ``box.shape``, ``IGNORE`` where there is none."""

    def instances(self, box: Box) -> NDArray[np.int64]:
        """Ids of shape ``box.shape``; 0 the background, -1 where it is ignored."""


def classes_of(ids: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Class numbers that follow from the ids of a label image: 0 the background, 1 an object, ``IGNORE`` where it is ignored."""
    # -1 as a byte is 255.
    return np.minimum(ids, 1).astype(np.uint8)


class LabelImage:
    """A label image under a class map.

    Args:
        volume: the label image; one channel of integers.
        meaning: of its values.

    Raises:
        InputError: if it has colours or fractions.
    """

    def __init__(self, volume: Volume, meaning: ClassMap) -> None:
        if volume.channel_count != 1:
            raise InputError(
                f"Labels {volume.url} have {counted(volume.channel_count, 'channel')}; labels are one channel of class values or ids. Save them "
                "as a gray-value image, one number a class, not as colours."
            )
        if volume.dtype.kind not in "iub":
            raise InputError(
                f"Labels {volume.url} are {volume.dtype}; labels are whole numbers, convert them to uint8, uint16 or uint32."
            )
        self._volume, self._meaning = volume, meaning
        self._known = np.array(sorted(value for value, _ in meaning.values), dtype=np.int64)
        numbers = dict(meaning.values)
        self._numbers = np.array([numbers[int(value)] for value in self._known], dtype=np.uint8)
        self._table = self._small_table() if volume.dtype.itemsize <= 2 else None

    @property
    def spatial_shape(self) -> Shape:
        return self._volume.spatial_shape

    def classes(self, box: Box) -> NDArray[np.uint8]:
        values = self._read(box)
        if self._meaning.labels == "instances":
            return classes_of(self._ids(values, box))
        # Negative values index from the table's end, which is where they lie in it.
        numbers = self._table[values] if self._table is not None else self._look_up(values)
        self._refuse(numbers == _UNKNOWN, values, box, "is not in the class map")
        return numbers

    def instances(self, box: Box) -> NDArray[np.int64]:
        return self._ids(self._read(box), box)

    def _read(self, box: Box) -> NDArray[Any]:
        values: NDArray[Any] = self._volume.read(box)[0]
        if values.dtype == np.uint64:
            self._refuse(values > np.uint64(np.iinfo(np.int64).max), values, box, "does not fit 64 bits with a sign")
        return values.astype(np.uint8) if values.dtype == bool else values

    def _ids(self, values: NDArray[Any], box: Box) -> NDArray[np.int64]:
        ids = values.astype(np.int64)
        to_ignore = self._known[self._numbers == IGNORE]
        ignored = np.isin(ids, to_ignore) if len(to_ignore) else np.zeros(ids.shape, dtype=bool)
        if values.dtype.kind == "i":
            self._refuse((ids < 0) & ~ignored, values, box, "is negative, and no id")
        ids[ignored] = IGNORED_INSTANCE
        return ids

    def _small_table(self) -> NDArray[np.uint8]:
        """The class number of each value of 8 or 16 bits, indexed by the value."""
        bits = 8 * self._volume.dtype.itemsize
        every = np.arange(1 << bits, dtype=np.int64)
        if self._volume.dtype.kind == "i":
            every[1 << (bits - 1) :] -= 1 << bits
        return self._look_up(every)

    def _look_up(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        numbers = np.full(values.shape, _UNKNOWN, dtype=np.uint8)
        if len(self._known):
            signed = values.astype(np.int64, copy=False)
            place = np.minimum(np.searchsorted(self._known, signed), len(self._known) - 1)
            known = self._known[place] == signed
            numbers[known] = self._numbers[place][known]
        return numbers

    def _refuse(self, bad: NDArray[np.bool_], values: NDArray[Any], box: Box, why: str) -> None:
        if not bad.any():
            return
        local = np.unravel_index(int(bad.argmax()), bad.shape)
        position = tuple(int(step + first) for step, first in zip(local, box.start, strict=True))
        stated = ", ".join(
            f"{value} (ignored)" if number == IGNORE else f"{value} ({self._meaning.names[number]})"
            for value, number in self._meaning.values
        )
        raise InputError(
            f"Label value {values[local]} at voxel {position} of {self._volume.url} {why}"
            + (
                f", which has {stated}; add it to the values of a class, or to ignore."
                if why.endswith("map")
                else "; correct the labels, or add it to ignore."
            )
        )


class DrawnLabels:
    """Outlines under a class map; each is one instance, numbered from 1 in the order of the file.

    Args:
        outlines: of one image.
        shape: of the image, (y, x) or (z, y, x).
        meaning: of their classifications.

    Raises:
        InputError: if a classification is not in the class map, or everything lies outside the image.
    """

    def __init__(self, outlines: Outlines, shape: Shape, meaning: ClassMap) -> None:
        self._outlines, self._shape, self._meaning = outlines, shape, meaning
        known = dict(meaning.annotations)
        self._is_region = np.array([name in meaning.regions for name in outlines.names], dtype=bool)
        self._numbers = np.array(
            [
                0 if name in meaning.regions else _number(name, known, meaning, feature, outlines.url)
                for feature, name in enumerate(outlines.names)
            ],
            dtype=np.int64,
        )
        ids = np.arange(1, len(self._numbers) + 1)
        self._ids = np.where(self._numbers == IGNORE, IGNORED_INSTANCE, np.where(self._numbers == 0, 0, ids))
        self._refuse_other_image()

    @property
    def spatial_shape(self) -> Shape:
        return self._shape

    def classes(self, box: Box) -> NDArray[np.uint8]:
        return self._paint(box, self._numbers, 0 if self._meaning.unlabelled == 0 else IGNORE, IGNORE).astype(np.uint8)

    def instances(self, box: Box) -> NDArray[np.int64]:
        return self._paint(box, self._ids, 0 if self._meaning.unlabelled == 0 else IGNORED_INSTANCE, IGNORED_INSTANCE)

    def _paint(self, box: Box, values: NDArray[np.int64], unlabelled: int, ignored: int) -> NDArray[np.int64]:
        painted = paint(self._outlines, values, box, unlabelled, ~self._is_region)
        if self._meaning.regions:
            annotated = paint(self._outlines, np.ones_like(values), box, 0, self._is_region)
            painted[annotated == 0] = ignored
        return painted

    def _refuse_other_image(self) -> None:
        bounds, (height, width) = self._outlines.bounds, self._shape[-2:]
        depth = self._shape[0] if len(self._shape) == 3 else 1
        meets = (bounds[:, 0] < height) & (bounds[:, 2] > 0) & (bounds[:, 1] < width) & (bounds[:, 3] > 0)
        meets &= (self._outlines.sections >= 0) & (self._outlines.sections < depth)
        if len(meets) and not meets.any():
            low, high = bounds[:, :2].min(axis=0), bounds[:, 2:].max(axis=0)
            raise InputError(
                f"All {len(meets)} outlines of {self._outlines.url} lie outside the image of {self._shape} voxels: y {low[0]:.0f} to "
                f"{high[0]:.0f}, x {low[1]:.0f} to {high[1]:.0f}; check that they belong to it, and are in pixels of its finest level."
            )


def _number(name: str | None, known: dict[str, int], meaning: ClassMap, feature: int, url: str) -> int:
    if name in known:
        return known[name]
    if name is None and meaning.labels == "instances" and len(meaning.names) == 2:
        return 1
    have = f"has the classification '{name}', which is not in the class map" if name else "has no classification"
    lower = {other.lower(): other for other in (*known, *meaning.regions)}
    match = difflib.get_close_matches((name or "").lower(), lower, n=1)
    hint = f" (did you mean '{lower[match[0]]}'?)" if match else ""
    raise InputError(
        f"{url}: feature {feature} {have}{hint}; known are {', '.join(map(repr, known))}. Add it to the annotations of a class, to "
        "ignore, or to regions."
    )

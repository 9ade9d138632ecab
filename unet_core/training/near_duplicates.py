"""Images that show almost the same: crops of one slide, or one field taken twice. They must not be on both sides of a split.

Correlation of thumbnails; knows no labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from unet_core.geometry import Box, Shape
from unet_core.training.dataset_description import Dataset, Pair
from unet_core.volumes import Volume, open_volume

LIKENESS = 0.9  # correlation of thumbnails above which two images of one shape are near-duplicates
SIDE = 32  # of a thumbnail
_STRIP_VOXELS = 1 << 24  # read at a time


def with_groups(dataset: Dataset) -> Dataset:
    """The data set with a ``group`` at every pair that has near-duplicates: the name of the first of them.

    Args:
        dataset: with absolute paths; groups that it states are kept, and joined where their images are alike.
    """
    volumes = [_open(pair) for pair in dataset.pairs]
    numbers = near_duplicates([thumbnail(volume) for volume in volumes], [volume.spatial_shape for volume in volumes])
    for group in {pair.group for pair in dataset.pairs if pair.group}:
        joined = {numbers[index] for index, pair in enumerate(dataset.pairs) if pair.group == group}
        numbers = [min(joined) if number in joined else number for number in numbers]
    names = [dataset.pairs[number].image.removeprefix(dataset.root).lstrip("/") for number in numbers]
    pairs = [pair.model_copy(update={"group": name}) for pair, name in zip(dataset.pairs, names, strict=True)]
    return dataset.model_copy(update={"pairs": tuple(pairs), "groups": None})


def near_duplicates(thumbnails: Sequence[NDArray[np.float64]], shapes: Sequence[Shape]) -> list[int]:
    """The group of each image, by the number of its first member.

    Args:
        thumbnails: of the images, (32, 32).
        shapes: of the images; those of different ones are never alike.
    """
    unit = np.stack([_standardised(entry) for entry in thumbnails])
    group = np.arange(len(unit))
    for index in range(len(unit)):
        alike = np.flatnonzero(unit[:index] @ unit[index] > LIKENESS)
        joined = {int(group[other]) for other in alike.tolist() if shapes[other] == shapes[index]} | {int(group[index])}
        group[np.isin(group, list(joined))] = min(joined)
    return group.tolist()


def _standardised(thumbnail: NDArray[np.float64]) -> NDArray[np.float64]:
    """Without mean, of length 1; images without contrast are like nothing."""
    values = thumbnail.ravel() - thumbnail.mean()
    length = float(np.sqrt((values * values).sum()))
    return values / length if length > 1e-9 * max(1.0, float(np.abs(thumbnail).max())) else np.zeros_like(values)


def thumbnail(volume: Volume) -> NDArray[np.float64]:
    """Mean intensity of the middle section in 32 x 32 fields (fewer voxels are repeated), read strip by strip."""
    height, width = volume.spatial_shape[-2:]
    middle = tuple(size // 2 for size in volume.spatial_shape[:-2])
    rows, columns = _field_starts(height), _field_starts(width)
    fields = max(1, _STRIP_VOXELS // max(1, width * volume.channel_count * -(-height // SIDE)))
    strips = []
    for first in range(0, SIDE, fields):
        starts = rows[first : first + fields]
        last = first + fields < SIDE
        stop = max(int(rows[first + fields]), int(starts[-1]) + 1) if last else height
        box = Box((*middle, int(starts[0]), 0), (*(z + 1 for z in middle), stop, width))
        values = volume.read(box).astype(np.float64).reshape(volume.channel_count, stop - int(starts[0]), width).mean(axis=0)
        strips.append(_means(_means(values, starts - starts[0], 0), columns, 1))
    return np.nan_to_num(np.concatenate(strips), nan=0.0, posinf=0.0, neginf=0.0)


def _field_starts(size: int) -> NDArray[np.intp]:
    return (np.arange(SIDE) * size) // SIDE


def _means(values: NDArray[np.float64], starts: NDArray[np.intp], axis: int) -> NDArray[np.float64]:
    sums = np.add.reduceat(values, starts, axis=axis)
    lengths = np.maximum(1, np.diff(np.append(starts, values.shape[axis])))
    means: NDArray[np.float64] = sums / (lengths[:, None] if axis == 0 else lengths)
    return means


def _open(pair: Pair) -> Volume:
    """The image at the coarsest level that still fills a thumbnail."""
    volume = open_volume(pair.image, pair.level, series=pair.series, time=pair.time, channels=pair.channels)
    coarser = [entry.index for entry in volume.levels if min(entry.shape[-2:]) >= 4 * SIDE and entry.index > pair.level]
    if not coarser:
        return volume
    return open_volume(pair.image, max(coarser), series=pair.series, time=pair.time, channels=pair.channels)

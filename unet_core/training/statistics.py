"""Intensities of the training parts in numbers, for normalisation: read block by block, once. Knows no labels and no network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import InputError
from unet_core.geometry import BlockGrid, Box
from unet_core.training.parts import Part

PERCENTILES = (1.0, 99.8)
SAMPLED_VOXELS = 1 << 22  # of which percentiles of intensities of more than 16 bits are taken; rank 99.8 % is then off by 0.002 %
_BLOCK_SIDE = {2: 1024, 3: 128}


@dataclass(frozen=True)
class Statistics:
    """Of the voxels in the boxes of some parts, one number a channel.

    Args:
        voxel_count: of each channel.
        mean: of the intensities.
        deviation: their standard deviation, over the voxels themselves (divided by their number).
        minimum: the smallest.
        maximum: the largest.
        ranks: of the percentiles, from 0 to 100.
        percentiles: for each rank, one number a channel.
        is_exact: whether percentiles are of all voxels, not of a sample.
    """

    voxel_count: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    ranks: tuple[float, ...]
    percentiles: tuple[tuple[float, ...], ...]
    is_exact: bool


def take_statistics(parts: Sequence[Part], ranks: Sequence[float] = PERCENTILES) -> Statistics:
    """Mean, deviation, range and percentiles of parts: exact for 8 and 16 bits; percentiles of 4 M voxels drawn from seed 0 otherwise.

    Args:
        parts: of one data set; their boxes count, not what surrounds them.
        ranks: of the percentiles, from 0 to 100.

    Raises:
        InputError: if an intensity is NaN or infinite, with its position.
    """
    dtype = parts[0].dtype
    if dtype.kind in "iub" and dtype.itemsize <= 2:
        return _of_histogram(_histogram(parts), 0 if dtype.kind in "ub" else int(np.iinfo(dtype).min), tuple(ranks))
    return _of_stream(parts, tuple(ranks))


def _blocks(parts: Sequence[Part]) -> Iterator[NDArray[Any]]:
    """Intensities of all boxes, each voxel once, of shape (C, voxels)."""
    for part in parts:
        side = _BLOCK_SIDE[part.box.ndim]
        for block in BlockGrid(part.box.shape, (side,) * part.box.ndim).blocks():
            box = block.shift(part.box.start)
            values = part.read_image(box)
            if values.dtype.kind == "f":
                _refuse_not_finite(values, box, part)
            yield values.reshape(part.channels, -1)


def _refuse_not_finite(values: NDArray[Any], box: Box, part: Part) -> None:
    bad = ~np.isfinite(values)
    if not bad.any():
        return
    channel, *local = np.unravel_index(int(bad.argmax()), bad.shape)
    position = tuple(int(step) + first for step, first in zip(local, box.start, strict=True))
    raise InputError(
        f"Image {part.name} is {values[(channel, *local)]} at voxel {position}, channel {channel} ({int(bad.sum())} such in {box}); what is "
        "learnt from it would be NaN. Replace such voxels, or leave them out with boxes."
    )


def _histogram(parts: Sequence[Part]) -> NDArray[np.int64]:
    """How many voxels have each value, (C, values); the smallest of the type first."""
    dtype = parts[0].dtype
    size = 1 << (8 * dtype.itemsize)
    lowest = int(np.iinfo(dtype).min) if dtype.kind == "i" else 0
    counts = np.zeros((parts[0].channels, size), dtype=np.int64)
    for values in _blocks(parts):
        for channel, row in enumerate(values):
            counts[channel] += np.bincount(row.astype(np.intp) - lowest, minlength=size)
    return counts


def _of_histogram(counts: NDArray[np.int64], lowest: int, ranks: tuple[float, ...]) -> Statistics:
    values = np.arange(counts.shape[1], dtype=np.int64) + lowest
    number = int(counts[0].sum())
    mean = np.array([int(row @ values) / number for row in counts])
    deviation = np.sqrt([float(row @ np.square(values - centre)) / number for row, centre in zip(counts, mean, strict=True)])
    present = [np.flatnonzero(row) for row in counts]
    return Statistics(
        voxel_count=number,
        mean=_numbers(mean),
        deviation=_numbers(deviation),
        minimum=_numbers(values[each[0]] for each in present),
        maximum=_numbers(values[each[-1]] for each in present),
        ranks=ranks,
        percentiles=tuple(_numbers(_percentile(row, values, rank) for row in counts) for rank in ranks),
        is_exact=True,
    )


def _percentile(counts: NDArray[np.int64], values: NDArray[np.int64], rank: float) -> float:
    """As ``numpy.percentile`` gives it for the voxels that were counted: between the two whose ranks are nearest."""
    sums = counts.cumsum()
    place = (int(sums[-1]) - 1) * rank / 100
    below = int(place)
    low, high = (int(values[np.searchsorted(sums, index, side="right")]) for index in (below, min(below + 1, int(sums[-1]) - 1)))
    return low + (high - low) * (place - below)


def _of_stream(parts: Sequence[Part], ranks: tuple[float, ...]) -> Statistics:
    """Moments are merged as by Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances"."""
    channels, total = parts[0].channels, sum(part.box.voxel_count for part in parts)
    is_exact = total <= SAMPLED_VOXELS
    # Voxels are numbered as they are read, which follows from the boxes alone.
    wanted = None if is_exact else np.sort(np.random.default_rng(0).integers(total, size=SAMPLED_VOXELS))
    sample: list[NDArray[Any]] = []
    count, mean, squares = 0, np.zeros(channels), np.zeros(channels)
    low, high = np.full(channels, np.inf), np.full(channels, -np.inf)
    for values in _blocks(parts):
        first, last = count, count + values.shape[1]
        if wanted is None:
            sample.append(values)
        else:
            sample.append(values[:, wanted[np.searchsorted(wanted, first) : np.searchsorted(wanted, last)] - first])
        numbers = values.astype(np.float64)
        own = numbers.mean(axis=1)
        apart = own - mean
        squares += np.square(numbers - own[:, None]).sum(axis=1) + np.square(apart) * first * (last - first) / last
        mean += apart * (last - first) / last
        low, high = np.minimum(low, numbers.min(axis=1)), np.maximum(high, numbers.max(axis=1))
        count = last
    found = np.percentile(np.concatenate(sample, axis=1).astype(np.float64), ranks, axis=1)
    return Statistics(
        voxel_count=count,
        mean=_numbers(mean),
        deviation=_numbers(np.sqrt(squares / count)),
        minimum=_numbers(low),
        maximum=_numbers(high),
        ranks=ranks,
        percentiles=tuple(_numbers(row) for row in found),
        is_exact=is_exact,
    )


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)

"""Steps from a voxel to its neighbours, and an array seen from both ends of a step. Integers and slices only."""

from __future__ import annotations

from itertools import product

from unet_core.geometry import Shape


def steps_forward(ndim: int, connectivity: int) -> list[Shape]:
    """Steps to the neighbours that a scan (last axis fastest) meets later; each pair of neighbours has one.

    Args:
        ndim: axes.
        connectivity: how many axes a step may change.

    Example:
        >>> steps_forward(2, 2)
        [(0, 1), (1, -1), (1, 0), (1, 1)]
    """
    everywhere = product((-1, 0, 1), repeat=ndim)
    return [step for step in everywhere if step > (0,) * ndim and sum(map(abs, step)) <= connectivity]


def steps_around(ndim: int, connectivity: int) -> list[Shape]:
    """Steps to all neighbours and to the voxel itself, in the order of a scan."""
    forward = steps_forward(ndim, connectivity)
    return [tuple(-part for part in step) for step in reversed(forward)] + [(0,) * ndim] + forward


def both_ends(shape: Shape, step: Shape) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where a step may begin in an array of ``shape``, and where it ends; the two have the same shape."""
    begins = tuple(slice(max(0, -part), size - max(0, part)) for part, size in zip(step, shape, strict=True))
    ends = tuple(slice(max(0, part), size - max(0, -part)) for part, size in zip(step, shape, strict=True))
    return begins, ends


def flat_step(shape: Shape, step: Shape) -> int:
    """What a step adds to a position in a scan of an array of ``shape``."""
    position = 0
    for part, size in zip(step, shape, strict=True):
        position = position * size + part
    return position

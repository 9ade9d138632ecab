"""Reading over the edge of an image: it is continued by its mirror image, by absolute position. Knows no format."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import VolumeError
from unet_core.geometry import Box, Shape


class Readable(Protocol):
    """Anything that reads boxes inside its spatial shape."""

    @property
    def spatial_shape(self) -> Shape: ...

    def read(self, box: Box) -> NDArray[Any]: ...


def read_reflected(volume: Readable, box: Box) -> NDArray[Any]:
    """Read ``box``, filling what lies outside the volume by reflection.

        ... d c b [a b c d] c b a [b] ...       the image is a b c d

    "Missing context is extrapolated by mirroring the input image" (Ronneberger et al. 2015, section 2).

    Args:
        volume: to read from, once, the smallest box that holds every mirrored position.
        box: in voxels; may hang over any edge, even by more than the volume's extent: the reflection is then repeated, as
            in ``numpy.pad(mode="reflect")``. An axis of one voxel repeats it.

    Returns:
        Array of shape (C, *box.shape); a copy.

    Raises:
        VolumeError: if the numbers of axes differ or the box is empty.
    """
    shape = volume.spatial_shape
    if box.ndim != len(shape) or box.is_empty:
        raise VolumeError(
            f"Box {box} cannot be read from a volume of {shape} voxels; give {len(shape)} axes with at least one voxel."
        )
    positions = [_mirrored(start, stop, size) for start, stop, size in zip(box.start, box.stop, shape, strict=True)]
    inner = _around(positions)
    values = volume.read(inner)
    for axis, wanted in enumerate(positions, start=1):
        local = wanted - inner.start[axis - 1]
        if len(local) != values.shape[axis] or not np.array_equal(local, np.arange(len(local))):
            values = np.take(values, local, axis=axis)
    return values


def folded(box: Box, shape: Shape) -> Box:
    """The smallest box of an image of ``shape`` that holds every voxel of which ``box`` shows a mirror image, or itself."""
    return _around([_mirrored(start, stop, size) for start, stop, size in zip(box.start, box.stop, shape, strict=True)])


def _around(positions: list[NDArray[np.intp]]) -> Box:
    return Box(tuple(int(axis.min()) for axis in positions), tuple(int(axis.max()) + 1 for axis in positions))


def _mirrored(start: int, stop: int, size: int) -> NDArray[np.intp]:
    """Positions inside 0..size-1 that positions start..stop-1 are the mirror image of."""
    if size == 1:
        return np.zeros(stop - start, dtype=np.intp)
    period = 2 * (size - 1)
    folded = np.arange(start, stop) % period
    result: NDArray[np.intp] = np.where(folded < size, folded, period - folded)
    return result

"""What the axes of a tensor of a bioimage.io package are to us: batch, channels, and space along (z,) y, x. Reads no file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import ModelPackageError
from unet_core.validation import shorten
from unet_core.volumes.units import UNIT_UM


@dataclass(frozen=True)
class Axes:
    """Axes of an input or output tensor, in its order: batch, channel, space.

    Args:
        batch: name of the batch axis.
        channel: name of the channel axis.
        channel_names: one a channel.
        spatial: names of the spatial axes in the order of the tensor.
        voxel_size_um: along (z,) y, x, or None if it is not stated for every axis.
        halo: along (z,) y, x; None if none is stated.
    """

    batch: str
    channel: str
    channel_names: tuple[str, ...]
    spatial: tuple[str, ...]
    voxel_size_um: tuple[float, ...] | None
    halo: tuple[int, ...] | None

    @property
    def dims(self) -> int:
        return len(self.spatial)

    @property
    def to_zyx(self) -> tuple[int, ...]:
        """Which of the spatial axes comes first, second, .. in the order (z,) y, x."""
        return tuple(self.spatial.index(name) for name in "zyx"[-self.dims :])

    def in_zyx(self, tensor: NDArray[Any]) -> NDArray[Any]:
        """A tensor (N, C, *spatial) of this order as (N, C, (Z,) Y, X)."""
        return np.transpose(tensor, (0, 1, *(2 + axis for axis in self.to_zyx)))


def axes_of(tensor: Any, where: str, halo_of: Mapping[str, int] | None = None) -> Axes:
    """Read the axes of an input or output of a package.

    Args:
        tensor: its description.
        where: for messages.
        halo_of: voxels by name of axis, where the description itself cannot say it.

    Raises:
        ModelPackageError: for any other order than batch, channel, space, as networks of torch have it.
    """
    kinds = [str(axis.type) for axis in tensor.axes]
    names = [str(axis.id) for axis in tensor.axes]
    if kinds not in (["batch", "channel"] + ["space"] * dims for dims in (2, 3)) or set(names[2:]) != set(
        "zyx"[5 - len(names) :]
    ):
        raise ModelPackageError(
            f"{where} has the axes {', '.join(f'{name} ({kind})' for name, kind in zip(names, kinds, strict=True))}; "
            "networks here take batch, channel, and then y, x or z, y, x."
        )
    space = {str(axis.id): axis for axis in tensor.axes[2:]}
    ordered = [space[name] for name in "zyx"[-len(space) :]]
    known = all(axis.unit in UNIT_UM for axis in ordered)
    halo = tuple(int(getattr(axis, "halo", None) or (halo_of or {}).get(str(axis.id), 0)) for axis in ordered)
    return Axes(
        batch=names[0],
        channel=names[1],
        channel_names=distinct(str(name) for name in tensor.axes[1].channel_names),
        spatial=tuple(names[2:]),
        voxel_size_um=tuple(float(axis.scale) * UNIT_UM[axis.unit] for axis in ordered) if known else None,
        halo=halo if any(halo) else None,
    )


def distinct(names: Iterable[str]) -> tuple[str, ...]:
    """Names as given, shortened, and numbered where a channel has none or that of another."""
    given = [shorten(name) for name in names]
    taken = {name for name, times in Counter(given).items() if times == 1}
    least: dict[str, int] = {}  # number that is tried first, by name; it only grows, so that many names take no longer each
    found: list[str] = []
    for number, name in enumerate(given):
        if not name or name not in taken:
            stem = name or "channel"
            numbers = count(max(number, least.get(stem, 0)))
            least[stem] = next(value for value in numbers if f"{stem} {value}" not in taken)
            name = f"{stem} {least[stem]}"
            taken.add(name)
        found.append(name)
    return tuple(found)

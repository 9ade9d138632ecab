"""What each head of a network should say, and how much each voxel counts, from labels. Any device; knows no network and no storage.

Legend: N batch, g spatial shape of the labels, t of the target: g without the halo. K classes.

g   |<- before ->|<---- t ---->|<- after ->|
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unet_core.errors import InputError
from unet_core.training.border_weights import relative_spacing
from unet_core.training.object_distance import signed_distance
from unet_core.training.options import IGNORE, AffinitiesHead, ClassesHead, DistanceHead, HeadOptions, RegionsHead

Halo = tuple[tuple[int, int], ...]

REACH = 3.0  # scales of a distance head: tanh(3) = 0.995, beyond it the target stays the same


@dataclass(frozen=True)
class HeadTarget:
    """What a head should say.

    Args:
        values: int64 of shape (N, *t) for classes, each a class, also where ignored; float32 of shape (N, channels, *t) else.
        weights: float32, of shape (N, *t) for classes, (N, 1 or channels, *t) else; 0 where ignored.
    """

    values: Tensor
    weights: Tensor


def halo(spec: HeadOptions, dims: int, voxel_size: tuple[float, ...] | None = None) -> Halo:
    """Voxels of labels (before, after) along each axis that a head's target needs around itself.

    Raises:
        InputError: if an affinity's offset has not ``dims`` axes, or is zero.
    """
    if isinstance(spec, AffinitiesHead):
        for offset in spec.offsets:
            if len(offset) != dims or not any(offset):
                raise InputError(
                    f"Offset {offset} of head '{spec.name}' must be {dims} voxels along {'zyx'[-dims:]}, and not zero; "
                    "each voxel is the same as itself."
                )
        return tuple((max(0, -min(steps)), max(0, *steps)) for steps in zip(*spec.offsets, strict=True))
    if isinstance(spec, DistanceHead):
        needed = (math.ceil(REACH * spec.scale / step) for step in relative_spacing(dims, voxel_size))
        return tuple((more, more) for more in needed)
    return ((0, 0),) * dims


def targets(
    spec: HeadOptions,
    classes: Tensor,
    instances: Tensor | None,
    weights: Tensor,
    halo: Halo,
    class_numbers: Mapping[str, int] | None = None,
    voxel_size: tuple[float, ...] | None = None,
) -> HeadTarget:
    """The target of one head.

    - classes: the class; weight 0 where ignored.
    - regions: 1 where the class is one of the region's.
    - affinities: 1 if a voxel and the one at the offset have the same id, above 0; weight 0 where either is ignored, else that of
      the voxel itself.
    - distance: tanh(d / scale), see ``signed_distance``; d up to ``REACH`` scales. Weight 0 where d is not known.

    Args:
        spec: of the head.
        classes: int64 of shape (N, *g), IGNORE where ignored.
        instances: int64 of shape (N, *g): 0 background, below it ignored; for affinities and distance.
        weights: float32 of shape (N, *t), of each voxel in the loss.
        halo: that the labels have around the target; at least the head's own, ``halo(spec, dims)``.
        class_numbers: number of each class by its name; for regions.
        voxel_size: of each axis of the labels, if they differ; for distance.

    Raises:
        InputError: if instances are needed and there are none, a region names a class that is not known, or the halo is too small.
    """
    _check_shapes(spec, classes, instances, weights, halo, voxel_size)
    inner = _crop(halo, (0,) * len(halo))
    kept = weights * (classes[inner] != IGNORE)  # (N, *t)
    if isinstance(spec, ClassesHead):
        values = classes[inner]
        return HeadTarget(torch.where(values == IGNORE, 0, values), kept)
    if isinstance(spec, RegionsHead):
        return HeadTarget(_regions(spec, classes[inner], class_numbers or {}), kept[:, None])
    if instances is None:
        raise InputError(
            f"Head '{spec.name}' learns {spec.kind} of instances, but the labels have none; give instances, or leave it out."
        )
    ids = torch.where(classes == IGNORE, -1, instances)
    if isinstance(spec, AffinitiesHead):
        return _affinities(spec, ids, kept, halo)
    return _distance(spec, ids, kept, inner, voxel_size)


def _regions(spec: RegionsHead, classes: Tensor, class_numbers: Mapping[str, int]) -> Tensor:
    planes = []
    for region, names in spec.regions.items():
        for name in names:
            if name not in class_numbers:
                raise InputError(
                    f"Region '{region}' of head '{spec.name}' is made of class '{name}'; classes are {', '.join(class_numbers) or 'none'}."
                )
        wanted = torch.tensor([class_numbers[name] for name in names], dtype=classes.dtype, device=classes.device)
        planes.append(torch.isin(classes, wanted))
    return torch.stack(planes, dim=1).float()  # (N, regions, *t)


def _affinities(spec: AffinitiesHead, ids: Tensor, kept: Tensor, halo: Halo) -> HeadTarget:
    here = ids[_crop(halo, (0,) * len(halo))]
    values, weights = [], []
    for offset in spec.offsets:
        there = ids[_crop(halo, offset)]
        values.append((here == there) & (here > 0))
        weights.append(kept * ((here >= 0) & (there >= 0)))
    return HeadTarget(torch.stack(values, dim=1).float(), torch.stack(weights, dim=1))  # (N, offsets, *t)


def _distance(
    spec: DistanceHead, ids: Tensor, kept: Tensor, inner: tuple[slice, ...], voxel_size: tuple[float, ...] | None
) -> HeadTarget:
    spacing = relative_spacing(ids.ndim - 1, voxel_size)
    samples = [signed_distance(sample, REACH * spec.scale, spacing) for sample in ids.cpu().numpy()]
    distances = torch.from_numpy(np.stack([distance for distance, _ in samples]))[inner]
    known = torch.from_numpy(np.stack([known for _, known in samples]))[inner]
    values = torch.tanh(distances.to(ids.device) / spec.scale)
    return HeadTarget(values[:, None], (kept * known.to(ids.device))[:, None])  # (N, 1, *t)


def _crop(halo: Halo, offset: tuple[int, ...]) -> tuple[slice, ...]:
    """Of labels (N, *g), the target's voxels moved by ``offset``."""
    parts = (slice(before + step, (step - after) or None) for (before, after), step in zip(halo, offset, strict=True))
    return (slice(None), *parts)


def _check_shapes(
    spec: HeadOptions,
    classes: Tensor,
    instances: Tensor | None,
    weights: Tensor,
    given: Halo,
    voxel_size: tuple[float, ...] | None,
) -> None:
    needed = halo(spec, classes.ndim - 1, voxel_size)
    if len(given) != len(needed) or any(a < c or b < d for (a, b), (c, d) in zip(given, needed, strict=False)):
        raise InputError(f"Head '{spec.name}' needs labels {needed} voxels around its target, {given} are given; read more.")
    inner = tuple(size - before - after for size, (before, after) in zip(classes.shape[1:], given, strict=True))
    assert weights.shape == (classes.shape[0], *inner), (weights.shape, classes.shape, given)
    assert instances is None or instances.shape == classes.shape

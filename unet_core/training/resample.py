"""Images and labels sampled where a warp says, each once, on the device of the input. Knows no storage.

Shapes: N batch, C channels, then D spatial axes (Z,) Y, X.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from unet_core.errors import InputError
from unet_core.geometry import Box, Shape
from unet_core.training.warp import Warp, positions


def warp_images(
    images: Sequence[Tensor], origins: Sequence[Shape], warps: Sequence[Warp], shape: Shape, order: int, part: Box | None = None
) -> Tensor:
    """Intensities (or weights) of each sample's crop.

    Linear, or bicubic by the kernel of Keys 1981 with a = -0.75 (torch's), 2D only. Positions are relative to the warp's source box
    and exact to 1e-7 of its size (6e-5 voxels for a crop of 572), wherever the crop lies; a warp that moves nothing returns the
    voxels themselves, bit for bit.

    Args:
        images: (C, *box) each, any real dtype, that hold at least the source box of their warp.
        origins: voxel of the image that each one begins at.
        warps: one a sample.
        shape: of the whole crop.
        order: 1 linear, 3 bicubic; at most that of the warps.
        part: of the crop that is wanted; all of it unless told.

    Returns:
        (N, C, *part), float32.
    """
    part = Box.from_shape(shape) if part is None else part
    if order == 3 and len(shape) != 2:
        raise InputError(f"Bicubic interpolation is for 2 axes and the crop has {len(shape)}; use order 1 for volumes.")
    if order not in (1, 3):
        raise InputError(f"Interpolation of order {order} is not among 1 (linear) and 3 (bicubic); use one of them.")
    result = []
    for image, origin, warp in zip(images, origins, warps, strict=True):
        if order > warp.order:
            raise InputError(f"Order {order} needs a wider rim than the warp's order {warp.order} reads; draw the warp with it.")
        source = warp.source_box(shape, part)
        # Sizes of powers of two make torch's coordinates (2 p + 1) / size - 1 exact in float32 for whole positions p.
        sizes = tuple(1 << (size - 1).bit_length() for size in source.shape)
        padded = torch.zeros((image.shape[0], *sizes), dtype=torch.float32, device=image.device)
        padded[(slice(None), *Box.from_shape(source.shape).slices())] = _cut(image, origin, source)
        grid = torch.empty((1, *part.shape, len(shape)), dtype=torch.float32, device=image.device)
        for axis, place in enumerate(positions(warp, shape, part, image.device)):
            size = sizes[axis]
            offset = torch.tensor((1 - 2 * source.start[axis]) / size - 1, dtype=torch.float64, device=image.device)
            torch.add(offset, place, alpha=2 / size, out=grid[0, ..., len(shape) - 1 - axis])  # torch wants x first
        mode = "bilinear" if order == 1 else "bicubic"
        result.append(functional.grid_sample(padded[None], grid, mode=mode, padding_mode="zeros", align_corners=False))
    return torch.cat(result)  # (N, C, *part)


def warp_labels(
    labels: Sequence[Tensor], origins: Sequence[Shape], warps: Sequence[Warp], shape: Shape, inner: Box | None = None
) -> Tensor:
    """Labels of each sample's crop, each the nearest voxel's at the position of the image's voxel; halves go up, as in scipy.

    Args:
        labels: (*box) each, any dtype, kept: identifiers of 64 bits come through unchanged.
        origins: voxel of the image that each one begins at.
        warps: one a sample.
        shape: of the whole crop.
        inner: part of the crop that is wanted; all of it unless told. It may hang over the crop.

    Returns:
        (N, *inner), dtype of the labels.
    """
    inner = Box.from_shape(shape) if inner is None else inner
    result = []
    for values, origin, warp in zip(labels, origins, warps, strict=True):
        source = warp.source_box(shape, inner)
        within = _cut(values[None], origin, source)[0]
        places = positions(warp, shape, inner, values.device)
        index, *others = ((place + (0.5 - start)).floor_() for place, start in zip(places, source.start, strict=True))
        for place, size in zip(others, within.shape[1:], strict=True):
            index = index.mul_(size).add_(place)  # float64 counts whole numbers up to 2^53
        result.append(within.reshape(-1)[index.long()])
    return torch.stack(result)  # (N, *inner)


def _cut(image: Tensor, origin: Shape, source: Box) -> Tensor:
    given = Box.from_shape(tuple(image.shape[1:]), tuple(origin))
    if not given.contains(source):
        raise InputError(f"The warp samples voxels {source} and was given {given}; read Warp.source_box of the same shape.")
    return image[(slice(None), *source.shift(tuple(-value for value in origin)).slices())]

"""Another exposure, stain, focus and noise of crops, on their device; every amount is drawn on the CPU. Knows no storage.

Shapes: N batch, C channels, then the spatial axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unet_core.errors import InputError
from unet_core.training.options import Augmentation
from unet_core.wording import counted

BLURRED = 0.3  # of the crops; the others stay as sharp as they are
DARKEST = 1e-6  # relative intensity below which an optical density is not told, as in scikit-image
# Red, green and blue optical density of haematoxylin, eosin and DAB (Ruifrok and Johnston 2001), as in scikit-image.
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])


@dataclass(frozen=True)
class Span:
    """Intensities that count as 0 and 1 of each channel.

    Args:
        low: one number a channel.
        high: likewise, above it.
        is_limit: whether they are the ends of the data type, e.g. 0 and 255, so that results are clipped to them.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    is_limit: bool


@dataclass(frozen=True)
class Appearance:
    """What one sample's intensities go through, in this order; the defaults change nothing.

    Args:
        like: number of the part whose intensities it gets; None for its own.
        stains: factors of haematoxylin and eosin.
        exponent: of the gray-value curve between 0 and 1 of the span.
        gains: factor of each channel.
        offsets: added to each channel, relative to the span.
        blur: sigma of a Gaussian, in voxels of the last axis.
        noise: std of Gaussian noise, relative to the span.
        seed: of the noise.
        voxel_size: so that the blur is as wide in micrometres along all axes; None: as wide in voxels.
    """

    like: int | None = None
    stains: tuple[float, float] = (1.0, 1.0)
    exponent: float = 1.0
    gains: tuple[float, ...] = (1.0,)
    offsets: tuple[float, ...] = (0.0,)
    blur: float = 0.0
    noise: float = 0.0
    seed: int = 0
    voxel_size: tuple[float, ...] | None = None


def draw_appearance(
    options: Augmentation, rng: np.random.Generator, channels: int, voxel_size: Sequence[float] | None = None, parts: int = 1
) -> Appearance:
    """Draw the appearance of one sample from its own generator.

    Args:
        options: how much may change.
        rng: of the sample.
        channels: of the image.
        voxel_size: if axes differ.
        parts: to learn from, any of which the sample may look like.

    Raises:
        InputError: if stains shall vary and the image is not RGB.
    """
    if options.stain and channels != 3:
        raise InputError(
            f"Stains are told apart in RGB and the image has {counted(channels, 'channel')}; set augmentation.stain to 0."
        )
    is_matched = options.histogram and rng.random() < options.histogram
    like = int(rng.integers(parts)) if is_matched else None
    haematoxylin, eosin = np.exp(rng.normal(0.0, options.stain, 2))
    return Appearance(
        like=like,
        stains=(float(haematoxylin), float(eosin)),
        exponent=float(np.exp(rng.uniform(-1, 1) * np.log(options.gamma))),
        gains=tuple(np.exp(rng.normal(0.0, options.gain, channels)).tolist()),
        offsets=tuple(rng.normal(0.0, options.offset, channels).tolist()),
        blur=float(rng.uniform(0, options.blur)) if rng.random() < BLURRED else 0.0,
        noise=float(rng.uniform(0, options.noise)),
        seed=int(rng.integers(1 << 62)),
        voxel_size=None if voxel_size is None else tuple(voxel_size),
    )


def change_appearance(batch: Tensor, appearances: Sequence[Appearance], span: Span) -> Tensor:
    """The batch as it would look under other conditions.

    A sample does not depend on the others of the batch. Its noise is the same on every CPU and on every GPU, not on both.

    Args:
        batch: (N, C, *spatial), float32, intensities as stored.
        appearances: one a sample.
        span: of the intensities.

    Returns:
        A new tensor of the same shape; what is not changed at all is the same bit for bit.
    """
    return torch.stack([_change(image, appearance, span) for image, appearance in zip(batch, appearances, strict=True)])


def _change(image: Tensor, appearance: Appearance, span: Span) -> Tensor:
    per_channel = (-1, *(1,) * (image.dim() - 1))
    low = torch.tensor(span.low, dtype=torch.float32, device=image.device).reshape(per_channel)
    width = torch.tensor(span.high, dtype=torch.float32, device=image.device).reshape(per_channel) - low
    stained = appearance.stains != (1.0, 1.0)
    curved = appearance.exponent != 1
    if stained or curved:
        relative = (image - low) / width
        if stained:
            relative = change_stains(relative, appearance.stains)
        if curved:
            within = relative.clamp(0, 1)
            relative = (relative - within).add_(within.pow_(appearance.exponent))  # outside 0..1 the curve goes on as a line
        image = relative.mul_(width).add_(low)
    if any(gain != 1 for gain in appearance.gains) or any(appearance.offsets):
        gains = torch.tensor(appearance.gains, dtype=torch.float32, device=image.device).reshape(per_channel)
        offsets = torch.tensor(appearance.offsets, dtype=torch.float32, device=image.device).reshape(per_channel)
        image = image * gains + (low * (1 - gains) + offsets * width)
    if appearance.blur:
        size = appearance.voxel_size or (1.0,)
        sizes = size[-(image.dim() - 1) :] if len(size) > 1 else size * (image.dim() - 1)
        image = gaussian_blur(image, [appearance.blur * sizes[-1] / length for length in sizes])
    if appearance.noise:
        generator = torch.Generator(device=image.device).manual_seed(appearance.seed)
        noise = torch.randn(image.shape, generator=generator, device=image.device)
        image = noise.mul_(width * appearance.noise).add_(image)
    return torch.minimum(torch.maximum(image, low), low + width) if span.is_limit else image


def change_stains(image: Tensor, factors: tuple[float, float]) -> Tensor:
    """More or less haematoxylin and eosin: optical densities are split into stains, scaled, put together again.

    As ``hed2rgb(rgb2hed(image) * factors)`` of scikit-image, but for its clipping of negative amounts of a stain, which alters
    colours even where both factors are 1.

    Args:
        image: (3, *spatial), red, green and blue relative to white.
        factors: of haematoxylin and eosin.
    """
    matrix = np.linalg.inv(STAINS) @ np.diag([*factors, 1.0]) @ STAINS
    logs = image.clamp(min=DARKEST).log_()
    mixed = [sum(logs[source] * float(matrix[source, channel]) for source in range(3)) for channel in range(3)]
    return torch.stack(mixed).exp_()  # type: ignore[arg-type]


def gaussian_blur(image: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Gaussian blur along each spatial axis, cut off at 4 sigma, mirrored at the ends: scipy's ``gaussian_filter(mode="mirror")``.

    A sum of shifted images, since convolutions may run at fewer bits on a GPU.

    Args:
        image: (C, *spatial).
        sigmas: in voxels, one an axis.
    """
    for axis, sigma in enumerate(sigmas, start=1):
        radius = int(4 * sigma + 0.5)
        if not radius:
            continue
        kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
        size = image.shape[axis]
        mirrored = np.pad(np.arange(size), radius, mode="reflect")
        wide = image.index_select(axis, torch.from_numpy(mirrored).to(image.device))
        image = torch.zeros_like(image)
        for first, weight in enumerate((kernel / kernel.sum()).tolist()):
            image.add_(wide.narrow(axis, first, size), alpha=weight)
    return image

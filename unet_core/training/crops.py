"""Crops for training: an input with mirrored context, and the smaller target that an unpadded network predicts from it.

    input   |<- before ->|<---- target ---->|<- after ->|

Indexed by sample number: sample k is the same whatever was drawn before. Knows no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unet_core.normalisation import Normalisation
from unet_core.training.augment import Augmentation, recolour, sample_positions, warp


@dataclass(frozen=True)
class Annotated:
    """One image with its truth.

    Args:
        name: for messages.
        image: (C, Y, X), intensities.
        labels: (Y, X), class of each voxel.
        weights: (Y, X), weight of each voxel in the loss.
        normalisation: of its intensities.
        span: largest intensity that the image may have.
    """

    name: str
    image: NDArray[np.float32]
    labels: NDArray[np.uint8]
    weights: NDArray[np.float32]
    normalisation: Normalisation
    span: float


@dataclass(frozen=True)
class Crop:
    """Input (C, *input) in float32, normalised; labels and weights (*target)."""

    image: NDArray[np.float32]
    labels: NDArray[np.int64]
    weights: NDArray[np.float32]


def draw_crop(
    images: Sequence[Annotated],
    number: int,
    seed: int,
    input_shape: tuple[int, int],
    before: tuple[int, int],
    target_shape: tuple[int, int],
    options: Augmentation,
) -> Crop:
    """Sample ``number`` of the sequence that ``seed`` begins.

    Args:
        images: to draw from, each as likely as its number of voxels.
        number: of the sample, from 0.
        seed: of the sequence.
        input_shape: legal input of the network.
        before: margin before the target.
        target_shape: what the network returns for it.
        options: augmentation.
    """
    random = np.random.default_rng([seed, number])
    sizes = np.array([annotated.labels.size for annotated in images], dtype=np.float64)
    annotated = images[int(random.choice(len(images), p=sizes / sizes.sum()))]
    centre = tuple(random.uniform(0, size - 1) for size in annotated.labels.shape)
    positions = sample_positions(input_shape, (centre[0], centre[1]), options, random)
    inner = tuple(slice(first, first + size) for first, size in zip(before, target_shape, strict=True))
    target = positions[(slice(None), *inner)]
    image = recolour(warp(annotated.image, positions, order=1), annotated.span, options, random)
    labels = warp(annotated.labels[None], target, order=0)[0].astype(np.int64)
    weights = warp(annotated.weights[None], target, order=1)[0]
    return Crop(annotated.normalisation.apply(image), labels, weights)

"""Samples for training, each by its number: where it is drawn, and the voxels that it needs. Knows no network and no device.

source   |<---------- what the warp touches, mirrored where it leaves the image ---------->|
input          |<- before ->|<------------- target ------------->|<- after ->|
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unet_core.geometry import BlockGrid, Box, Shape
from unet_core.training.appearance import Appearance, draw_appearance
from unet_core.training.census import Census, Kind
from unet_core.training.options import TrainingOptions
from unet_core.training.parts import Part
from unet_core.training.separation import SEPARATION_MARGIN, separate_touching
from unet_core.training.stored_weights import StoredBorderWeights
from unet_core.training.warp import Warp, draw_warp

_COUNTED = {2: 1024, 3: 128}  # voxels along each axis whose labels are counted at once
_KINDS: tuple[Kind, ...] = ("uniform", "class", "border")


@dataclass(frozen=True)
class Sample:
    """What one crop is made of; C channels, S the box that the image is read from, L that of the labels.

    Args:
        number: of the sample.
        part: number of the part it was drawn from.
        image: (C, *S) float32, intensities as stored.
        classes: (*L) uint8, channel of each voxel's class, or IGNORE.
        instances: (*L) int64, or None.
        border: (*L) float32, what equation 2 adds to the class weight; None for nothing.
        origin: first voxel of S.
        label_origin: first voxel of L.
        warp: where each voxel of the crop comes from.
        appearance: change of intensities.
    """

    number: int
    part: int
    image: NDArray[np.float32]
    classes: NDArray[np.uint8]
    instances: NDArray[np.int64] | None
    border: NDArray[np.float32] | None
    origin: Shape
    label_origin: Shape
    warp: Warp
    appearance: Appearance


class Sampler:
    """Sample ``number`` of the endless sequence of a training: the same whatever was drawn before, on whatever rank or process.

    Args:
        parts: to draw from.
        census: what is where in them.
        borders: of each part, or None.
        options: of the training.
        input_shape: of the network's input.
        target: box of what it predicts, within its input.
        labelled: the target with what its heads need around it.
        needs_instances: whether a head is made from them.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        census: Census,
        borders: Sequence[StoredBorderWeights | None],
        options: TrainingOptions,
        input_shape: Shape,
        target: Box,
        labelled: Box,
        needs_instances: bool,
    ) -> None:
        self.parts = parts
        self.census = census
        self.borders = borders
        self.options = options
        self.input_shape = input_shape
        self.target = target
        self.labelled = labelled
        self.needs_instances = needs_instances

    def place(self, number: int) -> tuple[int, tuple[float, ...], np.random.Generator]:
        """Part and centre of the target of a sample, and the generator that goes on with its warp and appearance."""
        random = np.random.default_rng([self.options.seed, number])
        asked = self.options.crops.positions
        kinds = _KINDS if self.census.border_count else _KINDS[:-1]
        kind = kinds[int(random.integers(len(kinds)))] if asked == "mixed" else asked
        part, voxel = self.census.draw(random, kind)
        if kind == "uniform":
            return part, tuple(float(position) for position in voxel), random
        # What was drawn lies anywhere in the crop, not always at its centre.
        reach = (size / 4 for size in self.target.shape)
        return (
            part,
            tuple(position + random.uniform(-part_reach, part_reach) for position, part_reach in zip(voxel, reach, strict=True)),
            random,
        )

    def describe(self, number: int) -> str:
        """Where a sample comes from, in words."""
        part, centre, _ = self.place(number)
        return f"sample {number} of {self.parts[part].name} around {', '.join(f'{position:.0f}' for position in centre)}"

    def sample(self, number: int) -> Sample:
        """Read what one sample is made of."""
        part_number, target_centre, random = self.place(number)
        part = self.parts[part_number]
        # The warp turns about the middle of the input, which may lie beside that of the target.
        middles = zip(self.input_shape, self.target.start, self.target.shape, strict=True)
        shift = (size // 2 - (first + extent // 2) for size, first, extent in middles)
        centre = tuple(position + step for position, step in zip(target_centre, shift, strict=True))
        warp = draw_warp(self.options.augmentation, random, centre, part.voxel_size)
        appearance = draw_appearance(self.options.augmentation, random, part.channels, part.voxel_size, len(self.parts))
        source, truth = warp.source_box(self.input_shape), warp.source_box(self.input_shape, self.labelled)
        classes, instances = read_truth(part, truth, self.options.weights.separate, self.needs_instances)
        border = self.borders[part_number]
        return Sample(
            number=number,
            part=part_number,
            image=part.read_image(source).astype(np.float32),
            classes=classes,
            instances=instances,
            border=None if border is None else border.read(truth),
            origin=source.start,
            label_origin=truth.start,
            warp=warp,
            appearance=appearance,
        )


def read_truth(part: Part, box: Box, separate: bool, needs_instances: bool) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
    """Classes and, where wanted, instances of a box; with ``separate``, touching instances have background between them."""
    separate = separate and part.has_instances
    if not (needs_instances or separate):
        return part.read_classes(box), None
    rim = (SEPARATION_MARGIN if separate else 0,) * box.ndim
    classes, instances = part.read_labels(box.grow(rim, rim))
    assert instances is not None
    if separate:
        parted = separate_touching(instances)
        inner = Box.from_shape(box.shape, rim).slices()
        classes = np.where(parted != instances, np.uint8(0), classes)[inner]
        instances = parted[inner]
    return classes, instances


def separated_counts(parts: Sequence[Part]) -> NDArray[np.int64]:
    """Voxels of each class once touching instances have background between them; reads every label once."""
    counts = np.zeros(len(parts[0].class_names) + 1, dtype=np.int64)
    for part in parts:
        for block in BlockGrid(part.box.shape, (_COUNTED[part.box.ndim],) * part.box.ndim).blocks():
            classes, _ = read_truth(part, block.shift(part.box.start), separate=True, needs_instances=False)
            counts += np.bincount(np.minimum(classes, len(counts) - 1).ravel(), minlength=len(counts))
    return counts[:-1]

"""Samples become what a step needs, on the device: warped and recoloured input, targets and weights of every head. Reads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unet_core.geometry import Box
from unet_core.training.appearance import Span, change_appearance
from unet_core.training.crops import Sample
from unet_core.training.histograms import match_histogram
from unet_core.training.options import IGNORE, HeadOptions
from unet_core.training.plan import TrainingPlan
from unet_core.training.resample import warp_images, warp_labels
from unet_core.training.targets import HeadTarget, halo, targets

Halo = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Batch:
    """N crops of one step.

    Args:
        numbers: of the samples.
        image: (N, C, *input), normalised.
        heads: targets of each head, in order.
    """

    numbers: tuple[int, ...]
    image: Tensor
    heads: tuple[HeadTarget, ...]


class BatchMaker:
    """Makes batches as a plan says.

    Args:
        plan: of the training.
        target: box of what the network predicts, within its input.
        device: of the network.
    """

    def __init__(self, plan: TrainingPlan, target: Box, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.plan = plan
        self.heads = plan.options.heads
        self.target = target
        self.halos = head_halos(plan)
        self.widest = widest(self.halos)
        self.labelled = target.grow(*zip(*self.widest, strict=True))
        self.order = plan.options.augmentation.order
        self.class_weights = torch.tensor(plan.class_weights, dtype=torch.float32, device=self.device)
        self.span = Span(**plan.span.model_dump())
        self.class_numbers = {label.name: number for number, label in enumerate(plan.dataset.classes)}
        size = plan.description.voxel_size_um
        self.voxel_size = None if size == "unknown" else size
        self.offsets = self._per_part("offset")
        self.scales = self._per_part("scale")

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """The batch of ``samples``, augmented."""
        warps, origins = [sample.warp for sample in samples], [sample.origin for sample in samples]
        shape = self.plan.input_shape
        images = warp_images([self._move(sample.image) for sample in samples], origins, warps, shape, self.order)
        images = torch.stack([self._matched(image, sample) for image, sample in zip(images, samples, strict=True)])
        images = change_appearance(images, [sample.appearance for sample in samples], self.span)
        parts = [sample.part for sample in samples]
        spread = (len(samples), -1) + (1,) * self.plan.dims
        images = (images - self.offsets[parts].reshape(spread)) / self.scales[parts].reshape(spread)

        classes = self._labels(samples, [sample.classes for sample in samples]).long()
        instances = None
        if samples[0].instances is not None:
            instances = self._labels(samples, [sample.instances for sample in samples])  # type: ignore[misc]
        weights = self._weights(samples, self._inner(classes, ((0, 0),) * self.plan.dims))
        heads = zip(self.heads, self.halos, strict=True)
        return Batch(
            numbers=tuple(sample.number for sample in samples),
            image=images,
            heads=tuple(self._target(head, sides, classes, instances, weights) for head, sides in heads),
        )

    def _matched(self, image: Tensor, sample: Sample) -> Tensor:
        """A crop with the intensities of the part that it shall look like."""
        if sample.appearance.like is None:
            return image
        own, other = (np.array(self.plan.training[part].quantiles) for part in (sample.part, sample.appearance.like))
        return match_histogram(image, own, other)

    def _labels(self, samples: Sequence[Sample], labels: Sequence[NDArray[Any]]) -> Tensor:
        warps, origins = [sample.warp for sample in samples], [sample.label_origin for sample in samples]
        return warp_labels([self._move(each) for each in labels], origins, warps, self.plan.input_shape, self.labelled)

    def _target(self, head: HeadOptions, sides: Halo, classes: Tensor, instances: Tensor | None, weights: Tensor) -> HeadTarget:
        ids = None if instances is None else self._inner(instances, sides)
        return targets(head, self._inner(classes, sides), ids, weights, sides, self.class_numbers, self.voxel_size)

    def _inner(self, values: Tensor, sides: Halo) -> Tensor:
        """The target grown by ``sides``, of what was warped for the widest halo."""
        cut = [
            slice(widest[0] - own[0], values.shape[axis + 1] - (widest[1] - own[1]))
            for axis, (widest, own) in enumerate(zip(self.widest, sides, strict=True))
        ]
        return values[(slice(None), *cut)]

    def _weights(self, samples: Sequence[Sample], classes: Tensor) -> Tensor:
        """Equation 2 of the U-Net paper for each voxel of the targets: (N, *target), 0 where ignored."""
        weights = self.class_weights[classes.clamp(max=len(self.class_weights) - 1)]
        if samples[0].border is not None:
            borders = [self._move(sample.border)[None] for sample in samples]  # type: ignore[arg-type]
            warps, origins = [sample.warp for sample in samples], [sample.label_origin for sample in samples]
            weights = weights + warp_images(borders, origins, warps, self.plan.input_shape, 1, self.target)[:, 0]
        return weights * (classes != IGNORE)

    def _move(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)

    def _per_part(self, name: str) -> Tensor:
        numbers = [getattr(part.normalisation, name) for part in self.plan.training]
        return torch.tensor(numbers, dtype=torch.float32, device=self.device)


def head_halos(plan: TrainingPlan) -> tuple[Halo, ...]:
    """What each head needs of the labels around its target."""
    size = plan.description.voxel_size_um
    return tuple(halo(head, plan.dims, None if size == "unknown" else size) for head in plan.options.heads)


def widest(halos: Sequence[Halo]) -> Halo:
    """What all heads together need."""
    return tuple((max(before for before, _ in sides), max(after for _, after in sides)) for sides in zip(*halos, strict=True))

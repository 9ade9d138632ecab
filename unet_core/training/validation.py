"""Scores of a network on what it is not trained on, between steps: whole tiles without augmentation, counted over all ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unet_core.footprint import Footprint
from unet_core.geometry import Box
from unet_core.training.crops import read_truth
from unet_core.training.group import Group
from unet_core.training.losses import head_loss
from unet_core.training.options import IGNORE, HeadOptions, LossOptions
from unet_core.training.parts import Part
from unet_core.training.plan import TrainingPlan
from unet_core.training.targets import HeadTarget, halo, targets
from unet_core.training.tiles import Tile


@dataclass(frozen=True)
class Predicted:
    """A tile with what was read and predicted: image (C, *box), normalised; logits (channels, *box); targets of each head."""

    tile: Tile
    image: NDArray[np.float32]
    logits: Tensor
    heads: tuple[HeadTarget, ...]


class Validator:
    """Scores a network on the validation part of a plan.

    Args:
        plan: of the training.
        parts: of the validation, as in the plan.
        tiles: of them, that are scored.
        geometry: of the network.
        device: of the network.
    """

    def __init__(
        self,
        plan: TrainingPlan,
        parts: Sequence[Part],
        tiles: Sequence[Tile],
        geometry: Footprint,
        device: torch.device | str,
    ) -> None:
        self.plan = plan
        self.parts = parts
        self.geometry = geometry
        self.device = torch.device(device)
        self.tiles = tiles
        self.class_names = tuple(label.name for label in plan.dataset.classes)
        self.class_numbers = {name: number for number, name in enumerate(self.class_names)}
        size = plan.description.voxel_size_um
        self.voxel_size = None if size == "unknown" else size
        self.names = score_names(plan.options.heads, self.class_names)
        self.class_weights = torch.tensor(plan.class_weights, dtype=torch.float32, device=self.device)

    def scores(self, network: nn.Module, group: Group) -> dict[str, float]:
        """Loss and scores over all tiles, each rank doing its share; empty without a validation part.

        ``loss`` is the mean over voxels of the training's loss without the border term; ``accuracy`` of head ``classes``;
        ``iou`` the mean over its foreground classes or regions, ``iou_NAME`` of each. Where a head's scores are named as those of one
        before it, they begin with the head's own name.
        """
        if not self.tiles:
            return {}
        losses = np.zeros(2)
        counts = [np.zeros(_counts_shape(head, self.class_names), dtype=np.float64) for head in self.plan.options.heads]
        for tile in self.tiles[group.rank :: group.size]:
            predicted = self.predict(network, tile)
            voxels = float(predicted.heads[0].weights.sum())
            losses += np.array([float(self._loss(predicted)) * voxels, voxels])
            for count, head, channels, target in zip(
                counts, self.plan.options.heads, self._channels(), predicted.heads, strict=True
            ):
                count += _counts(head, predicted.logits[channels], target)
        losses, counts = group.gather_counts(losses), [group.gather_counts(count) for count in counts]
        scores = {"loss": float(losses[0] / losses[1]) if losses[1] else float("nan")}
        return scores | _scores_of_heads(self.plan.options.heads, counts, self.class_names)

    @torch.inference_mode()
    def predict(self, network: nn.Module, tile: Tile) -> Predicted:
        """Predict one tile, mirrored where it leaves the image."""
        part, facts = self.parts[tile.part], self.plan.validation[tile.part]
        image = facts.normalisation.apply(part.read_image(self.geometry.read_box(tile.box)))
        batch = torch.from_numpy(image)[None].to(self.device)
        with autocast(self.device, self.plan.options.precision):
            logits = network(batch)[0]
        logits = logits[(slice(None), *Box.from_shape(tile.box.shape, self.geometry.skip).slices())].float()
        inner = Box.from_shape(tile.box.shape, self.geometry.before)
        return Predicted(tile, image[(slice(None), *inner.slices())], logits, self._targets(part, tile.box))

    def _targets(self, part: Part, box: Box) -> tuple[HeadTarget, ...]:
        found = []
        for head in self.plan.options.heads:
            sides = halo(head, self.plan.dims, self.voxel_size)
            grown = box.grow(*zip(*sides, strict=True))
            read, instances = read_truth(part, grown, self.plan.options.weights.separate, head.kind in ("affinities", "distance"))
            classes = torch.from_numpy(read).to(self.device)[None].long()
            ids = None if instances is None else torch.from_numpy(instances).to(self.device)[None]
            inner = classes[(slice(None), *Box.from_shape(box.shape, tuple(before for before, _ in sides)).slices())]
            weights = self.class_weights[inner.clamp(max=len(self.class_weights) - 1)] * (inner != IGNORE)
            weights = weights * _is_inside(part.box, box).to(self.device)
            found.append(targets(head, classes, ids, weights, sides, self.class_numbers, self.voxel_size))
        return tuple(found)

    def _loss(self, predicted: Predicted) -> Tensor:
        options: LossOptions = self.plan.options.loss.model_copy(update={"reduction": "mean"})
        parts = zip(self.plan.options.heads, self._channels(), predicted.heads, strict=True)
        losses = [
            head_loss(options, head.kind, predicted.logits[None, channels], target, lambda value: value)
            for head, channels, target in parts
        ]
        return torch.stack(losses).sum()

    def _channels(self) -> Iterator[slice]:
        return head_channels(self.plan)


def score_names(heads: Sequence[HeadOptions], class_names: Sequence[str]) -> tuple[str, ...]:
    """Names of the scores of a validation, ``loss`` first."""
    counts = [np.zeros(_counts_shape(head, class_names)) for head in heads]
    return ("loss", *_scores_of_heads(heads, counts, class_names))


def head_channels(plan: TrainingPlan) -> Iterator[slice]:
    """The channels of the logits that belong to each head, in order."""
    for head in plan.description.heads:
        yield slice(head.channels[0], head.channels[-1] + 1)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Half precision where the options say so; weights stay float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def _is_inside(bounds: Box, box: Box) -> Tensor:
    """Where ``box`` lies in ``bounds``: the last tiles of an image hang over it, and mirrored voxels are no truth of their own."""
    inside = torch.zeros(box.shape, dtype=torch.bool)
    inside[box.intersect(bounds).shift(tuple(-first for first in box.start)).slices()] = True
    return inside


def _counts_shape(head: HeadOptions, class_names: Sequence[str]) -> tuple[int, ...]:
    match head.kind:
        case "classes":
            return (len(class_names), len(class_names))
        case "regions":
            return (len(head.regions), 3)
        case "affinities":
            return (len(head.offsets), 3)
    return (0,)


def _counts(head: HeadOptions, logits: Tensor, target: HeadTarget) -> NDArray[Any]:
    """Confusion (truth, prediction) of classes; hits, false alarms and misses of each sigmoid channel."""
    if head.kind == "distance":
        return np.zeros(0)
    counted = (target.weights[0] > 0).cpu()
    values = target.values[0].cpu()
    if head.kind == "classes":
        number = len(logits)
        pairs = values[counted] * number + logits.argmax(0).cpu()[counted]
        return torch.bincount(pairs, minlength=number * number).reshape(number, number).numpy()
    predicted, truth = logits.cpu() > 0, values > 0.5
    counted = counted.expand(truth.shape)
    sums = (predicted & truth, predicted & ~truth, ~predicted & truth)
    return torch.stack([(each & counted).flatten(1).sum(1) for each in sums], dim=1).numpy()


def _scores_of_heads(
    heads: Sequence[HeadOptions], counts: Sequence[NDArray[np.float64]], class_names: Sequence[str]
) -> dict[str, float]:
    found: dict[str, float] = {}
    for head, count in zip(heads, counts, strict=True):
        own = _scores(head, count, class_names)
        found |= {f"{head.name}_{name}": value for name, value in own.items()} if own.keys() & found.keys() else own
    return found


def _scores(head: HeadOptions, counts: NDArray[np.float64], class_names: Sequence[str]) -> dict[str, float]:
    if head.kind == "distance":
        return {}
    if head.kind == "classes":
        hits = np.diag(counts)
        unions = counts.sum(0) + counts.sum(1) - hits
        each = {name: _ratio(hits[number], unions[number]) for number, name in enumerate(class_names) if number}
        scores = {"accuracy": _ratio(hits.sum(), counts.sum())}
        prefix = ""
    else:
        names = tuple(head.regions) if head.kind == "regions" else tuple(str(number) for number in range(len(head.offsets)))
        each = {name: _ratio(counts[number, 0], counts[number].sum()) for number, name in enumerate(names)}
        scores = {}
        prefix = "" if head.kind == "regions" else "affinity_"
    known = [value for value in each.values() if np.isfinite(value)]
    mean = {f"{prefix}iou": float(np.mean(known)) if known else float("nan")}
    return scores | mean | {f"{prefix}iou_{name}": value for name, value in each.items()}


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")

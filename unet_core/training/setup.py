"""What a rank opens before its first step: parts, census and border weights of a plan."""

from __future__ import annotations

from collections.abc import Callable

from unet_core.geometry import Box, Shape
from unet_core.training.batches import head_halos, widest
from unet_core.training.census import Census
from unet_core.training.crops import Sampler
from unet_core.training.opening import open_parts
from unet_core.training.options import HeadOptions
from unet_core.training.parts import Part
from unet_core.training.plan import TrainingPlan, training_store
from unet_core.training.stored_weights import StoredBorderWeights, labels_fingerprint, store_border_weights
from unet_core.training.tiles import Tile, choose_tiles
from unet_core.training_folder import FOLDER

CENSUS = "census.npz"
VALIDATION_CENSUS = "validation.npz"
_WEIGHTS = "weights"


def open_training(plan: TrainingPlan) -> tuple[Part, ...]:
    """The parts that crops are drawn from."""
    return open_parts(plan.dataset, plan.dims, "train", plan.fold)


def open_validation(plan: TrainingPlan) -> tuple[Part, ...]:
    """The parts that are scored between steps; none without a split."""
    return open_parts(plan.dataset, plan.dims, "validation", plan.fold) if plan.validation else ()


def open_tiles(plan: TrainingPlan, model_out: str, parts: tuple[Part, ...], stride: Shape) -> tuple[Tile, ...]:
    """The tiles of ``open_validation`` that are scored between steps; none without a split."""
    if not parts:
        return ()
    census = Census.load(training_store(model_out), VALIDATION_CENSUS, parts)
    return choose_tiles(census, plan.target_shape, stride, plan.options.validation_crops)


def open_sampler(plan: TrainingPlan, model_out: str, target: Box) -> Sampler:
    """Samples of a plan, by number.

    Args:
        plan: of the training.
        model_out: folder of the model; border weights are there already.
        target: box of what the network predicts, within its input.
    """
    parts = open_training(plan)
    census = Census.load(training_store(model_out), CENSUS, parts)
    borders = [
        StoredBorderWeights(_border_url(model_out, number)) if plan.options.weights.w0 else None for number in range(len(parts))
    ]
    labelled = target.grow(*zip(*widest(head_halos(plan)), strict=True))
    return Sampler(parts, census, borders, plan.options, plan.input_shape, target, labelled, needs_instances(plan.options.heads))


def needs_instances(heads: tuple[HeadOptions, ...]) -> bool:
    """Whether a head is made from instance ids."""
    return any(head.kind in ("affinities", "distance") for head in heads)


def store_borders(plan: TrainingPlan, model_out: str, on_part: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Compute the border term of equation 2 of every part, where it is asked for, and store it beside the model; once.

    Args:
        plan: of the training.
        model_out: folder of the model.
        on_part: called with the parts done and their number.
    """
    if not plan.options.weights.w0:
        return
    parts = open_training(plan)
    for number, part in enumerate(parts):
        store_border_weights(_border_url(model_out, number), part, plan.options.weights, labels_fingerprint(part))
        on_part(number + 1, len(parts))


def _border_url(model_out: str, number: int) -> str:
    return f"{model_out.rstrip('/')}/{FOLDER}/{_WEIGHTS}/{number:05d}"

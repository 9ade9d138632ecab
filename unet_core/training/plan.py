"""A training resolved against its data: what decides the weights, as immutable JSON beside the model. Reads no image; knows no torch.

MODEL_OUT/model.json, weights.safetensors      when the training is complete
MODEL_OUT/training/plan.json, census.npz, weights/, checkpoints/, log.csv, pictures/, tensorboard/
"""

from __future__ import annotations

import hashlib
import json
from typing import Literal

import pydantic
from pydantic import ConfigDict, Field

from unet_core.errors import ResumeError
from unet_core.model_description import DESCRIPTION_FILE, ModelDescription
from unet_core.normalisation import Normalisation
from unet_core.store import Store, open_store
from unet_core.training.changed_settings import changed_settings
from unet_core.training.dataset_description import Dataset
from unet_core.training.options import Options, TrainingOptions
from unet_core.training_folder import FOLDER, PLAN
from unet_core.validation import first_problem

_SHOWN = 3  # differences that a message lists


class Parent(Options):
    """The model that a training begins with.

    Args:
        model: URL it was read from.
        sha256: its identity.
        new: tensors that the parent does not have in this shape, and that begin afresh.
    """

    model: str
    sha256: str
    new: tuple[str, ...] = ()


class PartFacts(Options):
    """What planning found of one part.

    Args:
        name: of the part.
        normalisation: of its intensities.
        quantiles: of its intensities, a row a channel; None unless histograms are matched.
    """

    name: str
    normalisation: Normalisation
    quantiles: tuple[tuple[float, ...], ...] | None = None


class SpanFacts(Options):
    """Intensities that count as black and white.

    Args:
        low: one number a channel.
        high: likewise.
        is_limit: whether they are the ends of the data type.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    is_limit: bool


class TrainingPlan(Options):
    """Everything that decides the weights on one class of hardware.

    Args:
        options: as asked.
        dataset: pairs, classes, split.
        fold: which part of k folds is held out; None without folds.
        description: what ``model.json`` will say, but for the scores.
        training: parts that crops are drawn from.
        validation: parts that are scored between.
        fingerprints: of images and labels.
        span: intensities between which gray values change.
        class_weights: weight of a voxel of each class.
        input_shape: of a crop, in voxels.
        target_shape: of what the network predicts of it.
        parent: of a fine-tuning.
        freeze: part of the network that keeps its weights.
        ranks: processes that share each step.
        threads: CPU threads of one rank.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_number: Literal[1] = Field(default=1, alias="schema")
    options: TrainingOptions
    dataset: Dataset
    fold: int | None = None
    description: ModelDescription
    training: tuple[PartFacts, ...]
    validation: tuple[PartFacts, ...]
    fingerprints: dict[str, str]
    span: SpanFacts
    class_weights: tuple[float, ...]
    input_shape: tuple[int, ...]
    target_shape: tuple[int, ...]
    parent: Parent | None = None
    freeze: Literal["encoder"] | None = None
    ranks: int = 1
    threads: int = 1

    @property
    def dims(self) -> int:
        return len(self.input_shape)

    @property
    def id(self) -> str:
        """sha256 of the plan."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json", by_alias=True), sort_keys=True).encode()).hexdigest()


def training_store(model_out: str) -> Store:
    """Where a training keeps what is not the model itself."""
    return open_store(f"{model_out.rstrip('/')}/{FOLDER}")


def is_trained(model_out: str) -> bool:
    """Whether there is a model; the training is complete then."""
    return open_store(model_out).exists(DESCRIPTION_FILE)


def write_training_plan(store: Store, plan: TrainingPlan) -> None:
    """Store the plan, from which every rank begins."""
    store.put(PLAN, json.dumps(plan.model_dump(mode="json", by_alias=True), indent=1).encode())


def find_training_plan(store: Store) -> TrainingPlan | None:
    """The plan of a training that was begun here, if there is one.

    Raises:
        ResumeError: if it cannot be read.
    """
    try:
        text = store.get(PLAN)
    except FileNotFoundError:
        return None
    try:
        return TrainingPlan.model_validate_json(text)
    except pydantic.ValidationError as error:
        raise ResumeError(f"{PLAN} in {store.url}: {first_problem(error)}; choose another folder for the model.") from None


def check_same(planned: TrainingPlan, wanted: TrainingPlan, model_out: str) -> None:
    """Refuse to go on with a training that was asked for something else.

    Raises:
        ResumeError: naming what differs as it was typed, with both values.
    """
    before, now = (plan.model_dump(mode="json") for plan in (planned, wanted))
    changed = changed_settings(before, now)
    if changed:
        more = f" (and {len(changed) - _SHOWN} more)" if len(changed) > _SHOWN else ""
        raise ResumeError(
            f"{model_out} holds another training: {'; '.join(changed[:_SHOWN])}{more}. Repeat the first command to go on, or choose another "
            f"folder; a longer training can begin with this model (--init {model_out}) once it is complete."
        )

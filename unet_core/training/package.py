"""The model of a training: its description while planning, its package at the end, and the parent it may begin with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from unet_core import __version__, networks
from unet_core.errors import ModelPackageError
from unet_core.model_description import Head, LabelClass, ModelDescription, NetworkSpec
from unet_core.model_package import load_model, save_model
from unet_core.training.dataset_description import PALETTE, DatasetClass
from unet_core.training.options import HeadOptions
from unet_core.training.plan import Parent, TrainingPlan


def channel_counts(heads: Sequence[HeadOptions], class_count: int) -> tuple[int, ...]:
    """Channels of the logits that each head takes."""
    counts = {
        "classes": lambda head: class_count,
        "regions": lambda head: len(head.regions),
        "affinities": lambda head: len(head.offsets),
    }
    return tuple(counts[head.kind](head) if head.kind in counts else 1 for head in heads)


def describe_heads(heads: Sequence[HeadOptions], class_count: int) -> tuple[Head, ...]:
    """The heads as ``model.json`` states them, on consecutive channels."""
    found, first = [], 0
    for head, count in zip(heads, channel_counts(heads, class_count), strict=True):
        extra: dict[str, Any] = {}
        if head.kind == "affinities":
            extra = {"offsets": head.offsets}
        elif head.kind == "distance":
            extra = {"scale": head.scale}
        found.append(Head(name=head.name, kind=head.kind, channels=tuple(range(first, first + count)), **extra))
        first += count
    return tuple(found)


def describe_classes(heads: Sequence[HeadOptions], classes: Sequence[DatasetClass]) -> tuple[LabelClass, ...]:
    """The classes of the first head of classes or regions; none for a model without one."""
    first = next((head for head in heads if head.kind in ("classes", "regions")), None)
    if first is None:
        return ()
    if first.kind == "classes":
        return tuple(LabelClass(value=number, name=entry.name, color=entry.color) for number, entry in enumerate(classes))
    return tuple(
        LabelClass(value=number, name=name, color=PALETTE[number % len(PALETTE)])
        for number, name in enumerate(first.regions, start=1)
    )


def load_parent(model: str) -> tuple[ModelDescription, Parent]:
    """The model that a training is to begin with."""
    package = load_model(model)
    if package.description.network.name not in networks.NETWORKS:
        raise ModelPackageError(
            f"Model {model} is {package.description.network.name}, which is not trained; import it with its architecture, or train from scratch."
        )
    return package.description, Parent(model=package.url, sha256=package.sha256)


def parent_state(parent: Parent) -> dict[str, Tensor]:
    """The tensors of a parent, if it is still the planned one."""
    return dict(load_model(parent.model, planned_sha256=parent.sha256).network.state_dict())


def write_model(model_out: str, plan: TrainingPlan, state: dict[str, Tensor], result: dict[str, Any]) -> None:
    """Write the model package with where it comes from; nothing in it depends on when or how fast it was trained.

    Args:
        model_out: folder.
        plan: of the training.
        state: of the network.
        result: steps and scores.
    """
    with torch.device("meta"):
        network = networks.build(plan.description.network.name, **plan.description.network.arguments)
    network.load_state_dict(state, assign=True)
    options = plan.options.model_dump(mode="json")
    if plan.parent:  # its network was trained on, whatever the recipe says
        options["network"] = plan.description.network.model_dump(mode="json")
    if plan.dataset.normalisation:
        options["normalisation"] = plan.dataset.normalisation.kind
    provenance = {
        "training_plan": plan.id,
        "data": plan.description.provenance.get("data", {}),
        "options": options,
        "parent": plan.parent.model_dump(mode="json") if plan.parent else None,
        "software": {"unet-flows": __version__, "torch": torch.__version__.partition("+")[0]},
    }
    save_model(model_out, network.eval(), plan.description.model_copy(update={"provenance": provenance | result}))


def network_dims(spec: NetworkSpec) -> int:
    """Spatial axes that a network works on."""
    return int(spec.arguments.get("dims", networks.parameters(spec.name)["dims"].default))


def network_spec(spec: NetworkSpec, in_channels: int, channels: int, dims: int) -> NetworkSpec:
    """The network with the channels of the data."""
    return NetworkSpec(name=spec.name, arguments=spec.arguments | {"in_channels": in_channels, "classes": channels, "dims": dims})

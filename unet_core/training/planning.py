"""From a data set and options to a plan: everything that can be wrong is found here, before the first step."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from typing import Any, Literal

import pydantic

from unet_core.errors import JobError, ResumeError
from unet_core.footprint import footprint
from unet_core.model_description import (
    ModelDescription,
    NetworkSpec,
    StatedNormalisation,
    check_description,
)
from unet_core.model_package import build_without_memory
from unet_core.places import check_location, check_writable
from unet_core.store import OWN_FOLDER, is_remote, local_path
from unet_core.training import package
from unet_core.training.augmentation import check_augmentation
from unet_core.training.census import Census, take_census
from unet_core.training.checks import check_frozen, check_heads, check_network, check_positions, check_ranks, check_scores
from unet_core.training.class_weights import class_weights
from unet_core.training.crops import separated_counts
from unet_core.training.dataset import Dataset, load_dataset, open_parts
from unet_core.training.dataset_description import Purpose
from unet_core.training.fine_tuning import inherited
from unet_core.training.histograms import QUANTILES
from unet_core.training.options import TrainingOptions
from unet_core.training.parts import Part
from unet_core.training.plan import (
    PartFacts,
    SpanFacts,
    TrainingPlan,
    check_same,
    find_training_plan,
    is_trained,
    training_store,
    write_training_plan,
)
from unet_core.training.setup import CENSUS, VALIDATION_CENSUS, store_borders
from unet_core.training.splits import purposes
from unet_core.training.stated_normalisation import normalisations, stated_normalisation
from unet_core.training.statistics import Statistics, take_statistics
from unet_core.training.validation import score_names
from unet_core.validation import first_problem
from unet_core.wording import counted

_OTHERS = (OWN_FOLDER, "zarr.json", ".zgroup", ".zarray")  # in a folder that is no model's
_CHANNEL_NAMES = {1: ("intensity",), 3: ("red", "green", "blue")}


def plan_training(
    dataset: str,
    model_out: str,
    options: TrainingOptions,
    *,
    root: str | None = None,
    fold: int | None = None,
    init: str | None = None,
    freeze: Literal["encoder"] | None = None,
    ranks: int | None = None,
    threads: int | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> TrainingPlan:
    """Plan a training, or find the planned one again; the plan lies below ``model_out`` afterwards.

    Args:
        dataset: ``dataset.yaml``, or a folder of images and labels.
        model_out: folder of the model; holds the training too.
        options: what to do.
        root: where relative paths of the data set start from; its own folder unless told.
        fold: of a data set with k folds.
        init: model to begin with.
        freeze: part of the network that keeps the parent's weights.
        ranks: processes that share each step; 1 unless told.
        threads: CPU threads of one rank; the cores shared out unless told. Part of the plan, since it changes last bits.
        note: called with a line for each stage.

    Raises:
        InputError: naming what is wrong with the data, the options, or the folder.
    """
    _check_folder(model_out)
    check_ranks(options, ranks, threads)
    check_network(options)
    described = load_dataset(dataset, root=root)
    store = training_store(model_out)
    planned = find_training_plan(store)
    if planned is not None:
        parent = package.load_parent(init)[1] if init else None
        asked: dict[str, Any] = {"options": options, "dataset": described, "fold": fold, "freeze": freeze}
        asked |= {"ranks": ranks or planned.ranks, "threads": threads or planned.threads}
        parts = open_parts(described, planned.dims, "train", fold)
        parts += open_parts(described, planned.dims, "validation", fold) if planned.validation else ()
        asked |= {"fingerprints": _fingerprints(parts)}
        asked |= {"parent": parent and parent.model_copy(update={"new": planned.parent.new if planned.parent else ()})}
        check_same(planned, planned.model_copy(update=asked), model_out)
        if not is_trained(model_out):
            store_borders(planned, model_out)
        return planned
    if is_trained(model_out):
        raise ResumeError(f"{model_out} holds a model that was not trained here; choose another folder.")
    plan, census, annotated = _resolve(described, options, fold, init, freeze, ranks or 1, threads, note)
    check_writable(model_out)
    census.save(store, CENSUS)
    if annotated is not None:
        annotated.save(store, VALIDATION_CENSUS)
    write_training_plan(store, plan)
    note("weights of borders")
    store_borders(plan, model_out)
    return plan


def _resolve(
    dataset: Dataset,
    options: TrainingOptions,
    fold: int | None,
    init: str | None,
    freeze: Literal["encoder"] | None,
    ranks: int,
    threads: int | None,
    note: Callable[[str], None],
) -> tuple[TrainingPlan, Census, Census | None]:
    if freeze is not None and init is None:
        raise JobError(f"--freeze {freeze} keeps weights that were never trained; name a model with --init.")
    parent_description, parent = package.load_parent(init) if init else (None, None)
    spec = (
        parent_description.network
        if parent_description
        else NetworkSpec(name=options.network.name, arguments=options.network.arguments)
    )
    dims = package.network_dims(spec)
    training = open_parts(dataset, dims, "train", fold)
    validation = open_parts(dataset, dims, "validation", fold) if _has(dataset, "validation", fold) else ()
    check_augmentation(options.augmentation, dims, training[0].channels)
    check_heads(options, dataset, dims, training[0].voxel_size, all(part.has_instances for part in training))
    channels = sum(package.channel_counts(options.heads, len(dataset.classes)))
    spec = package.network_spec(spec, training[0].channels, channels, dims)
    network = build_without_memory(spec, "to train")
    input_shape, target_shape = _crop_shapes(network, options, training)
    names = score_names(options.heads, tuple(label.name for label in dataset.classes)) if validation else ("loss",)
    check_scores(options, names, bool(validation))
    if parent is not None:
        parent = parent.model_copy(update={"new": inherited(network, package.parent_state(parent))[1]})

    check_frozen(parent, freeze)
    note(f"counting the classes of {counted(len(training), 'part')} to train on, {len(validation)} to validate")
    separate = options.weights.separate and training[0].has_instances
    tells_classes = any(head.kind in ("classes", "regions") for head in options.heads)
    census = take_census(training, least_classes=2 if tells_classes and not separate else 1)
    check_positions(options, census)
    annotated = take_census(validation, least_classes=1) if validation else None
    if validation:
        take_statistics(validation)  # refuses what is not finite
    counts = separated_counts(training) if separate else census.class_counts
    weights = class_weights(counts, dataset.class_names) if options.weights.balance else None
    note("statistics of intensities")
    found = take_statistics(training)
    description = _describe(dataset, options, spec, training, len(validation), found)
    return (
        TrainingPlan(
            options=options,
            dataset=dataset,
            fold=fold,
            description=description,
            training=_with_quantiles(training, _facts(training, description.normalisation), options),
            validation=_facts(validation, description.normalisation),
            fingerprints=_fingerprints((*training, *validation)),
            span=_span(found, training[0].dtype.name),
            class_weights=tuple(float(weight) for weight in weights) if weights is not None else (1.0,) * len(dataset.classes),
            input_shape=input_shape,
            target_shape=target_shape,
            parent=parent,
            freeze=freeze,
            ranks=ranks,
            threads=threads or max(1, _cores() // ranks),
        ),
        census,
        annotated,
    )


def _describe(
    dataset: Dataset, options: TrainingOptions, spec: NetworkSpec, training: tuple[Part, ...], validation: int, found: Statistics
) -> ModelDescription:
    channels = training[0].channels
    try:
        description = ModelDescription(
            name=dataset.name or "trained",
            network=spec,
            heads=package.describe_heads(options.heads, len(dataset.classes)),
            classes=package.describe_classes(options.heads, dataset.classes),
            input_channels=_CHANNEL_NAMES.get(channels) or tuple(f"channel {number}" for number in range(channels)),
            voxel_size_um=training[0].voxel_size or "unknown",
            normalisation=stated_normalisation(dataset, options, found, training[0]),
            provenance={
                "data": {"name": dataset.name, "source": dataset.source, "training": len(training), "validation": validation}
            },
        )
    except pydantic.ValidationError as error:
        raise JobError(
            f"No model can be described for these data: {first_problem(error)}; convert or rescale the images, or correct the options."
        ) from None
    check_description(description, "the model to train")
    return description


def _has(dataset: Dataset, purpose: Purpose, fold: int | None) -> bool:
    assigned = zip(dataset.pairs, purposes(dataset, fold), strict=True)
    return any(getattr(pair.boxes, purpose) if pair.boxes else own == purpose for pair, own in assigned)


def _fingerprints(parts: tuple[Part, ...]) -> dict[str, str]:
    """sha256 of what images and labels are told by; sections of one stack share theirs."""
    found: dict[str, str] = {}
    for pair, part in {part.source.pair: part for part in parts}.items():  # one image may be there with several levels or series
        text = found.get(pair.image, "") + json.dumps(part.fingerprint(), sort_keys=True)
        found[pair.image] = hashlib.sha256(text.encode()).hexdigest()
    return found


def _span(found: Statistics, dtype: str) -> SpanFacts:
    if dtype == "uint8":
        return SpanFacts(low=(0.0,) * len(found.mean), high=(255.0,) * len(found.mean), is_limit=True)
    high = tuple(top if top > low else low + 1 for low, top in zip(found.minimum, found.maximum, strict=True))
    return SpanFacts(low=found.minimum, high=high, is_limit=False)


def _check_folder(model_out: str) -> None:
    check_location("MODEL_OUT", model_out)
    if is_remote(model_out):
        raise JobError(f"MODEL_OUT {model_out} is no local folder; train into one and copy the model.")
    held = next((name for name in _OTHERS if (local_path(model_out) / name).exists()), None)
    if held:
        raise JobError(f"MODEL_OUT {model_out} holds an image or a result ({held}); give a new folder.")


def _crop_shapes(network: Any, options: TrainingOptions, parts: tuple[Part, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Input and target of a crop.

    Raises:
        JobError: if the network pads, or the target is larger than an image.
    """
    geometry = footprint(network.eval())
    if geometry.is_padded:
        raise JobError(
            "The network pads its values, which spoils the ends of every crop; train it with padding='valid', which has the same weights."
        )
    wanted = options.crops.target
    target = (wanted,) * geometry.dims if isinstance(wanted, int) else tuple(wanted)
    if len(target) != geometry.dims:
        raise JobError(
            f"crops.target has {counted(len(target), 'number')}, the network works in {geometry.dims}D; give one an axis."
        )
    for part in parts:
        if any(size > extent for size, extent in zip(target, part.image_shape, strict=True)):
            raise JobError(
                f"crops.target is {target} voxels, {part.name} has {part.image_shape}: the output of a crop is larger than the image. "
                f"Set crops.target to {min(min(each.image_shape) for each in parts)} or less."
            )
    needed = tuple(a + size + b for a, size, b in zip(geometry.before, target, geometry.after, strict=True))
    input_shape = geometry.legal_shape(needed)
    return input_shape, geometry.output_shape(input_shape)


def _facts(parts: tuple[Part, ...], stated: StatedNormalisation) -> tuple[PartFacts, ...]:
    each = normalisations(parts, stated)
    return tuple(PartFacts(name=part.name, normalisation=normalisation) for part, normalisation in zip(parts, each, strict=True))


def _with_quantiles(parts: tuple[Part, ...], facts: tuple[PartFacts, ...], options: TrainingOptions) -> tuple[PartFacts, ...]:
    """With quantiles of the intensities, where crops of one part shall look like another."""
    if not options.augmentation.histogram:
        return facts
    found = [take_statistics([part], QUANTILES).percentiles for part in parts]
    return tuple(
        fact.model_copy(update={"quantiles": tuple(zip(*own, strict=True))}) for fact, own in zip(facts, found, strict=True)
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

"""Predictions of a model on the parts of a data set, beside their truth, to be scored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from unet_core.errors import InputError
from unet_core.evaluation import Meaning, MeaningOptions, Pair, pair_of_arrays
from unet_core.geometry import BlockGrid, Box
from unet_core.model_heads import Head
from unet_core.model_package import ModelPackage, load_model
from unet_core.normalisation import Normalisation
from unet_core.planning_affinities import affinities_head
from unet_core.postprocess import LEARNT_DEPTH, watershed_on_affinities, watershed_on_learnt_distance
from unet_core.predict import Predictor, load_predictor
from unet_core.readout import activated
from unet_core.symmetries import SYMMETRIES, SymmetrySet
from unet_core.training.dataset import load_dataset, open_parts
from unet_core.training.dataset_description import Purpose
from unet_core.training.options import IGNORE
from unet_core.training.parts import Part
from unet_core.training.stated_normalisation import normalisations
from unet_core.volumes.array import ArrayVolume
from unet_core.wording import counted

_BLOCK = {2: 1024, 3: 96}  # voxels along each axis that are predicted at once
_IGNORED_ID = (1 << 31) - 1
_UNLABELLED = "what has no label"


def held_out_pairs(
    model: str,
    dataset: str,
    options: MeaningOptions,
    *,
    purpose: Purpose = "test",
    root: str | None = None,
    fold: int | None = None,
    foreground: str | None = None,
    symmetries: SymmetrySet = "none",
    device: str = "cpu",
    threads: int = 1,
) -> Iterator[Pair]:
    """One pair a part: what the model says, and the truth; both whole in memory, one part after another.

    With two classes, or a class named, the prediction is the probability of the foreground, and the truth its instances where the
    labels have some, else its mask. With more classes both are class numbers. Where instances are asked of the model's distance
    head, or of its affinities, the prediction is ids, the foreground cut up by ``watershed_on_learnt_distance`` or
    ``watershed_on_affinities``.

    Args:
        model: package or name, with a head of classes.
        dataset: ``dataset.yaml``, whose classes have the names of the model's, in any order.
        options: of the scores.
        purpose: which part of the data set.
        root: of its relative paths.
        fold: of its split.
        foreground: name of the class that is looked for.
        symmetries: that are averaged over.
        device: torch name.
        threads: of a forward pass.

    Raises:
        InputError: if model and data do not fit each other, with both values.
    """
    package = load_model(model)
    described = load_dataset(dataset, root)
    names, ours = described.class_names, [label.name for label in package.description.classes]
    head = package.description.label_head
    if head is None or head.kind != "classes" or sorted(names) != sorted(ours):
        raise InputError(
            f"Model {model} has the classes {', '.join(ours)}, data set {dataset} has {', '.join(names)}; they must be the same."
        )
    if foreground is not None and foreground not in names:
        raise InputError(f"Class '{foreground}' is none of {', '.join(names)}.")
    chosen = foreground or (names[1] if len(names) == 2 else None)
    other = _other_head(package, chosen, options, symmetries) if options.instances in ("learnt-distance", "affinities") else None
    predictor = load_predictor(package, device, "float32", threads)
    parts = open_parts(described, package.dims, purpose, fold)
    for part in parts:
        if part.channels != len(package.description.input_channels):
            raise InputError(
                f"Model {model} takes {counted(len(package.description.input_channels), 'channel')}, {part.name} has {part.channels}."
            )
    for part, normalisation in zip(parts, normalisations(parts, package.description.normalisation), strict=True):
        values = predict_part(package, predictor, part, symmetries, normalisation)
        probabilities = values[list(head.channels)][[ours.index(name) for name in names]]
        if chosen is None:
            yield _classes_pair(part, probabilities, options)
            continue
        foreground_map = probabilities[names.index(chosen)]
        if other is None:
            yield _pair(part, foreground_map, "map", chosen, options)
            continue
        ids = _divided(values[list(other.channels)], foreground_map > np.float32(options.threshold), other, options)
        yield _pair(part, ids, "ids", chosen, replace(options, instances="given"))


def predict_part(
    package: ModelPackage,
    predictor: Predictor,
    part: Part,
    symmetries: SymmetrySet = "none",
    normalisation: Normalisation | None = None,
) -> NDArray[np.float32]:
    """What each channel says of a part: probabilities of classes, regions and affinities, and distances as they are.

    Args:
        package: the model.
        predictor: its network, ready to run.
        part: to predict; the image is mirrored where it ends.
        symmetries: that each block is averaged over.
        normalisation: of its intensities; as the model says unless told.

    Returns:
        (channels of the network, *part.box.shape).
    """
    if normalisation is None:
        normalisation = normalisations([part], package.description.normalisation)[0]
    predictor = replace(predictor, normalisation=normalisation)
    result: NDArray[np.float32] | None = None
    geometry = package.footprint
    for block in BlockGrid(part.box.shape, (_BLOCK[part.box.ndim],) * part.box.ndim).blocks():
        write = block.shift(part.box.start)
        for symmetry in SYMMETRIES[symmetries]:
            turned = symmetry.turned_box(write, part.image_shape)
            # Poolings lie on one grid over the whole (turned) image, as in a segmentation.
            lead = tuple(first % step for first, step in zip(turned.start, geometry.stride, strict=True))
            grown = turned.grow(lead, (0,) * len(lead))
            read = symmetry.box_before(geometry.read_box(grown), part.image_shape)
            logits = predictor.logits(symmetry.turn(part.read_image(read)))
            skip = tuple(before + more for before, more in zip(geometry.skip, lead, strict=True))
            logits = logits[(slice(None), *Box.from_shape(turned.shape, skip).slices())]
            mean = symmetry.turn_back(_activated(logits, package)).cpu().numpy() / len(SYMMETRIES[symmetries])
            if result is None:
                result = np.zeros((len(mean), *part.box.shape), dtype=np.float32)
            result[(slice(None), *block.slices())] += mean
    assert result is not None
    return result


def _activated(logits: Tensor, package: ModelPackage) -> Tensor:
    values = logits.clone()
    for head in package.description.heads:
        channels = list(head.channels)
        values[channels] = activated(logits[channels], head.kind)
    return values


def _divided(values: NDArray[np.float32], mask: NDArray[np.bool_], head: Head, options: MeaningOptions) -> NDArray[np.int64]:
    """Ids of a mask by what another head says: its distances, or affinities."""
    if head.kind == "affinities":
        assert head.offsets is not None
        return watershed_on_affinities(values, mask, head.offsets)
    depth = LEARNT_DEPTH if options.depth is None else options.depth
    return watershed_on_learnt_distance(values[0], mask, h=depth, connectivity=options.connectivity)


def _other_head(package: ModelPackage, foreground: str | None, options: MeaningOptions, symmetries: SymmetrySet) -> Head:
    """The head that divides the foreground."""
    if foreground is None:
        raise InputError(f"Instances of one class are cut up, model {package.url} has several; name it with --class.")
    if options.instances == "learnt-distance":
        return _distance_head(package)
    given = {"depth": options.depth is not None, "connectivity": options.connectivity > 1, "symmetries": symmetries != "none"}
    for name in (name for name, value in given.items() if value):
        raise InputError(f"--{name} has no meaning for instances from affinities, whose offsets say all; leave it out.")
    return affinities_head(package.description.heads, f"model {package.url}", "--instances ")


def _distance_head(package: ModelPackage) -> Head:
    heads = [head for head in package.description.heads if head.kind == "distance"]
    if not heads:
        kinds = ", ".join(head.kind for head in package.description.heads)
        raise InputError(
            f"Model {package.url} has no distance head, only {kinds}; use 'watershed', or train with heads of kind classes and distance."
        )
    return heads[0]


def _classes_pair(part: Part, probabilities: NDArray[np.float32], options: MeaningOptions) -> Pair:
    classes, _ = part.read_labels(part.box)
    meaning = Meaning("classes", "classes", replace(options, ignore=IGNORE), _UNLABELLED)
    pair = pair_of_arrays(part.name, probabilities.argmax(0).astype(np.uint8), classes, meaning)
    return replace(pair, image=lambda: _image_of(part))


def _pair(
    part: Part, prediction: NDArray[Any], prediction_is: Literal["map", "ids"], foreground: str, options: MeaningOptions
) -> Pair:
    classes, ids = part.read_labels(part.box)
    number = part.class_names.index(foreground)
    if number == 0:  # the background of instances has no ids
        ids = None
    truth = np.where(classes == number, 1 if ids is None else ids, 0)
    truth[classes == IGNORE] = _IGNORED_ID
    meaning = Meaning(prediction_is, "mask" if ids is None else "ids", replace(options, ignore=_IGNORED_ID), _UNLABELLED)
    return replace(pair_of_arrays(part.name, prediction, truth, meaning), image=lambda: _image_of(part))


def _image_of(part: Part) -> ArrayVolume:
    """The image of a part, without what lies around it."""
    return ArrayVolume(part.read_image(part.box), axes="c" + "zyx"[-part.box.ndim :], url=part.name)

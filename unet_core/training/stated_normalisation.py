"""How intensities are normalised in a training: what the model will state, and the numbers of each part. Knows no network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unet_core.errors import InputError, JobError
from unet_core.model_description import FixedNormalisation, ImageNormalisation, NoNormalisation, StatedNormalisation
from unet_core.normalisation import Normalisation, from_percentiles
from unet_core.training.dataset_description import Dataset
from unet_core.training.options import TrainingOptions
from unet_core.training.parts import Part
from unet_core.training.statistics import PERCENTILES, Statistics, take_statistics
from unet_core.wording import counted


def stated_normalisation(dataset: Dataset, options: TrainingOptions, found: Statistics, part: Part) -> StatedNormalisation:
    """What the model will say: the data set's word, else what the options ask of the training's own intensities.

    Args:
        dataset: to learn from.
        options: of the training.
        found: of the parts that crops are drawn from.
        part: one of them.

    Raises:
        JobError: if the data set's does not fit the images, or a setting asks for another one.
    """
    if dataset.normalisation is not None:
        return _of_dataset(dataset.normalisation, options, part)
    own = next((pair for pair in dataset.pairs if pair.normalisation), None)
    if own and options.normalisation != "image":
        raise JobError(
            f"{own.image} states a normalisation of its own, but the training normalises all images alike ({options.normalisation}); use "
            "--set normalisation=image, or leave it away."
        )
    match options.normalisation:
        case "fixed":
            scale = tuple(value or 1.0 for value in found.deviation)
            return FixedNormalisation(offset=found.mean, scale=scale, dtype=part.dtype.name)
        case "image":
            return ImageNormalisation(low=PERCENTILES[0], high=PERCENTILES[1])
        case "none":
            return NoNormalisation()


def _of_dataset(stated: StatedNormalisation, options: TrainingOptions, part: Part) -> StatedNormalisation:
    if "normalisation" in options.model_fields_set:
        raise JobError(
            f"--set normalisation={options.normalisation}, but the data set states its normalisation ({stated.kind}); leave one of them away."
        )
    if stated.kind == "fixed" and stated.dtype not in (None, part.dtype.name):
        raise JobError(
            f"The data set's normalisation is of {stated.dtype} intensities, {part.name} has {part.dtype}; convert the image, or leave "
            "normalisation away."
        )
    return stated


def normalisations(parts: Sequence[Part], stated: StatedNormalisation) -> list[Normalisation]:
    """Offset and scale of each part.

    By the image means by the whole image, whatever part of it is used, as a segmentation takes it; a pair that states its own numbers is
    a crop, and those are of the image that it was cut out of.

    Raises:
        InputError: if it is by moments or joint percentiles and a pair does not state its own.
    """
    if stated.kind == "fixed":
        return [Normalisation(offset=stated.offset, scale=stated.scale)] * len(parts)
    if stated.kind == "none":
        return [Normalisation(offset=(0.0,) * part.channels, scale=(1.0,) * part.channels) for part in parts]
    sources = {part.source.pair: part for part in parts}
    own = {pair: _stated_by_pair(part) or _of_image(part, stated) for pair, part in sources.items()}
    return [own[part.source.pair] for part in parts]


def _stated_by_pair(part: Part) -> Normalisation | None:
    stated = part.source.pair.normalisation
    if stated and {len(stated.offset), len(stated.scale)} != {part.channels}:
        raise InputError(
            f"normalisation of {part.source.pair.image} has {counted(len(stated.offset), 'offset')} and "
            f"{counted(len(stated.scale), 'scale')}, the image has {counted(part.channels, 'channel')}; give one of each a "
            "channel."
        )
    return stated


def _of_image(part: Part, stated: StatedNormalisation) -> Normalisation:
    if stated.kind != "image" or stated.joint:
        raise InputError(
            f"The model normalises by {'joint percentiles' if stated.kind == 'image' else stated.kind} of each image, which are not computed "
            f"for data sets; state offset and scale in the normalisation of {part.source.pair.image}, or segment the image."
        )
    low, high = np.asarray(take_statistics([part.whole_image()], (stated.low, stated.high)).percentiles)
    return from_percentiles(low, high, stated.eps)

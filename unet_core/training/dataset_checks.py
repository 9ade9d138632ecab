"""What keys of a ``dataset.yaml`` must be to each other; refused while it is read. Opens nothing."""

from __future__ import annotations

from math import inf, isfinite
from typing import TYPE_CHECKING

from unet_core.errors import InputError
from unet_core.wording import counted

if TYPE_CHECKING:
    from unet_core.training.dataset_description import Dataset


def check_dataset(dataset: Dataset, where: str) -> None:
    """Refuse a description that contradicts itself, or leaves open what a number means.

    Args:
        dataset: each key by itself is as it may be.
        where: it comes from, for messages.

    Raises:
        InputError: naming the keys, and what to write.
    """
    _check_classes(dataset, where)
    _check_values(dataset, where)
    _check_unlabelled(dataset, where)
    _check_split(dataset, where)
    _check_normalisation(dataset, where)


def _check_classes(dataset: Dataset, where: str) -> None:
    names = dataset.class_names
    if len(names) < 2:
        raise InputError(
            f"{where}: classes has {counted(len(names), 'entry', 'entries')}; name at least two, the first is the background."
        )
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{where}: two classes are named '{twice}'; give each its own name.")
    if dataset.labels == "instances" and any(entry.values for entry in dataset.classes):
        raise InputError(
            f"{where}: classes have values, but labels are instances, where every id above 0 is one object; "
            "leave the values away, or write labels: classes."
        )
    images = [pair for pair in dataset.pairs if not pair.is_drawn]
    if dataset.labels == "instances" and images and len(names) != 2:
        raise InputError(
            f"{where}: {counted(len(names), 'class', 'classes')} ({', '.join(names)}) for instance ids as in "
            f"{images[0].labels}; such labels tell background and one class of objects. Name two, or give labels of classes."
        )


def _check_values(dataset: Dataset, where: str) -> None:
    meaning: dict[int | str, str] = {}
    stated: list[tuple[str, int | str]] = [("ignore", entry) for entry in dataset.ignore]
    stated += [(f"class '{entry.name}'", value) for entry in dataset.classes for value in entry.values]
    stated += [(f"class '{entry.name}'", name) for entry in dataset.classes for name in entry.annotations]
    stated += [("regions", name) for name in dataset.regions]
    for owner, value in stated:
        if value in meaning:
            raise InputError(f"{where}: {value!r} is stated for {meaning[value]} and for {owner}; a label has one meaning.")
        meaning[value] = owner
    if dataset.labels == "instances" or all(pair.is_drawn for pair in dataset.pairs):
        return
    for number, entry in enumerate(dataset.classes):
        if not entry.values and not (number == 0 and dataset.unlabelled == "background"):
            raise InputError(f"{where}: class '{entry.name}' has no values; say which values of the label images it has.")


def _check_unlabelled(dataset: Dataset, where: str) -> None:
    """Sparse labels must say what is not labelled; dense ones have nothing to say."""
    drawn = next((pair for pair in dataset.pairs if pair.is_drawn), None)
    image = next((pair for pair in dataset.pairs if not pair.is_drawn), None)
    mapped = 0 in dataset.ignore or any(0 in entry.values for entry in dataset.classes)
    if dataset.unlabelled is None:
        if drawn is not None:
            raise InputError(
                f"{where}: {drawn.labels} are outlines, and what a voxel outside all of them is has to be said: "
                f"write unlabelled: background (it is '{dataset.classes[0].name}') or unlabelled: ignore (nobody knows)."
            )
        if dataset.labels == "classes" and not mapped:
            raise InputError(
                f"{where}: no class has the value 0; write unlabelled: ignore (nobody looked there), or unlabelled: background "
                f"(it is '{dataset.classes[0].name}'), or add 0 to the values of a class."
            )
    elif drawn is None and image is not None and mapped:
        raise InputError(
            f"{where}: unlabelled is '{dataset.unlabelled}', but the value 0 has a meaning already; leave one of them away."
        )


def _check_split(dataset: Dataset, where: str) -> None:
    split = dataset.split
    if split.folds is None and split.validation_fraction + split.test >= 1:
        raise InputError(
            f"{where}: split takes {split.validation_fraction:g} + {split.test:g} of the pairs away; leave some to train on."
        )
    if split.folds is not None and split.validation is not None:
        raise InputError(
            f"{where}: split has folds: {split.folds} and validation: {split.validation:g}; a fold is the validation part."
        )
    for number, pair in enumerate(dataset.pairs):
        if pair.part and pair.boxes:
            raise InputError(f"{where}: pairs.{number} ({pair.image}) has part: {pair.part} and boxes; give one of them.")
        if pair.boxes is not None and not any((pair.boxes.train, pair.boxes.validation, pair.boxes.test)):
            raise InputError(f"{where}: pairs.{number} ({pair.image}) has boxes for nothing; give train, validation or test.")


def _check_normalisation(dataset: Dataset, where: str) -> None:
    stated = dataset.normalisation
    for number, pair in enumerate(dataset.pairs):
        scale = pair.normalisation.scale if pair.normalisation else ()
        if pair.normalisation and not (all(map(isfinite, pair.normalisation.offset)) and all(0 < value < inf for value in scale)):
            raise InputError(
                f"{where}: normalisation of pairs.{number} ({pair.image}) has the scale {scale}; offsets are numbers, scales above 0."
            )
    own = next(((number, pair) for number, pair in enumerate(dataset.pairs) if pair.normalisation), None)
    if own and stated is not None and stated.kind in ("fixed", "none"):
        raise InputError(
            f"{where}: pairs.{own[0]} ({own[1].image}) has a normalisation of its own, that of the data set is '{stated.kind}', the same for "
            "all images; leave one of them away."
        )
    lacking = next(((number, pair) for number, pair in enumerate(dataset.pairs) if pair.normalisation is None), None)
    by_image = stated is not None and (stated.kind == "moments" or (stated.kind == "image" and stated.joint))
    if lacking and by_image:
        raise InputError(
            f"{where}: normalisation is by the {'moments' if stated and stated.kind == 'moments' else 'joint percentiles'} of each image, which "
            f"a training does not compute; state offset and scale in the normalisation of pairs.{lacking[0]} ({lacking[1].image})."
        )

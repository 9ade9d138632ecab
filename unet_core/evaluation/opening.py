"""From two paths to pairs of images: what a result of `unet segment` holds, folders of same-named files, what is in doubt.

Everything the user can get wrong is refused here, before a score is computed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pydantic
from pydantic import ConfigDict, Field, TypeAdapter

from unet_core import ledger
from unet_core.errors import InputError
from unet_core.evaluation.evidence import MEMORY_BYTES, check_memory
from unet_core.evaluation.meaning import Meaning, MeaningOptions, PredictionIs, ReferenceIs
from unet_core.evaluation.pairs import Channel, Pair, Readable, Shown
from unet_core.evaluation.scores import METRICS, check_metrics
from unet_core.places import check_location
from unet_core.plan import LabelName
from unet_core.store import is_remote, local_path, open_store
from unet_core.validation import first_problem
from unet_core.volumes import Volume, open_volume
from unet_core.volumes.zarr_nodes import DOCUMENTS
from unet_core.wording import counted

if TYPE_CHECKING:
    from unet_core.result import Result


@dataclass(frozen=True, kw_only=True)
class OpeningOptions:
    """What the user says of two paths."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    prediction_is: Annotated[
        PredictionIs | None,
        Field(
            title="Prediction is",
            description="A mask (0 or not), classes, ids of objects, or a probability map; a result of this program tells it.",
        ),
    ] = None
    reference_is: Annotated[
        ReferenceIs | None,
        Field(
            title="Reference is",
            description="A mask (0 or not), classes, or ids of objects; asked for by the scores that need it.",
        ),
    ] = None
    foreground: Annotated[
        str | None, Field(title="Class", description="That is foreground: its number, or its name in the model, e.g. nucleus.")
    ] = None
    meaning: Annotated[
        MeaningOptions, Field(title="Meaning", description="How the numbers of both images are read, and objects made of them.")
    ] = field(default_factory=MeaningOptions)
    by_section: Annotated[bool, Field(title="By section", description="Score each section of a stack by itself.")] = False
    memory_bytes: Annotated[int, Field(title="Memory (bytes)", description="That one image or section may take.")] = MEMORY_BYTES
    missing: Annotated[
        Literal["error", "fill"], Field(title="Missing chunks", description="What absent chunks of Zarr images mean.")
    ] = "error"

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> OpeningOptions:
        """The options that plain values describe, as in JSON.

        Raises:
            InputError: naming a field that does not exist or has a value that it cannot have.
        """
        try:
            return TypeAdapter(cls).validate_python(dict(values))
        except pydantic.ValidationError as error:
            raise InputError(f"Option {first_problem(error)}.") from None


def open_pairs(prediction: str, reference: str, metrics: Sequence[str], options: OpeningOptions) -> tuple[Pair, ...]:
    """Open a prediction and its reference, or two folders of them with the same names.

    Args:
        prediction: result of ``unet segment``, image, or folder of either.
        reference: label image, or folder of them.
        metrics: names of ``METRICS``.
        options: what is known of both.

    Raises:
        InputError: if one cannot be opened, they do not fit each other, it is in doubt what their numbers mean, or no
            reference has foreground.
    """
    chosen = check_metrics(metrics)
    pairs = [_open_pair(name, first, second, chosen, options) for name, first, second in _places(prediction, reference)]
    if options.by_section:
        pairs = [section for pair in pairs for section in pair.sections()]
    for pair in pairs:
        check_memory(pair, {METRICS[name].needs for name in chosen}, options.memory_bytes)
    if not any(pair.has_foreground() for pair in pairs):
        first = pairs[0]
        raise InputError(
            f"Reference {reference} has no foreground ({first.meaning.sentences()[1].removeprefix('reference: ')}), so that every "
            "score would be empty; check the file, --class, --ignore and --invert-reference."
        )
    return tuple(pairs)


def _places(prediction: str, reference: str) -> Iterator[tuple[str, str, str]]:
    for option, url in (("prediction", prediction), ("reference", reference)):
        check_location(option, url)
    folders = [_is_plain_folder(url) for url in (prediction, reference)]
    if folders[0] != folders[1]:
        folder, file = (prediction, reference) if folders[0] else (reference, prediction)
        open_volume(file)  # a path that leads nowhere is told as such
        raise InputError(f"{folder} is a folder of images and {file} is one image; give two folders, or two images.")
    if not folders[0]:
        yield Path(prediction.rstrip("/")).name, prediction, reference
        return
    first, second = _files(local_path(prediction)), _files(local_path(reference))
    for here, there, names in ((prediction, reference, first), (reference, prediction, second)):
        alone = sorted(set(names) - set(second if names is first else first))
        if alone:
            raise InputError(
                f"{names[alone[0]].name} of {here} has no partner in {there} ({len(alone)} of {len(names)} have none); "
                "images are paired by name without ending, and a missing one would make the mean too good."
            )
    if not first:
        raise InputError(f"The folders {prediction} and {reference} hold no images.")
    for name in sorted(first):
        yield name, str(first[name]), str(second[name])


def _is_plain_folder(url: str) -> bool:
    if is_remote(url):
        return False
    path = local_path(url)
    return path.is_dir() and not set(DOCUMENTS) & set(os.listdir(path))


def _files(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        name = path.name.removesuffix(".zarr").removesuffix(".ome") if path.is_dir() else path.name.partition(".")[0]
        if name in found:
            raise InputError(f"{found[name].name} and {path.name} of {folder} have the same name; images are paired by name.")
        found[name] = path
    return found


def _open_pair(name: str, prediction: str, reference: str, metrics: Sequence[str], options: OpeningOptions) -> Pair:
    truth = open_volume(reference, missing=options.missing)
    _check_labels(truth, "Reference")
    result = _find_result(prediction)
    label = _label(options.foreground, result)
    needs = {METRICS[name].needs for name in metrics}
    if result is not None:
        image, prediction_is = _of_result(result, label, needs, options)
    else:
        image, prediction_is = _of_image(prediction, label, options)
    reference_is = options.reference_is
    if reference_is is None:
        doubtful = needs & {"instances", "classes"} or label is not None
        if doubtful and truth.dtype != np.bool_:
            what = "a class is named" if label is not None else f"{', '.join(_needing(metrics))} depend on it"
            raise InputError(
                f"What the numbers of reference {reference} mean is not known, and {what}: say --reference-is ids (instances), "
                "classes (class numbers) or mask (0 and anything else)."
            )
        reference_is = "mask"
    if label is not None and result is None and not isinstance(image, Channel) and "classes" not in (prediction_is, reference_is):
        raise InputError(
            f"--class is {label}, but the prediction holds {prediction_is} and the reference {reference_is}, which have no classes; "
            "leave it out, or say --prediction-is classes or --reference-is classes."
        )
    meaning = Meaning(prediction_is, reference_is, replace(options.meaning, label=label))
    pair = Pair(name, image, truth, meaning, None if result is None else lambda: _image_of(result))
    if result is not None:
        _check_computed(result, pair)
    return pair


def _image_of(result: Result) -> Shown | None:
    """The image that a result was made of, if it is where it was, and still the same."""
    from unet_core import inputs

    try:
        return inputs.reopen(ledger.read_request(open_store(result.url)).image, result.plan)
    except (InputError, OSError):
        return None


def _check_computed(result: Result, pair: Pair) -> None:
    """Refuse a result of a part of the image, unless the reference is ignored in the rest."""
    for box in result.unwanted_blocks():
        if not pair.meaning.is_ignored(pair.reference.read(box)[0]).all():
            raise InputError(
                f"{result.url} was not computed at {box}, which --roi or a mask left out and which would count as background. Segment "
                "again without --roi, --mask and --tissue, which computes what is missing, or mark such voxels in the reference and name "
                "their value with --ignore."
            )


def _needing(metrics: Sequence[str]) -> list[str]:
    return [name for name in metrics if METRICS[name].needs in ("instances", "classes")]


def _find_result(url: str) -> Result | None:
    if not is_remote(url) and not local_path(url).is_dir():
        return None
    if ledger.find_plan(open_store(url)) is None:
        return None
    from unet_core.result import open_result  # imports torch, which images do without

    result = open_result(url)
    if result.status.state != "complete":
        raise InputError(
            f"{url} is {result.status.state}: what is not computed yet would count as background. Finish it with `unet segment`."
        )
    return result


def _label(foreground: str | None, result: Result | None) -> int | None:
    if foreground is None:
        return None
    if foreground.isascii() and foreground.isdigit():
        return int(foreground)
    if result is None:
        raise InputError(f"--class is '{foreground[:60]}'; names are known of results of `unet segment` only, give a number.")
    classes = result.plan.model.classes
    return _class_of(classes, lambda entry: entry.name == foreground, foreground).value


def _class_of(classes: tuple[LabelName, ...], is_meant: Any, asked: object) -> LabelName:
    for entry in classes:
        if is_meant(entry):
            return entry
    known = ", ".join(f"{entry.name} ({entry.value})" for entry in classes)
    raise InputError(f"There is no class {asked} in the result; its model has {known}.")


def _of_result(result: Result, label: int | None, needs: set[Any], options: OpeningOptions) -> tuple[Readable, PredictionIs]:
    """The image of a result that is scored, and what it holds: probabilities where scores look for a threshold and there are some."""
    plan = result.plan
    classes = plan.model.classes
    chosen = None if label is None else _class_of(classes, lambda entry: entry.value == label, label)
    has_map = plan.images[0].kind == "probabilities"
    holds = options.prediction_is
    if holds in ("mask", "ids"):
        raise InputError(f"{result.url} is a result of `unet segment`, which holds classes or a map, not {holds}.")
    if holds == "map" and not has_map:
        raise InputError(f"{result.url} holds no probabilities; segment again with --probabilities uint8 or float32.")
    if holds is None:
        wants_map = bool(needs & {"pixels", "components", "thinned", "warping", "splits_mergers"})
        holds = "map" if has_map and wants_map else "classes"
    if chosen is None and (holds == "map" or plan.model.kind == "regions"):
        foreground = [entry for entry in classes if entry.value]
        if len(foreground) != 1:
            names = ", ".join(entry.name for entry in classes)
            raise InputError(f"{result.url} has several classes ({names}) and one is scored here; name it with --class.")
        chosen = foreground[0]
    if holds == "map":
        assert chosen is not None
        return Channel(result.volume(""), classes.index(chosen)), "map"
    if plan.model.kind == "regions":
        assert chosen is not None
        path = next(image.path for image in plan.images if image.label_value == chosen.value)
        return result.volume(path), "mask"
    return result.volume(), "classes"


def _of_image(url: str, label: int | None, options: OpeningOptions) -> tuple[Readable, PredictionIs]:
    image = open_volume(url, missing=options.missing)
    holds = options.prediction_is
    if holds is None:
        if image.dtype == np.bool_:
            holds = "mask"
        elif image.dtype.kind == "f":
            holds = "map"
        elif options.meaning.instances == "given":
            holds = "ids"
        else:
            raise InputError(
                f"What the {image.dtype} numbers of prediction {url} mean is not known: say --prediction-is map (probabilities, "
                "0 to 255), classes (class numbers), ids (instances) or mask (0 and anything else)."
            )
    if holds != "map":
        _check_labels(image, "Prediction")
    elif image.channel_count > 1:
        if label is None:
            raise InputError(
                f"Map {url} has {counted(image.channel_count, 'channel')} and one is scored; name it with --class NUMBER."
            )
        if not 0 <= label < image.channel_count:
            raise InputError(f"Map {url} has channels 0 to {image.channel_count - 1}, and --class is {label}.")
        return Channel(image, label), _checked_map(image)
    return image, _checked_map(image) if holds == "map" else holds


def _checked_map(image: Volume) -> PredictionIs:
    if image.dtype not in (np.bool_, np.uint8) and image.dtype.kind != "f":
        raise InputError(
            f"Map {image.url} is of type {image.dtype}; a probability map is uint8 (0 to 255) or floating-point (0 to 1)."
        )
    return "map"


def _check_labels(image: Volume, what: str) -> None:
    if image.dtype.kind not in "biu":
        raise InputError(f"{what} {image.url} is of type {image.dtype}; labels are whole numbers.")
    if image.channel_count != 1:
        raise InputError(f"{what} {image.url} has {counted(image.channel_count, 'channel')}; a label image has one.")

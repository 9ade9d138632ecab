"""What ``model.json`` says: the network, its heads and classes, its intensities; read and checked without loading weights.

Nothing here knows of tensors, images or blocks.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Final, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from unet_core.errors import ModelPackageError
from unet_core.job import Length
from unet_core.model_heads import Head as Head
from unet_core.model_heads import LabelClass as LabelClass
from unet_core.model_heads import check_heads, label_head
from unet_core.store import open_store
from unet_core.training_folder import find_training
from unet_core.validation import first_problem, shorten
from unet_core.wording import counted

SCHEMA = 1
DESCRIPTION_FILE = "model.json"
WEIGHTS_FILE: Final = "weights.safetensors"
SCRIPT_FILE: Final = "network.pt"
TORCHSCRIPT: Final = "torchscript"  # name of the network whose code lies in the file itself
MAX_CHANNELS = 1 << 16
_MAX_DESCRIPTION_BYTES = 1 << 20

# Far inside float32, in which images are normalised; 1e-320 would become a division by zero there.
Offset = Annotated[float, Field(ge=-1e30, le=1e30)]
Scale = Annotated[float, Field(ge=1e-30, le=1e30)]
Intensity = Literal["uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "float32", "float64"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NetworkSpec(_Record):
    """Which network of ``NETWORKS``, or ``torchscript``, with which arguments."""

    name: str
    arguments: dict[str, Any] = {}


class FixedNormalisation(_Record):
    """``(value - offset) / scale`` with the numbers of the training images, one a channel.

    ``dtype`` is the type of the training images' intensities, None if that is not stated. It changes no result; it tells
    whether the numbers can be meant for an image at all.
    """

    kind: Literal["fixed"] = "fixed"
    offset: tuple[Offset, ...]
    scale: tuple[Scale, ...]
    dtype: Intensity | None = None


class ImageNormalisation(_Record):
    """Percentiles of the whole image go to 0 and 1; computed once while planning.

    ``(value - low) / (high - low + eps)``, each channel by its own percentiles, or all by the same with ``joint``. What came
    later (``joint``, ``eps``) is written only where it is set, so that the identity of older packages stays.
    """

    kind: Literal["image"] = "image"
    low: float = Field(default=1.0, ge=0, le=100)
    high: float = Field(default=99.8, ge=0, le=100)
    joint: bool = False
    eps: float = Field(default=0.0, ge=0, le=1e6)

    @pydantic.model_serializer(mode="wrap")
    def _without_defaults(self, dump: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if name not in ("joint", "eps") or value}


class MomentsNormalisation(_Record):
    """Mean and standard deviation of the whole image go to 0 and 1; computed once while planning.

    ``(value - mean) / (standard deviation + eps)``, each channel by its own, or all by the same with ``joint``.
    """

    kind: Literal["moments"] = "moments"
    joint: bool = False
    eps: float = Field(default=1e-6, ge=1e-12, le=1e6)


class NoNormalisation(_Record):
    """Intensities as they are."""

    kind: Literal["none"] = "none"


StatedNormalisation = Annotated[
    FixedNormalisation | ImageNormalisation | MomentsNormalisation | NoNormalisation, Field(discriminator="kind")
]


class WeightsFile(_Record):
    """Identity of the stored tensors, or of the TorchScript."""

    file: Literal["weights.safetensors", "network.pt"] = WEIGHTS_FILE
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=1)


class ModelDescription(_Record):
    """What ``model.json`` says, but for the weights: enough to run the model on an image and to name the result.

    Args:
        name: short, for humans.
        network: which network, with which arguments.
        heads: its outputs, of different names; class i is channel ``channels[i]`` of the first of kind classes or regions.
        classes: names, label values and colours; for ``classes`` one per channel, value 0 the background. Empty if no head gives labels.
        input_channels: names of the image channels, in order.
        voxel_size_um: of the training images along (z,) y, x, in micrometre, or "unknown".
        normalisation: of intensities.
        provenance: free: data, licence, seed, scores.
    """

    name: str
    network: NetworkSpec
    heads: tuple[Head, ...] = Field(min_length=1)
    classes: tuple[LabelClass, ...]
    input_channels: tuple[str, ...] = Field(min_length=1)
    voxel_size_um: tuple[Length, ...] | Literal["unknown"] = "unknown"
    normalisation: StatedNormalisation
    provenance: dict[str, Any] = {}

    @property
    def label_head(self) -> Head | None:
        """The head that the labels are read from; None if no head gives labels."""
        return label_head(self.heads)

    @property
    def other_heads(self) -> tuple[Head, ...]:
        return tuple(head for head in self.heads if head is not self.label_head)


class _ModelFile(ModelDescription):
    schema_number: Literal[1] = Field(default=1, alias="schema")
    weights: WeightsFile


def make_description(**fields: Any) -> ModelDescription:
    """A description from plain values, with errors in one sentence.

    Raises:
        ModelPackageError: naming the field and its value.
    """
    try:
        return ModelDescription(**fields)
    except pydantic.ValidationError as error:
        raise ModelPackageError(f"Model description {first_problem(error)}.") from None


def read_description(url: str) -> tuple[ModelDescription, WeightsFile]:
    """What ``model.json`` of the package at ``url`` says, its classes in the order of the network's channels.

    Raises:
        ModelPackageError: if it is absent, not a package of this schema, or not consistent.
    """
    where = f"{DESCRIPTION_FILE} in {url}"
    try:
        parsed = _ModelFile.model_validate(_read_json(url, where))
    except pydantic.ValidationError as error:
        raise ModelPackageError(f"{where}: {first_problem(error)}.") from error
    if (parsed.network.name == TORCHSCRIPT) != (parsed.weights.file == SCRIPT_FILE):
        raise ModelPackageError(
            f"{where}: network '{shorten(parsed.network.name)}' is not stored as {parsed.weights.file}; '{TORCHSCRIPT}' is {SCRIPT_FILE}, "
            f"all others are {WEIGHTS_FILE}."
        )
    check_description(parsed, url)
    description = ModelDescription(**{name: getattr(parsed, name) for name in ModelDescription.model_fields})
    return _in_channel_order(description), parsed.weights


def write_description(url: str, description: ModelDescription, weights: WeightsFile) -> None:
    """Write ``model.json``; the file that ``weights`` names lies in the package already."""
    record = description.model_dump(mode="json") | {"schema": SCHEMA, "weights": weights.model_dump()}
    open_store(url).put(DESCRIPTION_FILE, json.dumps(record, indent=1).encode())


def check_description(description: ModelDescription, url: str) -> None:
    """Refuse a description whose classes, heads, channels and normalisation do not fit each other.

    Raises:
        ModelPackageError: naming both.
    """
    check_heads(description.heads, description.classes, _channel_argument(description, "classes", url), url)
    if description.network.name == TORCHSCRIPT and (len(description.heads) > 1 or description.label_head is None):
        raise ModelPackageError(
            f"{url}: {counted(len(description.heads), 'head')}; TorchScript has one, of kind classes or regions."
        )
    _check_normalisation(description, url)


def _read_json(url: str, where: str) -> Any:
    try:
        text = open_store(url).get(DESCRIPTION_FILE)
    except (FileNotFoundError, NotADirectoryError):
        training = find_training(url)
        if training:
            raise ModelPackageError(f"{training.sentence()}.") from None
        if any(open_store(url).exists(name) for name in ("bioimageio.yaml", "rdf.yaml")):
            raise ModelPackageError(
                f"Model {url} is a package of bioimage.io; make one of this program from it: unet model import {url} NEW_FOLDER."
            ) from None
        raise ModelPackageError(
            f"Model {url} has no {DESCRIPTION_FILE}; a model package is a folder with {DESCRIPTION_FILE} and {WEIGHTS_FILE}. "
            "Pickled checkpoints (.pt, .pth) are refused, since loading them can run code."
        ) from None
    except OSError as error:
        raise ModelPackageError(f"{where} cannot be read ({error.strerror}); copy the folder of the model again.") from None
    if len(text) > _MAX_DESCRIPTION_BYTES:
        raise ModelPackageError(f"{where} has {len(text)} bytes, more than {_MAX_DESCRIPTION_BYTES}; it is no description.")
    try:
        record = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelPackageError(f"{where} is not readable JSON: {error}.") from error
    except ValueError:  # Python's own limit, against slow conversions
        raise ModelPackageError(f"{where} is not readable JSON: it holds a number with thousands of digits.") from None
    schema = record.get("schema") if isinstance(record, dict) else None
    if schema != SCHEMA:
        raise ModelPackageError(f"{where} has schema {shorten(repr(schema))}; this release reads schema {SCHEMA}.")
    return record


def _check_normalisation(description: ModelDescription, url: str) -> None:
    count = _channel_argument(description, "in_channels", url)
    if count != len(description.input_channels):
        raise ModelPackageError(
            f"{url}: the network takes {counted(count, 'channel')}, input_channels names {len(description.input_channels)}."
        )
    stated = description.normalisation
    if isinstance(stated, FixedNormalisation) and {len(stated.offset), len(stated.scale)} != {count}:
        raise ModelPackageError(
            f"{url}: normalisation has {counted(len(stated.offset), 'offset')} for {counted(count, 'channel')} and "
            f"{counted(len(stated.scale), 'scale')}; give one each."
        )
    if isinstance(stated, ImageNormalisation) and stated.low >= stated.high:
        raise ModelPackageError(
            f"{url}: normalisation takes the percentiles {stated.low} to {stated.high}; low must be below high."
        )


def _channel_argument(description: ModelDescription, name: str, url: str) -> int:
    value = description.network.arguments.get(name)
    if type(value) is not int or not 1 <= value <= MAX_CHANNELS:  # a bool is no count
        raise ModelPackageError(
            f"{url}: argument {name} of the network is {shorten(repr(value))}; give a whole number from 1 to {MAX_CHANNELS}."
        )
    return value


def _in_channel_order(description: ModelDescription) -> ModelDescription:
    """The same model with its classes sorted by channel, so that nothing else needs to know of another order."""
    head = description.label_head
    if head is None:
        return description
    pairs = sorted(zip(head.channels, description.classes, strict=True), key=lambda pair: pair[0])
    channels, classes = zip(*pairs, strict=True)
    heads = tuple(other.model_copy(update={"channels": channels}) if other is head else other for other in description.heads)
    return description.model_copy(update={"heads": heads, "classes": classes})

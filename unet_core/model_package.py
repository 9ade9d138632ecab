"""A trained network in a folder: ``model.json`` says what it is, ``weights.safetensors`` holds its tensors. No pickle anywhere.

Nothing here knows of images or blocks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import pydantic
import safetensors
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from unet_core import networks
from unet_core.errors import ModelPackageError
from unet_core.footprint import Footprint, footprint
from unet_core.store import check_url, open_store

SCHEMA = 1
DESCRIPTION_FILE = "model.json"
WEIGHTS_FILE: Final = "weights.safetensors"
_MAX_DESCRIPTION_BYTES = 1 << 20


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NetworkSpec(_Record):
    """Which network of ``NETWORKS``, with which arguments."""

    name: str
    arguments: dict[str, Any] = {}


class LabelClass(_Record):
    """One class of the model: its value in the label image, its name, and its colour as ``#rrggbb``."""

    value: int = Field(ge=0)
    name: str = Field(min_length=1, max_length=100)
    color: str = Field(pattern=r"^#[0-9a-fA-F]{6}$")


class Head(_Record):
    """One output of the network, on ``channels`` of its logits.

    ``classes``: one class a voxel, soft-max. ``regions``: classes that may overlap, sigmoid. ``affinities`` and
    ``distance`` are part of the format; this release does not run them.
    """

    name: str = "classes"
    kind: Literal["classes", "regions", "affinities", "distance"] = "classes"
    channels: tuple[int, ...]

    @property
    def activation(self) -> str:
        return {"classes": "softmax", "regions": "sigmoid", "affinities": "sigmoid", "distance": "none"}[self.kind]


class FixedNormalisation(_Record):
    """``(value - offset) / scale`` with the numbers of the training images, one a channel."""

    kind: Literal["fixed"] = "fixed"
    offset: tuple[float, ...]
    scale: tuple[Annotated[float, Field(gt=0)], ...]


class ImageNormalisation(_Record):
    """Percentiles of the whole image go to 0 and 1; computed once while planning."""

    kind: Literal["image"] = "image"
    low: float = Field(default=1.0, ge=0, le=100)
    high: float = Field(default=99.8, ge=0, le=100)


class NoNormalisation(_Record):
    """Intensities as they are."""

    kind: Literal["none"] = "none"


class WeightsFile(_Record):
    """Identity of the stored tensors."""

    file: Literal["weights.safetensors"] = WEIGHTS_FILE
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=1)


class ModelDescription(_Record):
    """What ``model.json`` says, but for the weights: enough to run the model on an image and to name the result.

    Args:
        name: short, for humans.
        network: which network, with which arguments.
        heads: its outputs.
        classes: names, label values and colours; for ``classes`` one per channel, value 0 the background.
        input_channels: names of the image channels, in order.
        voxel_size_um: of the training images along (z,) y, x, in micrometre, or "unknown".
        normalisation: of intensities.
        provenance: free: data, licence, seed, scores.
    """

    name: str
    network: NetworkSpec
    heads: tuple[Head, ...] = Field(min_length=1)
    classes: tuple[LabelClass, ...] = Field(min_length=1)
    input_channels: tuple[str, ...] = Field(min_length=1)
    voxel_size_um: tuple[Annotated[float, Field(gt=0)], ...] | Literal["unknown"] = "unknown"
    normalisation: FixedNormalisation | ImageNormalisation | NoNormalisation = Field(discriminator="kind")
    provenance: dict[str, Any] = {}


class _ModelFile(ModelDescription):
    schema_number: Literal[1] = Field(default=1, alias="schema")
    weights: WeightsFile


@dataclass(frozen=True)
class ModelPackage:
    """A model ready to be planned with: description, network with its weights, footprint, and sha256.

    ``sha256`` covers everything that decides bytes of a result (network, heads, classes, normalisation, weights), not
    name or provenance.
    """

    url: str
    description: ModelDescription
    network: nn.Module
    footprint: Footprint
    sha256: str

    @property
    def dims(self) -> int:
        return self.footprint.dims


def save_model(path: str | Path, network: nn.Module, description: ModelDescription) -> str:
    """Write a model package; the sha256 of its weights.

    Args:
        path: folder, made if absent; an existing package is replaced.
        network: its state dict is stored.
        description: what ``model.json`` will say.

    Raises:
        ModelPackageError: if the network has NaN weights or does not match its description.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    _check_finite(state, str(path))
    _check_state(_build_without_memory(description.network, str(path)), state, str(path))
    weights = safetensors.torch.save(state)
    record = description.model_dump(mode="json") | {
        "schema": SCHEMA,
        "weights": WeightsFile(sha256=hashlib.sha256(weights).hexdigest(), size_bytes=len(weights)).model_dump(),
    }
    store = open_store(str(path))
    store.put(WEIGHTS_FILE, weights)
    store.put(DESCRIPTION_FILE, json.dumps(record, indent=1).encode())
    return hashlib.sha256(weights).hexdigest()


def bundled_models() -> dict[str, Path]:
    """Names and folders of the models that are installed with this package."""
    root = Path(str(resources.files("unet_core"))) / "bundled" / "models"
    return (
        {folder.name: folder for folder in sorted(root.iterdir()) if (folder / DESCRIPTION_FILE).is_file()}
        if root.is_dir()
        else {}
    )


def model_url(name_or_path: str) -> str:
    """The URL of a model package, given as a URL, a path, or the name of a bundled model.

    Raises:
        ModelPackageError: if there is no such folder or name.
    """
    check_url(name_or_path)
    if "://" in name_or_path or Path(name_or_path).exists():
        return name_or_path
    bundled = bundled_models()
    if name_or_path in bundled:
        return str(bundled[name_or_path])
    raise ModelPackageError(
        f"Model not found: {name_or_path}; give a model folder, or one of {', '.join(bundled) or 'no bundled models'}."
    )


def read_description(url: str) -> tuple[ModelDescription, WeightsFile]:
    """What ``model.json`` of the package at ``url`` says.

    Raises:
        ModelPackageError: if it is absent, not a package of this schema, or not consistent.
    """
    try:
        text = open_store(url).get(DESCRIPTION_FILE)
    except (FileNotFoundError, NotADirectoryError):
        raise ModelPackageError(
            f"Model {url} has no {DESCRIPTION_FILE}; a model package is a folder with {DESCRIPTION_FILE} and {WEIGHTS_FILE}. "
            "Pickled checkpoints (.pt, .pth) are refused, since loading them can run code."
        ) from None
    try:
        if len(text) > _MAX_DESCRIPTION_BYTES:
            raise ModelPackageError(f"{DESCRIPTION_FILE} in {url} has {len(text)} bytes, more than {_MAX_DESCRIPTION_BYTES}.")
        record = json.loads(text)
        schema = record.get("schema") if isinstance(record, dict) else None
        if schema != SCHEMA:
            raise ModelPackageError(f"{DESCRIPTION_FILE} in {url} has schema {schema!r}; this release reads schema {SCHEMA}.")
        parsed = _ModelFile.model_validate(record)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise ModelPackageError(
            f"{DESCRIPTION_FILE} in {url}: {'.'.join(map(str, first['loc']))}: {first['msg']} (got {str(first['input'])[:60]!r})."
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelPackageError(f"{DESCRIPTION_FILE} in {url} is not readable JSON: {error}.") from error
    _check_description(parsed, url)
    return ModelDescription(**{name: getattr(parsed, name) for name in ModelDescription.model_fields}), parsed.weights


def load_model(path: str | Path) -> ModelPackage:
    """Read a model package, checking hash, names, shapes and finiteness of every tensor.

    Args:
        path: folder, ``s3://`` URL, or name of a bundled model.

    Raises:
        ModelPackageError: naming what does not fit.
    """
    url = model_url(str(path))
    description, stated = read_description(url)
    state = _read_weights(url, stated)
    network = _build_without_memory(description.network, url)
    _check_state(network, state, url)
    _check_finite(state, url)
    network.load_state_dict(state, assign=True)
    network.eval().requires_grad_(False)
    decisive = description.model_dump(mode="json", exclude={"name", "provenance"}) | {"weights": stated.sha256}
    sha256 = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
    return ModelPackage(url, description, network, footprint(network), sha256)


def _read_weights(url: str, stated: WeightsFile) -> dict[str, Tensor]:
    where = f"{WEIGHTS_FILE} in {url}"
    try:
        data = open_store(url).get(WEIGHTS_FILE)
    except FileNotFoundError:
        raise ModelPackageError(f"Model file absent: {where}.") from None
    if not data:
        raise ModelPackageError(f"Model file is empty: {where}.")
    if data.startswith(b"version https://git-lfs"):
        raise ModelPackageError(f"Model file is a git-lfs pointer: {where}; run 'git lfs pull' to get the weights.")
    if data.lstrip()[:1] == b"<":
        raise ModelPackageError(f"Model file is an HTML page: {where}; the download gave an error page, fetch it again.")
    if data[:2] in (b"PK", b"\x80\x02", b"\x80\x04"):
        raise ModelPackageError(f"Model file is a pickle: {where}; refused, since loading it can run code (contains GLOBAL).")
    if len(data) != stated.size_bytes:
        raise ModelPackageError(
            f"Model file truncated: {where} has {len(data)} bytes, expected {stated.size_bytes}; copy it again."
        )
    actual = hashlib.sha256(data).hexdigest()
    if actual != stated.sha256:
        raise ModelPackageError(
            f"sha256 mismatch: {where} has {actual[:12]}.., {DESCRIPTION_FILE} says {stated.sha256[:12]}..; copy it again."
        )
    try:
        return safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise ModelPackageError(f"{where} is not a safetensors file: {error}.") from error


def _check_description(description: ModelDescription, url: str) -> None:
    arguments = description.network.arguments
    channels = arguments.get("in_channels")
    if channels != len(description.input_channels):
        raise ModelPackageError(
            f"{url}: the network takes {channels} channels, input_channels names {len(description.input_channels)}."
        )
    used = [channel for head in description.heads for channel in head.channels]
    if sorted(used) != list(range(int(arguments.get("classes", 0)))):
        raise ModelPackageError(f"{url}: heads use channels {sorted(used)}, the network gives {arguments.get('classes')}.")
    head = description.heads[0]
    if len(description.heads) > 1 or head.kind not in ("classes", "regions"):
        kinds = ", ".join(head.kind for head in description.heads)
        raise ModelPackageError(
            f"{url}: heads {kinds} cannot be run by this release; it runs one head of kind classes or regions."
        )
    values = [label.value for label in description.classes]
    if len(values) != len(head.channels) or len(set(values)) != len(values) or (head.kind == "regions" and 0 in values):
        raise ModelPackageError(
            f"{url}: label values {values} for {len(head.channels)} channels of head '{head.name}'; give each its own value"
            f"{', above 0' if head.kind == 'regions' else ''}."
        )
    if max(values) > 255:
        raise ModelPackageError(
            f"{url}: label value {max(values)} needs uint16 output; this release writes uint8, use values to 255."
        )
    normalisation = description.normalisation
    if isinstance(normalisation, FixedNormalisation) and {len(normalisation.offset), len(normalisation.scale)} != {channels}:
        raise ModelPackageError(f"{url}: normalisation has {len(normalisation.offset)} offsets for {channels} channels.")


def _build_without_memory(spec: NetworkSpec, url: str) -> nn.Module:
    """The network with shapes but no values, so that absurd arguments cost nothing."""
    try:
        with torch.device("meta"):
            return networks.build(spec.name, **spec.arguments)
    except (TypeError, ValueError, RuntimeError, OverflowError, IndexError) as error:
        raise ModelPackageError(
            f"Network '{spec.name}' of {url} cannot be built from {spec.arguments}: {str(error)[:200]}."
        ) from error


def _check_state(network: nn.Module, state: Mapping[str, Tensor], url: str) -> None:
    expected = network.state_dict()
    missing = sorted(expected.keys() - state.keys())
    unexpected = sorted(state.keys() - expected.keys())
    if missing or unexpected:
        raise ModelPackageError(
            f"Weights of {url} do not fit the network: missing {missing[:5]} ({len(missing)} in all), "
            f"unexpected {unexpected[:5]} ({len(unexpected)} in all)."
        )
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise ModelPackageError(
                f"Weight {name} of {url} has shape {tuple(tensor.shape)}, the network needs {tuple(expected[name].shape)}."
            )


def _check_finite(state: Mapping[str, Tensor], url: str) -> None:
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            kind = "NaN" if bool(torch.isnan(tensor).any()) else "Inf"
            raise ModelPackageError(f"Weight {name} of {url} has {kind}; the training diverged, take an earlier checkpoint.")

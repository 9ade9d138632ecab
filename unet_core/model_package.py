"""A trained network in a folder: ``model.json`` says what it is, ``weights.safetensors`` holds its tensors. No pickle anywhere.

Nothing here knows of images or blocks.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from unet_core import networks
from unet_core.errors import ModelPackageError, ResumeError
from unet_core.footprint import Footprint, footprint_of
from unet_core.foreign.opaque_network import OpaqueNetwork, check_trusted, load_opaque
from unet_core.model_description import (
    DESCRIPTION_FILE,
    TORCHSCRIPT,
    WEIGHTS_FILE,
    FixedNormalisation,
    Head,
    ImageNormalisation,
    LabelClass,
    ModelDescription,
    MomentsNormalisation,
    NetworkSpec,
    NoNormalisation,
    WeightsFile,
    read_description,
    write_description,
)
from unet_core.operations import Trace
from unet_core.places import check_location
from unet_core.rules import trace
from unet_core.store import check_url, is_remote, local_path, open_store
from unet_core.weights import fitted, read_file, read_weights
from unet_core.wording import counted, near_path, near_word

__all__ = [
    "FixedNormalisation",
    "Head",
    "ImageNormalisation",
    "LabelClass",
    "ModelDescription",
    "ModelPackage",
    "MomentsNormalisation",
    "NetworkSpec",
    "NoNormalisation",
    "bundled_models",
    "load_model",
    "model_url",
    "read_description",
    "save_model",
]

_MAX_PARAMETERS = 1 << 31  # 8 GiB of float32; what describes more is a typing error

# What decides bytes of a result, and so the identity of a model, is everything but these.
_NOT_DECISIVE: Any = {"name": True, "provenance": True, "normalisation": {"dtype"}}


@dataclass(frozen=True)
class ModelPackage:
    """A model ready to be planned with: description, network with its weights, footprint, and sha256.

    ``sha256`` covers everything that decides bytes of a result (network, heads, classes, normalisation, weights), not
    name or provenance. ``whole_box`` names the layers whose result depends on the whole box; planning refuses such a model,
    unless the job says ``approximate``, and ``footprint`` is that of its other layers.
    """

    url: str
    description: ModelDescription
    network: nn.Module
    footprint: Footprint
    sha256: str
    whole_box: tuple[str, ...] = ()

    @property
    def dims(self) -> int:
        return self.footprint.dims

    @cached_property
    def traced(self) -> Trace | OpaqueNetwork:
        """The steps of the network; of one that cannot be traced, itself."""
        return self.network if isinstance(self.network, OpaqueNetwork) else trace(self.network, approximate=True)


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
    state = fitted(state, build_without_memory(description.network, str(path)), str(path))
    weights = safetensors.torch.save(state)
    sha256 = hashlib.sha256(weights).hexdigest()
    open_store(str(path)).put(WEIGHTS_FILE, weights)
    write_description(str(path), description, WeightsFile(sha256=sha256, size_bytes=len(weights)))
    return sha256


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
    if is_remote(name_or_path):
        return name_or_path
    check_location("model", name_or_path)
    bundled, path = bundled_models(), local_path(name_or_path)
    if os.path.exists(path):
        if name_or_path in bundled and not (path / DESCRIPTION_FILE).exists():
            raise ModelPackageError(
                f"Folder {path.resolve()} has no {DESCRIPTION_FILE}, and hides the bundled model '{name_or_path}'; "
                "rename it, or run from another folder."
            )
        return str(path)
    if name_or_path in bundled:
        return str(bundled[name_or_path])
    near = near_word(name_or_path, bundled) or near_path(path)
    raise ModelPackageError(
        f"Model not found: {name_or_path}{near}; give a model folder, or one of {', '.join(bundled) or 'no bundled models'}."
    )


def load_model(path: str | Path, trusted: bool = False, planned_sha256: str | None = None) -> ModelPackage:
    """Read a model package, checking hash, names, shapes, types and values of every tensor.

    Args:
        path: folder, ``s3://`` URL, or name of a bundled model.
        trusted: the user's word, given for this run, that TorchScript in it may be loaded.
        planned_sha256: of the only package that will do, compared before code in it can run; None for any.

    Raises:
        ModelPackageError: naming what does not fit.
        ResumeError: if it is another package than the planned one.
    """
    url = model_url(str(path))
    description, stated = read_description(url)
    sha256 = _identity(description, stated)
    if planned_sha256 not in (None, sha256):
        raise ResumeError(
            f"Model {url} is no longer the one of the plan (sha256 {sha256[:12]}, planned {str(planned_sha256)[:12]}); put that one back, or "
            "start again with a new output."
        )
    network: nn.Module
    whole_box: tuple[str, ...]
    if description.network.name == TORCHSCRIPT:
        check_trusted(url, trusted)
        network = load_opaque(read_file(url, stated.file, stated.sha256, stated.size_bytes), description, url)
        geometry, whole_box = network.footprint, ()
    else:
        network = build_without_memory(description.network, url)
        state = fitted(read_weights(url, stated.sha256, stated.size_bytes), network, url)
        network.load_state_dict(state, assign=True)
        network.eval().requires_grad_(False)
        geometry, whole_box = _footprint(network, url)
    if description.voxel_size_um != "unknown" and len(description.voxel_size_um) != geometry.dims:
        raise ModelPackageError(
            f"{url}: voxel_size_um has {counted(len(description.voxel_size_um), 'number')}, the network works in "
            f"{geometry.dims}D; give one an axis."
        )
    return ModelPackage(url, description, network, geometry, sha256, whole_box)


def _identity(description: ModelDescription, weights: WeightsFile) -> str:
    """sha256 of what decides bytes of a result; known before the weights are read, since ``model.json`` states theirs."""
    decisive = description.model_dump(mode="json", exclude=_NOT_DECISIVE) | {"weights": weights.sha256}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _footprint(network: nn.Module, url: str) -> tuple[Footprint, tuple[str, ...]]:
    """The footprint, and the layers that look at the whole box."""
    try:
        traced = trace(network, approximate=True)
        return footprint_of(traced), traced.whole_box
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # arguments that make no network, such as empty lists
        raise ModelPackageError(
            f"The network of {url} has no geometry ({type(error).__name__}: {error}); correct its arguments."
        ) from error


def build_without_memory(spec: NetworkSpec, url: str) -> nn.Module:
    """The network with shapes but no values, so that absurd arguments cost nothing."""
    try:
        with torch.device("meta"):
            network = networks.build(spec.name, **spec.arguments)
    except ModelPackageError as error:
        raise ModelPackageError(f"Model {url}: {error}") from None
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError, AttributeError) as error:
        raise ModelPackageError(
            f"Network '{spec.name}' of {url} cannot be built from {str(spec.arguments)[:200]}: {str(error)[:200]}."
        ) from error
    count = sum(parameter.numel() for parameter in network.parameters())
    if count > _MAX_PARAMETERS:
        raise ModelPackageError(
            f"Network '{spec.name}' of {url} would have {count:,} parameters, more than {_MAX_PARAMETERS:,}; "
            f"check its arguments {str(spec.arguments)[:200]}."
        )
    return network

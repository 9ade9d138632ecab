"""Tensors of a model package: read, and checked by hash, name, shape, type and value. No pickle; knows no ``model.json``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from unet_core.errors import ModelPackageError
from unet_core.store import open_store

WEIGHTS_FILE: Final = "weights.safetensors"
_HELD_EXACTLY = (torch.float16, torch.bfloat16)  # float32 has every one of their values
_PICKLES = (b"PK", b"\x80\x02", b"\x80\x04")


def read_weights(url: str, sha256: str, size_bytes: int) -> dict[str, Tensor]:
    """The tensors of the package at ``url``, if the file is the one that its description states.

    Raises:
        ModelPackageError: naming what the file is instead.
    """
    data = read_file(url, WEIGHTS_FILE, sha256, size_bytes)
    try:
        return safetensors.torch.load(data)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ModelPackageError(
            f"{WEIGHTS_FILE} in {url} is not a safetensors file ({str(error)[:200]}); save the model again."
        ) from error


def read_file(url: str, name: str, sha256: str, size_bytes: int) -> bytes:
    """The bytes of a file of the package at ``url``, if they are the ones that its description states; not interpreted.

    Raises:
        ModelPackageError: naming what the file is instead.
    """
    where = f"{name} in {url}"
    try:
        data = open_store(url).get(name)
    except FileNotFoundError:
        raise ModelPackageError(f"Model file absent: {where}; copy the whole folder of the model.") from None
    except OSError as error:
        raise ModelPackageError(f"Model file {where} cannot be read ({error.strerror}); copy the whole folder again.") from None
    if not data:
        raise ModelPackageError(f"Model file is empty: {where}; copy it again.")
    if data.startswith(b"version https://git-lfs"):
        raise ModelPackageError(f"Model file is a git-lfs pointer: {where}; run 'git lfs pull' to get the weights.")
    if data.lstrip()[:1] == b"<":
        raise ModelPackageError(f"Model file is an HTML page: {where}; the download gave an error page, fetch it again.")
    if name == WEIGHTS_FILE and data[:2] in _PICKLES:
        raise ModelPackageError(f"Model file is a pickle: {where}; refused, since loading it can run code (contains GLOBAL).")
    if len(data) != size_bytes:
        what = "Model file truncated" if len(data) < size_bytes else "Model file is too long"
        raise ModelPackageError(f"{what}: {where} has {len(data)} bytes, expected {size_bytes}; copy it again.")
    actual = hashlib.sha256(data).hexdigest()
    if actual != sha256:
        raise ModelPackageError(
            f"sha256 mismatch: {where} has {actual[:12]}.., its description says {sha256[:12]}..; copy it again."
        )
    return data


def fitted(state: Mapping[str, Tensor], network: nn.Module, url: str) -> dict[str, Tensor]:
    """The tensors in the types of the network, each checked against it.

    Args:
        state: as stored; half-precision tensors become float32, which changes no value.
        network: needs no values of its own (may be on the meta device).
        url: for messages.

    Raises:
        ModelPackageError: naming the tensor that does not fit, and why.
    """
    expected = network.state_dict()
    missing = sorted(expected.keys() - state.keys())
    unexpected = sorted(state.keys() - expected.keys())
    if missing or unexpected:
        raise ModelPackageError(
            f"Weights of {url} do not fit the network: missing {missing[:5]} ({len(missing)} in all), "
            f"unexpected {unexpected[:5]} ({len(unexpected)} in all)."
        )
    return {name: _fitted(name, tensor, expected[name], url) for name, tensor in state.items()}


def _fitted(name: str, tensor: Tensor, expected: Tensor, url: str) -> Tensor:
    if tensor.shape != expected.shape:
        raise ModelPackageError(
            f"Weight {name} of {url} has shape {tuple(tensor.shape)}, the network needs {tuple(expected.shape)}."
        )
    if tensor.dtype in _HELD_EXACTLY and expected.dtype == torch.float32:
        tensor = tensor.to(torch.float32)
    if tensor.dtype != expected.dtype:
        have, want = (str(dtype).removeprefix("torch.") for dtype in (tensor.dtype, expected.dtype))
        raise ModelPackageError(
            f"Weight {name} of {url} has type {have}, the network needs {want}; save the model with tensors of that type."
        )
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        kind = "NaN" if bool(torch.isnan(tensor).any()) else "Inf"
        raise ModelPackageError(f"Weight {name} of {url} has {kind}; the training diverged, take an earlier checkpoint.")
    if name.endswith("running_var") and bool((tensor < 0).any()):
        raise ModelPackageError(
            f"Weight {name} of {url} has the negative variance {float(tensor.min()):.4g}, whose root is NaN; take another checkpoint."
        )
    return tensor

"""The tensors of weight files of other tools, read as data. No code of such a file is run, compiled or imported.

Nothing here knows networks or images.
"""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unet_core.errors import ModelPackageError
from unet_core.foreign.inert_pickle import Module, Record, first_line, walk
from unet_core.foreign.zips import ZIP_ERRORS, is_zip
from unet_core.validation import shorten

MAX_PICKLE_BYTES = 8 << 20  # the structure, usually some kilobytes; tensors lie in files of their own
MAX_NAMES = 20_000
MAX_DEPTH = 64
MAX_LETTERS = 4096  # of a dotted name
MAX_ATTRIBUTES = 1 << 20  # of all modules, each as often as it is reached
_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model")


def read_state(path: Path) -> dict[str, Tensor]:
    """Names and tensors of a weight file: a TorchScript archive, or a state dict that ``torch.save`` wrote.

    What wraps the state dict (``state_dict``, ``model_state``, the prefix ``module.``) is taken off.

    Raises:
        ModelPackageError: if the file is neither, or holds anything but plain data.
    """
    if is_torchscript(path):
        return read_tensors(path)
    _check_members(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it announces what it then refuses
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelPackageError(
            f"{path} holds more than tensors and plain values ({first_line(error)}); refused, since loading it could run code."
        ) from None
    except Exception as error:  # torch follows the bytes of a stranger; damaged ones end in errors of any kind
        raise ModelPackageError(f"{path} is no readable state dict ({first_line(error)}); copy it again.") from None
    while isinstance(loaded, dict) and not _is_state(loaded):
        inner = next((loaded[name] for name in _WRAPPERS if isinstance(loaded.get(name), dict)), None)
        if inner is None:
            break
        loaded = inner
    if not isinstance(loaded, dict) or not _is_state(loaded):
        raise ModelPackageError(
            f"{path} holds no state dict, which maps names to tensors; export the weights with torch.save(network.state_dict(), ...)."
        )
    for name, tensor in loaded.items():
        _check_plain(name, tensor, path)
    prefix = "module." if all(name.startswith("module.") for name in loaded) else ""
    return {name.removeprefix(prefix): tensor for name, tensor in loaded.items()}


def _is_state(value: dict[Any, Any]) -> bool:
    return bool(value) and all(isinstance(name, str) and isinstance(entry, Tensor) for name, entry in value.items())


def _check_plain(name: str, tensor: Tensor, path: Path) -> None:
    """Refuse what is no array of numbers that lie in the file: sparse, without values, or one number repeated by steps of 0."""
    kind = "meta" if tensor.device.type == "meta" else str(tensor.layout).removeprefix("torch.")
    if tensor.device.type != "cpu" or tensor.layout != torch.strided or tensor.is_quantized:
        raise ModelPackageError(
            f"{path}: tensor {shorten(name)} is {'quantised' if tensor.is_quantized else kind}; save plain tensors of the CPU."
        )
    stored = tensor.untyped_storage().nbytes() // tensor.element_size()
    if tensor.numel() > stored:
        raise ModelPackageError(
            f"{path}: tensor {shorten(name)} of shape {tuple(tensor.shape)} has {tensor.numel()} numbers, its file {stored}; "
            "save it with tensor.contiguous()."
        )


def _check_members(path: Path) -> None:
    """Refuse a zip from which more would come than it has bytes: compressed, or with parts that overlap. Torch writes neither."""
    if not is_zip(path):
        return
    with zipfile.ZipFile(path) as archive:  # is_torchscript has opened it before
        infos = archive.infolist()
    packed = next((info.filename for info in infos if info.compress_type != zipfile.ZIP_STORED), None)
    if packed is not None:
        raise ModelPackageError(f"{path}: {shorten(packed)} is compressed; torch writes no such file.")
    if sum(info.file_size for info in infos) > os.path.getsize(path):
        raise ModelPackageError(f"{path} states more bytes than it has; its parts overlap, which torch never writes.")


def is_torchscript(path: Path) -> bool:
    """Whether the file is a zip that holds TorchScript, not a state dict alone.

    Raises:
        ModelPackageError: for a damaged zip.
    """
    if not is_zip(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.partition("/")[2] == "constants.pkl" for name in archive.namelist())
    except ZIP_ERRORS as error:
        raise ModelPackageError(f"{path} is a damaged zip ({first_line(error)}); copy it again.") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a TorchScript archive by their dotted names, as its ``state_dict()`` would give them.

    The archive is a zip of a pickle, which says what hangs where, and of one file of raw numbers for each tensor. The pickle is
    not loaded: its instructions are walked by a machine that knows those torch writes, and nothing that could call or import.
    Tensors that a module holds without registering them as parameter or buffer are listed too. Tensors that share numbers in
    the file share them in memory.

    Raises:
        ModelPackageError: for a damaged archive, and for whatever else than modules, plain values and tensors, by name.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root = next((name[: -len("data.pkl")] for name in archive.namelist() if name.endswith("/data.pkl")), None)
            if root is None or root.count("/") != 1:
                raise ModelPackageError(f"{path} is a zip without data.pkl, no TorchScript archive; choose another file.")
            members = _Members(path, archive, root)
            if members.has("byteorder") and members.read("byteorder", 16) != b"little":
                raise ModelPackageError(f"{path} was written on a big-endian machine; export it again on a usual one.")
            tree = walk(members.read("data.pkl", MAX_PICKLE_BYTES), path)
            return {name: members.tensor(name, record) for name, record in _named(tree, path)}
    except ZIP_ERRORS as error:
        raise ModelPackageError(f"{path} is a damaged TorchScript archive ({first_line(error)}); copy it again.") from None


@dataclass
class _Members:
    """Files of the archive. Only stored ones are read, so that a small archive cannot become a large one."""

    path: Path
    archive: zipfile.ZipFile
    root: str
    storages: dict[str, Tensor] = field(default_factory=dict)
    read_bytes: int = 0

    def has(self, name: str) -> bool:
        return self.root + name in self.archive.NameToInfo

    def read(self, name: str, limit: int) -> bytes:
        if not self.has(name):
            raise ModelPackageError(f"{self.path} lacks {name}; copy it again.")
        info = self.archive.NameToInfo[self.root + name]
        self.read_bytes += info.file_size
        if info.compress_type != zipfile.ZIP_STORED or info.file_size > limit:
            raise ModelPackageError(
                f"{self.path}: {name} is compressed or has {info.file_size} bytes, more than {limit}; torch writes no such archive."
            )
        if self.read_bytes > os.path.getsize(self.path):
            raise ModelPackageError(f"{self.path} states more bytes than it has; its parts overlap, which torch never writes.")
        return self.archive.read(info)

    def tensor(self, name: str, record: Record) -> Tensor:
        storage = record.storage
        size_bytes = storage.count * storage.dtype.itemsize
        if storage.key not in self.storages:
            data = self.read(f"data/{storage.key}", size_bytes)
            if len(data) != size_bytes:
                raise ModelPackageError(
                    f"{self.path}: tensor {name} has {len(data)} bytes, expected {size_bytes}; copy it again."
                )
            flat = torch.frombuffer(bytearray(data), dtype=storage.dtype) if data else torch.empty(0, dtype=storage.dtype)
            self.storages[storage.key] = flat
        flat = self.storages[storage.key]
        last = record.offset + sum((size - 1) * step for size, step in zip(record.shape, record.steps, strict=True))
        count: int = prod(record.shape)
        if flat.dtype != storage.dtype or count > len(flat) or (count and last >= len(flat)):
            raise ModelPackageError(
                f"{self.path}: tensor {name} of shape {record.shape} does not lie in its {len(flat)} numbers."
            )
        return flat.as_strided(record.shape, record.steps, record.offset)


def _named(root: Any, path: Path) -> Iterator[tuple[str, Record]]:
    """Dotted names of all tensors below a module, in the order in which they are written."""
    waiting = [("", root, 0)]
    visited = found = attributes = 0
    while waiting:
        prefix, module, depth = waiting.pop()
        members = module.attributes if isinstance(module, Module) else {}
        visited += 1
        attributes += len(members)
        if visited + found > MAX_NAMES or depth > MAX_DEPTH or attributes > MAX_ATTRIBUTES:
            raise ModelPackageError(
                f"{path} has more than {MAX_NAMES} modules and tensors, {MAX_ATTRIBUTES} attributes, or {MAX_DEPTH} levels of them; "
                "no network has."
            )
        inner = []
        for name, value in members.items():
            if not isinstance(value, Module | Record):
                continue
            if len(prefix) + len(str(name)) > MAX_LETTERS:
                raise ModelPackageError(
                    f"{path} has a tensor or module with a name of more than {MAX_LETTERS} letters; no network has."
                )
            if isinstance(value, Record):
                found += 1
                yield f"{prefix}{name}", value
            else:
                inner.append((f"{prefix}{name}.", value, depth + 1))
        waiting += reversed(inner)
    if not found:
        raise ModelPackageError(
            f"{path} holds no tensor with a name (a frozen archive keeps them in its code); export it without torch.jit.freeze."
        )

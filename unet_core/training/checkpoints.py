"""Checkpoints: tensors and state, seen whole or not at all, checked by sha256 when read. Knows no network and no data.

checkpoints/00000200.safetensors      put first
checkpoints/00000200.json             put last; names the sha256 of the tensors, and its own
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from unet_core.errors import UnetCoreError
from unet_core.store import Store
from unet_core.training_folder import CHECKPOINTS

KEPT = 2  # of the latest, beside the best
_TENSORS, _STATE = ".safetensors", ".json"
_SCHEMA = 1


@dataclass(frozen=True)
class Checkpoint:
    """A training after ``step`` steps.

    Args:
        step: steps done; the next one has this number.
        state: plain values (JSON).
        tensors: by name.
    """

    step: int
    state: dict[str, Any]
    tensors: dict[str, Tensor]


def save_checkpoint(store: Store, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; after a kill at any instant it is there whole, or not there.

    Raises:
        UnetCoreError: if a tensor is not finite; nothing is written then.
    """
    for name, tensor in checkpoint.tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UnetCoreError(
                f"After step {checkpoint.step} the tensor {name} has NaN or infinite values, so no checkpoint is written; the last good one "
                "stays. Lower optimiser.rate, or set optimiser.clip."
            )
    data = safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()})
    key = _key(checkpoint.step)
    store.put(f"{key}{_TENSORS}", data)
    record = {
        "schema": _SCHEMA,
        "step": checkpoint.step,
        "tensors": {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)},
        "state": checkpoint.state,
    }
    store.put(f"{key}{_STATE}", json.dumps(record | {"sha256": _identity(record)}, indent=1).encode())


def steps_saved(store: Store) -> tuple[int, ...]:
    """Steps whose checkpoint was written to its end, damaged since or not, the latest first."""
    names = (name.removesuffix(_STATE) for name in store.child_names(CHECKPOINTS) if name.endswith(_STATE))
    return tuple(sorted((int(name) for name in names if name.isdecimal()), reverse=True))


def load_checkpoint(store: Store, step: int) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        UnetCoreError: saying what is damaged.
    """
    key = _key(step)
    try:
        record = json.loads(store.get(f"{key}{_STATE}"))
        data = store.get(f"{key}{_TENSORS}")
    except FileNotFoundError as error:
        raise UnetCoreError(f"Checkpoint {key} is not whole: {error.filename or error} is absent.") from None
    except ValueError as error:
        raise UnetCoreError(f"Checkpoint {key} is damaged: its state is not readable JSON ({error}).") from None
    if not isinstance(record, dict) or record.pop("sha256", None) != _identity(record):
        raise UnetCoreError(f"Checkpoint {key} is damaged: its state does not match its own sha256.")
    if record["schema"] != _SCHEMA:
        raise UnetCoreError(f"Checkpoint {key} has schema {record['schema']}; this release reads schema {_SCHEMA}.")
    actual = hashlib.sha256(data).hexdigest()
    if actual != record["tensors"]["sha256"]:
        raise UnetCoreError(
            f"Checkpoint {key} is damaged: its tensors have {len(data)} bytes with sha256 {actual[:12]}.., written were "
            f"{record['tensors']['size_bytes']} with {record['tensors']['sha256'][:12]}.."
        )
    return Checkpoint(step, record["state"], safetensors.torch.load(data))


def latest_checkpoint(store: Store) -> tuple[Checkpoint | None, tuple[str, ...]]:
    """The latest checkpoint that is whole, and why later ones are not used."""
    problems: list[str] = []
    for step in steps_saved(store):
        try:
            return load_checkpoint(store, step), tuple(problems)
        except UnetCoreError as error:
            problems.append(str(error))
    return None, tuple(problems)


def prune(store: Store, best: int | None) -> None:
    """Remove all but the latest ``KEPT`` checkpoints and the best; state first, so that what is half removed is no checkpoint."""
    kept = {*steps_saved(store)[:KEPT], best}
    for name in store.child_names(CHECKPOINTS):
        number, _, _ = name.partition(".")
        if number.isdecimal() and int(number) not in kept:
            for suffix in (_STATE, _TENSORS):
                store.delete(f"{_key(int(number))}{suffix}")


def _key(step: int) -> str:
    return f"{CHECKPOINTS}/{step:08d}"


def _identity(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()

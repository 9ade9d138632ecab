"""Named settings of the one training loop, and single settings by name. Knows no data and no torch."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import pydantic
import yaml
from pydantic import BaseModel

from unet_core.errors import JobError
from unet_core.training.options import TrainingOptions
from unet_core.validation import first_problem

_NO_AUGMENTATION = {
    "deformation": 0.0,
    "rotation": 0.0,
    "flip": False,
    "scale": (1.0, 1.0),
    "gamma": 1.0,
    "gain": 0.0,
    "offset": 0.0,
    "noise": 0.0,
    "blur": 0.0,
}

# What differs from TrainingOptions' own values, which are the recipe "default".
RECIPES: dict[str, dict[str, Any]] = {
    "default": {
        "network": {"name": "unet", "arguments": {"base": 16, "levels": 4, "batch_norm": True, "dropout": 0.1}},
        "weights": {"balance": False, "w0": 5.0},  # balanced classes would make probabilities of rare ones too large
        "loss": {"dice": 0.5},
        "crops": {"positions": "mixed"},
    },
    # Ronneberger et al. 2015, section 3: SGD with momentum 0.99 on one tile, the unnormalised sum over voxels weighted by equation 2,
    # shift, rotation, elastic deformation (3x3 grid, 10 voxels, bicubic) and gray values. Learning rate and length are not in the paper.
    "paper": {
        "network": {"name": "unet", "arguments": {"base": 64, "levels": 5, "dropout": 0.5}},
        "weights": {"w0": 10.0, "sigma": 5.0, "balance": True, "separate": True},
        "loss": {"cross_entropy": 1.0, "dice": 0.0, "reduction": "sum"},
        "augmentation": _NO_AUGMENTATION
        | {
            "deformation": 10.0,
            "grid": 3,
            "rotation": 180.0,
            "shift": 20.0,
            "gamma": 1.4,
            "gain": 0.1,
            "offset": 0.1,
            "order": 3,
        },
        "crops": {"target": 388, "positions": "uniform", "per_step": 1},
        "optimiser": {
            "kind": "sgd",
            "rate": 1e-8,
            "momentum": 0.99,
            "weight_decay": 0.0,
            "schedule": "constant",
            "warmup_steps": 0,
            "clip": None,
        },
    },
    # Long et al. 2015 and its released solver: one whole image, unnormalised soft-max, momentum 0.99, no augmentation.
    "fcn": {
        "network": {"name": "fcn", "arguments": {}},
        "weights": {"balance": False, "w0": 0.0},
        "loss": {"reduction": "sum"},
        "augmentation": _NO_AUGMENTATION,
        "crops": {"positions": "uniform", "per_step": 1},
        "optimiser": {
            "kind": "sgd",
            "rate": 1e-10,
            "momentum": 0.99,
            "weight_decay": 5e-4,
            "bias_rate": 2.0,
            "schedule": "constant",
            "warmup_steps": 0,
            "clip": None,
        },
        "steps": 100_000,
    },
    # Jegou et al. 2016 and its released code: RMSprop 1e-3, times 0.995 an epoch, L2 1e-4, crops of 224, batches of 3, horizontal flips.
    "fc_densenet": {
        "network": {"name": "fc_densenet", "arguments": {}},
        "weights": {"balance": False, "w0": 0.0},
        "augmentation": _NO_AUGMENTATION | {"flip": True},
        "crops": {"target": 224, "positions": "uniform", "per_step": 3},
        "optimiser": {
            "kind": "rmsprop",
            "rate": 1e-3,
            "momentum": 0.0,
            "weight_decay": 1e-4,
            "schedule": "step",
            "decay_factor": 0.995,
            "decay_steps": 122,  # an epoch: 367 images of CamVid in batches of 3
            "warmup_steps": 0,
            "clip": None,
        },
        "steps": 750 * 122,
    },
    # Milletari et al. 2016, sections 3 and 4: Dice alone, momentum 0.99, 1e-4 a tenth every 25,000 steps, batches of 2, B-spline
    # deformation with 2x2x2 control points of 15 voxels, intensities matched to those of another volume.
    "vnet": {
        "network": {"name": "vnet", "arguments": {}},
        "weights": {"balance": False, "w0": 0.0},
        "loss": {"cross_entropy": 0.0, "dice": 1.0},
        "augmentation": _NO_AUGMENTATION | {"deformation": 15.0, "grid": 2, "histogram": 1.0},
        "crops": {"target": (64, 128, 128), "positions": "uniform", "per_step": 2},
        "optimiser": {
            "kind": "sgd",
            "rate": 1e-4,
            "momentum": 0.99,
            "weight_decay": 5e-4,
            "bias_rate": 2.0,
            "schedule": "step",
            "decay_factor": 0.1,
            "decay_steps": 25_000,
            "warmup_steps": 0,
            "clip": None,
        },
        "steps": 30_000,
    },
}


def make_options(recipe: str = "default", settings: Sequence[str] = ()) -> TrainingOptions:
    """The options of a recipe, with single settings changed.

    Args:
        recipe: a key of ``RECIPES``.
        settings: ``key=value`` with dots between the levels, e.g. ``optimiser.rate=1e-3``; values are YAML.

    Raises:
        JobError: naming the recipe, key or value that has no meaning, and the nearest that has.

    Example:
        >>> make_options("paper", ["optimiser.rate=1e-7", "network.arguments.base=32"]).optimiser.rate
        1e-07
    """
    if recipe not in RECIPES:
        raise JobError(f"Recipe '{recipe[:60]}' is not known{_nearest(recipe, RECIPES)}; there are {', '.join(RECIPES)}.")
    values = _copy(RECIPES[recipe])
    for setting in settings:
        _set(values, setting)
    try:
        return TrainingOptions(**values)
    except pydantic.ValidationError as error:
        raise JobError(f"Training option {first_problem(error)}.") from None


def _set(values: dict[str, Any], setting: str) -> None:
    key, separator, text = setting.partition("=")
    if not separator or not key:
        raise JobError(f"--set '{setting[:60]}' has no value; write --set key=value, e.g. --set optimiser.rate=1e-3.")
    *folders, last = key.split(".")
    model: type[BaseModel] | None = TrainingOptions
    for name in folders:
        model = _field(model, name, key)
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise JobError(f"--set {key}: {name} has no settings of its own.")
    if last in values and last == "name" and folders == ["network"] and values[last] != text:
        values["arguments"] = {}  # those of the recipe are another network's
    _field(model, last, key)
    values[last] = _value(key, text)


def _value(key: str, text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # the latter of what looks like a date
        raise JobError(f"--set {key}: '{text[:60]}' is no value; write a number, a word, or a list such as [1, 2].") from None
    if isinstance(value, str):  # YAML 1.1 takes 1e-3 for a word
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _field(model: type[BaseModel] | None, name: str, key: str) -> type[BaseModel] | None:
    """The options behind a field; None below what has free keys, such as a network's arguments."""
    if model is None:
        return None
    if name not in model.model_fields:
        raise JobError(
            f"--set {key}: unknown key '{name[:60]}'{_nearest(name, model.model_fields)}; there are {', '.join(model.model_fields)}."
        )
    kinds = [kind for kind in (model.model_fields[name].annotation, *get_args(model.model_fields[name].annotation))]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _nearest(word: str, known: Mapping[str, Any]) -> str:
    match = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean '{match[0]}'?)" if match else ""


def _copy(values: Any) -> Any:
    return {key: _copy(value) for key, value in values.items()} if isinstance(values, dict) else values

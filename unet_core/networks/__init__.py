"""The table of networks: plain torch modules on one device. Nothing here knows of tiling, images or storage."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from torch import nn

from unet_core.errors import ModelPackageError

MAX_LEVELS = 12
MAX_NUMBER = 1 << 16  # channels, layers, sizes
MAX_ENTRIES = 64  # of a list, e.g. layers of each block
MAX_LAYERS = 512
DEPTHS = {"depths", "layers", "stages", "units"}  # arguments that count layers, stage by stage

# A network is one file and one line here; "module:attribute", resolved when used.
NETWORKS: dict[str, str] = {
    "unet": "unet_core.networks.unet:UNet",
    "unet3d": "unet_core.networks.unet3d:UNet3D",
    "resunet": "unet_core.networks.resunet:ResUNet",
    "attention_unet": "unet_core.networks.attention_unet:AttentionUNet",
    "fc_densenet": "unet_core.networks.fc_densenet:FCDenseNet",
    "fcn": "unet_core.networks.fcn:FCN",
    "vnet": "unet_core.networks.vnet:VNet",
    "zoo_unet": "unet_core.networks.zoo_unet:ZooUNet",
}


def build(name: str, **arguments: Any) -> nn.Module:
    """A freshly initialised network of the table.

    Args:
        name: a key of ``NETWORKS``.
        **arguments: of the network's constructor.

    Raises:
        ModelPackageError: for a name or an argument that does not exist, with the nearest that does.

    Example:
        >>> sum(p.numel() for p in build("unet", in_channels=1, classes=2).parameters())
        31030658
    """
    constructor = _constructor(name)
    known = parameters(name)
    for argument in arguments:
        if argument not in known:
            raise ModelPackageError(
                f"Network '{name}' has no argument '{argument}'{_nearest(argument, known)}; it takes {', '.join(known)}."
            )
        _check_size(name, argument, arguments[argument])
    for argument in DEPTHS & arguments.keys():
        _check_depth(name, argument, arguments[argument])
    network: nn.Module = constructor(**arguments)
    return network


def parameters(name: str) -> Mapping[str, inspect.Parameter]:
    """The arguments that a network of the table takes, with their defaults.

    Raises:
        ModelPackageError: for a name that does not exist, with the nearest that does.
    """
    return inspect.signature(_constructor(name)).parameters


def _constructor(name: str) -> Callable[..., nn.Module]:
    if name not in NETWORKS:
        raise ModelPackageError(f"Network '{name}' is not known{_nearest(name, NETWORKS)}; there are {', '.join(NETWORKS)}.")
    module_name, _, attribute = NETWORKS[name].partition(":")
    found: Callable[..., nn.Module] = getattr(import_module(module_name), attribute)
    return found


def _check_depth(name: str, argument: str, value: Any) -> None:
    """Refuse more resolutions or layers than can be traced; strides double with every resolution."""
    sides = [side if isinstance(side, list | tuple) else (side,) for side in value] if isinstance(value, list | tuple) else []
    counts = [count for side in sides for count in side if isinstance(count, int)]
    most = MAX_LEVELS if argument in ("stages", "units") else 2 * MAX_LEVELS + 1  # the others name the way up too
    if len(counts) > most or sum(counts) > MAX_LAYERS:
        raise ModelPackageError(
            f"Argument '{argument}' of network '{name}' has {len(counts)} stages of {sum(counts)} layers; at most {most} stages "
            f"and {MAX_LAYERS} layers."
        )


def _check_size(name: str, argument: str, value: Any) -> None:
    """Refuse numbers with which building or tracing the network would not end; they are typing errors."""
    if isinstance(value, list | tuple):
        if not value:
            raise ModelPackageError(f"Argument '{argument}' of network '{name}' is empty; give at least one entry.")
        if len(value) > MAX_ENTRIES:
            raise ModelPackageError(f"Argument '{argument}' of network '{name}' has {len(value)} entries; at most {MAX_ENTRIES}.")
        for entry in value:
            _check_size(name, argument, entry)
    limit = MAX_LEVELS if argument == "levels" else MAX_NUMBER
    if isinstance(value, int | float) and not -limit <= value <= limit:
        raise ModelPackageError(f"Argument '{argument}' of network '{name}' is {str(value)[:40]}; at most {limit}.")


def _nearest(word: str, known: Any) -> str:
    match = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean '{match[0]}'?)" if match else ""

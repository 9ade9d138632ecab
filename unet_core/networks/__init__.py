"""The table of networks: plain torch modules on one device. Nothing here knows of tiling, images or storage."""

from __future__ import annotations

import difflib
import inspect
from importlib import import_module
from typing import Any

from torch import nn

from unet_core.errors import ModelPackageError

# A network is one file and one line here; "module:attribute", resolved when used.
NETWORKS: dict[str, str] = {
    "unet": "unet_core.networks.unet:UNet",
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
    if name not in NETWORKS:
        raise ModelPackageError(f"Network '{name}' is not known{_nearest(name, NETWORKS)}; there are {', '.join(NETWORKS)}.")
    module_name, _, attribute = NETWORKS[name].partition(":")
    constructor = getattr(import_module(module_name), attribute)
    known = inspect.signature(constructor).parameters
    for argument in arguments:
        if argument not in known:
            raise ModelPackageError(
                f"Network '{name}' has no argument '{argument}'{_nearest(argument, known)}; it takes {', '.join(known)}."
            )
    network: nn.Module = constructor(**arguments)
    return network


def _nearest(word: str, known: Any) -> str:
    match = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean '{match[0]}'?)" if match else ""

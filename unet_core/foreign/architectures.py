"""Which network of ours a foreign state dict belongs to, told by names and shapes alone. Knows no files and runs nothing.

What names and shapes do not show (where a ReLU stands, what is concatenated first) is left open: several candidates, of which a
reference output picks one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from torch import Tensor, nn

from unet_core import networks
from unet_core.errors import ModelPackageError
from unet_core.model_description import NetworkSpec
from unet_core.model_package import build_without_memory
from unet_core.validation import shorten
from unet_core.weights import fitted

OURS = ("build", "unet_core.networks")  # what our own packages state as callable and import_from


@dataclass(frozen=True)
class Architecture:
    """What a package says of its network: the name of a callable, where it is imported from, and its arguments. Never called."""

    callable: str
    import_from: str | None
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Candidate:
    """A network that a state dict may belong to, and the state under the names of that network."""

    spec: NetworkSpec
    state: Mapping[str, Tensor]

    def build(self, where: str) -> nn.Module:
        """The network with its weights, in evaluation mode.

        Raises:
            ModelPackageError: if there is no such network, it has absurdly many parameters, or a name, shape or type does not fit.
        """
        network = build_without_memory(self.spec, where)
        network.load_state_dict(fitted(self.state, network, where), assign=True)
        return network.eval().requires_grad_(False)


@dataclass(frozen=True)
class _Form:
    """Names of a family of networks, by what each layer is to ``zoo_unet``; L is a level, I the place in a block."""

    name: str
    contracting: str
    bottleneck: str
    up: str
    expanding: str
    head: str


_FORMS = (
    _Form("UNet2d of the zoo", "encoders.L.I", "base.I", "upsamplers.L.1", "decoders.L.I", "output"),
    _Form(
        "torch-em", "encoder.blocks.L.block.I", "base.block.I", "decoder.samplers.L.conv", "decoder.blocks.L.block.I", "out_conv"
    ),
)
KNOWN = "packages that this program wrote, the zoo's UNet2d (encoders.0.0, base.0, ..), U-Nets of torch-em (encoder.blocks.0.block.0, ..)"


def candidates(state: Mapping[str, Tensor], stated: Architecture | None, where: str) -> tuple[Candidate, ...]:
    """The networks that a state dict may belong to; empty if it is none that is known.

    Args:
        state: as the file has it.
        stated: what the package says, if anything.
        where: for messages.

    Raises:
        ModelPackageError: if the package names a network of ours in a way that is none.
    """
    if stated is not None and (stated.callable, stated.import_from) == OURS:
        arguments = dict(stated.arguments)
        name = arguments.pop("name", None)
        if not isinstance(name, str):
            raise ModelPackageError(f"{where} names {'.'.join(OURS)} without the name of a network; give kwargs.name.")
        return (Candidate(NetworkSpec(name=name, arguments=arguments), state),)
    for form in _FORMS:
        found = _match(form, state)
        if found is not None:
            return found
    return ()


def unknown(state: Mapping[str, Tensor], where: str) -> ModelPackageError:
    """The error for a state dict of no known network."""
    first = ", ".join(shorten(name) for name in list(state)[:3])
    return ModelPackageError(
        f"{where} holds a network that is not known: its {len(state)} tensors begin with {first}. Known are {KNOWN}."
    )


def _match(form: _Form, state: Mapping[str, Tensor]) -> tuple[Candidate, ...] | None:
    """Candidates of ``zoo_unet``, or None if any name is not of this form."""
    patterns = {role: _pattern(getattr(form, role)) for role in ("contracting", "bottleneck", "up", "expanding", "head")}
    placed: dict[tuple[str, int, int], list[tuple[str, Tensor]]] = {}
    for name, tensor in state.items():
        layer, _, kind = name.rpartition(".")
        matches = [(role, match) for role, pattern in patterns.items() if (match := pattern.fullmatch(layer))]
        if kind not in ("weight", "bias") or len(matches) != 1:
            return None
        role, match = matches[0]
        groups = match.groupdict()
        placed.setdefault((role, int(groups.get("L") or 0), int(groups.get("I") or 0)), []).append((kind, tensor))
    levels = 1 + len({level for role, level, _ in placed if role == "contracting"})
    places = sorted({place for role, _, place in placed if role in ("contracting", "bottleneck", "expanding")})
    if len(places) != 2 or levels > networks.MAX_LEVELS or ("head", 0, 0) not in placed:
        return None
    renamed: dict[str, Tensor] = {}
    for (role, level, place), tensors in placed.items():
        part = {
            "contracting": f"contracting.{level}.",
            "bottleneck": f"contracting.{levels - 1}.",
            "up": f"ups.{level}.",
            "expanding": f"expanding.{level}.",
            "head": "head.",
        }[role]
        convolution = f"conv{1 + places.index(place)}." if role in ("contracting", "bottleneck", "expanding") else ""
        renamed |= {f"{part}{convolution}{kind}": tensor for kind, tensor in tensors}
    return _options(renamed, levels, has_norm=places[0] > 0)


def _options(state: dict[str, Tensor], levels: int, has_norm: bool) -> tuple[Candidate, ...] | None:
    """One candidate for each way in which the layers can be put together."""
    first, head = state.get("contracting.0.conv1.weight"), state.get("head.weight")
    if first is None or head is None or first.ndim not in (4, 5):
        return None
    arguments = {
        "in_channels": int(first.shape[1]),
        "classes": int(head.shape[0]),
        "base": int(first.shape[0]),
        "levels": levels,
        "dims": first.ndim - 2,
        "norm": "instance" if has_norm else "none",  # what stands before a convolution and has no weights
        "padding": "same",
    }
    orders = ("skip", "up") if levels > 1 else ("skip",)
    return tuple(
        Candidate(NetworkSpec(name="zoo_unet", arguments=arguments | {"first": order, "relus": relus}), state)
        for order, relus in product(orders, (1, 2))
    )


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(re.escape(text).replace("L", r"(?P<L>\d{1,3})").replace("I", r"(?P<I>\d{1,3})"))

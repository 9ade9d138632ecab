"""The layers of a traced network as functions of rows, which change nothing that other steps may read."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unet_core.networks.layers import crop_like, trim
from unet_core.operations import Trace

_MAKE_THEIR_OWN = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.BatchNorm2d, nn.BatchNorm3d)
_PASS_ON = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Dropout3d)


@dataclass(frozen=True)
class Layer:
    """A node of the traced graph as a function of its inputs by name.

    Args:
        call: the computation.
        into: the same, with its result in memory that the second argument gives for a tensor like the first and so many
            channels; None if the layer cannot.
        in_place: whether ``call`` gives its result in the memory of its input.
    """

    call: Callable[[dict[str, Tensor]], Tensor]
    into: Callable[[dict[str, Tensor], Callable[[Tensor, int], Tensor]], Tensor] | None = None
    in_place: bool = False


def layer_of(traced: Trace, node: torch.fx.Node) -> Layer:
    function: Any = node.target
    if node.op == "call_module":
        function = traced.graph.get_submodule(str(node.target))
        if getattr(function, "inplace", False) and not _is_fresh(traced, node.args[0]):
            function = copy.copy(function)
            function.inplace = False

    values_of = _reader(node.args)
    keywords_of = {name: _reader(value) for name, value in node.kwargs.items()}

    def arguments(values: dict[str, Tensor]) -> tuple[Any, Any]:
        return values_of(values), {name: read(values) for name, read in keywords_of.items()}

    def call(values: dict[str, Tensor]) -> Tensor:
        args, kwargs = arguments(values)
        result: Tensor = function(*args, **kwargs)
        return result

    if type(function) is nn.ReLU:

        def rectify(values: dict[str, Tensor], room: Callable[[Tensor, int], Tensor]) -> Tensor:
            value = arguments(values)[0][0]
            return torch.clamp_min(value, 0, out=room(value, value.shape[1]))

        return Layer(call, rectify, function.inplace)
    if function is torch.cat and (*node.args[1:], *node.kwargs.values()) == (1,):

        def join(values: dict[str, Tensor], room: Callable[[Tensor, int], Tensor]) -> Tensor:
            parts = arguments(values)[0][0]
            return torch.cat(parts, dim=1, out=room(parts[0], sum(part.shape[1] for part in parts)))

        return Layer(call, join)
    return Layer(call, in_place=getattr(function, "inplace", False))


def _reader(argument: Any) -> Callable[[dict[str, Tensor]], Any]:
    """An argument of a node as a function of the values by name; made once, since torch.fx's own way takes as long as a small layer."""
    if isinstance(argument, torch.fx.Node):
        name = argument.name
        return lambda values: values[name]
    if isinstance(argument, tuple | list):
        readers = [_reader(part) for part in argument]
        return lambda values: [read(values) for read in readers]
    return lambda values: argument


def _is_fresh(traced: Trace, value: Any) -> bool:
    """Whether a value has memory of its own and one reader, so that this one may change it in place."""
    if value.op != "call_module" or len(value.users) > 1:
        return False
    return isinstance(traced.graph.get_submodule(str(value.target)), _MAKE_THEIR_OWN)


def changes_for_others(traced: Trace, node: torch.fx.Node) -> bool:
    """Whether a layer changes its input in place that other steps read, too: these see the change in one pass, but not in rows."""
    if node.op != "call_module" or not getattr(traced.graph.get_submodule(str(node.target)), "inplace", False):
        return False
    value: Any = node.args[0]
    while _readers(value) == 1 and _may_be_its_input(traced, value):
        value = value.args[0]
    return _readers(value) > 1


def _readers(value: torch.fx.Node) -> int:
    """Nodes that read the samples of a value; of the reference of a crop only the size matters."""
    return sum(user.target is not crop_like or user.args[0] is value for user in value.users)


def _may_be_its_input(traced: Trace, value: torch.fx.Node) -> bool:
    """Whether a value may lie in the memory of what it was made of."""
    if value.op == "call_function":
        return value.target in (crop_like, trim)
    module: Any = traced.graph.get_submodule(str(value.target)) if value.op == "call_module" else None
    return isinstance(module, _PASS_ON) or getattr(module, "inplace", False)

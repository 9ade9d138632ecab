"""What each operation does to a row of samples along one axis: one table, read by everything that derives geometry.

Nothing here knows of sizes, boxes or images. Adding an operation is one rule and one line of ``RULES``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
from torch import nn
from torch.nn import functional

from unet_core.errors import FootprintError
from unet_core.networks.layers import ExactMaxPool, crop_like

PerAxis = tuple[int, ...]


@dataclass(frozen=True)
class Window:
    """Each output sample sees ``kernel`` input samples, ``dilation`` apart; windows begin ``stride`` apart."""

    kernel: PerAxis
    stride: PerAxis
    dilation: PerAxis


@dataclass(frozen=True)
class Expand:
    """Each input sample becomes ``factor`` output samples (a transposed convolution with kernel == stride)."""

    factor: PerAxis


@dataclass(frozen=True)
class Crop:
    """The first input, cut to where the second one has samples."""


@dataclass(frozen=True)
class Pointwise:
    """Sample for sample; several inputs must lie on the same positions."""


Operation = Window | Expand | Crop | Pointwise
Rule = Callable[[str, Any, int], Operation]


@dataclass(frozen=True)
class Step:
    """One operation of a traced network: its name, the names of its inputs, and what it does."""

    name: str
    inputs: tuple[str, ...]
    operation: Operation


@dataclass(frozen=True)
class Trace:
    """A network as a list of steps; ``graph`` is the torch.fx module that executes them.

    Args:
        dims: number of spatial axes.
        source: name of the input.
        steps: in order of execution.
        result: name of the step whose value is returned.
        graph: the traced module.
    """

    dims: int
    source: str
    steps: tuple[Step, ...]
    result: str
    graph: torch.fx.GraphModule


def _per_axis(value: int | tuple[int, ...], dims: int) -> PerAxis:
    return (value,) * dims if isinstance(value, int) else tuple(value)


def _convolution(name: str, module: Any, dims: int) -> Operation:
    if module.padding != "valid" and any(_per_axis(module.padding, dims) if module.padding != "same" else (1,)):
        kernel = module.kernel_size
        if not (module.padding == "same" and set(kernel) == {1}):
            raise FootprintError(
                f"Layer '{name}' pads its input (padding={module.padding!r}), so its result would depend on where a block ends; "
                "build the network with padding='valid', which has the same weights."
            )
    return Window(module.kernel_size, module.stride, module.dilation)


def _pooling(name: str, module: Any, dims: int) -> Operation:
    kernel = _per_axis(module.kernel_size, dims)
    stride = _per_axis(getattr(module, "stride", kernel), dims)
    if any(_per_axis(getattr(module, "padding", 0), dims)):
        raise FootprintError(f"Layer '{name}' pads its input (padding={module.padding}); use a pooling without padding.")
    return Window(kernel, stride, _per_axis(getattr(module, "dilation", 1), dims))


def _transposed(name: str, module: Any, dims: int) -> Operation:
    plain = set(module.padding) | set(module.output_padding) == {0} and set(module.dilation) == {1}
    if not plain or tuple(module.kernel_size) != tuple(module.stride):
        raise FootprintError(
            f"Layer '{name}' is a transposed convolution of kernel {module.kernel_size} and stride {module.stride}; "
            "only kernel == stride without padding has a rule."
        )
    return Expand(module.stride)


def _crop(name: str, module: Any, dims: int) -> Operation:
    return Crop()


def _pointwise(name: str, module: Any, dims: int) -> Operation:
    return Pointwise()


def _batch_norm(name: str, module: Any, dims: int) -> Operation:
    if module.training or not module.track_running_stats:
        raise FootprintError(
            f"Layer '{name}' normalises by the statistics of each batch, so its result would depend on the block; "
            "call .eval() on a network that tracks running statistics."
        )
    return Pointwise()


RULES: dict[Any, Rule] = {
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.ConvTranspose2d: _transposed,
    nn.ConvTranspose3d: _transposed,
    ExactMaxPool: _pooling,
    nn.MaxPool2d: _pooling,
    nn.MaxPool3d: _pooling,
    nn.AvgPool2d: _pooling,
    nn.AvgPool3d: _pooling,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
    nn.ReLU: _pointwise,
    nn.LeakyReLU: _pointwise,
    nn.ELU: _pointwise,
    nn.PReLU: _pointwise,
    nn.Sigmoid: _pointwise,
    nn.Identity: _pointwise,
    nn.Dropout: _pointwise,
    nn.Dropout2d: _pointwise,
    nn.Dropout3d: _pointwise,
    crop_like: _crop,
    functional.relu: _pointwise,
    torch.relu: _pointwise,
    torch.sigmoid: _pointwise,
    torch.cat: _pointwise,
    torch.add: _pointwise,
    torch.mul: _pointwise,
    operator.add: _pointwise,
    operator.mul: _pointwise,
}


class _Tracer(torch.fx.Tracer):
    def __init__(self) -> None:
        super().__init__(autowrap_functions=(crop_like,))

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return type(module) in RULES or super().is_leaf_module(module, qualified_name)


def trace(network: nn.Module) -> Trace:
    """The operations of a network, each looked up in ``RULES``.

    Args:
        network: in evaluation mode, with one input and one output.

    Raises:
        FootprintError: naming the first layer that has no rule, or whose result depends on the whole box.
    """
    dims = _spatial_dims(network)
    tracer = _Tracer()
    graph = tracer.trace(network)
    steps: list[Step] = []
    source = result = ""
    for node in graph.nodes:
        if node.op == "placeholder":
            if source:
                raise FootprintError(f"{type(network).__name__} has more than one input ('{source}', '{node.name}'); use one.")
            source = node.name
        elif node.op == "output":
            if not isinstance(node.args[0], torch.fx.Node):
                raise FootprintError(f"{type(network).__name__} returns more than one value; return the logits alone.")
            result = node.args[0].name
        else:
            inputs = tuple(parent.name for parent in node.all_input_nodes)
            steps.append(Step(node.name, inputs, _operation(network, node, dims)))
    return Trace(dims, source, tuple(steps), result, torch.fx.GraphModule(network, graph))


def _operation(network: nn.Module, node: torch.fx.Node, dims: int) -> Operation:
    if node.op == "call_module":
        module: Any = network.get_submodule(str(node.target))
        key: Any = type(module)
        label, name = type(module).__name__, str(node.target)
    else:
        module, key, label, name = node, node.target, str(getattr(node.target, "__name__", node.target)), node.name
    if key not in RULES:
        raise FootprintError(
            f"Layer '{name}' ({label}) has no rule, so the result might depend on how the image is cut; "
            "layers that look at the whole box (InstanceNorm, GroupNorm, global pooling) never have one."
        )
    return RULES[key](name, module, dims)


def _spatial_dims(network: nn.Module) -> int:
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            return 2
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            return 3
    raise FootprintError(f"{type(network).__name__} has no convolution, so its number of spatial axes is not known.")

"""What each operation does to a row of samples along one axis: one table, read by everything that derives geometry.

Nothing here knows of sizes, boxes or images. Adding an operation is one rule and one line of ``RULES``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.fx
from torch import nn
from torch.nn import functional

from unet_core.errors import FootprintError
from unet_core.networks.layers import ExactMaxPool, Upsample, crop_like, trim
from unet_core.operations import Crop, Expand, Interpolate, Operation, Pointwise, Step, Trace, Trim, Window

Rule = Callable[[str, Any, int], Operation]


def _per_axis(value: Any, dims: int) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,) * dims


def _convolution(name: str, module: Any, dims: int) -> Operation:
    reach = tuple(step * (size - 1) for step, size in zip(module.dilation, module.kernel_size, strict=True))
    if module.padding == "valid":
        before = after = (0,) * dims
    elif module.padding == "same":  # torch puts the odd one at the end
        before, after = tuple(size // 2 for size in reach), tuple(size - size // 2 for size in reach)
    else:
        before = after = _per_axis(module.padding, dims)
    return Window(module.kernel_size, module.stride, module.dilation, before, after)


def _pooling(name: str, module: Any, dims: int) -> Operation:
    kernel = _per_axis(module.kernel_size, dims)
    stride = _per_axis(getattr(module, "stride", kernel), dims)
    padding = _per_axis(getattr(module, "padding", 0), dims)
    if getattr(module, "ceil_mode", False):
        raise FootprintError(
            f"Layer '{name}' pools in ceil mode, so its windows at the end of a block are cut off; use ceil_mode=False."
        )
    return Window(kernel, stride, _per_axis(getattr(module, "dilation", 1), dims), padding, padding)


def _transposed(name: str, module: Any, dims: int) -> Operation:
    if set(module.dilation) != {1}:
        raise FootprintError(f"Layer '{name}' is a transposed convolution of dilation {module.dilation}; only 1 has a rule.")
    after = tuple(size - more for size, more in zip(module.padding, module.output_padding, strict=True))
    return Expand(module.kernel_size, module.stride, tuple(module.padding), after)


def _linear_upsampling(name: str, module: Any, dims: int) -> Operation:
    crop = tuple(size // 2 for size in module.factor) if module.crop else (0,) * dims
    return Interpolate(module.factor, crop)


def _upsampling(name: str, module: Any, dims: int) -> Operation:
    factors = _per_axis(module.scale_factor, dims) if module.scale_factor is not None else ()
    whole = tuple(int(factor) for factor in factors)
    if module.size is not None or tuple(factors) != whole:
        raise FootprintError(
            f"Layer '{name}' resizes to {module.size or factors}; use a whole scale_factor, which does not depend on the box."
        )
    if module.mode == "nearest":
        return Expand(whole, whole, (0,) * dims, (0,) * dims)
    if module.mode not in ("linear", "bilinear", "trilinear") or module.align_corners:
        raise FootprintError(
            f"Layer '{name}' upsamples by '{module.mode}' with align_corners={module.align_corners}, "
            "whose weights depend on the size of the box; use linear with align_corners=False."
        )
    return Interpolate(whole, (0,) * dims)


def _crop(name: str, node: Any, dims: int) -> Operation:
    return Crop(node.kwargs.get("start", node.args[2] if len(node.args) > 2 else None))


def _trim(name: str, node: Any, dims: int) -> Operation:
    count = node.args[1] if len(node.args) > 1 else node.kwargs["count"]
    return Trim(_per_axis(count, dims))


def _pointwise(name: str, module: Any, dims: int) -> Operation:
    return Pointwise()


def _over_channels(name: str, module: Any, dims: int) -> Operation:
    """Concatenation and soft-max: sample for sample if along the channels."""
    is_call = isinstance(module, torch.fx.Node)
    axis = module.kwargs.get("dim", module.args[1] if len(module.args) > 1 else None) if is_call else module.dim
    if axis not in (1, -dims - 1):
        raise FootprintError(f"Layer '{name}' joins along axis {axis}, which would mix positions; use axis 1, the channels.")
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
    Upsample: _linear_upsampling,
    nn.Upsample: _upsampling,
    crop_like: _crop,
    trim: _trim,
    functional.relu: _pointwise,
    torch.relu: _pointwise,
    torch.sigmoid: _pointwise,
    torch.cat: _over_channels,
    torch.softmax: _over_channels,
    functional.softmax: _over_channels,
    nn.Softmax: _over_channels,
    torch.add: _pointwise,
    torch.mul: _pointwise,
    operator.add: _pointwise,
    operator.mul: _pointwise,
}


class _Tracer(torch.fx.Tracer):
    def __init__(self) -> None:
        super().__init__(autowrap_functions=(crop_like, trim))

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

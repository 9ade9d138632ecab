"""What each operation does to a row of samples along one axis: one table, read by everything that derives geometry.

Nothing here knows of sizes, boxes or images. Adding an operation is one rule and one line of ``RULES``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx
from torch import nn
from torch.nn import functional

from unet_core.errors import FootprintError
from unet_core.networks.layers import ExactMaxPool, Upsample, crop_like, trim
from unet_core.operations import (
    Collapse,
    Crop,
    Expand,
    Interpolate,
    Operation,
    Pointwise,
    Step,
    Trace,
    Trim,
    Window,
    depends_on_box,
)

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
    return Pointwise(broadcasts=False)


def _tracked_norm(name: str, module: Any, dims: int) -> Operation:
    """Batch or instance normalisation: by running statistics, or, where none are tracked, by those of the box."""
    if module.training:
        raise FootprintError(
            f"Layer '{name}' normalises by the statistics of each batch while it is trained; call .eval() on the network first."
        )
    return Pointwise(whole_box=not module.track_running_stats)


def _group_norm(name: str, module: Any, dims: int) -> Operation:
    return Pointwise(whole_box=True)


def _global_pooling(name: str, module: Any, dims: int) -> Operation:
    is_call = isinstance(module, torch.fx.Node)
    size = module.kwargs.get("output_size", module.args[1] if len(module.args) > 1 else None) if is_call else module.output_size
    if set(_per_axis(size, dims)) != {1}:
        raise FootprintError(
            f"Layer '{name}' pools to {size} samples, whose windows depend on the size of the box; only pooling to 1 has a rule."
        )
    return Collapse()


def _mean(name: str, node: Any, dims: int) -> Operation:
    """The mean over all spatial axes is global pooling, over the channels it is sample for sample."""
    axes = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    keeps = node.kwargs.get("keepdim", node.args[2] if len(node.args) > 2 else False)
    over = {axis % (dims + 2) for axis in ((axes,) if isinstance(axes, int) else axes or ())}
    if keeps and over == {1}:
        return Pointwise()
    if keeps and over == set(range(2, dims + 2)):
        return Collapse()
    raise FootprintError(
        f"Layer '{name}' takes the mean over axes {axes} with keepdim={keeps}; only over axis 1, or over all spatial axes, with "
        "keepdim=True has it a rule."
    )


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
    nn.BatchNorm2d: _tracked_norm,
    nn.BatchNorm3d: _tracked_norm,
    nn.InstanceNorm2d: _tracked_norm,
    nn.InstanceNorm3d: _tracked_norm,
    nn.GroupNorm: _group_norm,
    nn.AdaptiveAvgPool2d: _global_pooling,
    nn.AdaptiveAvgPool3d: _global_pooling,
    nn.AdaptiveMaxPool2d: _global_pooling,
    nn.AdaptiveMaxPool3d: _global_pooling,
    functional.adaptive_avg_pool2d: _global_pooling,
    functional.adaptive_avg_pool3d: _global_pooling,
    torch.mean: _mean,
    "mean": _mean,  # the method of a tensor
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


def trace(network: nn.Module, approximate: bool = False) -> Trace:
    """The operations of a network, each looked up in ``RULES``.

    Args:
        network: in evaluation mode, with one input and one output.
        approximate: allow layers whose result depends on the whole box, and list them in ``Trace.whole_box``.

    Raises:
        FootprintError: naming the first layer that has no rule, or, unless ``approximate``, depends on the whole box.
    """
    dims = _spatial_dims(network)
    tracer = _Tracer()
    graph = tracer.trace(network)
    steps: list[Step] = []
    whole_box: list[str] = []
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
            layer, operation = _operation(network, node, dims)
            steps.append(Step(node.name, inputs, operation))
            if depends_on_box(operation):
                whole_box.append(layer)
    whole_box = list(dict.fromkeys(whole_box))
    if whole_box and not approximate:
        raise FootprintError(refusal(whole_box))
    return Trace(dims, source, tuple(steps), result, torch.fx.GraphModule(network, graph), tuple(whole_box))


def refusal(whole_box: Sequence[str]) -> str:
    """Why a network with such layers is not run, and what to do."""
    more = f" (and {len(whole_box) - 1} more)" if len(whole_box) > 1 else ""
    return (
        f"Layer {whole_box[0]}{more} looks at the whole box, so the result would depend on how the image is cut; use a network that "
        "normalises by running statistics, or --approximate, which runs it in tiles of fixed position."
    )


def _operation(network: nn.Module, node: torch.fx.Node, dims: int) -> tuple[str, Operation]:
    """A layer as "'name' (type)", and what it does."""
    if node.op == "call_module":
        module: Any = network.get_submodule(str(node.target))
        key: Any = type(module)
        label, name = type(module).__name__, str(node.target)
    else:
        module, key, label, name = node, node.target, str(getattr(node.target, "__name__", node.target)), node.name
    if key not in RULES:
        raise FootprintError(
            f"Layer '{name}' ({label}) has no rule, so the result might depend on how the image is cut; "
            "write it with layers that have one, or add its rule to unet_core/rules.py."
        )
    return f"'{name}' ({label})", RULES[key](name, module, dims)


def _spatial_dims(network: nn.Module) -> int:
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            return 2
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            return 3
    raise FootprintError(f"{type(network).__name__} has no convolution, so its number of spatial axes is not known.")

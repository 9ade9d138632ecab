"""How weights change: optimisers, learning rates, and a moving average of the weights. Knows no data.

The learning rate is a function of the step, so that nothing of it has to be stored.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from unet_core.training.options import OptimiserOptions

FACTOR = "rate_factor"  # of a group of parameters


def make_optimiser(network: nn.Module, options: OptimiserOptions) -> torch.optim.Optimizer:
    """The optimiser of all trainable parameters; biases and normalisation (one axis) do not decay."""
    named = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [each for _, each in named if each.dim() > 1], "weight_decay": options.weight_decay, FACTOR: 1.0},
        {"params": [each for name, each in named if each.dim() <= 1 and not _is_bias(name)], "weight_decay": 0.0, FACTOR: 1.0},
        {
            "params": [each for name, each in named if each.dim() <= 1 and _is_bias(name)],
            "weight_decay": 0.0,
            FACTOR: options.bias_rate,
        },
    ]
    groups = [group for group in groups if group["params"]]
    match options.kind:
        case "adamw":
            return torch.optim.AdamW(groups, lr=options.rate)
        case "adam":
            return torch.optim.Adam(groups, lr=options.rate)
        case "sgd":
            return torch.optim.SGD(groups, lr=options.rate, momentum=options.momentum)
        case "rmsprop":
            return torch.optim.RMSprop(groups, lr=options.rate, momentum=options.momentum)


def _is_bias(name: str) -> bool:
    return name.rpartition(".")[2] == "bias"


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """The rate of the next step; biases have their multiple of it."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group[FACTOR]


def learning_rate(options: OptimiserOptions, step: int, steps: int) -> float:
    """The rate of step ``step`` (from 0) of ``steps``."""
    match options.schedule:
        case "constant":
            return options.rate
        case "step":
            return options.rate * options.decay_factor ** (step // options.decay_steps)
        case "cosine":
            warmup = min(options.warmup_steps, steps // 2)
            if step < warmup:
                return options.rate * (step + 1) / warmup
            return options.rate * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimiser by name: ``<parameter's number>.<name>``."""
    return {
        f"{number}.{name}": torch.as_tensor(value)
        for number, entry in optimiser.state_dict()["state"].items()
        for name, value in entry.items()
        if value is not None
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put a stored state back."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = tensor
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


class MovingAverage:
    """Exponential moving average of a network's state; what is no float is the latest.

    The first steps count more, so that the average soon forgets the weights it began with.

    Args:
        network: whose state it begins with.
        decay: share of the old average at every step, (1 + n) / (10 + n) at most after n steps.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take in the state after a step, whose number (from 0) is given."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                self.state[name].lerp_(tensor, share)
            else:
                self.state[name].copy_(tensor)

"""What changes while a network learns, as named tensors of a checkpoint, and back. Knows no files."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unet_core.training.optimiser import MovingAverage, optimiser_tensors, restore_optimiser

_NETWORK, _OPTIMISER, _AVERAGE = "network.", "optimiser.", "average."


def state_tensors(network: nn.Module, optimiser: torch.optim.Optimizer, average: MovingAverage | None) -> dict[str, Tensor]:
    """Weights, statistics, the optimiser's state and the moving average, by name."""
    tensors = {f"{_NETWORK}{name}": tensor for name, tensor in network.state_dict().items()}
    tensors |= {f"{_OPTIMISER}{name}": tensor for name, tensor in optimiser_tensors(optimiser).items()}
    if average is not None:
        tensors |= {f"{_AVERAGE}{name}": tensor for name, tensor in average.state.items()}
    return tensors


def restore_state(
    tensors: dict[str, Tensor],
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    average: MovingAverage | None,
    device: torch.device,
) -> None:
    """Put the state of a checkpoint back into what it came from."""
    network.load_state_dict(_part(tensors, _NETWORK))
    restore_optimiser(optimiser, _part(tensors, _OPTIMISER))
    if average is not None:
        average.state = {name: tensor.to(device) for name, tensor in _part(tensors, _AVERAGE).items()}


def model_state(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights that a model is made of: the moving average where there is one."""
    return _part(tensors, _AVERAGE) or _part(tensors, _NETWORK)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

"""Beginning with the weights of another model, and keeping a part of them. Knows no data."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from unet_core.errors import JobError

# Parts of the networks of NETWORKS that lie on the contracting path, the bottleneck included; all others belong to the expanding one.
ENCODER = ("stem", "first", "contracting", "downs", "bottleneck", "stages", "classifier")


def inherited(network: nn.Module, parent: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """What a network takes over from a parent, and what begins afresh.

    Args:
        network: with initial weights, or on the meta device.
        parent: state of a trained network of the same kind, e.g. with other channels or classes.

    Returns:
        The parent's tensors of the same name and shape, and the names of all others of ``network``.

    Raises:
        JobError: if the parent has no tensor that fits.
    """
    own = network.state_dict()
    taken = {name: parent[name] for name, tensor in own.items() if name in parent and parent[name].shape == tensor.shape}
    parameters = {name for name, _ in network.named_parameters()}
    if not parameters & taken.keys():
        raise JobError("--init: no tensor of that model fits the network to train; give the same network, or train from scratch.")
    return taken, tuple(name for name in own if name not in taken)


def freeze(network: nn.Module, part: Literal["encoder"] | None) -> tuple[str, ...]:
    """Let a part of a network keep its weights and statistics; names of the parameters that are still trained.

    Args:
        network: changed in place.
        part: "encoder", the contracting path; None for nothing.
    """
    if part == "encoder":
        for name, module in network.named_children():
            if name in ENCODER:
                module.requires_grad_(False)
    return tuple(name for name, parameter in network.named_parameters() if parameter.requires_grad)


def train_mode(network: nn.Module) -> None:
    """Training mode, but for frozen normalisation layers: their statistics stay those of the parent."""
    network.train()
    for module in network.modules():
        if isinstance(module, _BatchNorm) and module.weight is not None and not module.weight.requires_grad:
            module.eval()

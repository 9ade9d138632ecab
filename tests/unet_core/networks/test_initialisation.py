"""Initial weights have the spread that each paper states, so that the variance of activations stays from layer to layer."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from unet_core import networks
from unet_core.networks.initialisation import initialise


def spread(layer: nn.Module) -> float:
    return float(layer.weight.detach().std())  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("law", ["incoming", "uniform"])
@pytest.mark.parametrize(
    ("layer", "incoming"),
    [
        (nn.Conv2d(64, 32, 3), 576),  # the example of the U-Net paper
        (nn.ConvTranspose2d(64, 32, 2, stride=2), 64),
        (nn.ConvTranspose3d(32, 16, 3, stride=2), 32 * 27 // 8),
        (nn.Conv2d(64, 64, 3, groups=8), 72),
    ],
)
def test_incoming_connections_decide(layer: nn.Module, incoming: int, law: str) -> None:
    torch.manual_seed(0)
    initialise(layer, law)  # type: ignore[arg-type]
    assert spread(layer) == pytest.approx(math.sqrt(2 / incoming), rel=0.05)
    assert (layer.weight.abs().max() <= math.sqrt(6 / incoming)) == (law == "uniform")  # type: ignore[union-attr, operator]


def test_each_network_has_the_law_of_its_paper() -> None:
    torch.manual_seed(0)
    channels = {"in_channels": 1, "classes": 2}
    unet = networks.build("unet", **channels, base=32, levels=2)
    assert spread(unet.contracting[1][0]) == pytest.approx(math.sqrt(2 / (32 * 9)), rel=0.05)  # type: ignore[index]
    residual = networks.build("resunet", **channels, base=32, units=(1, 1))
    assert spread(residual.contracting[1][0].conv1) == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.05)  # type: ignore[index, union-attr]
    dense = networks.build("fc_densenet", **channels, layers=(2, 2, 2), growth=32)
    weight = dense.bottleneck.layers[1][2].weight.detach()  # type: ignore[index, union-attr]
    assert float(weight.abs().max()) == pytest.approx(math.sqrt(6 / (weight.shape[1] * 9)), rel=0.01)


def test_variance_stays_through_a_deep_network() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(*(part for _ in range(20) for part in (nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())))
    initialise(layers)
    image = torch.randn(1, 32, 64, 64)
    with torch.no_grad():
        assert 0.2 < float(layers(image).pow(2).mean()) / 0.5 < 5
        for layer in layers[::2]:
            layer.weight.mul_(math.sqrt(0.5))  # without the 2 of the formula
        assert float(layers(image).pow(2).mean()) < 1e-4

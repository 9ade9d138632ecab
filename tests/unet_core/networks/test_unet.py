from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.conftest import random_network
from unet_core import networks
from unet_core.errors import GridError, ModelPackageError
from unet_core.footprint import footprint


@pytest.mark.parametrize(
    ("channels", "classes", "count"), [(1, 2, 31_030_658), (1, 1, 31_030_593), (3, 2, 31_031_810), (3, 1, 31_031_745)]
)
def test_parameters_are_those_of_the_paper(channels: int, classes: int, count: int) -> None:
    with torch.device("meta"):
        network = networks.build("unet", in_channels=channels, classes=classes)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


@pytest.mark.parametrize(("size", "expected"), [(188, 4), (444, 260), (572, 388), (700, 516)])
def test_output_sizes_are_those_of_the_paper(size: int, expected: int) -> None:
    network = random_network(in_channels=1, classes=2, base=1, levels=5)
    with torch.inference_mode():
        assert network(torch.zeros(1, 1, size, 188)).shape == (1, 2, expected, 4)


def test_an_illegal_size_is_an_error_and_not_floored() -> None:
    network = random_network(in_channels=1, classes=2, base=1, levels=5)
    with pytest.raises(GridError, match="do not divide"):
        network(torch.zeros(1, 1, 696, 696))


def test_forward_equals_the_formula_written_out() -> None:
    network = random_network(in_channels=2, classes=3, base=2, levels=2)
    weights = dict(network.named_parameters())

    def stage(value: torch.Tensor, name: str) -> torch.Tensor:
        for layer in (0, 2):
            value = functional.relu(functional.conv2d(value, weights[f"{name}.{layer}.weight"], weights[f"{name}.{layer}.bias"]))
        return value

    image = torch.randn(1, 2, 20, 24)
    skip = stage(image, "contracting.0")
    deep = stage(functional.max_pool2d(skip, 2), "contracting.1")
    up = functional.conv_transpose2d(deep, weights["ups.0.weight"], weights["ups.0.bias"], stride=2)
    crop = skip[:, :, 4:-4, 4:-4]
    joined = torch.cat([up, crop], dim=1)
    expected = functional.conv2d(stage(joined, "expanding.0"), weights["head.weight"], weights["head.bias"])
    torch.testing.assert_close(network(image), expected)
    assert expected.std() > 0


def test_initial_weights_have_the_variance_of_he() -> None:
    network = networks.build("unet", in_channels=1, classes=2, base=32, levels=3)
    checked = 0
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            incoming = (
                module.in_channels
                if isinstance(module, nn.ConvTranspose2d)
                else module.in_channels * math.prod(module.kernel_size)
            )
            if module.weight.numel() > 5000:
                assert float(module.weight.detach().std()) == pytest.approx(math.sqrt(2 / incoming), rel=0.05)
                checked += 1
            assert module.bias is not None
            assert not module.bias.any()
    assert checked > 5


def test_dropout_closes_the_contracting_path_only() -> None:
    network = networks.build("unet", in_channels=1, classes=2, base=2, levels=4, dropout=0.5)
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Dropout)]
    assert [name.rpartition(".")[0] for name in names] == ["contracting.2", "contracting.3"]
    image = torch.randn(1, 1, 92, 92)
    assert not torch.equal(network.train()(image), network(image))
    assert torch.equal(network.eval()(image), network(image))


@pytest.mark.parametrize("levels", [2, 3, 4])
def test_padded_form_agrees_after_a_shift_by_phase_and_only_then(levels: int) -> None:
    arguments = {"in_channels": 1, "classes": 2, "base": 4, "levels": levels}
    valid = random_network(**arguments).double()
    same = networks.build("unet", padding="same", **arguments).eval().double()
    same.load_state_dict(valid.state_dict())
    geometry = footprint(valid)
    stride, phase = geometry.stride[0], geometry.phase[0]
    before = geometry.before[0]
    assert phase is not None
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 1, 12 * stride + 4 * before, 12 * stride + 4 * before)))
    image = image[..., : image.shape[-1] // stride * stride, : image.shape[-1] // stride * stride]
    with torch.inference_mode():
        padded = same(image)
        agreeing = []
        for shift in range(stride):
            start = 2 * before // stride * stride + stride + shift  # of the write box
            size = geometry.legal_shape((2 * before + 2 * stride,) * 2)[0]
            read = image[..., start - before : start - before + size, start - before : start - before + size]
            found = valid(read)
            wanted = padded[..., start : start + found.shape[-1], start : start + found.shape[-1]]
            if torch.allclose(found, wanted, atol=1e-9):
                agreeing.append(shift)
    assert agreeing == [phase]


def test_anisotropic_kernels_and_poolings_are_used() -> None:
    network = random_network(
        in_channels=1,
        classes=2,
        base=2,
        levels=3,
        dims=3,
        kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
        poolings=((1, 2, 2), (2, 2, 2)),
    )
    geometry = footprint(network)
    shape = geometry.legal_shape((1, 1, 1))
    with torch.inference_mode():
        assert network(torch.zeros(1, 1, *shape)).shape[2:] == geometry.output_shape(shape)
    assert geometry.stride == (2, 4, 4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kernels": ((2, 2), (3, 3))}, "even size"),
        ({"kernels": ((3, 3),)}, "needs 2 tuples"),
        ({"dims": 4}, "dims 2 or 3"),
        ({"padding": "reflect"}, "'valid' or 'same'"),
        ({"bass": 3}, "did you mean 'base'"),
    ],
)
def test_arguments_that_describe_no_network_are_refused(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ModelPackageError, match=words):
        networks.build("unet", **({"in_channels": 1, "classes": 2, "base": 2, "levels": 2} | arguments))

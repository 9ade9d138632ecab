"""What every network of the table promises, in 2D and 3D: its derived geometry is the measured one, and any cut gives one pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import random_network
from tests.unet_core.test_footprint import check_any_cut, check_dependency
from unet_core import networks
from unet_core.errors import ModelPackageError
from unet_core.fold import fold
from unet_core.footprint import footprint
from unet_core.networks import NETWORKS
from unet_core.networks.layers import CONVOLUTION, Upsample, crop_like

# A network of the table is one line here: arguments small enough to measure.
SMALL: dict[str, list[dict[str, Any]]] = {
    "unet": [{"levels": 3}, {"levels": 2, "batch_norm": True}],
    "unet3d": [{"levels": 3}, {"levels": 2}],
    "resunet": [{"units": (1, 2)}, {"units": (2, 1, 1)}, {"units": (1, 1), "pre_activation": False}],
    "attention_unet": [{"levels": 3}, {"levels": 3, "gates": 2}, {"levels": 2, "gates": 0}],
    "fc_densenet": [{"layers": (1, 2, 1), "growth": 2}, {"layers": (1, 1, 2, 1, 2), "growth": 2}],
    "fcn": [
        {"stages": (1, 1), "skips": 1, "hidden": 4, "window": 3},
        {"stages": (1, 2, 1), "skips": 1, "hidden": 4, "window": 3},
    ],
    "vnet": [{"depths": ((1, 2), (1,)), "kernel": 3}, {"depths": ((1, 1, 2), (2, 1)), "kernel": 3}, {"depths": ((1, 2), (1,))}],
    "zoo_unet": [{"levels": 3}, {"levels": 2, "first": "up", "relus": 2}],
}
# In 3D the first of each: the rules know no number of axes, and measuring takes long.
CASES = [
    (name, dims, arguments) for name, every in SMALL.items() for dims in (2, 3) for arguments in every[: 4 if dims == 2 else 1]
]
CASE_IDS = [f"{name}-{dims}d-{number}" for number, (name, dims, _) in enumerate(CASES)]
MUTANTS = ("zeros in the outer quarter", "start off by one")
SHAPES = {2: (67, 45), 3: (13, 22, 17)}


def build(name: str, dims: int, padding: str = "valid", base: int = 2, **arguments: Any) -> torch.nn.Module:
    return random_network(network=name, in_channels=1, classes=2, base=base, dims=dims, padding=padding, **arguments)


def block_shape(stride: tuple[int, ...], dims: int) -> tuple[int, ...]:
    """Odd multiples of the stride, unequal."""
    return tuple(step * count for step, count in zip(stride, (3, 5, 4)[-dims:] if dims == 2 else (1, 3, 2), strict=True))


def test_every_network_is_covered() -> None:
    assert set(SMALL) == set(NETWORKS)


@pytest.mark.parametrize(("name", "dims", "arguments"), CASES, ids=CASE_IDS)
def test_derived_footprint_is_the_measured_dependency(name: str, dims: int, arguments: dict[str, Any]) -> None:
    network = build(name, dims, base=1, **arguments)
    check_dependency(network, footprint(network))


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(("name", "dims", "arguments"), CASES, ids=CASE_IDS)
def test_any_cut_gives_one_pass(name: str, dims: int, arguments: dict[str, Any], padding: str) -> None:
    network = build(name, dims, padding, base=4, **arguments)
    geometry = footprint(network)
    assert geometry.is_padded == (padding == "same")
    image = np.random.default_rng(1).normal(size=(1, *SHAPES[dims])).astype(np.float32)
    check_any_cut(network, image, block_shape(geometry.stride, dims))


class Toy(torch.nn.Module):
    """Adding a network is one class and one line of the table: dilation, strides, an additive skip, and another upsampling."""

    def __init__(self, in_channels: int, classes: int, base: int, dims: int, padding: str) -> None:
        super().__init__()
        convolution = CONVOLUTION[dims]
        self.wide = convolution(in_channels, base, 3, dilation=2, padding=2 * (padding == "same"))
        self.down = convolution(base, base, 2, stride=2)
        self.deep = convolution(base, base, 3, padding=padding)
        self.up = Upsample((2,) * dims, crop=padding == "valid")
        self.head = convolution(base, classes, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        fine = torch.relu(self.wide(image))
        coarse = self.up(torch.relu(self.deep(self.down(fine))))
        logits: torch.Tensor = self.head(coarse + crop_like(fine, coarse))
        return logits


@pytest.mark.parametrize("dims", [2, 3])
def test_a_network_of_ones_own_keeps_the_same_promises(dims: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "toy", f"{__name__}:Toy")
    test_derived_footprint_is_the_measured_dependency("toy", dims, {})
    for padding in ("valid", "same"):
        test_any_cut_gives_one_pass("toy", dims, {}, padding)
    test_padded_form_agrees_after_a_shift_by_phase_and_only_then("toy", dims, {})
    for mutant in MUTANTS:
        test_a_wrong_margin_or_start_is_seen("toy", dims, {}, mutant)
    test_folding_batch_normalisation_changes_nothing("toy", dims, {})


@pytest.mark.parametrize(("name", "dims", "arguments"), CASES, ids=CASE_IDS)
def test_folding_batch_normalisation_changes_nothing(name: str, dims: int, arguments: dict[str, Any]) -> None:
    network = build(name, dims, base=4, **arguments)
    folded = fold(network)
    shape = footprint(network).legal_shape((1,) * dims)
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 1, *shape)).astype(np.float32))
    with torch.inference_mode():
        before, after = network(image), folded(image)
    assert (after - before).abs().max() <= 1e-5 * (before.max() - before.min())
    norms = [sum("BatchNorm" in type(module).__name__ for module in part.modules()) for part in (network, folded)]
    if name in ("unet3d", "attention_unet") or arguments.get("batch_norm"):
        assert norms[0] > norms[1] == 0


class Twice(torch.nn.Module):
    """One convolution, called twice, each call with a normalisation of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = CONVOLUTION[2](2, 2, 3)
        self.first, self.second = torch.nn.BatchNorm2d(2), torch.nn.BatchNorm2d(2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.second(self.conv(self.first(self.conv(image))))
        return result


def test_a_convolution_that_is_used_twice_is_not_folded() -> None:
    torch.manual_seed(0)
    network = Twice()
    for norm in (network.first, network.second):
        torch.nn.init.normal_(norm.running_mean)  # type: ignore[arg-type]
    network.eval()
    image = torch.randn(1, 2, 9, 11)
    torch.testing.assert_close(fold(network)(image), network(image))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("fc_densenet", {"layers": [1] * 31}),
        ("fc_densenet", {"layers": [2000]}),
        ("fcn", {"stages": [1] * 20, "skips": 19}),
        ("resunet", {"units": []}),
        ("vnet", {"depths": [[1] * 20, [1] * 19]}),
        ("unet3d", {"levels": 10**6}),
    ],
)
def test_networks_that_could_not_be_traced_are_refused_at_once(name: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ModelPackageError, match="at most|is empty"):
        networks.build(name, in_channels=1, classes=2, **arguments)


@pytest.mark.parametrize("mutant", MUTANTS)
@pytest.mark.parametrize(("name", "dims", "arguments"), CASES, ids=CASE_IDS)
def test_a_wrong_margin_or_start_is_seen(name: str, dims: int, arguments: dict[str, Any], mutant: str) -> None:
    network = build(name, dims, base=4, **arguments)
    image = np.random.default_rng(1).normal(size=(1, *SHAPES[dims])).astype(np.float32)
    with pytest.raises(AssertionError):
        check_any_cut(network, image, block_shape(footprint(network).stride, dims), mutant)


@pytest.mark.parametrize(("name", "dims", "arguments"), CASES, ids=CASE_IDS)
def test_padded_form_agrees_after_a_shift_by_phase_and_only_then(name: str, dims: int, arguments: dict[str, Any]) -> None:
    valid, same = (build(name, dims, padding, base=4, **arguments) for padding in ("valid", "same"))
    same.load_state_dict(valid.state_dict())
    geometry, padded = footprint(valid), footprint(same)
    assert geometry.phase[0] is not None
    stride = geometry.stride[0]
    side = 3 * max(*geometry.before, *padded.before) + 4 * stride
    image = np.random.default_rng(2).normal(size=(1, *padded.legal_shape((side,) * dims))).astype(np.float32)
    with torch.inference_mode():
        whole = same.double()(torch.from_numpy(image).double()[None])[0].numpy()
    valid.double()
    middle = -(-side // 2 // stride) * stride
    agreeing = set()
    for shift in range(stride):
        start = middle + shift
        size = geometry.legal_shape(tuple(a + b + 1 for a, b in zip(geometry.before, geometry.after, strict=True)))
        corner = tuple(start - before for before in geometry.before)
        part = image[(slice(None), *(slice(first, first + count) for first, count in zip(corner, size, strict=True)))]
        with torch.inference_mode():
            found = valid(torch.from_numpy(part).double()[None])[0].numpy()
        wanted = whole[(slice(None), *(slice(start, start + count) for count in found.shape[1:]))]
        if np.abs(found - wanted).max() < 1e-9 * np.ptp(whole):
            agreeing.add(start % stride)
    assert agreeing == {geometry.phase[0]}


@pytest.mark.parametrize("levels", [3, 4])
def test_a_shift_by_anything_but_phase_changes_a_third_of_the_labels(levels: int) -> None:
    """What it costs to start blocks anywhere: labels of the padded form against those of the unpadded one, at every start."""
    valid, same = (build("unet", 2, padding, base=8, levels=levels) for padding in ("valid", "same"))
    same.load_state_dict(valid.state_dict())
    geometry = footprint(valid)
    stride, before = geometry.stride[0], geometry.before[0]
    side = 4 * before + 6 * stride
    image = np.random.default_rng(2).normal(size=(1, *footprint(same).legal_shape((side, side)))).astype(np.float32)
    with torch.inference_mode():
        whole = same(torch.from_numpy(image)[None])[0].numpy()
    level = np.median(whole, axis=(1, 2), keepdims=True)  # random weights prefer one class; so each has half of the voxels
    read = geometry.legal_shape((2 * before + 4 * stride,) * 2)[0]
    differing = {}
    for start in range(side // 2, side // 2 + stride):
        part = image[:, start - before : start - before + read, start - before : start - before + read]
        with torch.inference_mode():
            found = valid(torch.from_numpy(part)[None])[0].numpy()
        wanted = whole[:, start : start + found.shape[1], start : start + found.shape[2]]
        differing[start % stride] = float(((found - level).argmax(0) != (wanted - level).argmax(0)).mean())
    assert differing.pop(geometry.phase[0] or 0) == 0
    assert min(differing.values()) > 0.3
    assert np.median([*differing.values()]) >= 0.35

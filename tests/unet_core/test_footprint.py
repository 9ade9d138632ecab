"""The derived footprint against the measured dependency of a twin network, and exactness of any cut."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from tests.conftest import random_network
from unet_core import rules
from unet_core.errors import FootprintError, GridError
from unet_core.footprint import Footprint, footprint
from unet_core.geometry import BlockGrid, Box
from unet_core.networks.layers import ExactMaxPool
from unet_core.operations import Expand, Window
from unet_core.volumes import ArrayVolume, read_reflected

NETWORKS: list[dict[str, Any]] = [
    {"levels": 2},
    {"levels": 4},
    {"levels": 3, "batch_norm": True},
    {"levels": 3, "poolings": ((3, 2), (2, 3))},
    {"levels": 3, "kernels": ((3, 5), (3, 1), (5, 3))},
    {"levels": 2, "dims": 3},
    {"levels": 3, "dims": 3, "kernels": ((1, 3, 3), (3, 3, 3), (3, 3, 3)), "poolings": ((1, 2, 2), (2, 2, 2))},
]
IDS = [str(index) for index in range(len(NETWORKS))]


def build(arguments: dict[str, Any], base: int = 2) -> nn.Module:
    return random_network(**({"in_channels": 1, "classes": 2, "base": base} | arguments))


class MeanPool(nn.Module):
    def __init__(self, size: tuple[int, ...]) -> None:
        super().__init__()
        self.size = size

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        pool: Any = nn.functional.avg_pool2d if len(self.size) == 2 else nn.functional.avg_pool3d
        return pool(value, self.size)


def twin(network: nn.Module) -> nn.Module:
    """The same structure with nothing that can hide a dependency: positive weights, no ReLU, mean for max, float64."""
    result = copy.deepcopy(network).double()
    for parent in list(result.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ExactMaxPool):
                setattr(parent, name, MeanPool(child.kernel_size))
            elif isinstance(child, nn.ReLU | nn.BatchNorm2d | nn.BatchNorm3d):
                setattr(parent, name, nn.Identity())
    for parameter in result.parameters():
        nn.init.uniform_(parameter, 0.5, 1.0)
    return result


def reaches(network: nn.Module, shape: tuple[int, ...], axis: int, voxel: int) -> tuple[int, int]:
    """First and last input position along ``axis`` that the output at ``voxel`` of it depends on."""
    image = torch.ones((1, 1, *shape), dtype=torch.float64, requires_grad=True)
    out = network(image).sum(dim=1)[0].movedim(axis, 0)
    out[voxel].sum().backward()
    assert image.grad is not None
    touched = image.grad[0, 0].movedim(axis, 0).flatten(1).abs().amax(dim=1).nonzero()
    return int(touched[0]), int(touched[-1])


def check_dependency(network: nn.Module, derived: Footprint) -> None:
    """The whole promise of a footprint, measured."""
    measured = twin(network)
    for axis in range(derived.dims):
        before, after = derived.before[axis], derived.after[axis]
        at_least = [1] * derived.dims
        at_least[axis] = before + after + 2 * derived.stride[axis]
        shape = derived.legal_shape(tuple(at_least))
        size = derived.output_shape(shape)[axis]
        spans = [reaches(measured, shape, axis, voxel) for voxel in range(size)]
        assert min(first for first, _ in spans) == 0
        assert max(last for _, last in spans) == shape[axis] - 1
        assert size == shape[axis] - before - after
        assert measured(torch.ones((1, 1, *shape), dtype=torch.float64)).shape[2 + axis] == size
        # one period in the middle, where no edge cuts the reach off
        inner = range(0, derived.stride[axis])
        assert max(voxel + before - spans[voxel][0] for voxel in inner) <= derived.support[0][axis]
        deep = [1] * derived.dims
        deep[axis] = before + after + 2 * sum(derived.support[side][axis] for side in (0, 1)) + 2 * derived.stride[axis]
        shape = derived.legal_shape(tuple(deep))
        middle = derived.support[0][axis] // derived.stride[axis] * derived.stride[axis] + derived.stride[axis]
        period = [(voxel, *reaches(measured, shape, axis, voxel)) for voxel in range(middle, middle + derived.stride[axis])]
        assert max(voxel + before - first for voxel, first, _ in period) == derived.support[0][axis]
        assert max(last - voxel - before for voxel, _, last in period) == derived.support[1][axis]
        # the pattern repeats with the stride and with nothing smaller
        ahead = reaches(measured, shape, axis, middle + derived.stride[axis])
        assert ahead == (period[0][1] + derived.stride[axis], period[0][2] + derived.stride[axis])


@pytest.mark.parametrize("arguments", NETWORKS, ids=IDS)
def test_derived_footprint_is_the_measured_dependency(arguments: dict[str, Any]) -> None:
    network = build(arguments)
    check_dependency(network, footprint(network))


def test_the_paper_has_92_16_14_and_700() -> None:
    geometry = footprint(build({"levels": 5}))
    assert geometry.margin == ((92, 92), (92, 92))
    assert geometry.stride == (16, 16)
    assert geometry.phase == (14, 14)
    assert geometry.read_box(Box((512, 0), (1024, 512))) == Box((420, -92), (1120, 608))


@pytest.mark.parametrize("arguments", NETWORKS[:5], ids=IDS[:5])
def test_legal_sizes_are_those_that_run_through_the_network(arguments: dict[str, Any]) -> None:
    network = build(arguments, base=1)
    geometry = footprint(network)
    legal = geometry.legal_shape((1, 1))
    seen = set()
    for size in range(1, legal[0] + 2 * geometry.stride[0] + 3):
        shape = (size, legal[1])
        try:
            with torch.inference_mode():
                expected: tuple[int, ...] | None = tuple(network(torch.zeros(1, 1, *shape)).shape[2:])
        except (GridError, RuntimeError):
            expected = None
        seen.add(expected is None)
        assert geometry.is_legal(shape) == (expected is not None), size
        if expected is None:
            with pytest.raises(GridError, match="legal size"):
                geometry.output_shape(shape)
        else:
            assert geometry.output_shape(shape) == expected
    assert seen == {True, False}


def one_pass(network: nn.Module, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits of the whole image, mirrored by numpy, in one forward pass."""
    geometry = footprint(network)
    read = geometry.read_box(Box.from_shape(image.shape[1:]))
    pads = [(-first, last - size) for first, last, size in zip(read.start, read.stop, image.shape[1:], strict=True)]
    padded = np.pad(image, [(0, 0), *pads], mode="reflect")
    with torch.inference_mode():
        whole = network(torch.from_numpy(padded)[None])[0].numpy()
    return whole[(slice(None), *Box.from_shape(image.shape[1:], geometry.skip).slices())]


def blockwise(
    network: nn.Module, image: NDArray[np.float32], block_shape: tuple[int, ...], mutant: str = ""
) -> NDArray[np.float32]:
    geometry = footprint(network)
    volume = ArrayVolume(image, axes="cyx" if image.ndim == 3 else "czyx")
    parts = []
    result = None
    for block in BlockGrid(image.shape[1:], block_shape).blocks():
        read = geometry.read_box(block)
        if mutant == "start off by one" and any(block.start):
            read = read.shift((1,) * read.ndim)
        values = read_reflected(volume, read)
        if mutant == "zeros in the outer quarter":
            for axis, margin in enumerate(geometry.before, start=1):
                np.moveaxis(values, axis, 0)[: -(-margin // 4)] = 0
        with torch.inference_mode():
            logits = network(torch.from_numpy(values)[None])[0].numpy()
        parts.append((block, logits[(slice(None), *Box.from_shape(block.shape, geometry.skip).slices())]))
        if result is None:
            result = np.full((logits.shape[0], *image.shape[1:]), np.nan, dtype=np.float32)
        result[(slice(None), *block.slices())] = parts[-1][1]
    assert result is not None
    return result


def check_any_cut(network: nn.Module, image: NDArray[np.float32], block_shape: tuple[int, ...], mutant: str = "") -> None:
    whole = one_pass(network, image)
    span = float(whole.max() - whole.min())
    assert span > 1e-2, "constant logits prove nothing"
    assert np.abs(blockwise(network, image, block_shape, mutant) - whole).max() <= 1e-5 * span


CUTS = [
    ({"levels": 3}, (67, 45), [(16, 16), (32, 8), (4, 48), (80, 80)]),
    ({"levels": 4, "batch_norm": True}, (53, 90), [(24, 40), (8, 96)]),
    ({"levels": 3, "poolings": ((3, 2), (2, 3))}, (41, 37), [(12, 12), (6, 36)]),
    ({"levels": 2, "dims": 3}, (9, 21, 17), [(4, 8, 6), (2, 22, 18)]),
    ({"levels": 3, "dims": 3, "poolings": ((1, 2, 2), (2, 2, 2))}, (7, 30, 19), [(4, 12, 8), (8, 32, 20)]),
    ({"levels": 3}, (1, 2), [(4, 4)]),
    ({"levels": 3, "padding": "same"}, (67, 45), [(16, 16), (32, 8), (80, 80)]),
    ({"levels": 2, "dims": 3, "padding": "same"}, (9, 21, 17), [(4, 8, 6)]),
]


@pytest.mark.parametrize(
    ("arguments", "shape", "block_shape"), [(a, shape, block) for a, shape, blocks in CUTS for block in blocks], ids=str
)
def test_any_cut_gives_one_pass(arguments: dict[str, Any], shape: tuple[int, ...], block_shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(1).normal(size=(1, *shape)).astype(np.float32)
    check_any_cut(build(arguments, base=4), image, block_shape)


@pytest.mark.parametrize("mutant", ["zeros in the outer quarter", "start off by one"])
def test_a_wrong_margin_or_start_is_seen(mutant: str) -> None:
    image = np.random.default_rng(1).normal(size=(1, 67, 45)).astype(np.float32)
    with pytest.raises(AssertionError):
        check_any_cut(build({"levels": 3}, base=4), image, (16, 16), mutant)


@pytest.mark.parametrize("wrong", ["kernel", "pooling", "expand"])
def test_one_wrong_rule_is_seen(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = build({"levels": 3})
    if wrong == "kernel":
        rule: Any = lambda name, module, dims: Window((5,) * dims, (1,) * dims, (1,) * dims)  # noqa: E731
        monkeypatch.setitem(rules.RULES, nn.Conv2d, rule)
    elif wrong == "pooling":
        monkeypatch.setitem(rules.RULES, ExactMaxPool, lambda name, module, dims: Window((2,) * dims, (1,) * dims, (1,) * dims))
    else:
        monkeypatch.setitem(rules.RULES, nn.ConvTranspose2d, lambda name, module, dims: Expand((1,) * dims, (1,) * dims))
    with pytest.raises((AssertionError, FootprintError, GridError)):
        check_dependency(network, footprint(network))


class Wrapped(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layers(image)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (nn.InstanceNorm2d(2), r"'layers.1' \(InstanceNorm2d\) looks at the whole box.*running statistics, or --approximate"),
        (nn.GroupNorm(1, 2), r"'layers.1' \(GroupNorm\)"),
        (nn.AdaptiveAvgPool2d(1), r"'layers.1' \(AdaptiveAvgPool2d\)"),
        (nn.MaxPool2d(2, ceil_mode=True), "'layers.1' pools in ceil mode"),
        (nn.ConvTranspose2d(2, 2, 3, dilation=2), "dilation"),
        (nn.Upsample(size=(4, 4)), "'layers.1' resizes"),
        (nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), "depend on the size of the box"),
        (nn.Upsample(scale_factor=2, mode="bicubic"), "use linear"),
        (nn.Softmax(dim=2), "along axis 2"),
        (nn.Conv2d(2, 2, 3, stride=2), "one sample every 2"),
        (nn.BatchNorm2d(2, track_running_stats=False), r"'layers.1' \(BatchNorm2d\) looks at the whole box"),
        (nn.Bilinear(2, 2, 2), r"'layers.1' \(Bilinear\) has no rule"),
        (nn.AdaptiveAvgPool2d(3), "pools to 3 samples"),
    ],
    ids=str,
)
def test_what_depends_on_the_box_is_refused_by_name(layer: nn.Module, words: str) -> None:
    with pytest.raises(FootprintError, match=words):
        footprint(Wrapped(nn.Conv2d(1, 2, 3), layer).eval())

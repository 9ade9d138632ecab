"""Operations of a forward pass: those that torch counts while it runs."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import random_network
from tests.unet_core.networks.test_conformance import SMALL
from unet_core.cost import Sizes, operations
from unet_core.footprint import footprint
from unet_core.networks import NETWORKS
from unet_core.rules import trace

CASES: list[tuple[str, dict[str, Any]]] = [(name, arguments) for name, cases in SMALL.items() for arguments in cases]
CASES += [("whole_box", {"norm": norm, "dims": dims}) for norm in ("instance", "squeeze", "mean") for dims in (2, 3)]


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=str)
def test_operations_are_those_that_torch_counts(name: str, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "whole_box", "tests.unet_core.test_approximate:WholeBox")
    network = random_network(0, name, **({"in_channels": 1, "classes": 2} | arguments)).to("meta")
    traced, geometry = trace(network, approximate=True), footprint(network, approximate=True)
    for at_least in (9, 33):
        shape = geometry.legal_shape(tuple(at_least + 5 * axis for axis in range(geometry.dims)))
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            network(torch.empty((1, 1, *shape), device="meta"))
        assert operations(traced, (1, *shape)) == counter.get_total_flops()


class Watched(torch.fx.Interpreter):
    """Shapes of all values of a pass."""

    def run_node(self, node: torch.fx.Node) -> Any:
        made = super().run_node(node)
        if isinstance(made, torch.Tensor):
            node.meta["shape"] = tuple(made.shape)
        return made


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=str)
def test_sizes_are_those_of_a_pass(name: str, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "whole_box", "tests.unet_core.test_approximate:WholeBox")
    traced = trace(random_network(0, name, **({"in_channels": 1, "classes": 2} | arguments)).to("meta"), approximate=True)
    shape = footprint(traced.graph, approximate=True).legal_shape(tuple(9 + 5 * axis for axis in range(traced.dims)))
    with torch.inference_mode():
        Watched(traced.graph).run(torch.empty((1, 1, *shape), device="meta"))
    sizes = Sizes(traced, 1)
    found = {node.name: node.meta["shape"] for node in traced.graph.graph.nodes if node.op != "output"}
    assert len(found) == len(traced.steps) + 1
    for value, (_, channels, *spatial) in found.items():
        assert sizes.channels[value] == channels, value
        assert sizes.voxels(value, shape) == prod(spatial), value


class _JoinsByKeyword(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Conv2d(1, 3, 3), torch.nn.Conv2d(6, 2, 1)

    def forward(self, value: torch.Tensor) -> Any:
        value = self.first(value)
        return self.last(torch.cat(dim=1, tensors=[value, value]))


def test_channels_that_are_joined_by_keyword_are_counted() -> None:
    assert list(Sizes(trace(_JoinsByKeyword().eval()), 1).channels.values()) == [1, 3, 6, 2]

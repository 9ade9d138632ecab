"""A network fed strip by strip gives the logits of one pass over the whole box, computes no row twice, and holds only what waits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.unet_core.networks.test_conformance import CASE_IDS, CASES, build
from unet_core import schedule
from unet_core.errors import FootprintError
from unet_core.footprint import footprint
from unet_core.operations import Trace
from unet_core.rules import trace
from unet_core.schedule import Schedule
from unet_core.streaming import Streamer, stream


def box(network: torch.nn.Module, strides: int) -> torch.Tensor:
    """Noise of a legal shape that is some strides longer than the margin, and as narrow as can be on the other axes."""
    geometry = footprint(network)
    least = [1] * geometry.dims
    least[0] = geometry.before[0] + geometry.after[0] + strides * geometry.stride[0]
    shape = geometry.legal_shape(tuple(least))
    return torch.from_numpy(np.random.default_rng(0).normal(size=(2, 1, *shape)).astype(np.float32))


def check(network: torch.nn.Module, strip: int) -> None:
    image = box(network, 5)
    with torch.inference_mode():
        whole = network(image)
        found = torch.cat([*stream(trace(network), image, strip)], dim=2)
    assert found.shape == whole.shape
    assert whole.std() > 1e-4
    assert (found - whole).abs().max() <= 1e-5 * (whole.max() - whole.min())


@pytest.mark.parametrize("strip", [1, 7, 16, 10**6])
@pytest.mark.parametrize(("name", "dims", "arguments"), CASES, ids=CASE_IDS)
def test_strips_of_any_height_give_one_pass(name: str, dims: int, arguments: dict[str, Any], strip: int) -> None:
    check(build(name, dims, base=4, **arguments), strip)


@pytest.mark.parametrize("mutant", ["forgets a row", "starts a row late"])
@pytest.mark.parametrize(("name", "arguments"), [("unet", {"levels": 3}), ("attention_unet", {"levels": 3})])
def test_rows_lost_or_shifted_are_seen(name: str, arguments: Any, mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = schedule.source_rows

    def wrong(step: Any, rows: Any, axis: int, first: int, last: int) -> tuple[int, int]:
        start, end = exact(step, rows, axis, first, last)
        late = step.name.startswith("crop_like") and start > 0
        return (start + late, end + late) if mutant == "starts a row late" else (start, end)

    if mutant == "forgets a row":
        drop = Streamer._drop
        monkeypatch.setattr(Streamer, "_drop", lambda streamer, name, count: drop(streamer, name, count + 1))
    monkeypatch.setattr(schedule, "source_rows", wrong)
    with pytest.raises((AssertionError, RuntimeError, IndexError)):
        check(build(name, 2, base=4, **arguments), 7)


class Counting(torch.fx.Interpreter):
    """Rows that the convolutions of a pass over the whole box make."""

    def __init__(self, traced: Trace) -> None:
        super().__init__(traced.graph)
        self.rows = 0

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        made = super().call_module(target, args, kwargs)
        if isinstance(self.fetch_attr(target), torch.nn.Conv2d | torch.nn.Conv3d):
            self.rows += made.shape[2]
        return made


@pytest.mark.parametrize(("name", "dims", "arguments"), CASES, ids=CASE_IDS)
def test_no_convolution_makes_a_row_twice(name: str, dims: int, arguments: dict[str, Any]) -> None:
    traced = trace(build(name, dims, base=2, **arguments))
    image = box(traced.graph, 5)
    made = []
    for module in traced.graph.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Conv3d):
            module.register_forward_hook(lambda module, args, result: made.append(result.shape[2]))
    with torch.inference_mode():
        for _ in stream(traced, image, 3):
            pass
        streamed = sum(made)
        counting = Counting(traced)
        counting.run(image)
    assert streamed == counting.rows > 0


@pytest.mark.parametrize("name", ["unet", "attention_unet", "fc_densenet", "vnet"])
def test_what_waits_does_not_grow_with_the_box_and_steps_keep_their_shapes(name: str) -> None:
    arguments = next(case[2] for case in CASES if case[0] == name)
    traced = trace(build(name, 2, base=2, **arguments))
    geometry = footprint(traced.graph)
    stride = geometry.stride[0]
    image = box(traced.graph, 40)
    run, held, shapes = Streamer(traced, 0, image.shape[2]), [], []
    with torch.inference_mode():
        for first in range(0, image.shape[2] - geometry.before[0] - geometry.after[0] - 2 * stride, 2 * stride):
            part = run.push(image[:, :, first : first + 2 * stride])
            held.append(sum(part.numel() for queue in run._queues.values() for part in queue))
            shapes.append(part.shape if part is not None else None)
    assert len({*held[10:]}) == 1
    assert len({*shapes[10:]}) == 1
    assert shapes[0] is None


@pytest.mark.parametrize("strip", [5, 16, 48])
@pytest.mark.parametrize("name", ["unet", "vnet", "fc_densenet", "resunet"])
def test_a_length_that_is_not_known_before_the_end_changes_nothing(name: str, strip: int) -> None:
    network = build(name, 2, base=4, **next(case[2] for case in CASES if case[0] == name))
    image = box(network, 5)
    streamer = Streamer(network)
    parts = [streamer.push(image[:, :, first : first + strip]) for first in range(0, image.shape[2], strip)] + [streamer.close()]
    found = torch.cat([part for part in parts if part is not None], dim=2)
    with torch.inference_mode():
        whole = network(image)
    assert found.shape == whole.shape
    assert (found - whole).abs().max() <= 1e-5 * (whole.max() - whole.min())


@pytest.mark.parametrize(("dims", "axis"), [(2, 1), (3, 1), (3, 2)])
def test_any_axis_streams(dims: int, axis: int) -> None:
    network = build("unet", dims, base=4, levels=3)
    image = box(network, 3).transpose(2, 2 + axis).contiguous()
    with torch.inference_mode():
        whole = network(image)
        found = torch.cat([*stream(trace(network), image, 7, axis)], dim=2 + axis)
    assert found.shape == whole.shape
    assert (found - whole).abs().max() <= 1e-5 * (whole.max() - whole.min())


@pytest.mark.parametrize(("name", "dims", "arguments"), CASES, ids=CASE_IDS)
def test_steady_pushes_are_repeated_and_not_worked_out_again(name: str, dims: int, arguments: dict[str, Any]) -> None:
    traced = trace(build(name, dims, base=2, **arguments))
    geometry = footprint(traced.graph)
    stride = geometry.stride[0]
    (length, *_) = geometry.legal_shape((geometry.before[0] + geometry.after[0] + 20 * stride,) + (1,) * (dims - 1))
    steady, afresh, repeated = Schedule(traced, 0, length), Schedule(traced, 0, length), 0
    previous = None
    for first in range(0, length, stride):
        moves = steady.push(min(stride, length - first))
        afresh._steady = afresh._before = None
        assert moves == afresh.push(min(stride, length - first))
        repeated += moves is previous
        previous = moves
    assert steady._made == afresh._made == steady._counts
    assert steady._first == afresh._first
    assert repeated >= 10


def test_a_box_that_ends_early_is_said() -> None:
    network = build("unet", 2, base=2, levels=2)
    streamer = Streamer(network, length=20)
    streamer.push(torch.zeros(1, 1, 12, 20))
    with pytest.raises(ValueError, match="8 rows of the box did not come, after 12"):
        streamer.close()


def test_a_padded_network_is_refused_by_the_name_of_its_layer() -> None:
    network = build("unet", 2, padding="same", levels=2)
    with pytest.raises(FootprintError, match="'contracting_0_0' pads along the axis that is streamed"):
        next(stream(trace(network), torch.zeros(1, 1, 8, 8), 4))


class _ChangesInPlace(torch.nn.Module):
    """A unit whose skip connection starts at what a ReLU changes in place."""

    def __init__(self, shared: bool, alias: bool) -> None:
        super().__init__()
        self.first, self.second, self.last = torch.nn.Conv2d(1, 3, 3), torch.nn.Conv2d(3, 3, 1), torch.nn.Conv2d(3, 2, 1)
        self.dropout, self.relu = torch.nn.Dropout(), torch.nn.ReLU(inplace=True)
        self.shared, self.alias = shared, alias

    def forward(self, value: torch.Tensor) -> Any:
        first = self.first(value)
        second = self.second(self.relu(self.dropout(first) if self.alias else first))
        return self.last(second + first if self.shared else self.relu(second + second))


@pytest.mark.parametrize("alias", [True, False])
def test_a_change_in_place_that_others_see_is_not_streamed(alias: bool) -> None:
    with pytest.raises(FootprintError, match="'relu' changes its input in place, which other layers read"):
        Streamer(_ChangesInPlace(shared=True, alias=alias).eval())
    check(_ChangesInPlace(shared=False, alias=alias).eval(), 4)

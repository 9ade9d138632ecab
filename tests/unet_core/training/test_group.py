"""Ranks in real processes against one process with the whole batch: gradients, batch statistics, sums, and what a lost rank does."""

from __future__ import annotations

import copy
import re
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.unet_core.training.ranks import free_address, run_ranks
from unet_core.errors import GroupError, InputError
from unet_core.training.batch_norm import _SynchronisedBatchNorm, synchronise_batch_norm
from unet_core.training.group import Group, join, single

CLASSES = 3


def network(norm: bool, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(3)
    layers: list[nn.Module] = [nn.Conv2d(2, 5, 3)]
    layers += [nn.BatchNorm2d(5, momentum=0.3)] if norm else []
    layers += [nn.ReLU(), nn.Conv2d(5, 4, 3, bias=not norm)]
    layers += [nn.BatchNorm2d(4, momentum=None, affine=False)] if norm else []
    layers += [nn.ReLU(), nn.Conv2d(4, CLASSES, 1)]
    return nn.Sequential(*layers).to(dtype)


def batch(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Five crops far from zero, labels and weights of which the fourth crop has none."""
    random = np.random.default_rng(5)
    images = torch.from_numpy(random.normal(30, 7, (5, 2, 13, 11))).to(dtype)
    labels = torch.from_numpy(random.integers(0, CLASSES, (5, 9, 7)))
    weights = torch.from_numpy(random.uniform(0.5, 9, (5, 9, 7))).to(dtype)
    weights[3] = 0
    return images, labels, weights


def loss(logits: Tensor, labels: Tensor, weights: Tensor, group: Group) -> Tensor:
    """Weighted cross entropy and soft Dice, functions of sums over the whole batch."""
    entropy = functional.cross_entropy(logits, labels, reduction="none")
    shown = functional.one_hot(labels, CLASSES).movedim(-1, 1) * (weights > 0)[:, None]
    soft = logits.softmax(1) * (weights > 0)[:, None]
    axes = (0, 2, 3)
    sums = group.total(
        torch.cat([(weights * entropy).sum()[None], weights.sum()[None], (soft * shown).sum(axes), (soft + shown).sum(axes)])
    )
    both, each = sums[2 : 2 + CLASSES], sums[2 + CLASSES :]
    return sums[0] / sums[1] + 1 - (2 * both / each).mean()


def steps(group: Group, shares: list[int], norm: bool, dtype: torch.dtype, synchronise: bool = True) -> dict[str, Tensor]:
    """Two optimiser steps of one rank with its share of each batch: losses, gradients, and the state dict at the end."""
    images, labels, weights = batch(dtype)
    first = sum(shares[: group.rank])
    mine = slice(first, first + shares[group.rank])
    bare = network(norm, dtype)
    bare = synchronise_batch_norm(bare, group) if synchronise else bare
    wrapped = group.wrap(bare)
    optimiser = torch.optim.SGD(wrapped.parameters(), 0.1)
    found = {}
    for step in range(2):
        value = loss(wrapped(images[mine]), labels[mine], weights[mine], group)
        optimiser.zero_grad()
        (value * group.size).backward()
        found |= {f"gradient {name} {step}": parameter.grad.clone() for name, parameter in bare.named_parameters()}
        optimiser.step()
        found[f"loss {step}"] = value.detach()
    return found | bare.state_dict()


def difference(left: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    assert left.keys() == right.keys()
    return max(float((left[name].double() - right[name].double()).abs().max()) for name in left)


CASES: dict[str, tuple[list[int], bool, torch.dtype]] = {
    "batch norm, unequal shares": ([2, 3], True, torch.float64),
    "batch norm, one crop and four": ([1, 4], True, torch.float64),
    "no batch norm": ([3, 2], False, torch.float64),
    "batch norm in float32": ([2, 3], True, torch.float32),
}


def every_case(group: Group) -> dict[str, Any]:
    """All that two ranks are asked: starting processes costs most."""
    found: dict[str, Any] = {name: steps(group, *case) for name, case in CASES.items()}
    found["not synchronised"] = steps(group, *CASES["batch norm, unequal shares"], synchronise=False)
    found["counts"] = group.gather_counts(np.array([[1 << 60, group.rank]])).tolist()
    found["text"] = [
        group.broadcast_text(f"{text} µ" if text else text) if group.rank == 0 else group.broadcast_text("")
        for text in ("", "plan")
    ]
    own = torch.tensor([0.1, 1e-9], dtype=torch.float32) * (1 + group.rank)
    found["total"] = group.total(own)
    group.barrier()
    return found


@pytest.fixture(scope="module")
def pair() -> list[dict[str, Any]]:
    found = run_ranks(2, every_case)
    assert all(isinstance(each, dict) for each in found), found
    return found


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_do_what_one_process_does_with_the_whole_batch(name: str, pair: list[dict[str, Any]]) -> None:
    _, norm, dtype = CASES[name]
    whole = steps(single(), [5], norm, dtype)
    for found in pair:
        assert difference(found[name], whole) < (1e-12 if dtype == torch.float64 else 3e-6)


def test_batch_norms_of_each_rank_alone_would_give_other_weights(pair: list[dict[str, Any]]) -> None:
    whole = steps(single(), [5], True, torch.float64)
    assert difference(pair[0]["not synchronised"], whole) > 1e-3


def test_ranks_end_with_the_same_bits(pair: list[dict[str, Any]]) -> None:
    for name in (*CASES, "not synchronised"):
        for key, value in pair[0][name].items():
            if not (name == "not synchronised" and "running" in key):
                assert torch.equal(value, pair[1][name][key]), (name, key)


def test_sums_counts_and_texts_are_the_same_on_each_rank(pair: list[dict[str, Any]]) -> None:
    for found in pair:
        assert found["counts"] == [[1 << 61, 1]]
        assert found["text"] == ["", "plan µ"]
        assert torch.equal(found["total"], torch.tensor([0.1, 1e-9]) + torch.tensor([0.1, 1e-9]) * 2)


def test_a_group_of_one_changes_nothing() -> None:
    group, network_alone = single(), network(True, torch.float32)
    value = torch.tensor([0.1], requires_grad=True)
    assert group.total(value) is value
    assert group.wrap(network_alone) is network_alone
    assert type(synchronise_batch_norm(network_alone, group)[1]) is nn.BatchNorm2d
    assert group.broadcast_text("plan") == "plan"
    assert group.gather_counts(np.array([3])).tolist() == [3]
    group.barrier()
    group.close()


def test_state_and_evaluation_are_those_of_plain_batch_norms() -> None:
    plain, other = network(True, torch.float32), network(True, torch.float32)
    changed = synchronise_batch_norm(other, Group(0, 2, torch.device("cpu")))  # evaluation asks no other rank
    assert list(changed.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(changed.state_dict())
    images = batch(torch.float32)[0]
    assert torch.equal(changed.eval()(images), plain.eval()(images))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("affine", [True, False])
def test_a_synchronised_batch_norm_is_as_exact_as_torchs_own(dtype: torch.dtype, layout: Any, affine: bool) -> None:
    torch.manual_seed(0)
    plain = nn.BatchNorm2d(5, affine=affine)
    if affine:
        nn.init.normal_(plain.weight)
    images = (3 * torch.randn(3, 5, 37, 41) + 7).to(dtype).contiguous(memory_format=layout)
    upstream = torch.randn(3, 5, 37, 41).to(dtype).contiguous(memory_format=layout)

    def results(module: nn.Module, images: Tensor) -> list[Tensor]:
        own = images.clone().requires_grad_()
        output = module(own)
        output.backward(upstream.to(images.dtype))
        assert output.dtype == own.grad.dtype == images.dtype
        return [output.detach(), own.grad, *(each.grad for each in module.parameters()), module.running_var]

    truth = results(copy.deepcopy(plain).double(), images.double())
    synchronised = results(_SynchronisedBatchNorm(copy.deepcopy(plain), single()), images)
    for expected, own, torchs in zip(truth, synchronised, results(plain, images), strict=True):
        assert (own - expected).abs().max() < 2 * (torchs - expected).abs().max() + 1e-5


def test_a_batch_norm_without_running_statistics_is_refused_by_name() -> None:
    inner = nn.Sequential(nn.ReLU(), nn.BatchNorm3d(2, track_running_stats=False))
    with pytest.raises(InputError, match=r"^0\.1\.batch norm keeps no running statistics"):
        synchronise_batch_norm(nn.Sequential(inner), Group(0, 2, torch.device("cpu")))


def lost_rank(group: Group, how: str) -> str:
    """Rank 1 ends or hangs where rank 0 waits for it."""
    wrapped = group.wrap(nn.Linear(2, 1))
    if group.rank:
        time.sleep(15 if how == "hangs" else 0)
        return "gone"
    with group.collective("adding up gradients"):
        wrapped(torch.ones(1, 2)).sum().backward()
    return "not reached"


@pytest.mark.parametrize(("how", "minutes", "words"), [("ends", 1, "closed"), ("hangs", 0.05, "(?i)timed out")])
def test_a_lost_rank_is_told_by_one_kind_of_error(how: str, minutes: float, words: str) -> None:
    found = run_ranks(2, lost_rank, how, timeout_minutes=minutes)
    assert found[1] == "gone"
    assert re.match(
        rf"GroupError: Rank 0 of 2: adding up gradients failed after [0-9.]+ s \(the longest wait is {60 * minutes:g} s; ",
        found[0],
    )
    assert re.search(words, found[0])
    assert "start the training again: it goes on from its last checkpoint" in found[0]


def test_ranks_that_do_not_come_are_told() -> None:
    began = time.monotonic()
    for rank in (0, 1):
        with pytest.raises(GroupError, match=f"Rank {rank} of 2: joining the group at tcp://127.0.0.1"):
            join(rank, 2, free_address(), timeout_minutes=0.02)
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("address", ["tcp://127.0.0.1", "127.0.0.1:80", "file:///x"])
def test_an_address_without_meaning_is_refused(address: str) -> None:
    with pytest.raises(InputError, match="write tcp://HOST:PORT or env://"):
        join(0, 2, address)
    with pytest.raises(InputError, match="Rank 2 is not one of 2"):
        join(2, 2, address)


def bytes_after(group: Group, fresh_after: int) -> list[float]:
    """Weights after three steps on rank-dependent data, the process group's buckets made anew after ``fresh_after`` of them."""
    torch.manual_seed(0)
    bare = nn.Sequential(nn.Linear(7, 50), nn.ReLU(), nn.Linear(50, 9), nn.ReLU(), nn.Linear(9, 1))
    wrapped = group.wrap(bare)
    for step in range(3):
        if step == fresh_after:
            wrapped = group.wrap(bare)
        data = torch.randn(4, 7, generator=torch.Generator().manual_seed(10 * step + group.rank))
        bare.zero_grad()
        wrapped(data).square().sum().backward()
        with torch.no_grad():
            for parameter in bare.parameters():
                parameter -= 0.01 * parameter.grad
    return torch.cat([parameter.detach().flatten() for parameter in bare.parameters()]).tolist()


def resumed(group: Group) -> list[bool]:
    straight = bytes_after(group, 0)
    return [bytes_after(group, after) == straight for after in (1, 2)]


def test_three_ranks_that_start_anew_give_the_same_bits() -> None:
    assert run_ranks(3, resumed) == [[True, True]] * 3

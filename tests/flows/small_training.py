"""A small real training for tests of its supervision: two convolutions with batch norm, checkpoints, a pace that can be killed in."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unet_core.errors import InputError, UnetCoreError
from unet_core.training.batch_norm import synchronise_batch_norm
from unet_core.training.group import Group

STEPS, SAVE_EVERY = 16, 3


@dataclass(frozen=True)
class SmallReport:
    step: int
    steps: int
    loss: float


def train_rank(folder: str, group: Group, on_step: Callable[[SmallReport], None]) -> dict[str, Any]:
    """Crops of a rank come from step and rank alone; rank 0 saves whole files, and all go on from what rank 0 sees."""
    place = Path(folder)
    (place / f"pid-{group.rank}").write_text(str(os.getpid()))
    with (place / f"attempts-{group.rank}").open("a") as attempts:
        attempts.write("x")
    fault = (place / "fault").read_text() if (place / "fault").exists() else ""
    if fault == "bad input" and group.rank == 1:
        raise InputError("Labels 'b.tif' have no class.")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 1, 3))
    network = synchronise_batch_norm(network, group)
    optimiser = torch.optim.Adam(network.parameters(), 0.01)
    first = int(group.broadcast_text(_last_step(place)))
    if first:
        state = torch.load(place / f"step-{first}.pt", weights_only=True)
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
    wrapped = group.wrap(network)
    for step in range(first, STEPS):
        if fault == "die" and group.rank == 1 and step == 4:
            os.kill(os.getpid(), 9)
        if fault == "not finite" and step == 2:
            raise UnetCoreError(f"Loss is nan at step {step}.")
        data = torch.randn(2 + group.rank, 1, 12, 12, generator=torch.Generator().manual_seed(100 * step + group.rank))
        logits = wrapped(data)
        sums = group.total(torch.stack([(logits - data[..., 2:-2, 2:-2] ** 2).square().sum(), torch.tensor(float(len(data)))]))
        loss = sums[0] / sums[1]
        optimiser.zero_grad()
        with group.collective("adding up gradients"):
            (loss * group.size).backward()
        optimiser.step()
        if group.rank == 0 and ((step + 1) % SAVE_EVERY == 0 or step + 1 == STEPS):
            _save(place / f"step-{step + 1}.pt", {"network": network.state_dict(), "optimiser": optimiser.state_dict()})
        group.barrier()
        on_step(SmallReport(step + 1, STEPS, float(loss.detach())))
        time.sleep(0.1)
    return {"steps": STEPS, "first": first}


def _last_step(place: Path) -> str:
    return str(max((int(path.stem.partition("-")[2]) for path in place.glob("step-*.pt")), default=0))


def _save(path: Path, state: dict[str, Any]) -> None:
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)


def final_weights(folder: Path) -> dict[str, bytes]:
    state = torch.load(folder / f"step-{STEPS}.pt", weights_only=True)["network"]
    return {name: value.numpy().tobytes() for name, value in state.items()}

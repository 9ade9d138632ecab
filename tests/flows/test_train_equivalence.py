"""The whole training, on two ranks and on one: the same crops, losses and weights, batch normalisation included."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.numpy import load_file

from flows.training import TrainingJob, train_plainly
from tests.unet_core.training.datasets import FAST, write_disks
from unet_core.training.watching import StepReport, read_log

pytestmark = pytest.mark.slow

SETTINGS = (
    *FAST,
    "network.arguments={base: 4, levels: 2, batch_norm: true, dropout: 0}",
    "crops.per_step=3",  # two for one rank, one for the other
    "optimiser.kind=sgd",
    "optimiser.rate=1e-3",
    "optimiser.momentum=0.9",
    "steps=4",
    "validate_every=4",
)


@pytest.mark.parametrize("heads", ["[{kind: classes}]", "[{kind: classes}, {kind: distance}]"], ids=["classes", "two-heads"])
def test_two_ranks_learn_what_one_learns(tmp_path: Path, heads: str) -> None:
    data = write_disks(tmp_path / "data")
    reports: dict[int, list[StepReport]] = {1: [], 2: []}
    for ranks, seen in reports.items():
        settings = (*SETTINGS, f"heads={heads}")
        job = TrainingJob(dataset=str(data), model_out=str(tmp_path / str(ranks)), settings=settings, ranks=ranks, threads=1)
        train_plainly(job, seen.append)
    one, two = (load_file(tmp_path / str(ranks) / "weights.safetensors") for ranks in (1, 2))
    for name, values in one.items():
        assert abs(values - two[name]).max() <= 1e-5 * max(1, abs(values).max()), name
    logs = [read_log(tmp_path / str(ranks) / "training") for ranks in (1, 2)]
    for first, second in zip(*logs, strict=True):
        assert first["loss"] == pytest.approx(second["loss"], rel=1e-4)
    last = {ranks: seen[-1].scores for ranks, seen in reports.items()}
    assert last[1].keys() == last[2].keys()
    assert last[1]["loss"] == pytest.approx(last[2]["loss"], rel=1e-4)

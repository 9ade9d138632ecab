"""What a training job may say, and that a folder has one at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.train_commands import _print_summary
from flows.training import make_training_job, train_plainly
from tests.unet_core.training.datasets import FAST, write_disks
from unet_core.errors import InputError, ResumeError


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"restarts": -1}, "restarts"),
        ({"loaders": -1}, "loaders"),
        ({"init": "nuclei-he", "settings": ("network.arguments.base=8",)}, "leave --set network.arguments.base=8 away"),
    ],
)
def test_a_job_without_meaning_is_refused_in_one_line(fields, message: str) -> None:
    with pytest.raises(InputError, match=message):
        train_plainly(make_training_job(dataset="data", model_out="model", **fields))


def test_two_commands_do_not_train_in_one_folder(tmp_path: Path) -> None:
    fields = {"dataset": str(write_disks(tmp_path / "data", count=2)), "model_out": str(tmp_path / "model")}
    job = make_training_job(**fields, settings=(*FAST, "steps=2"), device="cpu")

    def again(report: object) -> None:
        with pytest.raises(ResumeError, match="Another process trains"):
            train_plainly(job)

    assert train_plainly(job, again)["steps"] == 2
    assert train_plainly(job)["steps"] == 2


def test_a_score_of_nothing_is_told_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    _print_summary({"model": "m", "steps": 2, "best_step": 2, "validation": {"loss": 0.5, "iou_rare": None}})
    assert "validation iou_rare: nothing to score" in capsys.readouterr().out

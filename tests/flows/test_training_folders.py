"""A folder of a training, where a result or a model is asked for: what it is, how far it is, and how to go on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flows.test_cli import ROOT, call
from tests.unet_core.training.datasets import FAST, write_disks
from unet_core.training.group import single
from unet_core.training.loop import train_rank
from unet_core.training.planning import plan_training
from unet_core.training.recipes import make_options


class StopError(Exception):
    pass


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``planned``, ``begun`` (stopped after step 6, a checkpoint every 4 steps) and ``trained``."""
    folder = tmp_path_factory.mktemp("trainings")
    data = write_disks(folder / "data", count=3)

    def stop(report) -> None:
        if report.step == 6:
            raise StopError

    for name in ("planned", "begun", "trained"):
        plan_training(str(data), str(folder / name), make_options("default", FAST), threads=1)
    with pytest.raises(StopError):
        train_rank(str(folder / "begun"), single(), stop)
    train_rank(str(folder / "trained"), single())
    return folder


@pytest.mark.parametrize(
    ("name", "kept", "state"), [("planned", 0, "unfinished"), ("begun", 6, "unfinished"), ("trained", 12, "complete")]
)
def test_status_tells_how_far_a_training_is_and_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], trainings: Path, name: str, kept: int, state: str
) -> None:
    code, out, _ = call(monkeypatch, capsys, "status", trainings / name, "--json")
    assert code == 0
    found = json.loads(out.splitlines()[-1])
    assert (found["state"], found["kept"], found["steps"]) == (state, kept, 12)
    advice = "run the same unet train command again to go on" if state == "unfinished" else "unet model info"
    assert advice in out.splitlines()[0]


@pytest.mark.parametrize(
    "arguments",
    [
        ("segment", "data/images/disks0.png", "out.zarr", "--model", "begun"),
        ("plan", "data/images/disks0.png", "out.zarr", "--model", "begun"),
        ("model", "info", "begun"),
        ("evaluate", "begun", "data/dataset.yaml"),
        ("evaluate", "begun", "data"),
        ("train", "data", "other", "--init", "begun"),
        ("sample", "begun", "crops"),
        ("seams", "begun"),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_a_training_that_is_not_finished_is_told_where_its_model_is_wanted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], trainings: Path, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(trainings)
    code, _, err = call(monkeypatch, capsys, *arguments)
    assert code == 2
    assert "begun is a training that is not finished (6 of 12 steps are kept); run the same unet train command again" in err
    assert len(err.splitlines()) == 1
    assert not (trainings / "out.zarr").exists()


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (("status", "trainedd"), "trained"),
        (("sample", "begunn", "crops"), "begun"),
        (("segment", "data/images/disks.png", "o.zarr", "--model", "nuclei-he"), "data/images/disks"),
        (("segment", "data/images/disks0.png", "o.zarr", "--model", "trainedd"), "trained"),
        (("segment", "data/images/disks0.png", "o.zarr", "--model", "nuclei-hee"), "'nuclei-he'"),
        (("model", "info", "nuclei-fluorescenc"), "'nuclei-fluorescence'"),
        (("train", "data/dataset.yml", "new"), "data/dataset.yaml"),
        (("train", "data", "new", "--init", "nuclei-hee"), "'nuclei-he'"),
        (("evaluate", "trained", "data/dataset.yml"), "data/dataset.yaml"),
        (("evaluate", "nuclei-hee", "data"), "'nuclei-he'"),
        (("model", "import", "traind", "new"), "trained"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_leads_nowhere_is_answered_with_what_was_meant(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], trainings: Path, arguments: tuple[str, ...], meant: str
) -> None:
    monkeypatch.chdir(trainings)
    code, _, err = call(monkeypatch, capsys, *arguments)
    assert code == 2
    assert f"did you mean {meant}" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("c.png", "data"), "data is no training"),
        (("c.png", "planned"), r"is a training that is not finished \(0 of 12"),
        (("c.png", "trained", "begunn"), "Training not found: begunn (did you mean begun?)"),
        (("planned", "trained"), "write the picture first"),
        (("c.xyz", "trained"), "ends in .png"),
        (("none/c.png", "trained"), "No such file"),
    ],
)
def test_curves_of_what_is_no_training_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], trainings: Path, arguments: tuple[str, ...], message: str
) -> None:
    from unet_core.training.curves import main

    monkeypatch.chdir(trainings)
    monkeypatch.setattr(sys, "argv", ["curves", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    err = capsys.readouterr().err
    assert stopped.value.code == 2
    assert message.replace("\\", "") in err
    assert len(err.splitlines()) == 1
    assert not (trainings / "c.png").exists()


def test_curves_are_drawn_of_trainings_on_their_way(trainings: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "unet_core.training.curves", tmp_path / "c.png", trainings / "trained", trainings / "begun"]
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "c.png").stat().st_size > 1000

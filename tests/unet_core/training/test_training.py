"""The whole of a training on one rank: it learns, goes on to the bit after a kill, stops on NaN, and tells bad input before a step."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from PIL import Image

from tests.unet_core.training.datasets import FAST, write_disks
from unet_core.errors import InputError, ResumeError, UnetCoreError
from unet_core.model_package import load_model
from unet_core.training.checkpoints import latest_checkpoint, steps_saved
from unet_core.training.group import single
from unet_core.training.loop import train_rank
from unet_core.training.plan import training_store
from unet_core.training.planning import plan_training
from unet_core.training.recipes import make_options
from unet_core.training.watching import StepReport, read_log


def train(dataset: Path, out: Path, *settings: str, recipe: str = "default", loaders: int = 0, **arguments) -> list[StepReport]:
    plan_training(str(dataset), str(out), make_options(recipe, [*FAST, *settings]), threads=1, **arguments)
    reports: list[StepReport] = []
    train_rank(str(out), single(), reports.append, loaders)
    return reports


def weights_of(out: Path) -> str:
    return hashlib.sha256((out / "weights.safetensors").read_bytes()).hexdigest()


def test_it_learns_and_leaves_a_model_with_its_history(tmp_path: Path) -> None:
    data = write_disks(tmp_path / "data")
    reports = train(data, tmp_path / "model", "steps=90", "validate_every=45", "best=iou", "crops.per_step=3")
    assert np.mean([report.loss for report in reports[-8:]]) < 0.7 * np.mean([report.loss for report in reports[:8]])
    assert reports[-1].scores["iou"] > 0.7
    package = load_model(tmp_path / "model")
    assert package.description.provenance["best_step"] in (45, 90)
    assert package.description.provenance["validation"]["iou"] > 0.7
    assert [label.name for label in package.description.classes] == ["background", "disk"]
    log = read_log(tmp_path / "model" / "training")
    assert [row["step"] for row in log] == [*range(1, 91)]
    assert log[44]["validation_iou"] == pytest.approx(reports[44].scores["iou"], rel=1e-4)
    with Image.open(tmp_path / "model" / str(reports[44].picture)) as picture:
        assert picture.width > 4 * 100
    assert any((tmp_path / "model" / "training" / "tensorboard").iterdir())
    assert train(data, tmp_path / "model", "steps=90", "validate_every=45", "best=iou", "crops.per_step=3") == []  # complete


_UNTIL_KILLED = """
import os, signal, sys
from unet_core.training.group import single
from unet_core.training.loop import train_rank
def stop(report):
    if report.step == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
train_rank(sys.argv[1], single(), stop, int(sys.argv[3]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("precision=bfloat16", "optimiser.ema=0.9"),
        ("optimiser.kind=sgd", "optimiser.rate=1e-3", "augmentation.histogram=0.5"),
    ],
    ids=["adamw", "bf16-ema", "sgd-histogram"],
)
def test_killed_and_resumed_gives_the_same_bytes(tmp_path: Path, settings: tuple[str, ...]) -> None:
    """SIGKILL after steps 2 (no checkpoint yet), 7 and 11; each process goes on where the last checkpoint was."""
    data = write_disks(tmp_path / "data")
    train(data, tmp_path / "whole", *settings)
    killed = tmp_path / "killed"
    plan_training(str(data), str(killed), make_options("default", [*FAST, *settings]), threads=1)
    for step, loaders in ((2, 0), (7, 1), (11, 0)):
        process = subprocess.run(
            [sys.executable, "-c", _UNTIL_KILLED, str(killed), str(step), str(loaders)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.returncode == -signal.SIGKILL, process.stderr
        assert not (killed / "model.json").exists()
    reports: list[StepReport] = []
    train_rank(str(killed), single(), reports.append)
    assert reports[0].step == 9
    assert weights_of(killed) == weights_of(tmp_path / "whole")
    assert (killed / "model.json").read_bytes() == (tmp_path / "whole" / "model.json").read_bytes()
    assert [row["step"] for row in read_log(killed / "training")] == [*range(1, 13)]
    same = latest_checkpoint(training_store(str(killed)))[0], latest_checkpoint(training_store(str(tmp_path / "whole")))[0]
    assert all(torch.equal(tensor, same[1].tensors[name]) for name, tensor in same[0].tensors.items())


_WITHOUT_ROOM = """
import resource, sys
from unet_core.training.group import single
from unet_core.training.loop import train_rank
from unet_core.errors import UnetCoreError
def fill(report):
    if report.step == 5:  # after the checkpoint of step 4: from now on no file may be larger than 8 KiB
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
try:
    train_rank(sys.argv[1], single(), fill)
except UnetCoreError as error:
    sys.exit(str(error))
"""


@pytest.mark.slow
def test_a_checkpoint_that_finds_no_room_is_told_and_the_last_good_one_stays(tmp_path: Path) -> None:
    data = write_disks(tmp_path / "data")
    settings = ("validate_every=12",)
    train(data, tmp_path / "whole", *settings)
    out = tmp_path / "model"
    plan_training(str(data), str(out), make_options("default", [*FAST, *settings]), threads=1)
    process = subprocess.run([sys.executable, "-c", _WITHOUT_ROOM, str(out)], capture_output=True, text=True, check=False)
    assert process.returncode == 1
    assert "checkpoint of step 8 cannot be written" in process.stderr
    assert "that of step 4" in process.stderr
    assert steps_saved(training_store(str(out))) == (4,)
    train_rank(str(out), single())
    assert weights_of(out) == weights_of(tmp_path / "whole")


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    """What would hide behind equal bytes."""
    data = write_disks(tmp_path / "data")
    train(data, tmp_path / "a", "steps=4")
    train(data, tmp_path / "b", "steps=4", "seed=1")
    assert weights_of(tmp_path / "a") != weights_of(tmp_path / "b")


def test_a_damaged_checkpoint_falls_back_to_the_previous_one(tmp_path: Path) -> None:
    data = write_disks(tmp_path / "data")
    train(data, tmp_path / "whole")
    out = tmp_path / "model"
    plan_training(str(data), str(out), make_options("default", FAST), threads=1)
    with pytest.raises(KeyboardInterrupt):
        train_rank(str(out), single(), stop_at(10))
    latest = out / "training" / "checkpoints" / "00000008.safetensors"
    latest.write_bytes(latest.read_bytes()[:-100])
    reports: list[StepReport] = []
    train_rank(str(out), single(), reports.append)
    assert reports[0].step == 7  # after the validation of step 6
    assert "damaged" in reports[0].notes[0]
    assert weights_of(out) == weights_of(tmp_path / "whole")


def stop_at(step: int):
    def stop(report: StepReport) -> None:
        if report.step == step:
            raise KeyboardInterrupt

    return stop


def test_a_loss_that_is_not_finite_stops_with_step_and_crops(tmp_path: Path) -> None:
    data = write_disks(tmp_path / "data")
    settings = (
        "optimiser.kind=sgd",
        "optimiser.rate=1e6",
        "optimiser.clip=null",
        "optimiser.schedule=constant",
        "steps=60",
        "checkpoint_every=1",
    )
    with pytest.raises(UnetCoreError, match=r"at step \d+, with sample \d+ of images/disks\d.png around -?\d+, -?\d+") as error:
        train(data, tmp_path / "model", *settings, "network.arguments={base: 4, levels: 2}")
    store = training_store(str(tmp_path / "model"))
    kept = latest_checkpoint(store)[0]
    assert kept is not None
    assert f"checkpoint is that of step {kept.step}" in str(error.value)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in kept.tensors.values())
    assert not (tmp_path / "model" / "model.json").exists()


def test_training_stops_when_the_named_score_gets_no_better(tmp_path: Path) -> None:
    data = write_disks(tmp_path / "data")
    settings = (
        "optimiser.rate=1e-9",
        "best=accuracy",
        "patience=2",
        "validate_every=2",
        "steps=40",
        "network.arguments={base: 4, levels: 2, dropout: 0}",
    )
    reports = train(data, tmp_path / "model", *settings)
    assert reports[-1].step < 12
    assert load_model(tmp_path / "model").description.provenance["steps"] == reports[-1].step


def test_a_training_killed_as_its_patience_ran_out_is_not_gone_on_with(tmp_path: Path) -> None:
    data = write_disks(tmp_path / "data")
    settings = ("optimiser.rate=1e-9", "best=accuracy", "patience=2", "validate_every=2", "steps=40")
    last = train(data, tmp_path / "whole", *settings)[-1].step
    plan_training(str(data), str(tmp_path / "model"), make_options("default", [*FAST, *settings]), threads=1)
    with pytest.raises(KeyboardInterrupt):
        train_rank(str(tmp_path / "model"), single(), stop_at(last))
    assert train(data, tmp_path / "model", *settings) == []
    assert (tmp_path / "model" / "model.json").read_bytes() == (tmp_path / "whole" / "model.json").read_bytes()


def test_a_loader_that_is_killed_is_told_and_the_training_goes_on_when_called_again(tmp_path: Path) -> None:
    data = write_disks(tmp_path / "data")
    train(data, tmp_path / "whole")
    out = tmp_path / "model"
    plan_training(str(data), str(out), make_options("default", FAST), threads=1)

    def kill_loaders(report: StepReport) -> None:
        if report.step == 5:
            for child in children():
                os.kill(child, signal.SIGKILL)

    with pytest.raises(UnetCoreError, match="ended unexpectedly"):
        train_rank(str(out), single(), kill_loaders, loaders=1)
    train_rank(str(out), single())
    assert weights_of(out) == weights_of(tmp_path / "whole")


def children() -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


def test_fine_tuning_takes_what_fits_and_names_the_rest(tmp_path: Path) -> None:
    data = write_disks(tmp_path / "data")
    train(data, tmp_path / "parent", "steps=4")
    classes = [
        {"name": "background", "values": 0},
        {"name": "one", "values": 1},
        {"name": "others", "values": [2, 3, 4, 5, 6, 7]},
    ]
    other = write_disks(tmp_path / "other", seed=3, labels="classes", classes=classes)
    train(other, tmp_path / "child", "steps=3", "network.arguments={base: 8}", init=str(tmp_path / "parent"), freeze="encoder")
    parent, child = load_model(tmp_path / "parent"), load_model(tmp_path / "child")
    facts = child.description.provenance["parent"]
    assert facts["sha256"] == parent.sha256
    assert set(facts["new"]) == {"head.weight", "head.bias"}
    assert child.description.provenance["options"]["network"]["arguments"]["base"] == 4
    before, after = parent.network.state_dict(), child.network.state_dict()
    assert after["head.weight"].shape[0] == 3
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("contracting"))
    assert not torch.equal(before["expanding.0.0.weight"], after["expanding.0.0.weight"])


def test_another_request_in_the_same_folder_is_refused_by_field(tmp_path: Path) -> None:
    data = write_disks(tmp_path / "data")
    options = make_options("default", FAST)
    plan_training(str(data), str(tmp_path / "model"), options, threads=1)
    plan_training(str(data), str(tmp_path / "model"), options)  # threads as planned
    for changed, settings, arguments, message in [
        (
            data,
            ("optimiser.rate=0.5",),
            {},
            "--set optimiser.rate=0.01 then, --set optimiser.rate=0.5 now. Repeat the first command",
        ),
        (
            data,
            ("network.arguments.levels=3",),
            {},
            "--set network.arguments.levels=2 then, --set network.arguments.levels=3 now",
        ),
        (
            data,
            ("network.arguments={base: 4}",),
            {},
            "--set network.arguments.levels=2 then, no --set network.arguments.levels now",
        ),
        (data, ("heads=[{kind: distance, scale: 3}]",), {}, r"--set heads=\[\{kind: classes, .* now"),
        (data, (), {"threads": 2}, "--threads 1 then, --threads 2 now"),
        (data, (), {"init": "nuclei-he"}, "no --init then, --init .*nuclei-he now"),
        (write_disks(tmp_path / "other"), (), {}, "data of .*/data then, of .*/other now"),
    ]:
        with pytest.raises(ResumeError, match=message) as told:
            plan_training(str(changed), str(tmp_path / "model"), make_options("default", [*FAST, *settings]), **arguments)
        assert "\n" not in str(told.value)
        assert "fingerprint" not in str(told.value)
    for description, message in [
        ({"split": {"validation": 0.4}}, r"split of the data set was \{.*validation: 0.2\}, is \{.*validation: 0.4\} now"),
        (
            {"pairs": [{"image": f"images/disks{n}.png", "labels": f"labels/disks{n}.tif"} for n in (0, 1)]},
            "5 pairs then, of 2 now",
        ),
        (
            {"pairs": [{"image": "images/*.png", "labels": "labels/{name}.tif", "voxel_size_um": [1, 1]}]},
            r"voxel_size_um of .*disks0.png was null, is \[1.0, 1.0\] now",
        ),
    ]:
        write_disks(tmp_path / "data", **description)
        with pytest.raises(ResumeError, match=message):
            plan_training(str(data), str(tmp_path / "model"), options)
    write_disks(tmp_path / "data")
    plan_training(str(data), str(tmp_path / "model"), options)  # the same files again
    write_disks(tmp_path / "data", seed=1)
    with pytest.raises(ResumeError, match=r"the image .*disks0\.png or its labels have changed since"):
        plan_training(str(data), str(tmp_path / "model"), options)


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        (("crops.target=64",), {}, "output of a crop is larger than the image"),
        (("crops.per_step=1",), {"ranks": 2}, "2 ranks share 1 crop a step"),
        (("best=iuo",), {}, "'iuo', which is no score"),
        (("network.arguments={base: 4, levels: 2, padding: same}",), {}, "padding='valid'"),
        ((), {"freeze": "encoder"}, "--init"),
        (("heads=[{kind: regions, regions: {all: [disc]}}]",), {}, "disc"),
        (("crops.target=[24, 24, 24]",), {}, "3 numbers"),
    ],
)
def test_what_cannot_be_trained_is_told_before_the_first_step(tmp_path: Path, settings, arguments, message: str) -> None:
    data = write_disks(tmp_path / "data")
    with pytest.raises(InputError, match=message):
        plan_training(str(data), str(tmp_path / "model"), make_options("default", [*FAST, *settings]), **arguments)
    assert not (tmp_path / "model").exists()


def test_a_folder_that_holds_an_image_is_no_place_for_a_model(tmp_path: Path) -> None:
    data = write_disks(tmp_path / "data")
    zarr.create_array(tmp_path / "result.zarr", data=np.zeros((4, 4), np.uint8))
    with pytest.raises(InputError, match=r"result\.zarr holds an image or a result \(zarr\.json\); give a new folder"):
        plan_training(str(data), str(tmp_path / "result.zarr"), make_options("default", FAST))
    assert not (tmp_path / "result.zarr" / "training").exists()

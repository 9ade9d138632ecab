"""The command that picks places to correct, and the whole loop: what a model never saw is found, corrected, learnt, and then known."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml

from tests.flows.test_cli import call
from tests.unet_core.training.datasets import FAST
from unet_core.corrections.records import box_of

BRIGHT, DIM = 160, 112  # disks on a background of 60; a model that saw bright ones only is in doubt about dim ones


def disks(shape: tuple[int, int], kinds: dict[int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An image with so many disks of each intensity, and its labels."""
    random = np.random.default_rng(seed)
    labels, values = np.zeros(shape, np.uint8), np.full(shape, 60.0)
    y, x = np.mgrid[: shape[0], : shape[1]]
    for intensity, count in kinds.items():
        for _ in range(count):
            inside = (y - random.uniform(0, shape[0])) ** 2 + (x - random.uniform(0, shape[1])) ** 2 < random.uniform(40, 90)
            labels[inside & (values == 60)], values[inside & (values == 60)] = 1, intensity
    return np.clip(values + random.normal(0, 12, shape), 0, 255).astype(np.uint8), labels


def write_data(folder: Path, kinds: dict[int, int], seed: int, **parts: int) -> Path:
    """So many pairs for each purpose, and their ``dataset.yaml``."""
    (folder / "images").mkdir(parents=True)
    pairs = []
    for part, count in parts.items():
        for number in range(count):
            seed += 1
            image, labels = disks((80, 90), kinds, seed)
            tifffile.imwrite(folder / "images" / f"{part}{number}.tif", image)
            tifffile.imwrite(folder / "images" / f"{part}{number}_labels.tif", labels)
            pairs.append({"image": f"images/{part}{number}.tif", "labels": f"images/{part}{number}_labels.tif", "part": part})
    classes = [{"name": "background", "values": 0}, {"name": "disk", "values": 1}]
    (folder / "dataset.yaml").write_text(yaml.safe_dump({"schema": 1, "labels": "classes", "classes": classes, "pairs": pairs}))
    return folder / "dataset.yaml"


def test_what_was_never_seen_is_found_corrected_and_learnt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def unet(*arguments: object) -> list[str]:
        code, out, err = call(monkeypatch, capsys, *arguments)
        assert code == 0, err
        return out.splitlines()

    def held_out(model: Path) -> float:
        lines = unet("evaluate", model, unseen, "--metrics", "iou", "--json")
        return float(json.loads(lines[-1])["scores"]["iou"]["mean"])

    quick = [
        word for setting in (*FAST, "steps=160", "validate_every=160", "checkpoint_every=160") for word in ("--set", setting)
    ]
    known = write_data(tmp_path / "known", {BRIGHT: 8}, 0, train=3)
    unseen = write_data(tmp_path / "unseen", {BRIGHT: 4, DIM: 8}, 50, test=3)
    unet("train", known, tmp_path / "weak", *quick, "--threads", 1, "--device", "cpu")
    before = held_out(tmp_path / "weak")

    image, truth = disks((160, 400), {BRIGHT: 12}, 7)
    dim, dim_truth = disks((160, 140), {DIM: 12}, 8)
    image[:, 230:370], truth[:, 230:370] = dim, dim_truth  # what is unknown lies in one part of the image
    tifffile.imwrite(tmp_path / "image.tif", image)
    run = ("--model", tmp_path / "weak", "--probabilities", "uint8", "--cluster", "serial", "--device", "cpu")
    unet("segment", tmp_path / "image.tif", tmp_path / "result.zarr", *run)
    folder = tmp_path / "corrections"
    lines = unet("sample", tmp_path / "result.zarr", folder, "--n", 4, "--size", 48, "--json")
    summary = json.loads(lines[-1])
    places = [box_of(crop["box"]) for crop in summary["crops"]]
    assert (
        sum(box.start[1] >= 215 and box.stop[1] <= 385 for box in places) >= 3
    )  # entropy leads there; by chance it would be 1 or 2

    plan = (
        "train",
        folder / "dataset.yaml",
        tmp_path / "planned",
        "--init",
        tmp_path / "weak",
        "--set",
        "steps=2",
        "--plan-only",
    )
    _, _, told = call(monkeypatch, capsys, *plan)
    assert f"no labels of the 4 crops in {folder} were changed" in told
    with (folder / "crops.csv").open() as file:
        for row in csv.DictReader(file):
            labels = tifffile.imread(folder / row["labels"])
            inner = labels != 255
            labels[inner] = truth[box_of(row["box"]).slices()].ravel()
            tifffile.imwrite(folder / row["labels"], labels)
    assert "were changed" not in call(monkeypatch, capsys, *plan)[2]
    command = shlex.split(summary["command"])
    assert command[:2] == ["unet", "train"]
    assert command[2:6] == [str(folder / "dataset.yaml"), "NEW_MODEL", "--init", str(tmp_path / "weak")]
    settings = [word for setting in FAST if not setting.startswith("network") for word in ("--set", setting)]
    settings += ["--set", "steps=80", "--set", "validate_every=80", "--set", "checkpoint_every=80"]
    unet("train", command[2], tmp_path / "better", *command[4:6], *settings, "--threads", 1, "--device", "cpu")
    after = held_out(tmp_path / "better")
    assert after > before + 0.2
    first, second = (json.loads((tmp_path / name / "model.json").read_text()) for name in ("weak", "better"))
    assert first["normalisation"] == second["normalisation"]
    code, _, err = call(monkeypatch, capsys, "sample", tmp_path / "result.zarr", folder, "--size", 48)
    assert code == 2
    assert err == (
        f"unet: {folder} holds 4 crops already, 4 of them with edited labels, which are never overwritten; add others with --add, or give a "
        f"new folder and --exclude {folder}.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere.zarr", "crops"), "nowhere.zarr"),
        (("x", "crops", "--n", "1.5"), "no whole number"),
        (("x", "crops", "--size", "a"), "--size is 'a'"),
        (("x", "crops", "--by", "size"), "entropy"),
        (("x", "crops", "--n", "0"), "n: Input should be greater"),
    ],
)
def test_bad_options_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = call(monkeypatch, capsys, "sample", *arguments)
    assert code == 2
    assert words in err
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())

"""The command and the flow that score: a table, a machine-readable line, one line and exit code 2 for what cannot be scored."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests.conftest import DATA, needs_data
from tests.flows.test_cli import ROOT, Maker, call
from tests.flows.test_prefect import ask, server, unet  # noqa: F401
from tests.unet_core.metrics.partitions import alike, partition
from tests.unet_core.report.pages import Page, check_inert
from tests.unet_core.training.datasets import write_disks
from unet_core import metrics
from unet_core.evaluation import Meaning, pair_of_arrays


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Predictions and references of three images."""
    for name in ("found", "truth"):
        (tmp_path / name).mkdir()
    for number in range(3):
        ids = partition((23, 31), number)
        tifffile.imwrite(tmp_path / "found" / f"image-{number}.tif", alike(ids, number).astype(np.uint16))
        tifffile.imwrite(tmp_path / "truth" / f"image-{number}.tif", ids.astype(np.uint16))
    return tmp_path / "found", tmp_path / "truth"


KNOWN = ("--prediction-is", "ids", "--reference-is", "ids")


def test_one_image_gives_values_with_definitions(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folders: tuple[Path, Path]
) -> None:
    files = [folder / "image-0.tif" for folder in folders]
    code, out, _ = call(monkeypatch, capsys, "evaluate", *files, *KNOWN, "--metrics", "iou,pq,voi", "--json")
    assert code == 0
    last = json.loads(out.splitlines()[-1])
    quality = metrics.panoptic_quality(*(tifffile.imread(file) for file in files))
    assert last["scores"]["pq"]["mean"] == quality.pq
    assert f"{quality.pq:.4f}" in out
    assert "panoptic quality SQ x RQ" in out
    assert "H(prediction given reference) in bits" in out


def test_folders_give_a_row_an_image_mean_and_interval(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folders: tuple[Path, Path]
) -> None:
    code, out, _ = call(monkeypatch, capsys, "evaluate", *folders, *KNOWN, "--metrics", "seg,adapted_rand", "--json")
    assert code == 0
    assert all(f"image-{number}" in out for number in range(3))
    assert "95 % interval" in out
    last = json.loads(out.splitlines()[-1])
    assert [row["name"] for row in last["images"]] == ["image-0", "image-1", "image-2"]
    assert last["scores"]["seg"]["mean"] == pytest.approx(np.mean([row["seg"] for row in last["images"]]))
    assert "precision" in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--metrics", "iuo"), "Did you mean iou"),
        (("--metrics", "iou", "--ignore", "1.5"), "no whole number"),
        (("--thresholds", "0.5,x"), "--thresholds is '0.5,x'"),
        (("--threshold", "2"), "0 to below 1"),
        (("--class", "nucleus"), "give a number"),
        (("--memory-gib", "nan"), "--memory-gib is nan; give more than 0 GiB"),
        (("--memory-gib", "inf"), "--memory-gib is inf; give more than 0 GiB"),
        (("--part", "test"), "--part is test, but images are scored, and it is for a model and its data set; leave it out"),
        (("--fold", "0"), "--fold is 0, but images are scored"),
        (("--root", "."), "--root is ., but images are scored"),
        (("--symmetries", "none"), "--symmetries is none, but images are scored"),
        (("--device", "cpu"), "--device is cpu, but images are scored"),
        (("--threads", "1"), "--threads is 1, but images are scored"),
    ],
)
def test_bad_options_are_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folders: tuple[Path, Path],
    options: tuple[str, ...],
    words: str,
) -> None:
    code, _, err = call(monkeypatch, capsys, "evaluate", *(folder / "image-0.tif" for folder in folders), *KNOWN, *options)
    assert code == 2
    assert words in err
    assert len(err.splitlines()) == 1


def test_a_model_is_scored_section_by_section_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    stack = np.stack([partition((23, 31), seed) for seed in range(3)])
    pair = pair_of_arrays("stack", np.float32(stack > 0), stack, Meaning("map", "ids"))
    monkeypatch.setattr("unet_core.training.held_out.held_out_pairs", lambda *_, **__: iter([pair]))
    code, out, _ = call(monkeypatch, capsys, "evaluate", "model", tmp_path / "dataset.yaml", "--by-section", "--json")
    assert code == 0
    assert [row["name"] for row in json.loads(out.splitlines()[-1])["images"]] == ["stack z=0", "stack z=1", "stack z=2"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--threads", "0"), "--threads is 0; give 1 to 1024"),
        (("--ignore", "3"), "--ignore is 3, but a data set and the model tell"),
        (("--prediction-is", "ids"), "--prediction-is is ids, but"),
        (("--missing", "error"), "--missing is error, but"),
    ],
)
def test_bad_options_of_a_model_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    data = write_disks(tmp_path, count=2, split={"test": 0.5})
    code, _, err = call(monkeypatch, capsys, "evaluate", "nuclei-fluorescence", data, *options)
    assert code == 2
    assert words in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("classes", [2, 3])
def test_what_is_left_out_is_said_in_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, make_model: Maker, classes: int
) -> None:
    """Not as the number that stands for it inside."""
    names = ["class 0", "class 1", "class 2"][:classes]
    labels = {"labels": "classes", "classes": [{"name": name, "values": value} for value, name in enumerate(names)]}
    ignored = {"ignore": [value for value in range(classes, 9)]}
    data = write_disks(tmp_path, count=2, split={"test": 0.5}, **labels, **ignored)
    code, out, err = call(monkeypatch, capsys, "evaluate", make_model(classes=classes), data, "--device", "cpu")
    assert code == 0, err
    assert "; what has no label is ignored" in out
    assert "2147483647" not in out
    assert "255" not in out


def test_a_model_is_scored_on_the_folder_that_it_was_trained_with(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data = write_disks(tmp_path, count=2, split={"test": 0.5})
    for place in (data, data.parent):
        code, _, err = call(monkeypatch, capsys, "evaluate", "nuclei-fluorescence", place)
        assert code == 2
        assert "has the classes background, nucleus, data set" in err


@needs_data
def test_polarity_of_the_isbi_labels_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """255 is the cells' interior there; a map of membranes has to be turned round."""
    labels = DATA / "isbi2012" / "labels.tif"
    membranes = tmp_path / "membranes.tif"
    cells = tifffile.imread(labels)
    tifffile.imwrite(membranes, (cells == 0).astype(np.float32), photometric="minisblack")
    code, out, _ = call(monkeypatch, capsys, "evaluate", membranes, labels, "--metrics", "iou,pixel_error_max_f")
    assert code == 0
    assert "--invert-prediction" in out
    arguments = ("--metrics", "iou,pixel_error_max_f,pixel_error_fiji", "--invert-prediction", "--json")
    code, out, _ = call(monkeypatch, capsys, "evaluate", membranes, labels, *arguments)
    scores = json.loads(out.splitlines()[-1])["scores"]
    assert [scores[name]["mean"] for name in ("iou", "pixel_error_max_f", "pixel_error_fiji")] == [1, 0, 0]
    assert "use --invert" not in out


@pytest.mark.slow
def test_the_flow_leaves_a_table_of_the_same_scores(server: dict[str, str], folders: tuple[Path, Path]) -> None:  # noqa: F811
    code = (
        "import json, sys; from flows.evaluate import evaluate_archive; "
        "print(json.dumps(evaluate_archive(sys.argv[1], sys.argv[2], ('seg', 'pq'), "
        "{'prediction_is': 'ids', 'reference_is': 'ids'})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, folders)],
        env=os.environ | server,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    scores = json.loads(done.stdout.splitlines()[-1])["scores"]
    expected = [metrics.seg(alike(partition((23, 31), n), n), partition((23, 31), n)).score for n in range(3)]
    assert scores["seg"]["mean"] == pytest.approx(np.mean(expected))
    artifacts = {entry["key"]: entry for entry in ask(server["PREFECT_API_URL"], "/artifacts/filter", {})}
    rows = json.loads(artifacts["evaluation-scores"]["data"])
    ends = ["95 % interval, from", "95 % interval, to"]
    assert [row["image"] for row in rows] == ["image-0", "image-1", "image-2", "mean", *ends]
    assert rows[3]["seg"] == pytest.approx(np.mean(expected))
    assert [row["seg"] for row in rows[4:]] == pytest.approx(metrics.bootstrap_interval(expected))
    assert "](data:image/jpeg;base64," in artifacts["evaluation-summary"]["data"]


@pytest.mark.slow
def test_a_model_is_scored_as_a_flow_from_the_command_line(server: dict[str, str], tmp_path: Path) -> None:  # noqa: F811
    classes = [{"name": "background"}, {"name": "nucleus"}]
    data = write_disks(tmp_path / "data", count=4, split={"test": 0.5}, classes=classes)
    arguments = ("evaluate", "nuclei-fluorescence", data, "--metrics", "pq,iou", "--json")
    alone = unet({"PREFECT_API_URL": ""}, *arguments, "--report", tmp_path / "alone.html")
    flow = unet(server, *arguments, "--report", tmp_path / "flow.html")
    assert (alone.returncode, flow.returncode) == (0, 0), alone.stderr + flow.stderr
    first, second = (json.loads(done.stdout.splitlines()[-1]) for done in (alone, flow))
    pages = [Page(tmp_path / name) for name in ("alone.html", "flow.html")]
    for page in pages:
        check_inert(page)
        page.facts.pop("written")
    assert pages[0].facts == pages[1].facts
    assert first.pop("page") != second.pop("page")
    assert first == second
    assert pages[0].facts["scores"] == first["scores"]
    runs = ask(server["PREFECT_API_URL"], "/flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})
    assert runs[0]["state_type"] == "COMPLETED"
    before = ask(server["PREFECT_API_URL"], "/flow_runs/count", {})
    for wrong, words in (("--metrics=qp", "There is no metric"), ("--root=nowhere", "nowhere")):
        bad = unet(server, "evaluate", "nuclei-fluorescence", data, wrong)
        assert (bad.returncode, len(bad.stderr.splitlines())) == (2, 1)
        assert words in bad.stderr
    assert ask(server["PREFECT_API_URL"], "/flow_runs/count", {}) == before

"""The command line: one line and exit code 2 for bad input with nothing written, a summary and 0 for a finished run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from flows import cli, settings
from tests.conftest import textured

Maker = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[2]


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of ``unet ARGUMENTS`` in this process."""
    monkeypatch.setattr(sys, "argv", ["unet", *(str(argument) for argument in arguments)])
    monkeypatch.setattr(settings, "prefect_api_is_configured", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


def test_segment_plan_status_and_resume(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    image, model, output = make_image((90, 70)), make_model(), tmp_path / "out"
    common = (image, output, "--model", model, "--block-shape", "32,32", "--json")
    code, out, _ = call(monkeypatch, capsys, "plan", *common)
    assert code == 0
    facts = json.loads(out.splitlines()[-1])
    assert facts["blocks"] == "9 of (32, 32) voxels"
    assert facts["exact"] is True
    assert not output.exists()
    code, out, _ = call(monkeypatch, capsys, "segment", *common, "--cluster", "serial")
    summary = json.loads(out.splitlines()[-1])
    assert (code, summary["status"], summary["computed"]) == (0, "complete", 9)
    assert sum(summary["label_voxels"].values()) == 90 * 70
    code, out, _ = call(monkeypatch, capsys, "segment", *common, "--cluster", "serial")
    assert (code, json.loads(out.splitlines()[-1])["computed"]) == (0, 0)
    code, out, _ = call(monkeypatch, capsys, "status", output, "--json")
    assert (code, json.loads(out.splitlines()[-1])["state"]) == (0, "complete")


BAD: list[tuple[str, tuple[str, ...], str]] = [
    ("unknown option", ("--devise", "cpu"), "devise"),
    ("absent device", ("--device", "cuda:7"), "this machine has"),
    ("unknown device", ("--device", "tpu"), "use auto, cpu, cuda"),
    ("no workers", ("--workers", "0"), "workers is 0"),
    ("negative workers", ("--workers", "-2"), "workers is -2"),
    ("unknown cluster", ("--cluster", "cloud"), "Cluster 'cloud' is not known"),
    ("block off the stride", ("--block-shape", "30,32"), "use 28 or 32"),
    ("block of other axes", ("--block-shape", "4,32,32"), "has 3 axes"),
    ("block of letters", ("--block-shape", "a,b"), "write numbers"),
    ("negative voxel size", ("--voxel-size=-1,1",), "greater than 0"),
    ("voxel size of other axes", ("--voxel-size", "1,1,1"), "give one an axis"),
    ("region outside", ("--roi", "900:950,0:10"), "covers nothing"),
    ("region of letters", ("--roi", "all"), "is not a box"),
    ("too little memory", ("--memory-gib", "0.000001"), "GiB, the worker may use"),
    ("a level that is not there", ("--level", "3"), "level 3 .* does not exist"),
    ("precision", ("--precision", "float16"), "float16"),
]


@pytest.mark.parametrize(("options", "words"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
@pytest.mark.parametrize("command", ["segment", "plan"])
def test_bad_options_end_with_one_line_and_nothing_written(
    command: str,
    options: tuple[str, ...],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    make_model: Maker,
    make_image: Maker,
    tmp_path: Path,
) -> None:
    import re

    image, model, output = make_image((90, 70)), make_model(), tmp_path / "out"
    code, _, err = call(monkeypatch, capsys, command, image, output, "--model", model, *options)
    assert code == 2
    assert err.startswith("unet: ")
    assert err.count("\n") == 1
    assert re.search(words, err), err
    assert not output.exists()


def test_bad_places_end_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    image, model = make_image((90, 70)), make_model()
    for arguments, words in [
        ((tmp_path / "no.zarr", tmp_path / "o", "--model", model), "input not found"),
        ((image, tmp_path / "o", "--model", "nope"), "Model not found"),
        ((image, image / "o", "--model", model), "inside each other"),
        ((image, image, "--model", model), "is the image itself"),
        ((image, tmp_path / "o"), "model"),
        (("s3://user:geheim@b/x", tmp_path / "o", "--model", model), "Credentials"),
    ]:
        code, _, err = call(monkeypatch, capsys, "segment", *arguments)
        assert (code, err.count("\n")) == (2, 1)
        assert words in err
        assert "geheim" not in err
    assert not (tmp_path / "o").exists()


def test_failed_blocks_end_with_code_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make_model: Maker, tmp_path: Path
) -> None:
    values = textured((40, 90)).astype(np.float32)
    values[5, 85] = np.inf
    zarr.create_array(tmp_path / "a.zarr", data=values, chunks=(40, 90))
    code, out, _ = call(
        monkeypatch, capsys, "segment", tmp_path / "a.zarr", tmp_path / "o", "--model", make_model(), "--cluster", "serial",
        "--block-shape", "16,16",
    )  # fmt: skip
    assert code == 3
    assert "partial" in out
    assert "failed: segment block" in out


def test_models_and_model_info(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(monkeypatch, capsys, "models", "--json")
    assert (code, {row["name"] for row in json.loads(out.splitlines()[-1])}) == (0, {"nuclei-he", "nuclei-fluorescence"})
    code, out, _ = call(monkeypatch, capsys, "model", "info", "nuclei-he", "--json")
    facts: dict[str, Any] = json.loads(out.splitlines()[-1])
    assert code == 0
    assert facts["margin"] == "(44, 44) before, (44, 44) after"
    assert facts["stride"] == [8, 8]


def test_without_a_prefect_api_prefect_is_not_imported(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    code = (
        "import sys; from flows.run import segment_on_cluster; from unet_core.job import make_job\n"
        "job = make_job(image=sys.argv[1], output=sys.argv[2], model=sys.argv[3])\n"
        "assert segment_on_cluster(job, 'serial').status == 'complete'; assert 'prefect' not in sys.modules"
    )
    arguments = [str(make_image((40, 50))), str(tmp_path / "o"), str(make_model())]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, cwd=ROOT)


def test_help_answers_at_once() -> None:
    best = 9.0
    for _ in range(3):
        began = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "flows.cli", "--help"], check=True, cwd=ROOT, capture_output=True, env=dict(os.environ)
        )
        best = min(best, time.monotonic() - began)
    assert best < 5  # a hang or a heavy import; the figure itself is no test

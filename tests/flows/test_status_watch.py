"""``unet status --watch`` beside a real run in another process: it tells the same, ends with it, and costs it nothing."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

from tests.conftest import textured
from tests.flows.test_archive import write_images
from tests.flows.test_cli import call

Maker = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[2]
LINE = re.compile(r"([\d,]+) of ([\d,]+) blocks segmented")


def start(*arguments: object, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "flows.cli", *(str(argument) for argument in arguments)]
    environment = os.environ | {"PREFECT_API_URL": "", "TERM": "xterm", "COLUMNS": "100"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=stdout, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # what runs these tests may ignore Ctrl-C
    )  # fmt: skip


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_run_is_watched_from_another_process_until_it_is_complete(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    image, model, output = make_image((700, 500)), make_model(base=16), tmp_path / "out"
    arguments = ("segment", image, output, "--model", model, "--block-shape", "64,64", "--cluster", "serial")
    process = start(*arguments)
    wait_for(output / ".unet/request.json", process)
    own, other = pty.openpty()
    drawn = start("status", output, "--watch", "--every", 0.3, stdout=other)
    os.close(other)
    lines = start("status", output, "--watch", "--every", 0.3, "--json")
    said, _ = lines.communicate(timeout=120)
    process.communicate(timeout=120)
    assert (process.returncode, lines.returncode) == (0, 0)
    *told, last = said.splitlines()
    counts = [int(match.group(1).replace(",", "")) for line in told if (match := LINE.match(line))]
    assert len(counts) == len(told) > 2
    assert counts == sorted(counts)
    assert counts[-1] == 88
    assert told[-1].endswith(", complete")
    facts = json.loads(last)
    assert (facts["state"], facts["stages"]["segment"]) == ("complete", [88, 88])
    assert any("million voxels per second" in line for line in told)
    screen = read_all(own)
    assert drawn.wait(timeout=60) == 0
    assert "segmentation" in screen
    assert "coarser image 1" in screen
    assert "\x1b[1A" in screen  # drawn in place, not line after line


def read_all(terminal: int) -> str:
    parts = []
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # its process has ended
            break
        if not part:
            break
        parts.append(part)
    return b"".join(parts).decode(errors="replace")


def test_a_run_without_some_blocks_ends_the_watching_with_their_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make_model: Maker, tmp_path: Path
) -> None:
    values = textured((40, 70)).astype(np.float32)
    values[20, 60] = np.nan
    zarr.create_array(tmp_path / "nan.zarr", data=values, chunks=(40, 70))
    options = ("--model", make_model(), "--block-shape", "16,16", "--cluster", "serial")
    assert call(monkeypatch, capsys, "segment", tmp_path / "nan.zarr", tmp_path / "out", *options)[0] == 3
    code, out, _ = call(monkeypatch, capsys, "status", tmp_path / "out", "--watch", "--json")
    assert (code, json.loads(out.splitlines()[-1])["state"]) == (3, "partial")
    assert "ended without" in out.splitlines()[0]
    code, out, _ = call(monkeypatch, capsys, "status", tmp_path / "out", "--json")
    assert (code, json.loads(out.splitlines()[-1])["state"]) == (0, "partial")
    assert "failed: segment block" in out


def test_an_archive_is_watched_by_the_states_of_its_images(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make_model: Maker, tmp_path: Path
) -> None:
    folder = write_images(tmp_path / "in", {"a": (41, 53), "b": (90, 17)})
    options = ("--model", make_model(levels=2), "--block-shape", "32,32", "--cluster", "serial")
    assert call(monkeypatch, capsys, "archive", folder, tmp_path / "out", *options)[0] == 3  # one image is broken
    code, out, _ = call(monkeypatch, capsys, "status", tmp_path / "out", "--watch", "--json")
    assert (code, json.loads(out.splitlines()[-1])["counts"]) == (3, {"complete": 2, "failed": 1})
    assert out.splitlines()[0] == "3 images: 2 complete, 1 failed"


@pytest.mark.slow
def test_ctrl_c_ends_the_watching_alone(make_model: Maker, make_image: Maker, tmp_path: Path) -> None:
    output = tmp_path / "out"
    process = start(
        "segment", make_image((200, 200)), output, "--model", make_model(), "--block-shape", "32,32", "--cluster", "serial"
    )
    process.communicate(timeout=120)
    (output / ".unet/complete.json").unlink()
    watching = start("status", output, "--watch", "--every", 0.2)
    assert watching.stdout is not None
    assert "the check at the end goes on" in watching.stdout.readline()
    watching.send_signal(signal.SIGINT)
    out, err = watching.communicate(timeout=20)
    assert (watching.returncode, err) == (130, "")
    assert out.splitlines()[-1] == "No longer watched; the run itself was not stopped."


def test_what_is_no_output_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, err = call(monkeypatch, capsys, "status", tmp_path / "none", "--watch")
    assert (code, out, err.count("\n")) == (2, "", 1)

"""Ctrl-C and SIGTERM on real processes: one line, no traceback, no process and no folder left, and the run goes on later."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from unet_core.segment import read_status

Maker = Callable[..., Path]
pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
STOPPED = "unet: stopped; run the same command again to resume."


def stop(environment: dict[str, str], number: signal.Signals, output: Path, arguments: list[str]) -> tuple[int, str, str]:
    """Start ``unet segment`` with two workers, send a signal after a few blocks; exit code and what it printed.

    Ctrl-C reaches every process of a terminal's foreground, SIGTERM the command alone.
    """
    scratch = output.parent / "scratch"
    scratch.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "segment", *arguments], cwd=ROOT,
        env=os.environ | environment | {"TMPDIR": str(scratch)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        # What runs these tests in the background has Ctrl-C ignored, which processes inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        records = output / ".unet" / "ledger" / "segment"
        deadline = time.monotonic() + 120
        while not records.is_dir() or len(list(records.iterdir())) < 3:
            assert process.poll() is None, process.communicate()[1][-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    assert not list(scratch.glob("unet-dask-*"))
    return process.returncode, out, err


def segment_arguments(make_model: Maker, make_image: Maker, output: Path) -> list[str]:
    image, model = make_image((900, 900), chunks=(300, 300)), make_model(base=16)
    return [str(image), str(output), "--model", str(model), "--block-shape", "64,64"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_says_one_line_and_can_be_resumed(
    number: signal.Signals, code: int, make_model: Maker, make_image: Maker, tmp_path: Path
) -> None:
    arguments = [*segment_arguments(make_model, make_image, tmp_path / "out"), "--json"]
    found, out, err = stop({"PREFECT_API_URL": ""}, number, tmp_path / "out", arguments)
    assert (found, out.count("\n")) == (code, 1)
    assert [line for line in err.splitlines() if "Mvoxel/s" not in line] == [STOPPED]
    assert read_status(str(tmp_path / "out")).state == "unfinished"

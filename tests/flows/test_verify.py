"""The command and the flow that read an output again: what is intact, what is damaged, what is only not done yet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flows.test_cli import ROOT, call
from tests.flows.test_prefect import ask, server  # noqa: F401
from tests.unet_core.test_ledger import flip, job
from unet_core.job import SegmentationJob
from unet_core.segment import run

assert job  # a fixture: a finished run of 5 x 2 blocks and one coarser level of 3 x 1

SHARD = "labels/classes/0/c/3/1"


def test_the_command_tells_damage_repairs_it_and_ends_with_its_exit_code(
    job: SegmentationJob,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, _ = call(monkeypatch, capsys, "verify", job.output)
    assert (code, out.splitlines()[0]) == (0, f"intact: {job.output}")
    flip(tmp_path / "out" / SHARD)
    code, out, _ = call(monkeypatch, capsys, "verify", job.output)
    assert code == 1
    assert f"fault: {SHARD} has" in out
    assert "--repair" in out
    code, out, _ = call(monkeypatch, capsys, "verify", job.output, "--repair", "--json")
    assert code == 1
    assert "computes segment block 7, level-1 block 1 again" in out
    assert json.loads(out.splitlines()[-1])["again"] == ["segment block 7", "level-1 block 1"]
    code, out, _ = call(monkeypatch, capsys, "verify", job.output)
    assert (code, out.splitlines()[0]) == (3, f"unfinished: {job.output}")
    assert run(job).computed == 1
    assert call(monkeypatch, capsys, "verify", job.output)[0] == 0
    code, _, err = call(monkeypatch, capsys, "verify", tmp_path)
    assert code == 2
    assert "is not an output of this program" in err


@pytest.mark.slow
def test_a_flow_run_of_a_damaged_output_is_red_and_lists_the_faults(
    server: dict[str, str],  # noqa: F811
    job: SegmentationJob,
    tmp_path: Path,
) -> None:
    def verify() -> subprocess.CompletedProcess[str]:
        code = "import sys; from flows.verify import verify_output; verify_output(sys.argv[1])"
        return subprocess.run(
            [sys.executable, "-c", code, job.output],
            env=os.environ | server,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    assert verify().returncode == 0
    flip(tmp_path / "out" / SHARD)
    failed = verify()
    assert failed.returncode != 0
    assert f"{job.output} is damaged: {SHARD} has" in failed.stderr
    api = server["PREFECT_API_URL"]
    runs = ask(api, "/flow_runs/filter", {"flows": {"name": {"any_": ["verify-output"]}}, "sort": "EXPECTED_START_TIME_DESC"})
    assert [entry["state_type"] for entry in runs] == ["FAILED", "COMPLETED"]
    artifacts = ask(api, "/artifacts/filter", {"flow_runs": {"id": {"any_": [runs[0]["id"]]}}})
    (faults,) = [json.loads(entry["data"]) for entry in artifacts if entry["key"] == "verification-faults"]
    assert [list(row) for row in faults] == [["fault"]]
    assert SHARD in faults[0]["fault"]

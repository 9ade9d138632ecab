"""The comparison runs, and what it compares gives the same labels."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_contenders_are_measured_on_the_same_labels(tmp_path: Path) -> None:
    names = ["pipeline, serial", "tile loop, tuned"]
    chosen = [word for name in names for word in ("--contender", name)]
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks",
        "--case",
        "tiny",
        "--rounds",
        "1",
        "--json",
        str(tmp_path / "found.json"),
    ]
    done = subprocess.run([*command, *chosen], check=True, capture_output=True, text=True, cwd=ROOT)
    (case,) = json.loads((tmp_path / "found.json").read_text())["cases"]
    assert [row["contender"] for row in case["rows"]] == names
    assert all(row["labels_equal"] > 0.9999 and row["peak_mib"] > 100 for row in case["rows"])
    assert "| tile loop, tuned |" in done.stdout

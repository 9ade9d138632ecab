"""Every line of the contract in `deploy/RELIABILITY.md` names tests that exist, or says that there are none; so do threats."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
PAGE = TESTS.parent / "deploy/RELIABILITY.md"
LINES = 19


def test_every_line_of_the_contract_names_tests_that_exist_or_says_that_there_are_none() -> None:
    rows = {int(row[1]): row[2] for row in re.finditer(r"^\| (\d+) \|(.*)\|$", PAGE.read_text(), re.MULTILINE)}
    assert sorted(rows) == list(range(1, LINES + 1))
    for number, row in rows.items():
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", row)
        assert named or "none yet" in row, f"line {number} names no test"
        for file, name in named:
            assert f"\ndef {name}(" in (TESTS / file).read_text(), f"line {number}: {file} has no {name}"


def test_threats_name_tests_that_exist() -> None:
    named = re.findall(r"`([\w/]+\.py)`", (PAGE.parent / "SECURITY.md").read_text())
    assert len(set(named)) > 10
    assert [file for file in named if not (TESTS / file).is_file()] == []

"""A run keeps its memory, however many blocks it has; the figures of a million, and of speed, are those of the benchmark."""

from __future__ import annotations

import pytest

from tests.benchmarks.scale import _growth, in_child, table_of

pytestmark = pytest.mark.slow


@pytest.mark.alone
def test_memory_stays() -> None:
    """1,500 blocks rather than the 20,000 of the benchmark: two busy cores do 20 to 100 of them in a second."""
    found = in_child("dispatch", 1500)
    assert found["flow_growth"] < 0.05
    assert (
        found["scheduler_growth"] * found["scheduler_mib"] < 8
    )  # MiB; it fills its logs and caches, which are bounded, at first


def test_records_that_workers_write_are_packed_while_they_run() -> None:
    assert in_child("dispatch", 1100, "recorded")["ledger_objects"] == 1


def test_growth_is_that_of_the_second_half() -> None:
    steady = [(done, 100 if done < 50 else 200) for done in range(101)]
    assert _growth(steady[:50] + [(done, 100) for done in range(50, 101)]) == 0
    assert _growth([(done, 100 + max(0, done - 50)) for done in range(101)]) == pytest.approx(0.5)


def test_the_table_says_what_is_missed() -> None:
    figures = {"blocks_per_second": 117.0, "scheduler_growth": 0.04, "flow_growth": 0.1}
    resumed = {"resume_seconds": 2.7, "read_peak_mib": 373.3}
    start = {"start_seconds": 3.9, "peak_mib": 375.3}
    said = table_of({"dispatch": figures, "busy": {"busy": 0.95}, "start": start, "resume": [resumed, resumed]})
    assert "| blocks/s through scheduler and flow >= 300 | 117, missed |" in said
    assert "| growth of the scheduler over the second half <= 5.0% | 4.0% |" in said
    assert "| growth of the flow over the second half <= 5.0% | 10.0%, missed |" in said

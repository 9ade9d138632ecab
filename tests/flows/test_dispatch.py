"""Which worker gets which unit: runs of neighbours, each unit once, and nobody idle while there is work."""

from __future__ import annotations

import random

import pytest

from flows.dispatch import WINDOW_PER_THREAD, Lanes, first_window


@pytest.mark.parametrize("seed", range(5))
def test_every_unit_is_dealt_once_whoever_is_fast(seed: int) -> None:
    indices, chance = list(range(3, 90, 2)), random.Random(seed)
    lanes = Lanes(indices, {"a": 2, "b": 1, "c": 4})
    dealt = [lanes.next(chance.choices("abc", weights=[1, 9, 3])[0]) for _ in range(len(indices))]
    assert sorted(dealt) == indices  # no None: whoever asks gets something
    assert [lanes.next(worker) for worker in "abc"] == [None] * 3


def test_a_worker_gets_neighbours_in_their_order_as_many_as_its_threads() -> None:
    lanes = Lanes(range(20), {"a": 1, "b": 3})
    assert [lanes.next("b") for _ in range(15)] == list(range(5, 20))
    assert [lanes.next("a") for _ in range(3)] == [0, 1, 2]
    assert [lanes.next("b"), lanes.next("b"), lanes.next("b")] == [4, 3, None]


def test_more_workers_than_units_leave_nobody_out_of_the_count() -> None:
    lanes = Lanes([7], {"a": 1, "b": 1, "c": 1})
    assert [lanes.next(worker) for worker in "abc"] == [7, None, None]


@pytest.mark.parametrize(("units", "expected"), [(2, [1, 1]), (3, [2, 1]), (4, [2, 2])])
def test_few_units_are_spread_over_the_workers_before_any_gets_a_second(units: int, expected: list[int]) -> None:
    threads = {"a": 2, "b": 2}
    lanes, got = Lanes(range(units), threads), {"a": 0, "b": 0}
    for worker in first_window(threads):
        got[worker] += lanes.next(worker) is not None
    assert sorted(got.values(), reverse=True) == expected


def test_every_thread_of_a_worker_has_its_window() -> None:
    threads = {"a": 1, "b": 3}
    window = first_window(threads)
    assert window[:4] == ["a", "b", "a", "b"]
    assert {worker: window.count(worker) for worker in threads} == {"a": WINDOW_PER_THREAD, "b": 3 * WINDOW_PER_THREAD}

"""Samples read ahead: in order, by a thread that computes alone."""

from __future__ import annotations

import threading

import torch

from unet_core.training.loaders import read_ahead


class Numbers:
    """A sampler whose samples say who read them."""

    def sample(self, number: int) -> tuple[int, str, int]:
        torch.ones(3).sum()
        return number, threading.current_thread().name, torch.get_num_threads()


def test_the_thread_that_reads_ahead_computes_alone_and_leaves_the_others_their_threads() -> None:
    kept = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        reading = read_ahead(Numbers(), iter([[0, 1], [2, 3], [4, 5]]), 0)  # type: ignore[arg-type]
        first, own = next(reading), threading.current_thread().name
        assert torch.get_num_threads() == 3
        later: list[int] = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert later == [3]
        read = [sample for batch in (first, *reading) for sample in batch]
    finally:
        torch.set_num_threads(kept)
    assert [number for number, _, _ in read] == [0, 1, 2, 3, 4, 5]
    assert {threads for _, _, threads in read} == {1}
    assert own not in {name for _, name, _ in read}

"""Samples read ahead of the step that learns from them, by a thread or by processes; in order, whoever reads. Knows no network."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from unet_core.errors import GroupError
from unet_core.training.crops import Sample, Sampler

_AHEAD = 2  # batches that each process works on or has ready

_sampler: Sampler | None = None  # of a reading process


def read_ahead(sampler: Sampler, batches: Iterator[list[int]], processes: int) -> Iterator[list[Sample]]:
    """The samples of each batch, in the order of ``batches``.

    Args:
        sampler: reads a sample by its number.
        batches: sample numbers of each.
        processes: that read; 0 for a thread of this process.

    Raises:
        GroupError: if a process ended unexpectedly.
    """
    if not processes:
        import torch

        threads = torch.get_num_threads()
        with ThreadPoolExecutor(1) as thread:
            thread.submit(_compute_alone).result()
            torch.set_num_threads(threads)  # what the reading thread set is that of threads begun later, too
            yield from _in_order(thread, lambda numbers: [sampler.sample(number) for number in numbers], batches, 1)
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    with ProcessPoolExecutor(processes, context, _begin, (sampler,)) as pool:
        try:
            yield from _in_order(pool, _read, batches, _AHEAD * processes)
        except BrokenProcessPool as error:
            raise GroupError(
                f"One of {processes} processes that read crops ahead ended unexpectedly; memory may be short: give --loaders 0, or fewer "
                "crops a step. Run the same command again to go on from the last checkpoint."
            ) from error


def _in_order(
    pool: Executor, read: Callable[[list[int]], list[Sample]], batches: Iterator[list[int]], ahead: int
) -> Iterator[list[Sample]]:
    waiting: deque[Future[list[Sample]]] = deque()
    try:
        for numbers in batches:
            waiting.append(pool.submit(read, numbers))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _compute_alone() -> None:
    """A second team of threads would fight with the network's for the cores."""
    import torch

    torch.get_num_threads()  # a thread takes the common number when it first asks, and would take it after the next line
    torch.set_num_threads(1)


def _begin(sampler: Sampler) -> None:
    import torch

    global _sampler
    _sampler = sampler
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A process whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _read(numbers: list[int]) -> list[Sample]:
    assert _sampler is not None
    return [_sampler.sample(number) for number in numbers]

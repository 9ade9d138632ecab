"""Real rank processes for tests: run a function of this module's callers in each, and bring back what it returns."""

from __future__ import annotations

import io
import socket
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from typing import Any

import torch

from unet_core.training.group import Group, join


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


def run_ranks(size: int, work: Callable[..., Any], *arguments: Any, timeout_minutes: float = 1.0) -> list[Any]:
    """What ``work(group, *arguments)`` returns in each of ``size`` processes; an error's text where it raises."""
    address, context = free_address(), get_context("spawn")
    queue: Any = context.Queue()
    processes = [
        context.Process(target=_rank, args=(rank, size, address, timeout_minutes, work, arguments, queue)) for rank in range(size)
    ]
    for process in processes:
        process.start()
    found = dict(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    return [torch.load(io.BytesIO(found[rank]), weights_only=True) for rank in range(size)]


def _rank(
    rank: int, size: int, address: str, minutes: float, work: Callable[..., Any], arguments: Sequence[Any], queue: Any
) -> None:
    torch.set_num_threads(1)
    content = io.BytesIO()  # tensors in a queue would be memory shared with a process that ends
    try:
        group: Group = join(rank, size, address, "gloo", minutes)
        torch.save(work(group, *arguments), content)
        group.close()
    except Exception as error:
        torch.save(f"{type(error).__name__}: {error}", content)
    queue.put((rank, content.getvalue()))

"""What a measurement takes: wall time, peak memory, bytes through files, passes of the network. Linux only; knows no contender."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from unet_core.cost import operations
from unet_core.rules import trace

Reading = dict[str, int]


def read_process() -> Reading:
    """Bytes that this process has read and written so far, by system call (whether or not a disk was asked), and its peak memory."""
    io = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    # Of this process image alone: what getrusage says includes the process that started it.
    peak = int(status["VmHWM"].split()[0]) << 10
    return {"read_bytes": int(io["rchar"]), "written_bytes": int(io["wchar"]), "peak_bytes": peak}


class Meter:
    """Measures what runs inside ``with meter:``.

    Args:
        others: readings of further processes that take part.
    """

    def __init__(self) -> None:
        self.others: Callable[[], list[Reading]] = list
        self.seconds = 0.0
        self.notes: dict[str, Any] = {}  # of the contender, for the report
        self._passes: Counter[tuple[int, ...]] = Counter()
        self._network: nn.Module | None = None
        self._lock = threading.Lock()
        self._before: list[Reading] = []

    def __enter__(self) -> None:
        self._before = self._read()
        self._began = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.seconds = time.perf_counter() - self._began
        self._after = self._read()

    def _read(self) -> list[Reading]:
        return [read_process(), *self.others()]

    def count(self, network: nn.Module) -> None:
        """Count the passes of ``network`` by the shape of their input, from now on."""
        self._network = network

        def note(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            with self._lock:
                self._passes[tuple(inputs[0].shape)] += 1

        network.register_forward_pre_hook(note)

    def add_pass(self, network: nn.Module, input_shape: tuple[int, ...]) -> None:
        """Note one pass over ``input_shape`` (N, C, *spatial), whole or in strips."""
        self._network = network
        self._passes[input_shape] += 1

    def result(self) -> dict[str, Any]:
        """Seconds, bytes, and the operations of all passes."""
        done = 0
        if self._network is not None:
            traced = trace(self._network)
            done = sum(count * shape[0] * operations(traced, shape[1:]) for shape, count in self._passes.items())
        gained = {
            key: sum(after[key] - before[key] for before, after in zip(self._before, self._after, strict=True))
            for key in ("read_bytes", "written_bytes")
        }
        # The sum of the peaks of several processes, which need not have been at one time.
        peak = sum(reading["peak_bytes"] for reading in self._after)
        return {"seconds": self.seconds, **gained, "peak_bytes": peak, "operations": done, **self.notes}

"""Worker processes on this machine, one for each GPU if there are GPUs. Knows no images."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dask
from distributed import Nanny, Scheduler, SpecCluster

from flows.cluster_adaptive import adapt
from flows.clusters import THREADS, Start, interrupts_blocked, silence_dask
from flows.settings import DASK_CONFIG, worker_environment


class _LocalCluster(SpecCluster):
    """Workers that are told apart by a number, which is that of their GPU."""

    def __init__(self, start: Start, scratch: str) -> None:
        self._start_options, self._scratch = start, scratch
        # Even without a dashboard dask listens for HTTP, by default on port 8787 of every interface.
        web = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
        scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "port": 0, **web}}
        fewest = min(start.fewest, start.gpu_count) if start.gpu_count else start.fewest
        workers = {number: self._worker(number) for number in range(fewest)}
        super().__init__(workers=workers, scheduler=scheduler, worker=self._worker(0), silence_logs="CRITICAL")

    def new_worker_spec(self) -> dict[int, dict[str, Any]]:
        number = next(number for number in range(len(self.worker_spec) + 1) if number not in self.worker_spec)
        return {number: self._worker(number)}

    def _worker(self, number: int) -> dict[str, Any]:
        gpu_count = self._start_options.gpu_count
        return {
            "cls": Nanny,
            "options": {
                "nthreads": THREADS,
                # dask's own limit is a share of the machine by its cores, whatever a block needs.
                "memory_limit": self._start_options.memory_bytes,
                "host": "127.0.0.1",
                "dashboard": False,
                "silence_logs": logging.CRITICAL,
                "local_directory": self._scratch,
                "env": worker_environment(number if gpu_count else None, threads=1),
                "resources": {"GPU": 1} if gpu_count else {},
            },
        }


@contextmanager
def local(start: Start) -> Iterator[str | None]:
    """Worker processes on this machine, on the loopback interface; one per GPU if there are GPUs."""
    silence_dask()
    # Loopback needs no TLS, also where dask's configuration asks for it because of another cluster.
    config = DASK_CONFIG | {"distributed.comm.require-encryption": False}
    with dask.config.set(config), tempfile.TemporaryDirectory(prefix="unet-dask-") as scratch:
        with interrupts_blocked():
            started = _LocalCluster(start, scratch)
        with started:
            most = min(start.most, start.gpu_count) if start.gpu_count else start.most
            adapt(started, start.fewest, most)
            yield started.scheduler_address

"""Where blocks are computed: in this process, on worker processes of this machine, or on a dask scheduler. Knows no images.

A backend is one function and one line of ``CLUSTERS``: a context manager that yields the address of a scheduler, or
None for this process.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module

import dask
from distributed import Nanny, Scheduler, SpecCluster

from flows.settings import DASK_CONFIG, worker_environment
from unet_core.errors import JobError

CLUSTERS: dict[str, str] = {
    "serial": "flows.clusters:serial",
    "local": "flows.clusters:local",
    "address": "flows.clusters:address",
}

Backend = Callable[[str, int, int], AbstractContextManager[str | None]]


def check_cluster(cluster: str, workers: int) -> None:
    """Refuse a cluster that does not exist, or no workers.

    Raises:
        JobError: naming the value and what there is.
    """
    if workers < 1:
        raise JobError(f"workers is {workers}; at least 1 is needed.")
    if cluster not in CLUSTERS and "://" not in cluster:
        raise JobError(
            f"Cluster '{cluster}' is not known; use {', '.join(CLUSTERS)}, or the address of a scheduler (tcp://HOST:PORT)."
        )


def open_cluster(cluster: str, workers: int, gpu_count: int = 0) -> AbstractContextManager[str | None]:
    """The scheduler's address while the context lasts; None for ``serial``.

    Args:
        cluster: a key of ``CLUSTERS``, or the address of a scheduler.
        workers: processes to start, for backends that start some.
        gpu_count: GPUs of this machine to give to them, one each.

    Raises:
        JobError: if the cluster does not exist.
    """
    check_cluster(cluster, workers)
    module, _, attribute = CLUSTERS["address" if "://" in cluster else cluster].partition(":")
    backend: Backend = getattr(import_module(module), attribute)
    return backend(cluster, workers, gpu_count)


@contextmanager
def serial(cluster: str, workers: int, gpu_count: int) -> Iterator[str | None]:
    """No cluster: blocks run one after the other in this process."""
    yield None


@contextmanager
def local(cluster: str, workers: int, gpu_count: int) -> Iterator[str | None]:
    """Worker processes of one thread on this machine, on the loopback interface; one per GPU if there are GPUs."""
    count = min(workers, gpu_count) if gpu_count else workers
    logging.getLogger("distributed").setLevel(logging.ERROR)  # workers that start and stop as planned are no news
    with dask.config.set(DASK_CONFIG), tempfile.TemporaryDirectory(prefix="unet-dask-") as scratch:
        specs = {
            number: {
                "cls": Nanny,
                "options": {
                    "nthreads": 1,
                    "host": "127.0.0.1",
                    "dashboard": False,
                    "silence_logs": logging.ERROR,
                    "local_directory": scratch,
                    "env": worker_environment(number if gpu_count else None, threads=1),
                    "resources": {"GPU": 1} if gpu_count else {},
                },
            }
            for number in range(count)
        }
        scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "port": 0, "dashboard": False}}
        with SpecCluster(workers=specs, scheduler=scheduler, silence_logs="ERROR") as started:
            yield started.scheduler_address


@contextmanager
def address(cluster: str, workers: int, gpu_count: int) -> Iterator[str | None]:
    """A scheduler that runs already; its workers are left as they are."""
    if "://" not in cluster:
        raise JobError("Cluster 'address' needs the scheduler's address; write --cluster tcp://HOST:PORT.")
    yield cluster

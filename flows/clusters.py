"""Where blocks are computed: in this process, on worker processes of this machine, or on a dask scheduler. Knows no images.

A backend is one function and one line of ``CLUSTERS``: a context manager that yields the address of a scheduler, or
None for this process.
"""

from __future__ import annotations

import logging
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from multiprocessing import resource_tracker
from urllib.parse import urlsplit

import dask
from distributed import Client, Nanny, Scheduler, SpecCluster

from flows.settings import DASK_CONFIG, worker_environment
from unet_core.errors import JobError

CLUSTERS: dict[str, str] = {
    "serial": "flows.clusters:serial",
    "local": "flows.clusters:local",
    "address": "flows.clusters:address",
}

SCHEMES = ("tcp", "tls")
CONNECT_SECONDS = 10
MAX_GREETING_BYTES = 1 << 20
IDLE_BYTES = 2 << 30  # for a worker with its libraries and a model, generously
THREADS = 2  # of a worker: while one runs the network, the other writes its last block and reads the next
WORKER_SECONDS = 20  # for which a scheduler may be without any worker

Backend = Callable[[str, int, int, int], AbstractContextManager[str | None]]


def check_cluster(cluster: str, workers: int) -> None:
    """Refuse a cluster that does not exist, or no workers; connects to nothing.

    Raises:
        JobError: naming the value and what there is.
    """
    if workers < 1:
        raise JobError(f"workers is {workers}; at least 1 is needed.")
    if cluster == "address":
        raise JobError("Cluster 'address' needs the scheduler's address; write --cluster tcp://HOST:PORT.")
    if "://" in cluster:
        _host_and_port(cluster)
    elif cluster not in CLUSTERS:
        raise JobError(
            f"Cluster '{cluster}' is not known; use {', '.join(CLUSTERS)}, or the address of a scheduler (tcp://HOST:PORT)."
        )


def _host_and_port(address: str) -> tuple[str, int]:
    try:
        parts = urlsplit(address)
        if parts.scheme in SCHEMES and parts.hostname and parts.port and not parts.path.strip("/"):
            return parts.hostname, parts.port
    except ValueError:  # a port that is no number
        pass
    raise JobError(f"Cluster '{address}' is no address of a scheduler; write {' or '.join(SCHEMES)}, then ://HOST:PORT.")


def check_reachable(cluster: str) -> None:
    """Refuse a scheduler that does not answer, or has no workers; does nothing for other clusters.

    Raises:
        JobError: with what to start.
    """
    if "://" not in cluster:
        return
    remedy = "start one with 'dask scheduler', or use --cluster local."
    try:
        greeting = _greeting(*_host_and_port(cluster)) if cluster.startswith("tcp:") else None
    except OSError as error:
        raise JobError(f"No scheduler answers at {cluster} ({error.strerror or error}); {remedy}") from None
    if greeting is not None and not 0 < greeting < MAX_GREETING_BYTES:
        raise JobError(f"What listens at {cluster} is no dask scheduler; {remedy}")
    _silence_dask()
    try:
        with Client(cluster, set_as_default=False, timeout=CONNECT_SECONDS) as client:
            client.wait_for_workers(1, timeout=WORKER_SECONDS)
    except TimeoutError:
        raise JobError(
            f"The scheduler at {cluster} had no workers for {WORKER_SECONDS} s; start some with 'dask worker {cluster}'."
        ) from None
    except (OSError, ValueError, RuntimeError) as error:
        raise JobError(f"No connection to the scheduler at {cluster} ({str(error)[:200]}); {remedy}") from None


def _greeting(host: str, port: int) -> int:
    """Size of the message with which a dask scheduler greets; what else may listen there sends something else, or waits.

    dask's own client never gives up on a server that is silent, or that it does not understand.
    """
    with socket.create_connection((host, port), timeout=CONNECT_SECONDS) as connection:
        return int.from_bytes(connection.recv(8, socket.MSG_WAITALL), "little")


def open_cluster(cluster: str, workers: int, gpu_count: int = 0, memory_bytes: int = 0) -> AbstractContextManager[str | None]:
    """The scheduler's address while the context lasts; None for ``serial``.

    Args:
        cluster: a key of ``CLUSTERS``, or the address of a scheduler.
        workers: processes to start, for backends that start some.
        gpu_count: GPUs of this machine to give to them, one each.
        memory_bytes: that a block needs, as planned; 0 if not known.

    Raises:
        JobError: if the cluster does not exist.
    """
    check_cluster(cluster, workers)
    module, _, attribute = CLUSTERS["address" if "://" in cluster else cluster].partition(":")
    backend: Backend = getattr(import_module(module), attribute)
    return backend(cluster, workers, gpu_count, memory_bytes)


@contextmanager
def serial(cluster: str, workers: int, gpu_count: int, memory_bytes: int) -> Iterator[str | None]:
    """No cluster: blocks run one after the other in this process."""
    yield None


@contextmanager
def local(cluster: str, workers: int, gpu_count: int, memory_bytes: int) -> Iterator[str | None]:
    """Worker processes on this machine, on the loopback interface; one per GPU if there are GPUs."""
    count = min(workers, gpu_count) if gpu_count else workers
    _silence_dask()
    with dask.config.set(DASK_CONFIG), tempfile.TemporaryDirectory(prefix="unet-dask-") as scratch:
        specs = {
            number: {
                "cls": Nanny,
                "options": {
                    "nthreads": THREADS,
                    # dask's own limit is a share of the machine by its cores, whatever a block needs.
                    "memory_limit": 2 * memory_bytes + IDLE_BYTES if memory_bytes else 0,
                    "host": "127.0.0.1",
                    "dashboard": False,
                    "silence_logs": logging.CRITICAL,
                    "local_directory": scratch,
                    "env": worker_environment(number if gpu_count else None, threads=1),
                    "resources": {"GPU": 1} if gpu_count else {},
                },
            }
            for number in range(count)
        }
        # Even without a dashboard dask listens for HTTP, by default on port 8787 of every interface.
        web = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
        scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "port": 0, **web}}
        with _interrupts_blocked():
            started = SpecCluster(workers=specs, scheduler=scheduler, silence_logs="CRITICAL")
        with started:
            yield started.scheduler_address


def _silence_dask() -> None:
    """No log lines of dask: workers that come and go are no news, and what fails is said by the futures and by us."""
    for name in ("distributed", "distributed.client"):  # each has a level of its own
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Threads and processes that begin in this context never see Ctrl-C, nor do processes that those threads start later.

    A terminal sends SIGINT to every process of the command. Only the main process is to act on it: it stops the workers.
    Blocked rather than ignored, since a signal mask is inherited from the first instruction on, also by replaced workers.
    """
    resource_tracker.ensure_running()  # it would unblock SIGINT when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def address(cluster: str, workers: int, gpu_count: int, memory_bytes: int) -> Iterator[str | None]:
    """A scheduler that runs already; its workers are left as they are."""
    yield cluster

"""Where blocks are computed: in this process, on worker processes here, on jobs or pods, or on a dask scheduler. Knows no images.

A backend is one function in a file of its own and one line of ``CLUSTERS``: a context manager that yields the address of a
scheduler, or None for this process.
"""

from __future__ import annotations

import logging
import re
import shutil
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from importlib.util import find_spec
from multiprocessing import resource_tracker
from pathlib import Path

from distributed import Client
from distributed.security import Security

from flows.addresses import check_address, host_and_port
from flows.cluster_settings import Settings, settings_of
from unet_core.errors import JobError

CLUSTERS: dict[str, str] = {
    "serial": "flows.clusters:serial",
    "local": "flows.cluster_local:local",
    "address": "flows.clusters:address",
    "slurm": "flows.cluster_slurm:slurm",
    "kubernetes": "flows.cluster_kubernetes:kubernetes",
}

NEEDS = {"slurm": ("dask_jobqueue", "sbatch"), "kubernetes": ("kr8s", None)}  # module, which the extra of that name has; command

CONNECT_SECONDS = 10
MAX_GREETING_BYTES = 1 << 20
IDLE_BYTES = 2 << 30  # for a worker with its libraries and a model, generously
THREADS = 2  # of a worker: while one runs the network, the other writes its last block and reads the next
WORKER_SECONDS = 20  # for which a scheduler may be without any worker
MOST_WORKERS = 10_000

Workers = int | str  # a number, or "FEWEST..MOST"


@dataclass(frozen=True)
class Start:
    """What a backend is asked to start.

    Args:
        cluster: as it was asked for: name, file or address.
        settings: of the backend, if it has any.
        fewest: workers.
        most: workers; more than the fewest come while there is work for them.
        gpu_count: GPUs of this machine to give to them, one each.
        memory_bytes: that a worker needs; 0 if not known.
    """

    cluster: str
    settings: Settings | None
    fewest: int
    most: int
    gpu_count: int
    memory_bytes: int


Backend = Callable[[Start], AbstractContextManager[str | None]]


def worker_bounds(workers: Workers) -> tuple[int, int]:
    """The fewest and the most workers.

    Raises:
        JobError: if there are none, or it is no number.

    Example:
        >>> worker_bounds(2), worker_bounds("2..16")
        ((2, 2), (2, 16))
    """
    found = re.fullmatch(r"(-?\d{1,9})(?:\.\.(\d{1,9}))?", str(workers), re.ASCII)
    if not found:
        raise JobError(f"workers is '{str(workers)[:60]}'; write a number, or bounds as 2..16.")
    fewest, most = int(found[1]), int(found[2] or found[1])
    if fewest < 1:
        raise JobError(f"workers is {workers}; at least 1 is needed.")
    if most < fewest or most > MOST_WORKERS:
        raise JobError(f"workers is {workers}; write the fewest first, and {MOST_WORKERS:,} at most.")
    return fewest, most


def check_cluster(cluster: str, workers: Workers) -> None:
    """Refuse a cluster that does not exist or cannot be started here, or no workers; connects to nothing.

    Raises:
        JobError: naming the value and what there is.
    """
    fewest, most = worker_bounds(workers)
    if cluster == "address":
        raise JobError("Cluster 'address' needs the scheduler's address; write --cluster tcp://HOST:PORT or tls://HOST:PORT.")
    if "://" in cluster:
        check_address(cluster)
        if cluster.startswith("tls:"):
            check_certificates(cluster)
        return
    backend, _ = settings_of(cluster)
    if backend not in CLUSTERS:
        raise JobError(
            f"Cluster '{cluster}' is not known; use {', '.join(CLUSTERS)}, a file that says more of slurm or kubernetes (NAME.toml), or the "
            "address of a scheduler (tcp://HOST:PORT, tls://HOST:PORT)."
        )
    if fewest != most and backend == "serial":
        raise JobError(f"workers is {workers}, but cluster 'serial' has no workers; use --cluster local.")
    module, command = NEEDS.get(backend, (None, None))
    if module is not None and find_spec(module) is None:
        raise JobError(f"Cluster '{backend}' needs more of Python: pip install 'unet-flows[{backend}]'.")
    if command is not None and shutil.which(command) is None:
        raise JobError(f"Cluster '{backend}' needs the command {command}, which is not here; run this where jobs are submitted.")


def check_certificates(cluster: str) -> None:
    """Refuse TLS without certificates that this process can use.

    Raises:
        JobError: naming the file, or the key of dask's configuration that names none.
    """
    security = Security()
    remedy = "set DASK_CONFIG=FOLDER/dask.yaml, of the folder that 'unet certificates FOLDER' made for scheduler and workers"
    named = {"ca-file": security.tls_ca_file, "client.cert": security.tls_client_cert, "client.key": security.tls_client_key}
    for key, path in named.items():
        if not path:
            raise JobError(f"Cluster '{cluster}' needs certificates, and dask knows no distributed.comm.tls.{key}; {remedy}.")
        if "\n" not in path and not Path(path).is_file():
            raise JobError(f"Cluster '{cluster}' needs {path} (distributed.comm.tls.{key}), which is not there; {remedy}.")
    try:
        security.get_connection_args("client")
    except (OSError, ValueError) as error:  # of ssl, which rarely says which file it means
        raise JobError(f"Cluster '{cluster}': {', '.join(named.values())} do not fit each other ({error}); {remedy}.") from None
    for path in (security.tls_ca_file, security.tls_client_cert):
        _check_expiry(cluster, path)


def _check_expiry(cluster: str, path: str) -> None:
    from flows.certificates import expiry

    ends = expiry(path)
    if ends < datetime.now(UTC):
        raise JobError(
            f"Cluster '{cluster}': {path} ended on {ends:%Y-%m-%d}; make new ones with 'unet certificates FOLDER', and start scheduler and "
            "workers with them."
        )


def device_elsewhere(cluster: str, device: str) -> str | None:
    """The device of workers on other machines; None if this machine's is meant.

    A machine from which jobs are submitted rarely has a GPU itself.

    Raises:
        JobError: if GPUs are asked of workers that have none.
    """
    is_gpu = re.fullmatch(r"cuda(:\d+)?", device) is not None
    if "://" in cluster:
        return "cuda" if is_gpu else None
    backend, settings = settings_of(cluster)
    if settings is None or not (is_gpu or device in ("auto", "cpu")):
        return None
    if is_gpu and not settings.gpus:
        raise JobError(
            f"--device is {device}, but workers of cluster '{cluster}' have no GPU; write gpus = 1 into a file for {backend}."
        )
    return "cuda" if settings.gpus and device != "cpu" else "cpu"


def check_reachable(cluster: str, device: str = "cpu") -> None:
    """Refuse a scheduler that does not answer, or has no workers, or none with a GPU; does nothing for other clusters.

    Args:
        cluster: as it was asked for.
        device: that workers are to have.

    Raises:
        JobError: with what to start; also for one elsewhere without TLS, which is not connected to.
    """
    if "://" not in cluster:
        return
    check_address(cluster)
    remedy = "start one with 'dask scheduler', or use --cluster local."
    try:
        greeting = _greeting(cluster)
    except ssl.SSLError as error:
        raise JobError(
            f"No TLS with what listens at {cluster} ({error.reason or error}); start 'dask scheduler --protocol tls' with certificates of "
            f"the same folder as {Security().tls_ca_file}."
        ) from None
    except OSError as error:
        raise JobError(f"No scheduler answers at {cluster} ({error.strerror or error}); {remedy}") from None
    if not 0 < greeting < MAX_GREETING_BYTES:
        raise JobError(f"What listens at {cluster} is no dask scheduler; {remedy}")
    silence_dask()
    try:
        with Client(cluster, set_as_default=False, timeout=CONNECT_SECONDS) as client:
            client.wait_for_workers(1, timeout=WORKER_SECONDS)
            offers = [
                worker["resources"].get("GPU", 0) >= 1 for worker in client.scheduler_info(n_workers=-1)["workers"].values()
            ]
    except TimeoutError:
        raise JobError(
            f"The scheduler at {cluster} had no workers for {WORKER_SECONDS} s; start some with 'dask worker {cluster}'."
        ) from None
    except (OSError, ValueError, RuntimeError) as error:
        raise JobError(f"No connection to the scheduler at {cluster} ({str(error)[:200]}); {remedy}") from None
    if device.startswith("cuda") and not any(offers):
        raise JobError(
            f"--device asks for GPUs, and none of {len(offers)} workers at {cluster} offers one; start a worker for each GPU with "
            f"'CUDA_VISIBLE_DEVICES=0 dask worker {cluster} --resources GPU=1', or use --device cpu."
        )


def _greeting(address: str) -> int:
    """Size of the message with which a dask scheduler greets; what else may listen there sends something else, or waits.

    dask's own client never gives up on a server that is silent, or that it does not understand.
    """
    with ExitStack() as stack:
        connection = stack.enter_context(socket.create_connection(host_and_port(address), timeout=CONNECT_SECONDS))
        if address.startswith("tls:"):
            connection = stack.enter_context(Security().get_connection_args("client")["ssl_context"].wrap_socket(connection))
        size = b""
        while len(size) < 8 and (part := connection.recv(8 - len(size))):
            size += part
        return int.from_bytes(size, "little")


def open_cluster(cluster: str, workers: Workers, gpu_count: int = 0, memory_bytes: int = 0) -> AbstractContextManager[str | None]:
    """The scheduler's address while the context lasts; None for ``serial``.

    Args:
        cluster: a key of ``CLUSTERS``, a file of settings, or the address of a scheduler.
        workers: processes to start, for backends that start some: a number, or "FEWEST..MOST".
        gpu_count: GPUs of this machine to give to them, one each.
        memory_bytes: that a block needs, as planned; 0 if not known.

    Raises:
        JobError: if the cluster does not exist.
    """
    check_cluster(cluster, workers)
    backend, settings = ("address", None) if "://" in cluster else settings_of(cluster)
    module, _, attribute = CLUSTERS[backend].partition(":")
    start: Backend = getattr(import_module(module), attribute)
    needed = 2 * memory_bytes + IDLE_BYTES if memory_bytes else 0  # a worker has two blocks under way
    return start(Start(cluster, settings, *worker_bounds(workers), gpu_count, needed))


@contextmanager
def serial(start: Start) -> Iterator[str | None]:
    """No cluster: blocks run one after the other in this process."""
    yield None


def silence_dask() -> None:
    """No log lines of dask: workers that come and go are no news, and what fails is said by the futures and by us."""
    for name in ("distributed", "distributed.client"):  # each has a level of its own
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def interrupts_blocked() -> Iterator[None]:
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
def address(start: Start) -> Iterator[str | None]:
    """A scheduler that runs already; its workers are left as they are."""
    yield start.cluster

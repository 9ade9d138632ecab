"""Workers as jobs of SLURM, one job each; jobs that end are replaced while the run lasts. Knows no images.

The scheduler lives in this process, on a machine that the nodes reach, and speaks TLS with certificates that are made for the run.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dask
from dask_jobqueue.slurm import SLURMCluster, SLURMJob
from distributed.core import Status
from distributed.security import Security

from flows.certificates import CA, ROLES, make_certificates, write_certificates
from flows.cluster_adaptive import adapt
from flows.cluster_settings import SlurmSettings
from flows.clusters import THREADS, Start, interrupts_blocked, silence_dask
from flows.settings import DASK_CONFIG, worker_environment
from unet_core.errors import UnetCoreError

LOOK_SECONDS = 2.0  # between looks at the workers
ASK_EVERY = 10  # looks between questions to SLURM while nothing was lost: a controller has others to serve
MOST_FRUITLESS = 5  # jobs in a row that ended before their worker was there
USUAL_MEMORY = 8 << 30  # of a worker where neither plan nor settings say it
KEYS = "certificates"  # folder of a run's certificates
STAGGER = 0.05  # of a worker's life, by which its end is moved to either side, so that workers end apart
_ENDED = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "COMPLETING",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
)
_LOG_LETTERS = 600


class JobsFailError(UnetCoreError):
    """Jobs are refused, or end before they compute; the output can be resumed."""


class _Job(SLURMJob):
    """A job that SLURM may refuse: then it counts as one that ended, where dask-jobqueue's own would end the run, when that is complete."""

    refusal = ""

    async def start(self) -> None:
        try:
            await super().start()
        except Exception as error:  # of the command, or of what it printed
            self.refusal = str(error).rpartition("stderr:")[2].strip()
            self.status = Status.failed


@contextmanager
def slurm(start: Start) -> Iterator[str | None]:
    """Jobs, as many as workers are wanted, and a scheduler in this process.

    Raises:
        JobsFailError: if jobs are refused, or end before their workers are there, with what the last one wrote.
    """
    assert isinstance(start.settings, SlurmSettings)
    silence_dask()
    # A job may wait for hours: no worker for a while is no fault here.
    certificates = make_certificates()
    config = DASK_CONFIG | {"distributed.scheduler.no-workers-timeout": None} | certificates.in_memory()
    folder = Path(tempfile.mkdtemp(prefix="unet-slurm-", dir=start.settings.shared_folder))  # 0700
    write_certificates(folder / KEYS, certificates)
    problem = None
    try:
        with dask.config.set(config):
            with interrupts_blocked():
                cluster = SLURMCluster(job_cls=_Job, **job_options(start, folder))
            with cluster:
                supervisor = Supervisor(cluster, start, folder)
                try:
                    yield cluster.scheduler_address
                except Exception:
                    problem = supervisor.problem
                    if problem is not None:
                        raise JobsFailError(problem) from None
                    raise
                finally:
                    supervisor.stop()
    finally:
        shutil.rmtree(folder / KEYS, ignore_errors=True)
        if problem is None or str(folder) not in problem:  # else its logs are spoken of
            shutil.rmtree(folder, ignore_errors=True)


def job_options(start: Start, folder: Path) -> dict[str, Any]:
    """What dask-jobqueue is told.

    Args:
        start: as asked for.
        folder: for logs and certificates, seen by all nodes.
    """
    settings = start.settings
    assert isinstance(settings, SlurmSettings)
    stagger = int(STAGGER * settings.lifetime_seconds)
    life = settings.lifetime_seconds - stagger  # the longest life is within the limit too
    web = ["--no-dashboard", "--dashboard-address", "127.0.0.1:0"]
    ends = ["--lifetime", f"{life}s", "--lifetime-stagger", f"{stagger}s"]
    variables = worker_environment(None, threads=settings.cpus if settings.cpus > THREADS else 1)
    return {
        "queue": settings.queue,
        "account": settings.account,
        "walltime": settings.walltime,
        "job_cpu": settings.cpus,
        "cores": THREADS,
        "processes": 1,
        "memory": str(settings.memory_bytes(start.memory_bytes or USUAL_MEMORY)),
        "python": shlex.quote(settings.python) if settings.python else None,
        "interface": settings.interface,
        "job_name": "unet",
        "job_extra_directives": ["--no-requeue", *(["--gres=gpu:1"] if settings.gpus else []), *settings.directives],
        "job_script_prologue": [*settings.prologue, *(f"export {name}={value}" for name, value in variables.items())],
        "worker_extra_args": [*web, *ends, *(["--resources", "GPU=1"] if settings.gpus else [])],
        "local_directory": '"${TMPDIR:-/tmp}"',
        "log_directory": str(folder),
        "security": _security(folder / KEYS),
        "scheduler_options": {"dashboard": False, "dashboard_address": "127.0.0.1:0", "port": 0},
        "silence_logs": "CRITICAL",
    }


def _security(keys: Path) -> Security:
    """Certificates as files, which jobs can read."""
    pairs = {
        f"tls_{role}_{kind}": f"{keys}/{role}{end}" for role in ROLES for kind, end in (("cert", ".pem"), ("key", "-key.pem"))
    }
    return Security(require_encryption=True, tls_ca_file=f"{keys}/{CA}", **pairs)


class Supervisor(threading.Thread):
    """Submits a job for each that ended: dask-jobqueue never does, whether it met its time limit, was cancelled, or its node died.

    Args:
        cluster: whose jobs are watched.
        start: with the number of workers.
        folder: of the logs.
    """

    def __init__(self, cluster: SLURMCluster, start: Start, folder: Path) -> None:
        super().__init__(name="unet-slurm", daemon=True)
        self.problem: str | None = None
        self._refusal = ""
        self._cluster, self._folder, self._fewest = cluster, folder, start.fewest
        self._stopping = threading.Event()
        self._seen = set[str]()
        self._fruitless = self._looks = 0
        cluster.scale(start.fewest)
        adapt(cluster, start.fewest, start.most)
        with interrupts_blocked():
            self.start()

    def stop(self) -> None:
        self._stopping.set()
        self.join()

    def run(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS) and self.problem is None:
            with suppress(OSError, RuntimeError):  # a connection, or workers that change meanwhile: the next look sees what is
                self._look()

    def _look(self) -> None:
        ended = self.ended()
        if ended:
            self._cluster.sync(self._cluster.scale_down, ended)
        if self._fruitless >= MOST_FRUITLESS:
            self._give_up()
        elif len(self._cluster.worker_spec) < self._fewest:
            self._cluster.scale(self._fewest)

    def ended(self) -> list[str]:
        """Workers whose jobs SLURM has no more."""
        workers = dict(self._cluster.workers)
        jobs = {name: str(job.job_id) for name, job in workers.items()}
        here = {str(worker["name"]) for worker in dict(self._cluster.scheduler_info["workers"]).values()}
        self._fruitless = 0 if here - self._seen else self._fruitless
        self._seen |= here
        missing = jobs.keys() - here
        self._looks += 1
        if not missing or not (missing & self._seen or self._fruitless or self._looks % ASK_EVERY == 1):
            return []
        queued = queued_jobs()
        if queued is None:
            return []
        ended = [name for name in missing if jobs[name] not in queued]
        self._refusal = next((workers[name].refusal for name in ended if workers[name].refusal), "")
        self._fruitless += len(set(ended) - self._seen)
        return ended

    def _give_up(self) -> None:
        if self._refusal:
            self.problem = f"SLURM refuses jobs: {' '.join(self._refusal.split())[-_LOG_LETTERS:]}"
            self._cluster.sync(self._cluster.scheduler.close)
            return
        logs = sorted(self._folder.glob("*.err"), key=lambda path: path.stat().st_mtime)
        said = logs[-1].read_text(errors="replace")[-_LOG_LETTERS:].strip() if logs else "nothing"
        ended = f"{self._fruitless} jobs of SLURM ended one after the other before they had a worker"
        self.problem = f"{ended}; the last wrote to {self._folder}: {said}"
        self._cluster.sync(self._cluster.scheduler.close)


def queued_jobs() -> set[str] | None:
    """Ids of this user's jobs that wait or run; None if SLURM does not answer now."""
    command = ["squeue", "--me", "--noheader", "--states=all", "--format=%A %T"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0:
        return None
    lines = (line.split() for line in done.stdout.splitlines())
    return {line[0] for line in lines if len(line) == 2 and line[1] not in _ENDED}

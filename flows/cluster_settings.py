"""What a cluster needs to be told besides its number of workers: one small TOML file, each key checked. Knows no dask.

``--cluster`` takes the file itself, so that a lab writes it once and everybody, the Prefect deployments included, names it:

    backend = "slurm"
    queue = "gpu"
    account = "imaging"
    walltime = "08:00:00"
    gpus = 1
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from unet_core.errors import JobError
from unet_core.validation import first_problem

SUFFIX = ".toml"
_UNITS = {"K": 10, "M": 20, "G": 30, "T": 40}


def _as_bytes(text: str) -> int:
    number, unit = text[:-1], text[-1]
    return int(number) << _UNITS[unit]


def _one_line(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError("give one line of text")
    return text


def walltime_seconds(text: str) -> int:
    """Seconds of a time limit as SLURM writes it: minutes, MM:SS, HH:MM:SS, or with D- before hours."""
    days, _, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if days:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    elif len(parts) < 3:
        hours, minutes, seconds = 0, *(*parts, 0)[:2]
    else:
        hours, minutes, seconds = parts
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _walltime(text: str) -> str:
    if not re.fullmatch(r"\d{1,7}(:\d\d){0,2}|\d{1,3}-\d\d?(:\d\d){0,2}", text) or walltime_seconds(text) < 60:
        raise ValueError("write HH:MM:SS or D-HH:MM:SS, one minute at least")
    return text


def _folder(text: str) -> str:
    path = Path(text).expanduser().resolve()
    if not path.is_dir():
        raise ValueError(f"{path} is no folder that is there")
    if re.search(r"[^\w.,@+:/%=-]", str(path)):
        raise ValueError(f"{path} has a letter that job scripts do not take, such as a space")
    return str(path)


Line = Annotated[str, AfterValidator(_one_line)]
Word = Annotated[str, Field(pattern=r"^[\w.,@+:/%=-]+$")]
Memory = Annotated[str, Field(pattern=r"^[1-9]\d{0,6}[KMGT]$", description="As 12G, in powers of 1024.")]


class WorkerSettings(BaseModel):
    """What one worker gets; a worker is one process with one model and at most one GPU."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpus: int = Field(2, ge=1, le=1024, description="Cores of a worker.")
    memory: Memory | None = Field(None, description="Of a worker; by default what the plan says that its blocks need.")
    gpus: Literal[0, 1] = Field(0, description="GPUs of a worker; the run then needs --device cuda.")

    def memory_bytes(self, needed: int) -> int:
        """Of a worker, given what its blocks need."""
        return _as_bytes(self.memory) if self.memory else needed


class SlurmSettings(WorkerSettings):
    """Jobs of SLURM, one for each worker."""

    backend: Literal["slurm"] = "slurm"
    queue: Word | None = Field(None, description="Partition; the cluster's default one unless told.")
    account: Word | None = Field(None, description="That pays.")
    walltime: Annotated[str, AfterValidator(_walltime)] = Field("01:00:00", description="Limit of each job, not of the run.")
    stop_before: int | None = Field(None, ge=5, description="Seconds before the limit at which a worker ends by itself.")
    interface: Word | None = Field(None, description="Network interface on which the nodes reach this machine, such as ib0.")
    shared_folder: Annotated[str, AfterValidator(_folder)] = Field(
        ".", validate_default=True, description="Folder that all nodes see, for logs and the certificates of a run."
    )
    python: Line | None = Field(None, description="On the nodes; the one that runs here unless told.")
    prologue: tuple[Line, ...] = Field((), description="Lines of shell before the worker, such as 'module load cuda'.")
    directives: tuple[Line, ...] = Field((), description="More of #SBATCH, such as '--constraint=a100'.")

    @property
    def lifetime_seconds(self) -> int:
        """After which a worker ends by itself, before SLURM ends it in the middle of a block."""
        limit = walltime_seconds(self.walltime)
        before = min(300, limit // 5) if self.stop_before is None else self.stop_before
        return limit - before


class KubernetesSettings(WorkerSettings):
    """Pods that the Dask operator starts."""

    backend: Literal["kubernetes"] = "kubernetes"
    image: Word = Field("unet-flows", description="Container image of scheduler and workers, as deploy/Dockerfile builds it.")
    namespace: Word | None = Field(None, description="The current one unless told.")
    scheduler_nodes: dict[str, str] = Field({}, description="Labels of nodes for the scheduler: some that nobody takes away.")
    worker_nodes: dict[str, str] = Field({}, description="Labels of nodes for workers; any unless told.")
    tolerate: tuple[Word, ...] = Field((), description="Taints that workers may ignore, such as that of preemptible nodes.")
    claim: Word | None = Field(None, description="PersistentVolumeClaim with images and results, mounted at /data.")
    secret: Word | None = Field(None, description="Secret with AWS_ACCESS_KEY_ID and the like.")


Settings = SlurmSettings | KubernetesSettings
SETTINGS: dict[str, type[SlurmSettings] | type[KubernetesSettings]] = {"slurm": SlurmSettings, "kubernetes": KubernetesSettings}


def settings_of(cluster: str) -> tuple[str, Settings | None]:
    """Backend and settings that ``--cluster`` names: of a file, or by default.

    Raises:
        JobError: naming file, key and value.
    """
    if not cluster.endswith(SUFFIX):
        try:
            return cluster, SETTINGS[cluster]() if cluster in SETTINGS else None
        except ValidationError as error:
            raise JobError(f"Cluster '{cluster}' without a file: {first_problem(error)}.") from None
    try:
        values = tomllib.loads(Path(cluster).read_text())
    except OSError as error:
        raise JobError(f"Cluster file {cluster} cannot be read ({error.strerror}).") from None
    except ValueError as error:  # of TOML, or of UTF-8
        raise JobError(f"Cluster file {cluster} is no TOML ({error}).") from None
    backend = values.get("backend")
    kind = SETTINGS.get(backend) if isinstance(backend, str) else None
    if kind is None:
        said = f"says backend = {backend!r}" if "backend" in values else "does not say which backend"
        raise JobError(f"Cluster file {cluster} {said}; write backend = one of {', '.join(map(repr, SETTINGS))}.")
    try:
        found = kind.model_validate(values)
        if isinstance(found, SlurmSettings) and found.lifetime_seconds < 5:
            raise JobError(
                f"Cluster file {cluster}: stop_before {found.stop_before} s leaves a worker no time in a walltime of {found.walltime}."
            )
    except ValidationError as error:
        known = ", ".join(sorted(kind.model_fields.keys() - {"backend"}))
        raise JobError(f"Cluster file {cluster}: {first_problem(error)}; {backend} has the keys {known}.") from None
    return found.backend, found

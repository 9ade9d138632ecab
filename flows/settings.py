"""The environment, read here and nowhere else. Imports nothing heavy."""

from __future__ import annotations

import os
import shutil
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

NARROWEST_TERMINAL = 40
SHORTEST_MINUTES, MOST_MINUTES = 0.01, 100_000  # without progress
SHORTEST_LEASE, LONGEST_LEASE = 0.3, 3600.0  # seconds

# Set before Prefect or dask are imported; what the user has set stays.
_DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",  # the default one is pickle
    "PREFECT_LOGGING_LEVEL": "INFO",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # after 20, on a busy machine, a second one would start beside the first
}

DASK_CONFIG = {
    # With the default of 15 s a worker that dies and starts slowly is never replaced, and tasks pend for ever.
    "distributed.deploy.lost-worker-timeout": "24h",
    "distributed.scheduler.allowed-failures": 1,
    "distributed.scheduler.no-workers-timeout": "10m",
    "distributed.scheduler.worker-ttl": "2m",
}


def apply_defaults() -> None:
    """Set what Prefect must know before it is imported: no telemetry, no pickled results."""
    if not os.environ.get("PREFECT_API_URL"):
        os.environ.pop("PREFECT_API_URL", None)  # an empty one makes Prefect fail, with a traceback, at every event
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)


def prefect_api_url() -> str | None:
    """The Prefect API that is named by the environment or by the active Prefect profile; Prefect is not imported."""
    if os.environ.get("PREFECT_API_URL"):
        return os.environ["PREFECT_API_URL"]
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    try:
        profiles = tomllib.loads(Path(os.environ.get("PREFECT_PROFILES_PATH", home / "profiles.toml")).read_text())
    except (OSError, tomllib.TOMLDecodeError):
        return None
    active = os.environ.get("PREFECT_PROFILE", profiles.get("active", ""))
    return profiles.get("profiles", {}).get(active, {}).get("PREFECT_API_URL") or None


def price() -> str | None:
    """What a worker costs for an hour here, as text such as ``2.50 EUR``."""
    return os.environ.get("UNET_PRICE") or None


def use_ephemeral_prefect(home: Path) -> None:
    """Let Prefect start its own short-lived server, with its database under ``home``."""
    home.mkdir(parents=True, exist_ok=True)
    for name, value in {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    }.items():
        os.environ.setdefault(name, value)


def lease_seconds() -> float | None:
    """After how many seconds without a sign of life a run counts as dead, from UNET_LEASE_SECONDS; None where that is not set.

    Raises:
        JobError: if it is no such number.
    """
    return _number("UNET_LEASE_SECONDS", SHORTEST_LEASE, LONGEST_LEASE, "seconds")


def no_progress_seconds(usual: float) -> float:
    """For how long nothing may move before a run ends, from UNET_NO_PROGRESS_MINUTES.

    Raises:
        JobError: if it is no such number.
    """
    minutes = _number("UNET_NO_PROGRESS_MINUTES", SHORTEST_MINUTES, MOST_MINUTES, "minutes")
    return usual if minutes is None else 60 * minutes


def _number(name: str, least: float, most: float, unit: str) -> float | None:
    """A variable that is a number within bounds; None where it is not set."""
    text = os.environ.get(name)
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not least <= number <= most:
        from unet_core.errors import JobError

        raise JobError(f"{name} is '{text[:60]}'; give {least:g} to {most:,g} {unit}.")
    return number


def widen_terminal() -> None:
    """Lay help out for 40 columns at least: the library that draws it does not end on a terminal of one."""
    stated = os.environ.get("COLUMNS", "")  # 0 is "unknown" to the standard library, and taken at its word by rich
    if shutil.get_terminal_size().columns < NARROWEST_TERMINAL or (stated.isdecimal() and int(stated) < NARROWEST_TERMINAL):
        os.environ["COLUMNS"] = str(NARROWEST_TERMINAL)


def has_display() -> bool:
    """Whether windows can be opened; without, a browser that runs in the terminal would take it over."""
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def worker_environment(gpu: int | None, threads: int) -> dict[str, str]:
    """Variables of one worker process: its GPU, how many threads its libraries may start, and one heap for all of its own threads.

    glibc gives each thread a heap: blocks that take turns in two of them would keep the memory of two forward passes.
    """
    variables = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    variables["MALLOC_ARENA_MAX"] = "1"
    if gpu is not None:
        mask = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
        variables["CUDA_VISIBLE_DEVICES"] = mask[gpu] if gpu < len(mask) else str(gpu)
    return variables


@dataclass(frozen=True)
class LaunchedRank:
    """What torchrun tells each process that it starts; the address is for ``env://``."""

    rank: int
    size: int
    local_rank: int


def launched_rank() -> LaunchedRank | None:
    """The rank of this process if torchrun, or what speaks like it, started it."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    if not all(os.environ.get(name) for name in names):
        return None
    rank, size, local_rank = (int(os.environ[name]) for name in names[:3])
    return LaunchedRank(rank, size, local_rank)


def rank_environment(threads: int, import_path: Sequence[str], interface: str | None) -> dict[str, str]:
    """The environment of a rank's process that a dask worker starts.

    Args:
        threads: of the libraries.
        import_path: folders of modules, those of the worker.
        interface: network interface on which ranks speak; by default what the libraries find.
    """
    variables = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    variables["PYTHONPATH"] = os.pathsep.join(folder for folder in import_path if folder)
    if interface:
        variables |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
    return dict(os.environ) | variables

"""Which process of which machine is at work, so that others can tell whether it is gone. Knows no storage; looks at no clock."""

from __future__ import annotations

import os
import pwd
import socket
import uuid
from functools import lru_cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class Owner(BaseModel):
    """A process that holds something.

    Args:
        id: of this holding; no two are alike.
        user: name.
        host: name of the machine, for people.
        machine: what tells it from all others as long as it runs: host name, boot, and the space in which its process numbers count.
        pid: process number there.
        started: when the process began, as the machine counts; another process that gets the same number later has another one.
        run: id of the flow run, if it is one.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str = Field(min_length=1)
    user: str
    host: str
    machine: str
    pid: int
    started: str
    run: str | None = None

    def sentence(self) -> str:
        run = f", flow run {self.run}" if self.run else ""
        return f"{self.user} on {self.host} (process {self.pid}{run})"

    @property
    def is_gone(self) -> bool:
        """Whether its process is known to have ended; never said of a process of another machine."""
        return self.machine == this_machine() and process_start(self.pid) != self.started


def this_owner(run: str | None = None) -> Owner:
    """This process, holding something new."""
    pid = os.getpid()
    return Owner(
        id=uuid.uuid4().hex,
        user=_user_name(),
        host=socket.gethostname(),
        machine=this_machine(),
        pid=pid,
        started=process_start(pid) or "",
        run=run,
    )


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # containers run under numbers that have no name
        return f"user {os.getuid()}"


@lru_cache(maxsize=1)
def this_machine() -> str:
    """Containers of one machine may share host name and boot, but a process number means something in one of them only."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        numbers = os.readlink("/proc/self/ns/pid")
    except OSError:  # no Linux
        boot, numbers = f"{uuid.getnode():012x}", ""
    return f"{socket.gethostname()} {boot} {numbers}".strip()


def process_start(pid: int) -> str | None:
    """When a process of this machine began, in a form that no change of the clock alters; None if it runs no more."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None if os.path.isdir("/proc/self") else _start_elsewhere(pid)
    return None if state in "ZX" else fields[18]  # 22nd field of proc(5); one that has ended and was not waited for is a zombie


def _start_elsewhere(pid: int) -> str | None:
    """The same where there is no /proc."""
    import psutil  # type: ignore[import-untyped]

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else str(round(process.create_time()))
    except psutil.NoSuchProcess:
        return None

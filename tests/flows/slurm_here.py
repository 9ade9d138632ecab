"""A SLURM of its own on this machine: one node, with the daemons of Debian's package slurm-wlm, as the user who runs the tests."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
MISSING = [name for name in ("slurmctld", "slurmd", "munged", "sbatch", "squeue") if shutil.which(name, path=PATH) is None]

CONFIG = """
ClusterName=unet
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
KillWait=5
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=100000
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=64000 State=UNKNOWN
PartitionName=tests Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@contextmanager
def slurm_here() -> Iterator[dict[str, str]]:
    """The variables with which the commands of SLURM find it; everything is ended and removed afterwards."""
    host = socket.gethostname().split(".")[0]
    with ExitStack() as stack:
        # Not below pytest's folders: munge wants its socket where everybody may go.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="unet-slurm-daemons-", ignore_cleanup_errors=True)))
        folder.chmod(0o755)
        for name in ("state", "spool"):
            (folder / name).mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        config = folder / "slurm.conf"
        user = getpass.getuser()
        config.write_text(CONFIG.format(host=host, user=user, folder=folder, control_port=_free_port(), node_port=_free_port()))
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        environment = {"SLURM_CONF": str(config), "PATH": PATH}
        names = {
            "socket": "munge.socket",
            "key-file": "munge.key",
            "pid-file": "munge.pid",
            "log-file": "munge.log",
            "seed-file": "munge.seed",
        }
        munge = ["munged", "--foreground", "--force", *(f"--{option}={folder / name}" for option, name in names.items())]
        for command in (munge, ["slurmctld", "-D"], ["slurmd", "-D", "-N", host]):
            stack.enter_context(_daemon(command, environment, folder / f"{command[0]}.out"))
        deadline = time.monotonic() + 20
        while not _is_idle(environment):
            told = "\n".join(path.read_text(errors="replace")[-800:] for path in folder.glob("*.[lo][ou][gt]"))
            assert time.monotonic() < deadline, f"SLURM does not start: {told}"
            time.sleep(0.3)
        yield environment


@contextmanager
def _daemon(command: list[str], environment: dict[str, str], log: Path) -> Iterator[None]:
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=os.environ | environment, stdout=file, stderr=file)
    try:
        if command[0] == "munged":
            while not (log.parent / "munge.socket").exists() and process.poll() is None:
                time.sleep(0.1)
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _is_idle(environment: dict[str, str]) -> bool:
    done = subprocess.run(["sinfo", "--noheader", "--format=%t"], env=os.environ | environment, capture_output=True, text=True)
    return done.stdout.strip() == "idle"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

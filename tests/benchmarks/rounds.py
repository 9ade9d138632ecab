"""Every contender of a case in turn, and the whole turn several times, so that a machine that slows down slows them all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.cases import CASES
from tests.benchmarks.log import Entry, Log
from tests.benchmarks.prepare import prepare
from tests.benchmarks.table import CONTENDERS, key_of

ROOT = Path(__file__).resolve().parents[2]
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "BLOSC_NTHREADS")


@dataclass(frozen=True)
class Limits:
    """How long it may take.

    Args:
        rounds: of every contender.
        slow_seconds: wall time from which on a contender is measured once.
        most_seconds: after which a process is killed, and its contender counts as failed.
    """

    rounds: int = 3
    slow_seconds: float = 40
    most_seconds: float = 300


def run_rounds(work: Path, name: str, contenders: Iterable[str], log: Log, limits: Limits, peers: str) -> None:
    """Measure what the log lacks of one case.

    Args:
        work: folder of all cases.
        name: of the case.
        contenders: names.
        log: gets each measurement as it ends, and the reason of each that failed.
        peers: Python of the environment of the peers.
    """
    case = CASES[name]
    prepare(work / name.replace(" ", "-"), case)
    given_up: set[str] = set()
    for turn in range(limits.rounds):
        for contender in contenders:
            key = key_of(name, contender)
            if contender in given_up:
                continue
            done = log.find(key | {"round": turn, "failed": None})
            if done:
                found = done[0]
            else:
                found = key | {"round": turn, "failed": None} | measure(work / name.replace(" ", "-"), contender, limits, peers)
                log.add(found)
                outcome = found["failed"] or f"{found['seconds']:.2f} s"
                print(f"{name}, round {turn + 1}: {contender}: {outcome}", file=sys.stderr, flush=True)
            if found["failed"] or found["seconds"] > limits.slow_seconds:
                given_up.add(contender)


def measure(folder: Path, contender: str, limits: Limits, peers: str) -> Entry:
    """One measurement in a process of its own, bound to as many cores as its row states."""
    entry, available = CONTENDERS[contender], sorted(os.sched_getaffinity(0))
    if len(available) < entry.cores:
        return {"failed": f"needs {entry.cores} cores, this process may use {len(available)}"}
    # Thread pools that ask for no leave stay on these cores too.
    chosen = set(available[: entry.cores])
    done_here = {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", **dict.fromkeys(THREADS, str(entry.cores))}
    command = [peers if entry.peer else sys.executable, "-m", "tests.benchmarks.child", str(folder), contender]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=os.environ | done_here | entry.environment,
            timeout=limits.most_seconds,
            preexec_fn=lambda: os.sched_setaffinity(0, chosen),
        )
    except FileNotFoundError:
        return {"failed": f"no environment of the peers ({peers}); it could not be installed"}
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {limits.most_seconds:.0f} s"}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"failed": lines[-1][:300]}
    found: Entry = json.loads(done.stdout.splitlines()[-1])
    return found

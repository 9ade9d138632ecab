"""Seconds of one step of a training on some ranks of one thread each, told by the reports of its rank 0. Knows no figures of others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from tests.benchmarks.rounds import ROOT, THREADS
from tests.benchmarks.training_data import plan

WARM_UP = 3  # steps that are not counted


def step_seconds(data_set: str, model_out: Path, cores: Sequence[int], steps: int, crops_of_rank: int) -> list[float]:
    """Train for some steps by the recipe "default", one rank a core.

    Args:
        data_set: its description.
        model_out: new folder.
        cores: one for each rank, counted among those that this process may use.
        steps: to do; all but the first few are counted.
        crops_of_rank: of one rank and step.

    Returns:
        Seconds of each counted step; reading, start and end of the processes do not count.
    """
    ranks, crops = len(cores), len(cores) * crops_of_rank
    plan(data_set, model_out, "default", (f"crops.per_step={crops}", f"steps={steps}"), ranks=ranks)
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m", "flows.rank", str(model_out)]
    environment = {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", **dict.fromkeys(THREADS, "1")}
    available = sorted(os.sched_getaffinity(0))
    chosen = {available[core] for core in cores}
    done = subprocess.run(
        [sys.executable, "-m", *launch],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | environment,
        preexec_fn=lambda: os.sched_setaffinity(0, chosen),
    )
    reports = [json.loads(line)["report"] for line in done.stdout.splitlines() if '"kind": "step"' in line]
    # Crops a second are those since the start, so that the time of each step can be told from two of them.
    times = [report["step"] * crops / report["crops_per_second"] for report in reports]
    return [after - before for before, after in pairwise(times)][WARM_UP - 1 : -1]  # the last one ends with a checkpoint

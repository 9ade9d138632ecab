"""What a training costs beside its network, and how it grows with ranks: ``python -m tests.benchmarks.training``.

Everything that is compared runs by turns. Processes are bound to as many cores as they have threads, and their idle threads do not
spin (OMP_WAIT_POLICY=PASSIVE), so that other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.goals import Goal
from tests.benchmarks.ratios import ratio_of_medians
from tests.benchmarks.report import Report
from tests.benchmarks.rounds import ROOT, THREADS
from tests.benchmarks.training_data import make_data_set, plan
from tests.benchmarks.training_ranks import step_seconds

RECIPES: dict[str, tuple[str, ...]] = {"paper": ("network.arguments.base=32",), "default": ()}  # with what is changed of them
ROUNDS = {"paper": (3, 1), "default": (8, 2)}  # of so many steps
RANK_ROUNDS, RANK_STEPS = 2, 16
RANK_CROPS = (2, 8)  # of one rank and step: what the recipe says for two ranks, and what hides more of the exchange
WEIGHT_MAP = (1024, 100)  # side, cells


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.training", description=__doc__)
    parser.add_argument("--part", action="append", choices=("loop", "ranks", "weights"), help="may be repeated; all unless told")
    parser.add_argument("--work", type=Path, default=ROOT / ".benchmarks", help="folder for images and the report")
    options = parser.parse_args()
    if sys.platform != "linux":
        sys.exit(f"The benchmark binds processes to cores; it runs on Linux, not on {sys.platform}.")
    work, parts = options.work / "training", options.part or ["loop", "ranks", "weights"]
    data_set = make_data_set(work / "data")
    machine = f"{torch.backends.cpu.get_cpu_capability()}, {platform.system()}, torch {torch.__version__}"
    report: Report = {"date": date.today().isoformat(), "machine": machine, "load_before": os.getloadavg()[0]}
    report["loops"] = [measure_loop(work, data_set, *case) for case in loop_cases()] if "loop" in parts else []
    report["ranks"] = measure_ranks(work, data_set) if "ranks" in parts else {}
    report["weights"] = measured("training_weights", 1, *map(str, WEIGHT_MAP)) if "weights" in parts else None
    report["load_after"] = os.getloadavg()[0]
    lines = list(lines_of(report))
    print("\n".join(lines))
    (options.work / "training.md").write_text("\n".join(lines) + "\n")
    (options.work / "training.json").write_text(json.dumps(report, indent=1))


def loop_cases() -> Iterator[tuple[str, str, int]]:
    """Recipe, precision, threads; those that need more cores than there are do not come."""
    cores = len(os.sched_getaffinity(0))
    for recipe in RECIPES:
        for precision in ("float32", "bfloat16"):
            yield from ((recipe, precision, threads) for threads in (1, 2) if threads <= cores)


def measure_loop(work: Path, data_set: str, recipe: str, precision: str, threads: int) -> dict[str, Any]:
    """One case of the loop against bare steps."""
    model_out = _new(work / f"{recipe}-{precision}-{threads}")
    plan(data_set, model_out, recipe, (*RECIPES[recipe], f"precision={precision}"), threads=threads)
    found = measured("training_step", threads, str(model_out), *map(str, ROUNDS[recipe]))
    found |= {"case": f"{recipe}, {precision}, {threads} thread{'s' if threads > 1 else ''}"}
    print(f"{found['case']}: {_median(found, 'loop'):.3f} s, bare {_median(found, 'bare'):.3f} s", file=sys.stderr, flush=True)
    return found


def measure_ranks(work: Path, data_set: str) -> dict[str, dict[str, list[float]]]:
    """By crops of a rank: seconds of steps of one rank, of two, and of two trainings of one rank that do not know of each other."""
    if len(os.sched_getaffinity(0)) < 2:
        return {}
    found: dict[str, dict[str, list[float]]] = {str(crops): {"one": [], "two": [], "apart": []} for crops in RANK_CROPS}
    for turn in range(RANK_ROUNDS):
        for crops in RANK_CROPS:
            _measure_ranks_once(work, data_set, crops, found[str(crops)])
            print(f"ranks of {crops} crops, round {turn + 1} of {RANK_ROUNDS}", file=sys.stderr, flush=True)
    return found


def _measure_ranks_once(work: Path, data_set: str, crops: int, seconds: dict[str, list[float]]) -> None:
    def steps(number: int, cores: list[int]) -> list[float]:
        return step_seconds(data_set, _new(work / f"ranks-{number}"), cores, RANK_STEPS, crops)

    seconds["one"] += steps(0, [0])
    seconds["two"] += steps(0, [0, 1])
    with ThreadPoolExecutor(2) as both:
        apart = list(both.map(lambda core: steps(core, [core]), range(2)))
    seconds["apart"] += [second for times in apart for second in times]


def measured(module: str, threads: int, *arguments: str) -> dict[str, Any]:
    """What a module prints, as a process of its own that is bound to as many cores as it has threads."""
    chosen = set(sorted(os.sched_getaffinity(0))[:threads])
    environment = {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE", **dict.fromkeys(THREADS, str(threads))}
    done = subprocess.run(
        [sys.executable, "-m", f"tests.benchmarks.{module}", *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | environment,
        preexec_fn=lambda: os.sched_setaffinity(0, chosen),
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def lines_of(report: Report) -> Iterator[str]:
    """Markdown: what was measured, then the goals."""
    load = f"load of the machine {report['load_before']:.1f} before, {report['load_after']:.1f} after"
    yield f"{report['date']}, {report['machine']}; medians; {load}"
    if report["loops"]:
        yield "\n## Loop against bare steps on ready tensors\n"
        heads = ("case", "crops/s", "bare crops/s", "more time [95 %]", "more CPU time", "reading, ms/step", "batch, ms/step")
        yield f"| {' | '.join(heads)} |"
        yield "|---" * len(heads) + "|"
        yield from (_loop_row(found) for found in report["loops"])
    if report["ranks"]:
        yield "\n## Ranks of one thread, as many crops each\n"
        for crops, seconds in report["ranks"].items():
            one, two, apart = (_median(seconds, name) for name in ("one", "two", "apart"))
            yield f"- {crops} crops: 1 rank {one:.3f} s a step; 2 ranks {two:.3f} s; 2 trainings of 1 rank side by side {apart:.3f} s."
    if report["weights"]:
        own, other = (statistics.median(report["weights"][name]) for name in ("own", "transforms"))
        side, count = WEIGHT_MAP
        yield f"\n## Border weights, {side} x {side}, {count} cells\n"
        yield f"{own:.3f} s; one distance transform a cell {other:.2f} s; weights differ by {report['weights']['difference']:.1e} at most."
    yield "\n## Goals\n"
    yield "| goal | reached |"
    yield "|---|---|"
    yield from (goal.line(report) for goal in GOALS)


def _loop_row(found: dict[str, Any]) -> str:
    ratio = ratio_of_medians(found["loop"], found["bare"])
    cells = (
        found["case"],
        f"{found['crops'] / _median(found, 'loop'):.2f}",
        f"{found['crops'] / _median(found, 'bare'):.2f}",
        f"{_percent(ratio.value)} [{_percent(ratio.low)}, {_percent(ratio.high)}]",
        _percent(_median(found, "loop_cpu") / _median(found, "bare_cpu")),
        f"{1000 * found['load']:.1f}",
        f"{1000 * found['batch']:.1f}",
    )
    return f"| {' | '.join(cells)} |"


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):.0f} %"


def _median(found: dict[str, Any], name: str) -> float:
    return statistics.median(found[name])


def _new(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def _loop_costs(report: Report) -> Iterator[tuple[str, float]]:
    return ((found["case"], _median(found, "loop") / _median(found, "bare") - 1) for found in report["loops"])


def _ranks_against(name: str, more_crops: int) -> Callable[[Report], Iterator[tuple[str, float]]]:
    def values(report: Report) -> Iterator[tuple[str, float]]:
        for crops, seconds in report["ranks"].items():
            yield f"default, float32, {crops} crops a rank", more_crops * _median(seconds, name) / _median(seconds, "two")

    return values


def _weight_maps(report: Report) -> Iterator[tuple[str, float]]:
    if report["weights"]:
        yield f"{WEIGHT_MAP[0]} x {WEIGHT_MAP[0]}", _median(report["weights"], "transforms") / _median(report["weights"], "own")


GOALS = (
    Goal("reading and augmentation, of the time of bare steps", 0.10, _loop_costs, at_least=False, percent=True),
    Goal("2 ranks against 1: crops/s", 1.7, _ranks_against("one", 2)),
    Goal("2 ranks against 2 trainings side by side: crops/s", 0.85, _ranks_against("apart", 1)),
    Goal("border weights over a distance transform a cell: speed", 20, _weight_maps),
)


if __name__ == "__main__":
    main()

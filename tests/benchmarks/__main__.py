"""Compare this program with other ways of running the same network on the same image: ``make bench`` and ``make bench-full``.

Every measurement is a process of its own, Zarr to Zarr, bound to the cores of its row. What ends is appended to a file, and not
measured again unless ``--fresh`` is given. ``map_overlap`` mirrors the image's border another way (dask's "reflect" repeats the edge).
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from datetime import date
from pathlib import Path

import torch

from tests.benchmarks.cases import CASES, FULL, USUAL
from tests.benchmarks.log import Log
from tests.benchmarks.plot import draw
from tests.benchmarks.report import make_report
from tests.benchmarks.rounds import ROOT, Limits, run_rounds
from tests.benchmarks.table import CONTENDERS, contenders_of
from tests.benchmarks.tables import lines_of


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--case", action="append", choices=CASES, help="may be repeated; those of make bench unless told")
    parser.add_argument("--contender", action="append", choices=CONTENDERS, help="all unless told; may be repeated")
    parser.add_argument("--full", action="store_true", help="larger images, more rows, hours")
    parser.add_argument("--fresh", action="store_true", help="measure again what is measured")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=ROOT / ".benchmarks", help="folder for images, measurements and the report")
    parser.add_argument("--peers", default=str(ROOT / ".venv-peers" / "bin" / "python"), help="Python with the extra 'peers'")
    options = parser.parse_args()
    if sys.platform != "linux":
        sys.exit(f"The benchmark reads /proc and binds processes to cores; it runs on Linux, not on {sys.platform}.")

    name = "full" if options.full else "usual"
    cases = options.case or (FULL if options.full else USUAL)
    limits = Limits(options.rounds, 900, 7200) if options.full else Limits(options.rounds)
    log = Log(options.work / f"{name}.jsonl", options.fresh)
    for case in cases:
        contenders = contenders_of(CASES[case], options.full)
        chosen = [entry for entry in contenders if entry in options.contender] if options.contender else contenders
        run_rounds(options.work, case, chosen, log, limits, options.peers)

    machine = f"{torch.backends.cpu.get_cpu_capability()}, {platform.system()}, torch {torch.__version__}"
    report = make_report(log, cases, options.full) | {"date": date.today().isoformat(), "machine": machine}
    lines = [f"{report['date']}, {machine}; medians of up to {options.rounds} rounds", *lines_of(report)]
    print("\n".join(lines))
    (options.work / f"{name}.md").write_text("\n".join(lines) + "\n")
    (options.work / f"{name}.json").write_text(json.dumps(report, indent=1))
    draw(report, options.work / f"{name}.png")


if __name__ == "__main__":
    main()

"""Compare this program with other ways of running the same network on the same image: ``make bench``.

Every contender runs in a process of its own, Zarr to Zarr, all of them in turn and the whole turn three times, so that a machine
that slows down slows them all. Labels are compared with those of the first contender; `map_overlap` mirrors the image's border another
way (dask's "reflect" repeats the edge).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr

from tests.benchmarks.contenders import CONTENDERS, folder_of
from tests.conftest import describe, random_network, textured
from unet_core.model_package import save_model
from unet_core.segment import open_result

CASES: dict[str, dict[str, Any]] = {
    "2d": {"shape": (2048, 2048), "network": "unet", "tile": (1024, 1024), "arguments": {"base": 16, "levels": 5}},
    "3d": {"shape": (128, 128, 128), "network": "unet3d", "tile": (64, 64, 64), "arguments": {"base": 8, "levels": 4}},
    "tiny": {"shape": (300, 200), "network": "unet", "tile": (128, 128), "arguments": {"base": 4, "levels": 3}},
}


def prepare(work: Path, case: dict[str, Any]) -> None:
    dims = len(case["shape"])
    arguments = {"in_channels": 1, "classes": 2, "dims": dims, **case["arguments"]}
    save_model(
        work / "model", random_network(network=case["network"], **arguments), describe(network=case["network"], **arguments)
    )
    chunks = tuple(min(512 if dims == 2 else 64, size) for size in case["shape"])
    zarr.create_array(work / "image", data=textured(case["shape"]), chunks=chunks)
    (work / "case.json").write_text(json.dumps(case))


def labels_of(work: Path, name: str) -> Any:
    folder = work / folder_of(name)
    return np.asarray(
        open_result(str(folder)).to_dask() if name.startswith("pipeline") else zarr.open_array(folder, mode="r")[...]
    )


def measure(work: Path, name: str) -> dict[str, float]:
    subprocess.run(["rm", "-rf", str(work / folder_of(name))], check=True)
    one_core = {"OMP_NUM_THREADS": "1"} if name in ("pipeline, serial", "pipeline, whole blocks", "pipeline, bfloat16") else {}
    command = [sys.executable, "-m", "tests.benchmarks.contenders", name, str(work)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | one_core)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_case(label: str, case: dict[str, Any], rounds: int, contenders: list[str]) -> dict[str, Any]:
    voxels = float(np.prod(case["shape"]))
    results: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        prepare(work, case)
        for turn in range(rounds):
            for name in contenders:
                results[name].append(measure(work, name))
                print(f"{label} round {turn + 1}: {name} {results[name][-1]['seconds']:.2f} s", file=sys.stderr, flush=True)
        reference = labels_of(work, contenders[0])
        for name, found in results.items():
            seconds = [entry["seconds"] for entry in found]
            rows.append(
                {
                    "contender": name,
                    "seconds": statistics.median(seconds),
                    "fastest": min(seconds),
                    "slowest": max(seconds),
                    "voxels_per_second": voxels / statistics.median(seconds),
                    "peak_mib": statistics.median(entry["peak_mib"] for entry in found),
                    "labels_equal": float((labels_of(work, name) == reference).mean()),
                }
            )
    return {"case": label, **case, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--case", action="append", choices=CASES, help="2d and 3d unless told; may be repeated")
    parser.add_argument("--contender", action="append", choices=CONTENDERS, help="all unless told; may be repeated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where the figures go")
    options = parser.parse_args()
    found = [
        run_case(label, CASES[label], options.rounds, options.contender or list(CONTENDERS))
        for label in options.case or ("2d", "3d")
    ]
    machine = f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}, {platform.system()}, torch {torch.__version__}"
    print(f"{date.today().isoformat()}, {machine}; medians of {options.rounds} rounds")
    for case in found:
        print(f"\n{case['case']}: {case['network']} {case['arguments']}, image {case['shape']}, tiles of {case['tile']}")
        print("| contender | s (range) | Mvoxel/s | peak MiB | labels equal |\n|---|---|---|---|---|")
        for row in case["rows"]:
            span = f"{row['seconds']:.2f} ({row['fastest']:.2f} to {row['slowest']:.2f})"
            print(
                f"| {row['contender']} | {span} | {row['voxels_per_second'] / 1e6:.3f} | {row['peak_mib']:.0f} | {row['labels_equal']:.5f} |"
            )
    if options.json:
        options.json.write_text(json.dumps({"date": date.today().isoformat(), "machine": machine, "cases": found}, indent=1))


if __name__ == "__main__":
    main()

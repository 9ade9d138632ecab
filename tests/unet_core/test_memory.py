"""What a block needs, against what the plan says."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unet_core.networks.test_conformance import CASE_IDS, CASES, build
from unet_core.footprint import footprint
from unet_core.live_bytes import LiveBytes
from unet_core.rules import trace
from unet_core.streaming import Streamer
from unet_core.strip_memory import StripMemory

Maker = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[2]

MEASURE = """
import sys, threading, time
import numpy as np, psutil, zarr
from unet_core import pipeline, worker
from unet_core.job import make_job
from unet_core.planning import resolve
from unet_core.segment import prepare

folder, precision, size, model, keep = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5]
zarr.create_array(f"{folder}/image", data=np.random.default_rng(0).integers(0, 255, (2 * size, 2 * size), dtype="u1"), chunks=(256, 256))
job = make_job(image=f"{folder}/image", output=f"{folder}/out", model=model, block_shape=(size, size), precision=precision, probabilities=keep)
planned = resolve(job)
request = prepare(planned, job.output)
worker.open_worker(job.output, request.key)
process = psutil.Process()
idle = peak = process.memory_info().rss
running = True
def watch():
    global peak
    while running:
        peak = max(peak, process.memory_info().rss)
        time.sleep(0.001)
watcher = threading.Thread(target=watch)
watcher.start()
for record in pipeline.run_units(job.output, request.key, "segment", range(4)):
    assert record.decoded_bytes is not None
running = False
watcher.join()
print(planned.memory_bytes, peak - idle)
"""


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [256, 768])
def test_a_block_needs_no_more_memory_than_planned(size: int, precision: str, tmp_path: Path) -> None:
    check_measured([tmp_path, precision, size, "nuclei-fluorescence", "none"])


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["uint8", "float32"])
def test_a_block_of_many_classes_that_runs_whole_needs_no_more_either(keep: str, make_model: Maker, tmp_path: Path) -> None:
    """Its probabilities need more than the activations of the network."""
    check_measured([tmp_path, "float32", 768, make_model(classes=20, base=2, padding="same"), keep])


def check_measured(arguments: list[Any]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, arguments)], check=True, capture_output=True, text=True, cwd=ROOT
    )
    projected, measured = (int(word) / 2**20 for word in done.stdout.split())
    assert 0.2 * projected < measured <= projected, f"projected {projected:.0f} MiB, measured {measured:.0f} MiB"


@pytest.mark.parametrize("strip", [16, 48])
@pytest.mark.parametrize(("name", "dims", "arguments"), CASES, ids=CASE_IDS)
def test_the_memory_of_strips_is_what_torch_holds(name: str, dims: int, arguments: dict[str, Any], strip: int) -> None:
    traced = trace(build(name, dims, base=4, **arguments).to("meta"))
    geometry = footprint(traced.graph)
    shape = geometry.legal_shape((10 * strip, *(40,) * (dims - 1)))
    with torch.inference_mode(), LiveBytes() as live:
        streamer = Streamer(traced, 0, shape[0])
        for first in range(0, shape[0], strip):
            streamer.push(torch.empty((1, 1, min(strip, shape[0] - first), *shape[1:]), device="meta"))
    expected = StripMemory(traced, 0, 1).peak(shape, strip) * 4
    assert 0.85 * live.peak <= expected <= 1.1 * live.peak

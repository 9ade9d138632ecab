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

PREPARE = """
import sys
import numpy as np, zarr
from unet_core.job import make_job
from unet_core.planning import resolve
from unet_core.segment import prepare

folder, model, size, dims, precision, keep, block = (*sys.argv[1:3], *map(int, sys.argv[3:5]), *sys.argv[5:7], int(sys.argv[7]))
voxel, symmetries, *further = float(sys.argv[8]), *sys.argv[9:]
data = np.random.default_rng(0).integers(0, 255, (size,) * dims, dtype="u1")
zarr.create_array(f"{folder}/image", data=data, chunks=(256 if dims == 2 else 64,) * dims)
job = make_job(
    image=f"{folder}/image", output=f"{folder}/out", model=model, precision=precision, probabilities=keep,
    block_shape=(block,) * dims if block else None, symmetries=symmetries, further_models=tuple(further),
    voxel_size_um=(voxel,) * dims if voxel else None, resample=bool(voxel),
)
planned = resolve(job)
print(planned.memory_bytes, prepare(planned, job.output).key)
"""
WORK = """
import sys, threading, time
import numcodecs, psutil, torch, zarr
import unet_core.foreign, unet_core.networks.unet, unet_core.object_store
from unet_core import pipeline, worker
from unet_core.agenda import Agenda

torch.nn.functional.conv2d(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 3, 3))
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
stages = worker.open_worker(*sys.argv[1:3]).plan.stages
units = {"segment": range(min(4, stages[0].grid.block_count))}
if sys.argv[3:]:
    units = {stage.name: range(stage.grid.block_count) for stage in stages}
for record in pipeline.run_ready(*sys.argv[1:3], Agenda(stages, units)):
    assert record.decoded_bytes is not None
running = False
watcher.join()
print(peak - idle)
"""


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        ({"levels": 5, "base": 16}, 2048),
        ({"levels": 5, "base": 64}, 512),
        ({"network": "unet3d", "dims": 3, "levels": 3, "base": 8}, 96),
        ({"levels": 4, "base": 8, "padding": "same"}, 768),
    ],
)
def test_a_worker_needs_no_more_memory_than_planned_and_hardly_less(
    arguments: dict[str, Any], size: int, precision: str, make_model: Maker, tmp_path: Path
) -> None:
    check_measured(tmp_path, make_model(**arguments), size, arguments.get("dims", 2), precision, "none", least=0.55)


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize("keep", ["uint8", "float32"])
def test_a_block_of_many_classes_that_runs_whole_needs_no_more_either(keep: str, make_model: Maker, tmp_path: Path) -> None:
    """Its probabilities need more than the activations of the network."""
    check_measured(tmp_path, make_model(classes=20, base=2, padding="same"), 1536, 2, "float32", keep, block=768, least=0.4)


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        ({"levels": 5, "base": 16}, 2048),
        ({"network": "unet3d", "dims": 3, "levels": 3, "base": 8}, 96),
        ({"levels": 4, "base": 8, "padding": "same"}, 768),
    ],
)
def test_an_average_of_many_passes_needs_no_more_than_planned(
    arguments: dict[str, Any], size: int, make_model: Maker, tmp_path: Path
) -> None:
    model, other = make_model(seed=1, **arguments), make_model(seed=2, **arguments)
    dims = arguments.get("dims", 2)
    check_measured(tmp_path, model, size, dims, "float32", "float32", least=0.4, symmetries="all", further=(other,))


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize(("keep", "block"), [("none", 256), ("float32", 0), ("float32", 128)])
def test_a_block_of_many_sections_needs_no_more_than_planned(keep: str, block: int, make_model: Maker, tmp_path: Path) -> None:
    """A 2D model on a volume: the finished block of many sections needs more than the network on one of them."""
    check_measured(tmp_path, make_model(levels=4, base=8), 256, 3, "float32", keep, block=block, least=0.4)


@pytest.mark.alone
@pytest.mark.slow
def test_coarser_levels_made_meanwhile_need_no_more_either(make_model: Maker, tmp_path: Path) -> None:
    """Four blocks of many probabilities are read for each of theirs, and the next block is read and the last one written meanwhile."""
    model = make_model(classes=20, base=2, padding="same")
    check_measured(tmp_path, model, 1536, 2, "float32", "float32", block=384, least=0.4, levels=True)


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize(
    ("dims", "size", "arguments"), [(2, 3000, {"levels": 5, "base": 16}), (3, 160, {"levels": 3, "base": 8})]
)
def test_a_resampled_image_needs_no_more_than_planned(
    dims: int, size: int, arguments: dict[str, Any], make_model: Maker, tmp_path: Path
) -> None:
    model = make_model(network="unet3d" if dims == 3 else "unet", dims=dims, voxel_size_um=(0.9,) * dims, **arguments)
    check_measured(tmp_path, model, size, dims, "float32", "none", least=0.4, voxel=0.5)


def check_measured(
    folder: Path, model: Path, size: int, dims: int, precision: str, keep: str, block: int = 0, least: float = 0.0,
    symmetries: str = "none", further: tuple[Path, ...] = (), levels: bool = False, voxel: float = 0.0,
) -> None:  # fmt: skip
    """The peak of a fresh process above what it needs with its libraries and nothing else."""

    def call(code: str, *arguments: Any) -> list[str]:
        words = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(words, check=True, capture_output=True, text=True, cwd=ROOT).stdout.split()

    planned, key = call(PREPARE, folder, model, size, dims, precision, keep, block, voxel, symmetries, *further)
    (found,) = call(WORK, folder / "out", key, *["levels"] * levels)
    projected, measured = int(planned) / 2**20, int(found) / 2**20
    assert least * projected <= measured <= projected, f"projected {projected:.0f} MiB, measured {measured:.0f} MiB"


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

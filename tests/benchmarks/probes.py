"""What the figures are held against: the machine's convolution peak, zarr-python's own label writes, and the time of planning."""

from __future__ import annotations

import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from scipy import ndimage

from tests.benchmarks.cases import CHANNELS_LAST, Work
from tests.benchmarks.meter import Meter

# (channels, sides) of square convolutions with 3 voxels a side: what fits the cache, and what does not.
SHAPES: tuple[tuple[int, tuple[int, ...]], ...] = (
    (64, (192, 192)),
    (128, (96, 96)),
    (256, (64, 64)),
    (256, (128, 128)),
    (512, (32, 32)),
    (64, (32, 48, 48)),
    (128, (16, 24, 24)),
)
SECONDS = 0.2  # of each
REPEATS = 7


def convolution_peak(work: Work, meter: Meter, precision: str = "float32") -> None:
    """Notes ``gflops``, the most that one convolution reaches, channels last; the best pass of the best shape."""
    dtype, rates = getattr(torch, precision), {}
    with meter, torch.inference_mode():
        for channels, sides in SHAPES:
            kind = torch.nn.Conv2d if len(sides) == 2 else torch.nn.Conv3d
            layer = kind(channels, channels, 3, padding=1, bias=False).to(dtype).to(memory_format=CHANNELS_LAST[len(sides)])
            value = torch.randn(1, channels, *sides).to(dtype).to(memory_format=CHANNELS_LAST[len(sides)])
            layer(value)
            best, until = float("inf"), time.perf_counter() + SECONDS
            while time.perf_counter() < until:
                began = time.perf_counter()
                layer(value)
                best = min(best, time.perf_counter() - began)
            work_done = 2 * layer.weight.numel() * value[0, 0].numel()
            rates[f"{channels} channels, {'x'.join(map(str, sides))}"] = work_done / best / 1e9
    meter.notes |= {"gflops": max(rates.values()), "rates": rates}


def planning(work: Work, meter: Meter) -> None:
    """Notes the ``seconds`` from a job to its plan, image and model opened."""
    from unet_core.planning import resolve

    found = []
    with meter:
        for _ in range(3):
            began = time.perf_counter()
            resolve(_job(work))
            found.append(time.perf_counter() - began)
    meter.notes["planning_seconds"] = statistics.median(found)


def label_writes(work: Work, meter: Meter) -> None:
    """Notes bytes per second of labels that are encoded and put, block by block, and of zarr-python's assignment of the same array.

    Same labels, chunks, shards and compressor; each writes its files anew, in turns.
    """
    from unet_core.output import create_output, encode_shard
    from unet_core.planning import resolve
    from unet_core.store import open_store

    plan = resolve(_job(work)).plan
    image = next(entry for entry in plan.images if entry.kind == "labels")
    intensities = zarr.open_array(work.image, mode="r")[...]
    labels = (ndimage.gaussian_filter(intensities, 2) > 120).astype(np.uint8)
    grid, own, other = plan.stages[0].grid, work.folder / "labels-own", work.folder / "labels-zarr"
    seconds: dict[str, list[float]] = {"own": [], "zarr": []}
    with meter:
        for _ in range(REPEATS):
            _remove(own, other)
            store = open_store(str(own))
            create_output(store, plan)
            began = time.perf_counter()
            for index, block in enumerate(grid.blocks()):
                key, data = encode_shard(plan, image, 0, grid.coordinates(index), labels[block.slices()])
                if data is not None:
                    store.put(key, data)
            seconds["own"].append(time.perf_counter() - began)
            ours = zarr.open_array(own / image.array_path(0), mode="r")
            stated: dict[str, Any] = {"chunks": ours.chunks, "shards": ours.shards, "compressors": ours.compressors}
            target = zarr.create_array(other, shape=labels.shape, dtype="uint8", fill_value=0, **stated)
            began = time.perf_counter()
            target[...] = labels
            seconds["zarr"].append(time.perf_counter() - began)
    assert np.array_equal(ours[...], labels)
    assert np.array_equal(target[...], labels)
    _remove(own, other)
    meter.notes |= {f"{name}_bytes_per_second": labels.nbytes / statistics.median(found) for name, found in seconds.items()}


def _job(work: Work) -> Any:
    from unet_core.job import make_job

    return make_job(image=work.image, output=work.output, model=str(work.folder / "model"), device="cpu")


def _remove(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)

"""Ways to segment the same Zarr image with the same weights into a Zarr label image, each in a process of its own.

    python -m tests.benchmarks.contenders NAME WORK

WORK holds ``image`` (Zarr), ``model`` (package) and ``case.json``; the labels go to WORK/NAME. Prints one line of JSON: seconds from
the first read to the last write (imports are not counted, the start of dask workers is), and the peak memory of all processes.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import zarr
from numpy.typing import NDArray

from unet_core.footprint import Footprint
from unet_core.geometry import BlockGrid, Box
from unet_core.model_package import ModelPackage, load_model
from unet_core.volumes import open_volume, read_reflected

Labels = NDArray[np.uint8]


class Case:
    """The image, the network, and how a bare loop normalises."""

    def __init__(self, work: Path) -> None:
        self.work = work
        facts = json.loads((work / "case.json").read_text())
        self.shape, self.tile = tuple(facts["shape"]), tuple(facts["tile"])
        self.package: ModelPackage = load_model(work / "model")
        self.geometry: Footprint = self.package.footprint

    def normalise(self, image: NDArray[Any]) -> NDArray[np.float32]:
        stated: Any = self.package.description.normalisation
        result: NDArray[np.float32] = (image.astype(np.float32) - stated.offset[0]) / stated.scale[0]
        return result

    def output(self, name: str, chunks: tuple[int, ...]) -> Any:
        chunks = tuple(min(chunk, size) for chunk, size in zip(chunks, self.shape, strict=True))
        return zarr.create_array(self.work / name, shape=self.shape, chunks=chunks, dtype="uint8", overwrite=True)


def pipeline(case: Case, name: str, **options: Any) -> float:
    """This program, in this process."""
    from unet_core.job import make_job
    from unet_core.segment import run

    job = make_job(image=str(case.work / "image"), output=str(case.work / name), model=str(case.work / "model"), **options)
    return run(job).seconds


def pipeline_on_workers(case: Case, name: str, workers: int) -> float:
    """This program on local dask workers."""
    from flows.run import segment_on_cluster
    from unet_core.job import make_job

    job = make_job(image=str(case.work / "image"), output=str(case.work / name), model=str(case.work / "model"))
    return segment_on_cluster(job, "local", workers).seconds


def tile_loop(case: Case, name: str, tuned: bool) -> float:
    """A loop of forward passes over tiles: as one writes it first, or channels last with reading and writing in threads."""
    memory_format: Any = torch.preserve_format
    if tuned:
        memory_format = torch.channels_last if case.package.dims == 2 else torch.channels_last_3d
    network = case.package.network.to(memory_format=memory_format)
    volume = open_volume(str(case.work / "image"))
    grid, target = BlockGrid(case.shape, case.tile), case.output(name, case.tile)

    def read(box: Box) -> NDArray[np.float32]:
        return case.normalise(read_reflected(volume, case.geometry.read_box(box)))

    def write(box: Box, labels: Labels) -> None:
        target[box.slices()] = labels

    began = time.perf_counter()
    boxes = list(grid.blocks())
    with ThreadPoolExecutor(2) as pool, torch.inference_mode():
        ahead = pool.submit(read, boxes[0])
        written = []
        for number, box in enumerate(boxes):
            image = ahead.result()
            if number + 1 < len(boxes):
                ahead = pool.submit(read, boxes[number + 1])
            batch = torch.from_numpy(image)[None].to(memory_format=memory_format)
            labels = network(batch)[0].argmax(0).to(torch.uint8).numpy()[tuple(slice(0, size) for size in box.shape)]
            written.append(pool.submit(write, box, labels))
            if not tuned:
                written[-1].result()
        for future in written:
            future.result()
    return time.perf_counter() - began


def map_overlap(case: Case, name: str, tuned: bool) -> float:
    """``dask.array.map_overlap`` with the network's margin on threads: as a user writes it, or channels last on one thread a core."""
    import dask
    import dask.array as da

    memory_format: Any = torch.preserve_format
    if tuned:
        memory_format = torch.channels_last if case.package.dims == 2 else torch.channels_last_3d
    network, geometry = case.package.network.to(memory_format=memory_format), case.geometry

    def predict(block: NDArray[Any]) -> Labels:
        inner = tuple(size - 2 * reach for size, reach in zip(block.shape, depth, strict=True))
        read = geometry.read_box(Box(depth, tuple(a + b for a, b in zip(depth, inner, strict=True))))
        # What a legal size asks for beyond the margin gives labels that are cut off.
        ends = [(0, max(0, stop - size)) for stop, size in zip(read.stop, block.shape, strict=True)]
        image = case.normalise(np.pad(block, ends, mode="edge")[read.slices()])
        with torch.inference_mode():
            batch = torch.from_numpy(image)[None, None].to(memory_format=memory_format)
            labels = network(batch)[0].argmax(0).to(torch.uint8).numpy()
        result = np.zeros(block.shape, np.uint8)
        place = tuple(slice(reach, reach + size) for reach, size in zip(depth, inner, strict=True))
        result[place] = labels[tuple(slice(0, size) for size in inner)]
        return result

    depth = tuple(-(-max(a, b) // s) * s for a, b, s in zip(geometry.before, geometry.after, geometry.stride, strict=True))
    image = da.from_zarr(str(case.work / "image")).rechunk(case.tile)
    labels = da.map_overlap(
        predict, image, depth=depth, boundary="reflect", dtype=np.uint8, meta=np.zeros((0,) * len(depth), np.uint8)
    )
    target = case.output(name, case.tile)
    began = time.perf_counter()
    with dask.config.set(scheduler="threads", num_workers=torch.get_num_threads() if tuned else None):
        da.store(labels, target, lock=False)
    return time.perf_counter() - began


CONTENDERS: dict[str, Callable[[Case, str], float]] = {
    "pipeline, serial": lambda case, name: pipeline(case, name),
    "pipeline, whole blocks": lambda case, name: pipeline(case, name, strip=0),
    "pipeline, bfloat16": lambda case, name: pipeline(case, name, precision="bfloat16"),
    "pipeline, 2 workers": lambda case, name: pipeline_on_workers(case, name, 2),
    "tile loop": lambda case, name: tile_loop(case, name, tuned=False),
    "tile loop, tuned": lambda case, name: tile_loop(case, name, tuned=True),
    "map_overlap": lambda case, name: map_overlap(case, name, tuned=False),
    "map_overlap, tuned": lambda case, name: map_overlap(case, name, tuned=True),
}


def main(name: str, work: Path) -> None:
    process, peak, running = psutil.Process(), 0, True

    def watch() -> None:
        nonlocal peak
        while running:
            found = 0
            for part in (process, *process.children(recursive=True)):
                try:
                    found += part.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            peak = max(peak, found)
            time.sleep(0.02)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    seconds = CONTENDERS[name](Case(work), folder_of(name))
    running = False
    watcher.join()
    print(json.dumps({"seconds": seconds, "peak_mib": peak >> 20}))


def folder_of(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "-")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

"""What it takes to number objects over blocks: ``python -m tests.benchmarks.joining``, a few minutes.

speed    parts + join + relabelling of all blocks of an array, on arrays, against one call of cc3d on the whole; by turns, medians
scale    time and peak memory of the stage ``join``, which alone sees all blocks, and of one block of the stage ``instances`` after it:
         an output is filled with what the stage ``parts`` would have stored of a periodic volume, through which objects run everywhere

Each alone with its options: ``.. joining speed --block 256``, ``.. joining scale --method watershed``. Linux only: /proc tells the peaks.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cc3d
import numpy as np
import torch
import zarr
from scipy import ndimage

from tests.benchmarks.meter import read_process
from unet_core import instances, networks, worker
from unet_core.geometry import BlockGrid, Box, Shape
from unet_core.instance_objects import packed_parts, read_joined
from unet_core.job import make_job
from unet_core.ledger import Record, StoredShard, record_key, to_bytes
from unet_core.model_package import FixedNormalisation, Head, LabelClass, ModelDescription, NetworkSpec, save_model
from unet_core.planning import resolve
from unet_core.postprocess.block_parts import BlockParts, Runs, describe_parts, seen_box
from unet_core.postprocess.blockwise import label_parts
from unet_core.postprocess.blockwise_watershed import AHEAD, describe_hills, land_box
from unet_core.postprocess.distance import distance_within
from unet_core.postprocess.joining import Joiner
from unet_core.postprocess.neighbours import steps_forward
from unet_core.postprocess.watershed import REACH
from unet_core.segment import prepare
from unet_core.stages import JOIN_STAGE, PARTS_STAGE
from unet_core.store import open_store

BLOCK = (32, 32, 32)
OBJECTS = 23  # in each period of the volume, which is a block


def number_in_blocks(labels: np.ndarray, block_shape: Shape, connectivity: int = 1) -> Iterator[tuple[Box, np.ndarray]]:
    """Ids of all blocks of an array, one after the other, without any storage."""
    grid = BlockGrid(labels.shape, block_shape)
    joiner, voxels = Joiner(grid), []
    for number, own in enumerate(grid.blocks()):
        seen = labels[seen_box(own, labels.shape).slices()]
        runs, parts = describe_parts(seen, label_parts(seen, connectivity), own, labels.shape)
        voxels.append(runs)
        joiner.add(number, parts)
    joined = joiner.join()
    for number, own in enumerate(grid.blocks()):
        table = np.concatenate((np.zeros(1, dtype=np.uint32), joined.ids_of(number).astype(np.uint32)))
        yield own, voxels[number].replaced(table, own.shape)


def speed(size: int, block: int, rounds: int) -> dict[str, Any]:
    """Medians of both ways on blobs in a cube, and the speed in blocks over that of the whole."""
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(size // 4,) * 3).astype("f4"), 1)
    labels = (ndimage.zoom(noise / noise.std(), 4, order=1) > 1).astype("u1")  # some ten voxels wide
    del noise
    ways: dict[str, Callable[[], Any]] = {
        "whole": lambda: cc3d.connected_components(labels, connectivity=6, out_dtype=np.uint32),
        "in_blocks": lambda: number_in_blocks(labels, (block,) * 3),
    }
    whole = ways["whole"]()
    pairs: set[tuple[int, int]] = set()
    for own, ids in ways["in_blocks"]():
        packed = np.unique(ids.astype(np.uint64) << np.uint64(32) | whole[own.slices()])
        pairs |= set(zip((packed >> np.uint64(32)).tolist(), packed.astype(np.uint32).tolist(), strict=True))
    objects = int(whole.max())
    assert len(pairs) == objects + 1, "the ids of blocks are not those of the whole"
    del whole, pairs
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.process_time()  # both keep one core busy: that another process has it meanwhile does not count
            for _ in way() if name == "in_blocks" else (way(),):
                pass
            seconds[name].append(time.process_time() - began)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "voxels": labels.size,
        "foreground": round(float(labels.mean()), 3),
        "objects": objects,
        "block": block,
        **{f"{name}_mvoxel_s": round(labels.size / median / 1e6, 1) for name, median in medians.items()},
        "speed_of_whole": round(medians["whole"] / medians["in_blocks"], 3),
        "speed_of_whole_fastest": round(min(seconds["whole"]) / min(seconds["in_blocks"]), 3),  # the fastest round of each
    }


def scale(blocks: int, method: str, folder: Path) -> dict[str, Any]:
    """Fill an output with parts of so many blocks, then join them in a process of its own."""
    side = round(blocks ** (1 / 3))
    shape = tuple(side * step for step in BLOCK)
    zarr.create_array(folder / "image", shape=shape, chunks=BLOCK, dtype="u1")
    job = make_job(
        image=str(folder / "image"),
        output=str(folder / "out"),
        model=str(_model(folder / "model")),
        block_shape=BLOCK,
        instances=method,
        missing="fill",
        measure=False,
    )
    planned = resolve(job)
    request = prepare(planned, job.output)
    began = time.perf_counter()
    for index, objects in _stored_parts(planned.plan.stage(PARTS_STAGE).grid, method):
        entries = []
        for key, data in objects.items():
            path = folder / "out" / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)  # without waiting for the disk, as a store would
            entries.append(StoredShard(key=key, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data), empty=False))
        record = Record(
            plan=planned.plan.id,
            request=request.id,
            stage=PARTS_STAGE,
            index=index,
            objects=tuple(entries),
            voxels=int(np.prod(BLOCK)),
            label_voxels={},
            missing_chunks=(),
            seconds={},
            hardware="none",
            software={},
        )
        path = folder / "out" / record_key(PARTS_STAGE, index)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(to_bytes(record))
    written = time.perf_counter() - began
    found = {"blocks": side**3, "method": method, "seconds_to_write": round(written, 1)}
    for stage, index in ((JOIN_STAGE, 0), ("ids", side**3 // 2)):
        words = [sys.executable, "-m", "tests.benchmarks.joining", "unit", job.output, request.key, stage, str(index)]
        done = subprocess.run(words, check=True, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        found |= {f"{stage}_{name}": value for name, value in json.loads(done.stdout.splitlines()[-1]).items()}
    return found


def unit(output: str, request_key: str, stage: str, index: int) -> dict[str, Any]:
    """Compute one unit in this process: its time, and the peak memory of the process before and after."""
    opened = worker.open_worker(output, request_key)
    before = read_process()["peak_bytes"]
    began, cpu = time.perf_counter(), time.process_time()
    if stage == "ids":
        ids, _ = instances.read_ids(opened.store, opened.plan, opened.request, index)
        found = {"parts": len(ids)}
    else:
        worker.run_unit(output, request_key, stage, index)
        found = {"objects": len(read_joined(open_store(output), opened.plan, opened.request).values)}
    seconds, cpu, after = time.perf_counter() - began, time.process_time() - cpu, read_process()["peak_bytes"]
    times = {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2)}
    return found | times | {"peak_mib": after >> 20, "before_mib": before >> 20}


def _stored_parts(grid: BlockGrid, method: str) -> Iterator[tuple[int, dict[str, bytes]]]:
    """Objects of the stage ``parts`` of a volume that repeats itself from block to block."""
    tile = periodic_block()
    kinds: dict[tuple[int, ...], tuple[Runs, BlockParts, Box]] = {}
    for index in range(grid.block_count):
        place = grid.coordinates(index)
        # What a block sees depends on whether it is the first, an inner one or the last along each axis.
        kind = tuple(0 if one == 0 else 2 if one == count - 1 else 1 for one, count in zip(place, grid.counts, strict=True))
        own = grid.block(index)
        if kind not in kinds:
            kinds[kind] = (*_described(tile, own, grid.shape, method), own)
        voxels, parts, like = kinds[kind]
        step = tuple(one - other for one, other in zip(own.start, like.start, strict=True))
        moved = _moved(parts, step, grid.shape)
        yield index, packed_parts(index, voxels, moved)


def _described(tile: np.ndarray, own: Box, shape: Shape, method: str) -> tuple[Runs, BlockParts]:
    def labels_of(box: Box) -> np.ndarray:
        places = [np.arange(start, stop) % size for start, stop, size in zip(box.start, box.stop, tile.shape, strict=True)]
        return np.ascontiguousarray(tile[np.ix_(*places)])

    if method == "components":
        seen = labels_of(seen_box(own, shape))
        return describe_parts(seen, label_parts(seen, 1), own, shape)
    land, reach = land_box(own, shape, AHEAD[3]), REACH[3]
    around = land.grow((reach,) * 3, (reach,) * 3).intersect(Box.from_shape(shape))
    inside = land.shift(tuple(-start for start in around.start)).slices()
    heights = np.ascontiguousarray(distance_within(labels_of(around), reach, (1.0,) * 3)[inside])
    return describe_hills(labels_of(land), heights, own, shape, depth=1.0, connectivity=1, ahead=AHEAD[3])


def _moved(parts: BlockParts, step: Shape, shape: Shape) -> BlockParts:
    """The same parts in another block."""
    further = np.uint64(0)
    for one, size in zip(step, shape, strict=True):
        further = further * np.uint64(size) + np.uint64(one)
    first = np.where(parts.size > 0, parts.first + further, parts.first)
    if parts.slopes is None:
        return replace(parts, first=first)
    ties = parts.slopes.ties + further * np.uint64(len(steps_forward(3, 1)))
    return replace(parts, first=first, slopes=replace(parts.slopes, ties=ties))


def periodic_block() -> np.ndarray:
    """A block of balls that continues into its copies on all sides; ``OBJECTS`` of them, apart or touching in a neck."""
    random, centres = np.random.default_rng(2), []
    size = np.array(BLOCK)
    while len(centres) < OBJECTS:
        centre = random.uniform(0, size)
        away = [np.linalg.norm((centre - other + size / 2) % size - size / 2) for other in centres]
        if all(distance > 9.5 for distance in away):
            centres.append(centre)
    places = np.stack(np.meshgrid(*(np.arange(one) for one in BLOCK), indexing="ij"), -1)
    distances = [np.linalg.norm((places - centre + size / 2) % size - size / 2, axis=-1) for centre in centres]
    return (np.min(distances, axis=0) < 4.6).astype(np.uint8)


def _model(folder: Path) -> Path:
    """Any network of 3D: it is not run."""
    arguments = {"in_channels": 1, "classes": 2, "dims": 3, "base": 2, "levels": 1}
    stated = ModelDescription(
        name="any",
        network=NetworkSpec(name="unet", arguments=arguments),
        heads=(Head(kind="classes", channels=(0, 1)),),
        classes=(LabelClass(value=0, name="no", color="#000000"), LabelClass(value=1, name="yes", color="#ffffff")),
        input_channels=("intensity",),
        voxel_size_um="unknown",
        normalisation=FixedNormalisation(offset=(0.0,), scale=(1.0,)),
    )
    torch.manual_seed(0)
    save_model(folder, networks.build("unet", **arguments).eval(), stated)
    return folder


def table_of(found: list[dict[str, Any]]) -> str:
    """Both measurements, as lines of Markdown."""
    lines = ["| measured | blocks | objects | result |", "|---|---|---|---|"]
    for one in found:
        if "block" in one:
            ratio = f"{one['speed_of_whole']} of its speed ({one['speed_of_whole_fastest']} by the fastest rounds)"
            said = f"{one['in_blocks_mvoxel_s']} Mvoxel/s, cc3d on the whole {one['whole_mvoxel_s']}: {ratio}"
            lines.append(
                f"| numbering {one['voxels'] / 1e6:.0f} Mvoxel, one core | of {one['block']}^3 | {one['objects']} | {said} |"
            )
        else:
            said = f"{one['join_seconds']} s ({one['join_cpu_seconds']} s of CPU), peak {one['join_peak_mib']} MiB"
            lines.append(f"| stage join, {one['method']} | {one['blocks']} of {BLOCK[0]}^3 | {one['join_objects']} | {said} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.joining", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    fast = commands.add_parser("speed")
    fast.add_argument("--size", type=int, default=512, help="of the cube; a multiple of 4")
    fast.add_argument("--block", type=int, default=128)
    fast.add_argument("--rounds", type=int, default=5)
    large = commands.add_parser("scale")
    large.add_argument("--blocks", type=int, default=50_653, help="the nearest cube of a whole number is taken")
    large.add_argument("--method", choices=("components", "watershed"), default="components")
    large.add_argument("--work", type=Path, help="folder for the output; a new one that goes again unless told")
    one = commands.add_parser("unit")
    for name in ("output", "request_key", "stage"):
        one.add_argument(name)
    one.add_argument("index", type=int)
    options = parser.parse_args()
    if options.command == "speed":
        print(json.dumps(speed(options.size, options.block, options.rounds)))
    elif options.command == "unit":
        print(json.dumps(unit(options.output, options.request_key, options.stage, options.index)))
    elif options.command == "scale":
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            print(json.dumps(scale(options.blocks, options.method, Path(folder))))
    else:
        found = [speed(512, block, 5) for block in (128, 256)]
        for method in ("components", "watershed"):
            with tempfile.TemporaryDirectory() as folder:
                found.append(scale(50_653, method, Path(folder)))
        print(table_of(found))


if __name__ == "__main__":
    main()

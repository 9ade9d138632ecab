"""One unit of work in a worker process: read, predict, encode, commit, record. Knows nothing of who sent it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray

import unet_core
from unet_core import inputs, ledger, output
from unet_core.downsampling import downsample, label_counts
from unet_core.errors import BlockError, LedgerError, ResumeError, UnetCoreError
from unet_core.footprint import Footprint
from unet_core.geometry import Box
from unet_core.ledger import Record, Request
from unet_core.model_package import load_model
from unet_core.plan import Plan, Stage
from unet_core.predict import Predictor, crop_to, hardware_class, labels_of, load_predictor, probabilities_of, regions_of
from unet_core.resume import is_wanted
from unet_core.store import Store, open_store
from unet_core.tiles import tiles_of
from unet_core.volumes import read_reflected


@dataclass(frozen=True)
class Worker:
    """What a process needs to work on units of one output: opened once, used for many."""

    store: Store
    plan: Plan
    request: Request
    source: inputs.Source
    footprint: Footprint
    predictor: Predictor


@lru_cache(maxsize=2)
def open_worker(output_url: str, request_key: str) -> Worker:
    """Open plan, image and model of an output; kept for the next unit.

    Raises:
        ResumeError: if image or model are no longer those of the plan.
    """
    store = open_store(output_url)
    plan, request = ledger.read_plan(store), ledger.read_request(store)
    if request.key != request_key:
        raise ResumeError(
            f"Output {output_url} now has request {request.key}, this worker was sent for {request_key}; another run took over."
        )
    package = load_model(request.model, request.trust_model, plan.model.sha256)
    source = inputs.reopen(request.image, plan)
    predictor = load_predictor(package, request.device, plan.precision, plan.threads)
    return Worker(store, plan, request, source, package.footprint, predictor)


def run_unit(output_url: str, request_key: str, stage_name: str, index: int) -> Record:
    """Compute, commit and record one unit of work; the only function that workers run.

    Raises:
        BlockError: naming the unit and its box, from whatever went wrong.
    """
    worker = open_worker(output_url, request_key)
    stage = worker.plan.stage(stage_name)
    box = stage.grid.block(index)
    try:
        return segment_block(worker, index) if stage.level == 0 else downsample_block(worker, stage, index)
    except Exception as error:  # codecs, torch and numpy raise every kind, MemoryError included; the other blocks go on
        kind = "" if isinstance(error, UnetCoreError) else f"{type(error).__name__}: "
        raise BlockError(f"{stage_name} block {index} ({worker.plan.spatial_axes} {box}): {kind}{error}") from error


def segment_block(worker: Worker, index: int) -> Record:
    """Read, normalise, predict, encode and commit one block of the finest level.

    What the network gives comes in parts (the whole block, strips of it, or tiles), each turned into values by itself.
    """
    clock, absent = _Clock(), dict[str, None]()
    stage = worker.plan.stages[0]
    values = _predicted(worker, stage.grid.block(index), clock, absent)
    return _commit(worker, stage, index, values, clock, tuple(absent))


def _predicted(worker: Worker, write: Box, clock: _Clock, absent: dict[str, None]) -> list[NDArray[Any]]:
    """What each image of the plan stores of a block; logits are gone when it is encoded."""
    plan = worker.plan
    values: list[NDArray[Any]] = [
        np.empty((*((image.channels,) if image.channels else ()), *write.shape), dtype=image.dtype) for image in plan.images
    ]
    for place, logits in _parts(worker, write, clock, absent):
        inside: tuple[Any, ...] = place.shift(tuple(-first for first in write.start)).slices()
        for whole, part in zip(values, _readout(plan, logits), strict=True):
            whole[(Ellipsis, *inside)] = part
        clock.stop("predict")
    return values


def _parts(worker: Worker, write: Box, clock: _Clock, absent: dict[str, None]) -> Iterator[tuple[Box, torch.Tensor]]:
    """The logits of a block in parts, each with its place; ``absent`` gets the chunks that were read as background."""
    plan, skip = worker.plan, worker.footprint.skip
    if plan.tile_shape is not None:
        # Every tile is read and predicted whole, also where it hangs over the end of the image, so that its logits depend on its
        # position alone, to the last bit.
        for tile in tiles_of(write, plan.tile_shape):
            image = _read(worker, worker.footprint.read_box(tile), clock, absent)
            kept = tile.intersect(write)
            try:
                logits = worker.predictor.logits(plan.model.normalisation.apply(image))
            except BlockError as error:
                raise BlockError(f"tile {tile}: {error}") from error
            yield kept, crop_to(logits, kept.shape, skip)
        return
    # Starts are multiples of the block shape, hence of the stride; the read box begins at -margin from there, so that the
    # pooling windows of all blocks lie on the grid of one pass over the whole mirrored image.
    image = _read(worker, worker.footprint.read_box(write), clock, absent)
    if plan.strip is None:
        yield write, crop_to(worker.predictor.logits(plan.model.normalisation.apply(image)), write.shape, skip)
        return
    length, first = image.shape[1], write.start[0]
    starts = range(0, length, plan.strip)
    strips = (plan.model.normalisation.apply(image[:, start : start + plan.strip]) for start in starts)
    for logits in worker.predictor.streamed(strips, length):
        end = min(first + logits.shape[1], write.stop[0])
        if end > first:
            place = Box((first, *write.start[1:]), (end, *write.stop[1:]))
            yield place, crop_to(logits, place.shape, skip)
        first = end


def _read(worker: Worker, read: Box, clock: _Clock, absent: dict[str, None]) -> NDArray[Any]:
    image = read_reflected(worker.source, read)
    absent |= dict.fromkeys(worker.source.missing_chunks(read))
    clock.stop("read")
    return image


def _readout(plan: Plan, logits: torch.Tensor) -> list[NDArray[Any]]:
    """What each image of the plan stores of a block."""
    values = tuple(entry.value for entry in plan.model.classes)
    shown: NDArray[Any]
    if plan.model.kind == "classes":
        labels = labels_of(logits, values)
        shown = _spread(labels, values)
        masks: dict[int | None, NDArray[Any]] = {None: labels}
    else:
        inside = regions_of(logits)
        shown = inside.astype(np.uint8) * np.uint8(255)
        masks = {value: inside[channel].astype(np.uint8) * np.uint8(value) for channel, value in enumerate(values)}
    return [
        probabilities_of(logits, plan.model.kind, image.dtype)
        if image.kind == "probabilities"
        else shown
        if image.kind == "map"
        else masks[image.label_value]
        for image in plan.images
    ]


def _spread(labels: NDArray[np.uint8], values: tuple[int, ...]) -> NDArray[np.uint8]:
    """Label values spread evenly over 0..255, so that they show as an image."""
    ranks = {value: rank for rank, value in enumerate(sorted({0, *values}))}
    table = np.zeros(256, dtype=np.uint8)
    for value, rank in ranks.items():
        table[value] = rank * 255 // max(1, len(ranks) - 1)
    spread: NDArray[np.uint8] = table[labels]
    return spread


def downsample_block(worker: Worker, stage: Stage, index: int) -> Record:
    """Compute one block of a coarser level from the level before."""
    plan, level = worker.plan, worker.plan.levels[stage.level]
    clock = _Clock()
    write = stage.grid.block(index)
    finer = write.scale_up(level.factor).intersect(Box.from_shape(plan.levels[stage.level - 1].shape))
    before = plan.stages[stage.level - 1]
    shards: dict[str, bytes] = {}
    for number in before.grid.touching(finer):
        unit = ledger.read_unit(worker.store, plan, before.name, number)
        if unit is None and is_wanted(plan, worker.request, before, number):
            raise LedgerError(
                f"{before.name} block {number} has no record any more; run the same command again, it computes this again"
            )
        shards |= unit or {}
    values = [
        downsample(output.decode_shards(plan, image, before.level, shards, finer), level.factor, image.kind)
        for image in plan.images
    ]
    clock.stop("downsample")
    return _commit(worker, stage, index, values, clock)


def _commit(
    worker: Worker, stage: Stage, index: int, values: list[NDArray[Any]], clock: _Clock, missing_chunks: tuple[str, ...] = ()
) -> Record:
    plan = worker.plan
    coordinates = stage.grid.coordinates(index)
    shards = dict(
        output.encode_shard(plan, image, stage.level, coordinates, array)
        for image, array in zip(plan.images, values, strict=True)
    )
    clock.stop("encode")
    objects = ledger.commit(worker.store, shards)
    clock.stop("write")
    labels: dict[str, int] = {}
    for image, array in zip(plan.images, values, strict=True):
        if image.kind == "labels":
            for value, count in label_counts(array).items():
                if image.label_value is None or value:
                    labels[str(value)] = labels.get(str(value), 0) + count
    record = Record(
        plan=plan.id,
        request=worker.request.id,
        stage=stage.name,
        index=index,
        objects=objects,
        voxels=stage.grid.block(index).voxel_count,
        label_voxels=labels,
        missing_chunks=missing_chunks,
        seconds=clock.seconds,
        hardware=hardware_class(worker.predictor.device),
        software={"unet-flows": unet_core.__version__, "torch": torch.__version__, "zarr": zarr.__version__},
    )
    ledger.write_record(worker.store, record)
    return record


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def stop(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase] = round(self.seconds.get(phase, 0.0) + now - self._last, 6)
        self._last = now

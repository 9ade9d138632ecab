"""One unit of work in a worker process: read, predict, encode, commit, record. Knows nothing of who sent it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from threading import BoundedSemaphore, Lock
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray

import unet_core
from unet_core import inputs, instances, ledger, measure, output
from unet_core.committed import read_voxels
from unet_core.downsampling import downsample, label_counts
from unet_core.ensemble import Ensemble
from unet_core.errors import BlockError, LeaseLostError, ResumeError, UnetCoreError
from unet_core.geometry import BlockGrid, Box, Shape
from unet_core.lease import fence
from unet_core.ledger import Record, Request
from unet_core.model_package import load_model
from unet_core.passes import Pass, read_box_of
from unet_core.plan import Plan, Precision
from unet_core.predict import Predictor, hardware_class, load_predictor
from unet_core.sections import sections_of
from unet_core.seen_values import seen_values
from unet_core.stages import source_of
from unet_core.store import Store, open_store
from unet_core.symmetries import SymmetrySet
from unet_core.tiles import tiles_of
from unet_core.volumes import read_reflected
from unet_core.volumes.chunk_cache import CachedVolume, ChunkCache, cache_bytes

_OPENING = Lock()
_DEVICE = Lock()  # held by the one unit of this process that computes
_COARSER = ("level", "instances-level")  # need the memory of a finished block, hence need not wait for the one that computes
_UNITS = BoundedSemaphore(2)  # in threads of a cluster, however many it has: the memory of a worker is planned for two


@dataclass(frozen=True)
class Worker:
    """What a process needs to work on units of one output: opened once, used for many.

    Args:
        passes: over each block, all from one read.
        predictors: one for each model.
        channels: of the network, by name of the head; the same for all models.
    """

    store: Store
    plan: Plan
    request: Request
    source: inputs.Source
    chunks: ChunkCache
    passes: tuple[Pass, ...]
    predictors: tuple[Predictor, ...]
    channels: Mapping[str, Shape]

    @property
    def dims(self) -> int:
        """Axes that the networks see."""
        return self.predictors[0].dims

    def read_box(self, box: Box) -> Box:
        """What all passes read for a block or tile."""
        return read_box_of(self.passes, box, self.source.spatial_shape)


def open_worker(output_url: str, request_key: str) -> Worker:
    """Open plan, image and model of an output; kept for the next unit, and opened once however many threads ask.

    Raises:
        ResumeError: if image or model are no longer those of the plan.
    """
    with _OPENING:
        return _opened(output_url, request_key)


@lru_cache(maxsize=4)  # outputs whose units take turns, of an archive of small images
def _opened(output_url: str, request_key: str) -> Worker:
    store = open_store(output_url)
    plan, request = ledger.read_plan(store), ledger.read_request(store)
    if request.key != request_key:
        raise ResumeError(
            f"Output {output_url} now has request {request.key}, this worker was sent for {request_key}; another run took over."
        )
    planned = tuple((url, model.sha256) for url, model in zip(request.models, plan.models, strict=True))
    ensemble, networks = _networks(planned, request.trust_model, plan.symmetries, request.device, plan.precision, plan.threads)
    source = inputs.reopen(request.image, plan)
    predictors = tuple(
        replace(network, normalisation=model.normalisation) for network, model in zip(networks, plan.models, strict=True)
    )
    read_shape = read_box_of(ensemble.passes, Box.from_shape(plan.block_shape), source.spatial_shape).shape
    chunks = ChunkCache(source.stored, cache_bytes(source.volume, read_shape))
    channels = {head.name: head.channels for head in ensemble.description.heads}
    return Worker(store, plan, request, source, chunks, ensemble.passes, predictors, channels)


@lru_cache(maxsize=1)
def _networks(
    models: tuple[tuple[str, str], ...],
    trusted: bool,
    symmetries: SymmetrySet,
    device: str,
    precision: Precision,
    threads: int,
) -> tuple[Ensemble, tuple[Predictor, ...]]:
    """Models on the device, for images of any intensities: loaded once for all outputs that they make.

    Args:
        models: URL and sha256 of each.
    """
    with _DEVICE:  # while torch traces a network, it has replaced how modules are called, in all threads
        ensemble = Ensemble(tuple(load_model(url, trusted, sha256) for url, sha256 in models), symmetries)
        networks = [load_predictor(package, device, precision, threads, keep_package=False) for package in ensemble.packages]
    return ensemble, tuple(networks)


def run_unit(output_url: str, request_key: str, stage_name: str, index: int) -> Record:
    """Compute, commit and record one unit of work; the only function that workers run, in several threads if they have them.

    Raises:
        BlockError: naming the unit and its box, from whatever went wrong.
        LeaseLostError: if another run has taken over the output.
    """
    unit = Unit(open_worker(output_url, request_key), stage_name, index)
    with _UNITS:
        unit.read()
        unit.compute()
        return unit.commit()


class Unit:
    """One unit of work on its way: ``read``, then ``compute``, then ``commit``, each in any thread.

    Only ``compute`` needs the device, and one unit of a process has it at a time; others are read and committed meanwhile.

    Args:
        worker: of the output.
        stage_name: of the plan.
        index: of the unit in the stage's grid.
    """

    def __init__(self, worker: Worker, stage_name: str, index: int) -> None:
        self.worker, self.index = worker, index
        self.stage = worker.plan.stage(stage_name)
        self.source = CachedVolume(worker.chunks)
        self.clock = _Clock()
        self.absent: dict[str, None] = {}  # chunks that were read as background
        self.image: NDArray[Any] | None = None
        self.values: list[NDArray[Any]] = []
        self.objects: dict[str, bytes] = {}  # that are stored beside the images

    def read(self) -> None:
        """Read ahead what a block needs of the image; tiles, and stages that read the output, do so as they compute."""
        with self._named_errors():
            self.clock.start()
            own = self.stage.grid.block(self.index)
            if self.stage.kind == "segment" and self.worker.plan.tile_shape is None:
                self.image = _read(self, self.worker.read_box(own))
            elif self.stage.kind == "measure":
                self.image = _read(self, own)

    def compute(self) -> None:
        """From the input to the values that are stored; waits for the device, unless a coarser level is made, which needs none."""
        with nullcontext() if self.stage.kind in _COARSER else _DEVICE, self._named_errors():
            self.clock.stop("wait")
            try:
                compute_unit(self)
            finally:
                self.image = None  # also when an error keeps this unit alive

    def commit(self) -> Record:
        """Encode, put and record the values."""
        with self._named_errors():
            self.clock.stop("wait")
            record = _commit(self)
            self.values, self.objects = [], {}
            return record

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except LeaseLostError:  # no fault of the block: the run ends, and leaves the output to the other one
            raise
        except Exception as error:  # codecs, torch and numpy raise every kind, MemoryError included; the other blocks go on
            kind = "" if isinstance(error, UnetCoreError) else f"{type(error).__name__}: "
            box = self.stage.grid.block(self.index)
            place = f"{self.stage.name} block {self.index} ({self.worker.plan.spatial_axes} {box})"
            failure = BlockError(f"{place}: {kind}{error}")
            failure.unit = self.stage.name, self.index
            raise failure from error


def compute_unit(unit: Unit) -> None:
    """Values and objects of a unit, by what its stage does."""
    worker, stage = unit.worker, unit.stage
    committed = worker.store, worker.plan, worker.request
    match stage.kind:
        case "segment":
            unit.values = predict_block(unit)
        case "level" | "instances-level":
            unit.values = downsample_block(unit)
        case "parts":
            unit.objects = instances.parts_objects(*committed, unit.index)
        case "join":
            unit.objects = instances.joined_objects(*committed)
        case "instances":
            unit.values = [instances.instance_values(*committed, unit.index)]
        case "measure":
            assert unit.image is not None
            unit.objects = measure.measured_objects(*committed, unit.index, unit.image)
        case "table":
            unit.objects = measure.table_objects(*committed)
    unit.clock.stop(stage.kind if stage.kind != "segment" else "predict")


def predict_block(unit: Unit) -> list[NDArray[Any]]:
    """What each image of the plan stores of a block of the finest level; logits are gone when it is encoded.

    What the network gives comes in parts (the whole block, its sections, strips or tiles), each turned into values by itself.
    """
    plan, write = unit.worker.plan, unit.stage.grid.block(unit.index)
    values: list[NDArray[Any]] = [
        np.empty((*((image.channels,) if image.channels else ()), *write.shape), dtype=image.dtype) for image in plan.images
    ]
    for place, parts in _parts(unit, write):
        inside: tuple[Any, ...] = place.shift(tuple(-first for first in write.start)).slices()
        for whole, part in zip(values, parts, strict=True):
            whole[(Ellipsis, *inside)] = part
        unit.clock.stop("predict")
    return values


def _parts(unit: Unit, write: Box) -> Iterator[tuple[Box, list[NDArray[Any]]]]:
    """The values of a block in parts, each with its place: section after section where the networks see no more."""
    worker, plan = unit.worker, unit.worker.plan
    if plan.tile_shape is None:
        # Starts are multiples of the block shape, hence of the stride; the read box begins at -margin from there, so that the
        # pooling windows of all blocks lie on the grid of one pass over the whole mirrored image.
        assert unit.image is not None
        read = worker.read_box(write)
        for box in sections_of(write, worker.dims):
            try:
                yield from seen_values(worker, unit.image, read, box, box)
            except BlockError as error:
                if plan.by_section:
                    raise BlockError(f"section {box.start[0]}: {error}") from error
                raise
        return
    # Every tile is read and predicted whole, also where it hangs over the end of the image, so that its logits depend on its
    # position alone, to the last bit.
    for tile in tiles_of(write, plan.tile_shape):
        read = worker.read_box(tile)
        try:
            yield from seen_values(worker, _read(unit, read), read, tile, tile.intersect(write))
        except BlockError as error:
            raise BlockError(f"tile {tile}: {error}") from error


def _read(unit: Unit, box: Box) -> NDArray[Any]:
    source = unit.worker.source.over(unit.source)
    image = read_reflected(source, box)
    unit.absent |= dict.fromkeys(source.missing_chunks(box))
    unit.clock.stop("read")
    return image


def downsample_block(unit: Unit) -> list[NDArray[Any]]:
    """What each image of the plan stores of a block of a coarser level, from one block after the other of the level before."""
    worker, plan, stage = unit.worker, unit.worker.plan, unit.stage
    source = source_of(plan.stages, stage)
    assert source is not None
    own, whole = stage.grid.block(unit.index), Box.from_shape(source.shape)
    images = plan.images_of(stage)
    values: list[NDArray[Any]] = [
        np.empty((*((image.channels,) if image.channels else ()), *own.shape), dtype=image.dtype) for image in images
    ]
    cut = any(size % step for size, step in zip(stage.block_shape, stage.factor, strict=True))  # cells lie in several blocks
    covered = own.shape if cut else Box.from_shape(stage.block_shape).scale_down(stage.factor).shape
    for part in BlockGrid(own.shape, covered).blocks():
        finer = part.shift(own.start).scale_up(stage.factor).intersect(whole)
        voxels = read_voxels(worker.store, plan, worker.request, source, images, finer)
        for coarse, fine, image in zip(values, voxels, images, strict=True):
            place: tuple[Any, ...] = (Ellipsis, *part.slices())
            coarse[place] = downsample(fine, stage.factor, image.kind)
    return values


def _commit(unit: Unit) -> Record:
    worker, plan, stage, index = unit.worker, unit.worker.plan, unit.stage, unit.index
    coordinates = stage.grid.coordinates(index)
    images = plan.images_of(stage)
    shards: dict[str, bytes | None] = dict(unit.objects)
    shards |= dict(
        output.encode_shard(plan, image, stage.level, coordinates, array)
        for image, array in zip(images, unit.values, strict=True)
    )
    unit.clock.stop("encode")
    if stage.kind != "segment":  # whose bytes follow from the plan, whoever computes them; the others also from what is wanted
        fence(worker.store, worker.request.generation)
    objects = ledger.commit(worker.store, shards)
    unit.clock.stop("write")
    labels: dict[str, int] = {}
    for image, array in zip(images, unit.values, strict=True):
        if image.kind == "labels":
            for value, count in label_counts(array).items():
                if image.label_value is None or value:
                    labels[str(value)] = labels.get(str(value), 0) + count
    record = Record(
        plan=plan.id,
        request=worker.request.id,
        stage=stage.name,
        index=index,
        generation=worker.request.generation,
        objects=objects,
        voxels=stage.grid.block(index).voxel_count,
        label_voxels=labels,
        missing_chunks=tuple(unit.absent),
        decoded_bytes=unit.source.decoded_bytes,
        seconds=unit.clock.seconds,
        hardware=hardware_class(worker.predictors[0].device),
        software={"unet-flows": unet_core.__version__, "torch": torch.__version__, "zarr": zarr.__version__},
        ended=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )
    ledger.write_record(worker.store, record)
    return record


class _Clock:
    """Seconds by phase; a phase may be stopped several times, and by another thread than the one before."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.start()

    def start(self) -> None:
        self._last = time.perf_counter()

    def stop(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase] = round(self.seconds.get(phase, 0.0) + now - self._last, 6)
        self._last = now

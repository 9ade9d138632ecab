"""A conversion from source to finished OME-Zarr, block by block: killed anywhere and run again, it goes on and ends in the same bytes.

source -> level 0 -> level 1 .. -> all objects counted -> metadata of the root

The root's metadata come last: until then nothing reads the target as an image.
"""

from __future__ import annotations

import platform
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

import unet_core
from unet_core import ledger, shards
from unet_core.conversion.documents import root_documents
from unet_core.conversion.job import ConversionJob
from unet_core.conversion.plan import ConversionPlan, plan_conversion, stage_name
from unet_core.conversion.target import audit, prepare, withdraw_root
from unet_core.downsampling import downsample
from unet_core.errors import BlockError, LedgerError, ResumeError, UnetCoreError, VolumeError
from unet_core.geometry import Box, Shape
from unet_core.ledger import Record, StoredShard
from unet_core.places import check_size, check_writable
from unet_core.store import Store, open_store
from unet_core.volumes import Volume, open_volume
from unet_core.volumes.chunk_cache import CachedVolume, ChunkCache, cache_bytes


@dataclass(frozen=True)
class ConversionSummary:
    """What a conversion did, and what its target holds.

    Args:
        computed: blocks of all levels in this run; the others were there already.
        decoded_bytes: of the source's voxels, in this run.
        missing_chunks: of the source, that were read as background.
    """

    target: str
    axes: str
    dtype: str
    shapes: tuple[Shape, ...]
    shard_shape: Shape
    scale: tuple[float, ...]
    unit: str | None
    channels: tuple[str, ...]
    blocks: int
    computed: int
    decoded_bytes: int
    missing_chunks: int
    seconds: float

    def as_json(self) -> dict[str, Any]:
        return {"status": "complete"} | asdict(self)


def convert(
    job: ConversionJob,
    on_total: Callable[[int], None] = lambda total: None,
    on_record: Callable[[Record], None] = lambda record: None,
) -> ConversionSummary:
    """Write an image as OME-Zarr with a pyramid.

    Memory is bounded: 256 MiB of decoded chunks of the source (or one chunk, if it is larger), and the blocks that ``job.threads``
    threads work on.

    Args:
        job: source, target and options.
        on_total: called once, with the number of blocks that this run writes.
        on_record: called in this thread after each of them.

    Raises:
        InputError: before any work, if the job cannot be done as asked; nothing has been written then.
        BlockError: if a block of the source cannot be read; what is done stays done.
        LedgerError: if the target lost objects meanwhile; the next run writes them again.
    """
    began = time.perf_counter()
    check_writable(job.target)
    volume = _open(job)
    plan = plan_conversion(job, volume)
    check_size(job.target, 4 * prod(volume.shape) * volume.dtype.itemsize // 3)
    absent = volume.missing_chunks()
    if absent and job.missing == "error":
        raise VolumeError(
            f"chunk {absent[0]} is missing ({len(absent)} in all) in {job.source}; use --missing fill to read absent chunks as background."
        )
    store = open_store(job.target)
    prepare(store, plan, job.target)
    remaining = {level: _remaining(store, plan, level) for level in range(len(plan.levels))}
    total = sum(map(len, remaining.values()))
    on_total(total)
    if total:
        withdraw_root(store, plan)
    conversion = _Conversion(store, plan, volume)
    decoded = 0
    for level, numbers in remaining.items():
        for record in _in_threads(job.threads, numbers, lambda number, level=level: conversion.write(level, number)):  # type: ignore[misc]
            decoded += record.decoded_bytes
            on_record(record)
    if total and _open(job).fingerprint() != plan.input.fingerprint:
        raise ResumeError(f"Source {job.source} changed while it was converted; convert it again into a new target.")
    audit(store, plan, job.target)
    for key, data in root_documents(plan, job.target, conversion.coarsest_range).items():
        store.put(key, data)
    return ConversionSummary(
        target=job.target,
        axes=volume.axes,
        dtype=plan.input.dtype,
        shapes=tuple(plan.layout(level).shape for level in range(len(plan.levels))),
        shard_shape=plan.shard_shape,
        scale=plan.scale,
        unit=plan.unit,
        channels=tuple(channel.name for channel in plan.channels),
        blocks=sum(plan.grid(level).block_count for level in range(len(plan.levels))),
        computed=total,
        decoded_bytes=decoded,
        missing_chunks=len(absent),
        seconds=time.perf_counter() - began,
    )


def _open(job: ConversionJob) -> Volume:
    return open_volume(job.source, job.level, series=job.series, time=job.time, channels=job.channels, missing=job.missing)


def _remaining(store: Store, plan: ConversionPlan, level: int) -> list[int]:
    done = set(ledger.recorded_units(store, stage_name(level), plan.id).tolist())
    return [number for number in range(plan.grid(level).block_count) if number not in done]


def _in_threads(threads: int, numbers: list[int], work: Callable[[int], Record]) -> Iterator[Record]:
    """Results in the order of ``numbers``; few blocks are under way, and none is begun after one has failed."""
    pending: deque[Future[Record]] = deque()
    with ThreadPoolExecutor(threads, "unet-convert") as pool:
        try:
            for number in numbers:
                pending.append(pool.submit(work, number))
                if len(pending) > threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


class _Conversion:
    """What writing blocks needs; used by several threads."""

    def __init__(self, store: Store, plan: ConversionPlan, volume: Volume) -> None:
        self._store, self._plan = store, plan
        chunk = prod(volume.chunk_shape) * volume.channel_count * volume.dtype.itemsize
        self._chunks = ChunkCache(volume, max(cache_bytes(volume, plan.shard_shape), 0 if volume.layout.is_mapped else chunk))

    def write(self, level: int, number: int) -> Record:
        """Make, commit and record one block of a level."""
        plan, began = self._plan, time.perf_counter()
        box = plan.grid(level).block(number)
        source = CachedVolume(self._chunks)
        try:
            objects: list[StoredShard] = []
            for channel, values in enumerate(source.read(box) if level == 0 else self._coarser(level, box)):
                key, data = self._encoded(level, number, channel, values)
                objects += ledger.commit(self._store, {key: data})
            record = Record(
                plan=plan.id,
                request="",
                stage=stage_name(level),
                index=number,
                objects=tuple(objects),
                voxels=box.voxel_count,
                decoded_bytes=source.decoded_bytes,
                seconds={"convert": round(time.perf_counter() - began, 6)},
                hardware=platform.machine(),
                software={"unet-flows": unet_core.__version__, "zarr": zarr.__version__},
            )
            ledger.write_record(self._store, record)
        except Exception as error:  # codecs raise every kind
            kind = "" if isinstance(error, UnetCoreError) else f"{type(error).__name__}: "
            raise BlockError(f"level {level} block {number} ({plan.spatial_axes} {box}): {kind}{error}") from error
        return record

    def _encoded(self, level: int, number: int, channel: int, values: NDArray[Any]) -> tuple[str, bytes]:
        layout, coordinates = self._plan.layout(level), self._plan.grid(level).coordinates(number)
        if self._plan.channel_count is not None:
            values, coordinates = values[None], (channel, *coordinates)
        # Also where all is 0, so that an object that is lost later is known to be.
        return f"{level}/{shards.object_name(layout, coordinates)}", shards.encode_always(layout, values)

    def _coarser(self, level: int, box: Box) -> Iterator[NDArray[Any]]:
        """Voxels of a box, from the level before, one channel after the other."""
        factor = self._plan.levels[level].factor
        finer = box.scale_up(factor).intersect(Box.from_shape(self._plan.levels[level - 1].shape))
        for channel in range(self._plan.channel_count or 1):
            values = self._stored(level - 1, channel, finer)
            yield downsample(values, factor, "labels" if self._plan.method == "mode" else "image")

    def _stored(self, level: int, channel: int, box: Box) -> NDArray[Any]:
        """Voxels of one channel of a level that is written, each object checked against its record."""
        plan, layout = self._plan, self._plan.layout(level)
        objects: dict[str, bytes] = {}
        for number in plan.grid(level).touching(box):
            record = ledger.read_record(self._store, plan, stage_name(level), number)
            if record is None:
                raise LedgerError(f"level {level} block {number} has no record any more; run the same command again")
            stored = record.objects[channel]  # in the order in which they were written
            objects[stored.key.removeprefix(f"{level}/")] = ledger.read_object(self._store, stored) or b""
        if plan.channel_count is None:
            return shards.decode(layout, objects, box)
        return shards.decode(layout, objects, Box((channel, *box.start), (channel + 1, *box.stop)))[0]

    def coarsest_range(self, channel: int) -> tuple[float, float]:
        """The smallest and largest finite value of a channel on the coarsest level, for display."""
        level = len(self._plan.levels) - 1
        values = [self._stored(level, channel, box) for box in self._plan.grid(level).blocks()]
        finite = [part[np.isfinite(part)] if part.dtype.kind == "f" else part for part in values]
        known = [part for part in finite if part.size]
        return (float(min(part.min() for part in known)), float(max(part.max() for part in known))) if known else (0.0, 1.0)

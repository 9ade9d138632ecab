"""Units of work that compute nothing, run by the workers of ``scale``; imports no torch, so that workers start at once."""

from __future__ import annotations

import time

from unet_core.ledger import Record, StoredShard, write_record
from unet_core.store import open_store

SOFTWARE = {"unet-flows": "0", "torch": "0", "zarr": "0"}


def record_of(stage: str, index: int, seconds: float = 0.0) -> Record:
    """A record as large as those of a run with two images."""
    objects = tuple(
        StoredShard(key=f"{folder}/0/c/{index // 1000}/{index % 1000}", sha256=f"{index:064x}", size_bytes=4096, empty=False)
        for folder in ("labels/classes", "labels/instances")
    )
    return Record(
        plan="0" * 64,
        request="0" * 16,
        stage=stage,
        index=index,
        objects=objects,
        voxels=512 * 512,
        label_voxels={"0": 200_000, "1": 62_144},
        seconds={"read": 0.01, "predict": seconds, "encode": 0.01, "write": 0.01},
        hardware="x86_64",
        software=SOFTWARE,
    )


def nothing(output_url: str, request_key: str, stage: str, index: int) -> Record:
    """What is left of a unit is its way through the scheduler, and its record's way back."""
    return record_of(stage, index)


def recorded(output_url: str, request_key: str, stage: str, index: int) -> Record:
    """The same with its record in the ledger."""
    record = record_of(stage, index)
    write_record(open_store(output_url), record)
    return record


def nap(output_url: str, request_key: str, stage: str, index: int) -> Record:
    """A unit of 50 ms."""
    time.sleep(0.05)
    return record_of(stage, index, 0.05)

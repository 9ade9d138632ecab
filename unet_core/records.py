"""What the ledger says of a unit of work, and what a run was asked: the models of the objects under ``.unet``. Knows no storage."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any, Protocol

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from unet_core.plan import canonical_json
from unet_core.store import OWN_FOLDER

SCHEMA = 1
FOLDER = OWN_FOLDER
LEDGER_FOLDER = f"{FOLDER}/ledger"


class Identified(Protocol):
    """A plan of any kind, by what its records name."""

    @property
    def id(self) -> str: ...


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StoredShard(_Record):
    """One object of a unit: what it must contain. ``empty``: only fill values, so that no object may exist."""

    key: str
    sha256: str | None
    size_bytes: int
    empty: bool


class MaskRecord(_Record):
    """A mask that left out blocks: what it was, and how far it went.

    Args:
        kind: ``image`` (voxels that are not 0), ``outlines`` (polygons), or ``tissue`` (found on the slide itself).
        source: URL.
        sha256: of what tells the foreground: of the image's fingerprint, of the outlines' bytes, of the cells with tissue.
        scale: voxels of the segmented level that one voxel of the mask covers.
        grown: voxels by which the mask was grown before blocks without foreground were skipped.
        skipped: blocks of the finest level that were asked for and hold none.
        facts: further parameters and numbers.
    """

    kind: str
    source: str
    sha256: str
    scale: tuple[float, ...]
    grown: tuple[int, ...]
    skipped: int
    facts: dict[str, Any]

    def sentence(self) -> str:
        where = {"tissue": "that hold no tissue", "outlines": f"outside the outlines of {self.source}"}
        return f"{self.skipped} blocks skipped {where.get(self.kind, f'where mask {self.source} is 0')}"


_OPTIONAL = (
    "further_models",
    "masks",
    "owner",
    "project",
    "generation",
)  # of a request: left out of its JSON where there is nothing to say


class Request(_Record):
    """Which blocks are wanted, and where image and model lie; may grow, and is no part of the plan.

    Args:
        plan: id of the plan.
        image: URL.
        model: URL.
        further_models: likewise; written only if there are any.
        device: that workers use.
        trust_model: the user's word, for the run that wrote this, that the code in a model may run.
        roi: boxes in voxels of the level, as ((start), (stop)); None for everything. Masks leave boxes of whole blocks.
        masks: that left out the other blocks, of this run and of those before it; written only if there are any.
        owner: whose the run is, as the last one that said it did; written only if somebody did.
        project: likewise.
        generation: of the lease under which the run that wrote this holds the output; 0, and not written, without one.
    """

    schema_number: int = Field(default=SCHEMA, alias="schema")
    plan: str
    image: str
    model: str
    further_models: tuple[str, ...] = ()
    device: str
    trust_model: bool = False
    roi: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] | None
    masks: tuple[MaskRecord, ...] = ()
    owner: str | None = None
    project: str | None = None
    generation: int = 0

    @pydantic.model_serializer(mode="wrap")
    def _without_defaults(self, dump: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if name not in _OPTIONAL or value}

    @property
    def models(self) -> tuple[str, ...]:
        return (self.model, *self.further_models)

    @property
    def id(self) -> str:
        """Hash of what is wanted."""
        return _wanted_id(self.plan, self.roi)

    @property
    def key(self) -> str:
        """Hash of everything that workers are told: also where image and model lie, and on what device."""
        return hashlib.sha256(to_bytes(self)).hexdigest()[:16]


@lru_cache(maxsize=8)
def _wanted_id(plan_id: str, roi: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] | None) -> str:
    """Kept, since every unit asks, and masks leave many boxes."""
    return hashlib.sha256(canonical_json([plan_id, roi])).hexdigest()[:16]


class Record(_Record):
    """One committed unit of work.

    Args:
        plan: id of the plan.
        request: id of the request under which it was computed.
        stage: of the plan.
        index: of the unit in the stage's grid.
        generation: of the lease that held the output; 0 without one.
        attempt: counts from 1.
        objects: every stored object of the unit.
        voxels: that were written.
        label_voxels: number of voxels by label value, over all label images.
        missing_chunks: of the input, that were read as fill value.
        decoded_bytes: of the input's voxels that were decoded for this unit, whatever it shares with others.
        seconds: spent, by phase; ``wait`` for other units, which is no work.
        hardware: instruction set or GPU model.
        software: versions.
        ended: when it was committed, UTC, as in ISO 8601; left out of the JSON of records of earlier releases, which do not say.
    """

    schema_number: int = Field(default=SCHEMA, alias="schema")
    plan: str
    request: str
    stage: str
    index: int
    generation: int = 0
    attempt: int = 1
    objects: tuple[StoredShard, ...]
    voxels: int
    label_voxels: dict[str, int] = {}
    missing_chunks: tuple[str, ...] = ()
    decoded_bytes: int = 0
    seconds: dict[str, float]
    hardware: str
    software: dict[str, str]
    ended: str | None = None

    @pydantic.model_serializer(mode="wrap")
    def _without_defaults(self, dump: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if name != "ended" or value is not None}

    @property
    def work_seconds(self) -> float:
        return sum(seconds for phase, seconds in self.seconds.items() if phase != "wait")


def record_key(stage: str, index: int) -> str:
    return f"{LEDGER_FOLDER}/{stage}/{index:08d}.json"


def to_bytes(record: BaseModel) -> bytes:
    return canonical_json(record.model_dump(mode="json", by_alias=True))


def parse_record(data: bytes, stage: str, index: int) -> Record | None:
    """The record of a unit that an object holds; None if it is damaged, or of another unit."""
    try:
        record = Record.model_validate_json(data)
    except pydantic.ValidationError:
        return None
    return record if (record.stage, record.index) == (stage, index) else None

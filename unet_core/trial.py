"""What a run would take, from a sample of its blocks: which to try, and what their records say of all. Runs nothing, knows no cluster.

strata: blocks of one shape, since the last ones of an axis are cut off      | A | A | A |b|        from each so many as it has voxels,
                                                                             | A | A | A |b|        strewn over it
                                                                             | c | c | c |d|
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean

import numpy as np

from unet_core.geometry import BlockGrid, Box, Shape
from unet_core.ledger import Record
from unet_core.plan import Plan

CONFIDENCE = 0.95
MOST_BLOCKS, FEWEST_BLOCKS = 8, 3
MOST_SECONDS = 60.0  # after which no further block is tried, once the fewest are there
_LEVELS = ("level", "instances-level")
_THREADS = 2  # of a worker that work at once: one has the device, the other reads, encodes and writes


@dataclass(frozen=True)
class Amount:
    """A number that was estimated, and how far from it the true one lies in 19 of 20 choices of blocks, not of other load."""

    value: float
    error: float

    def times(self, factor: float) -> Amount:
        return Amount(self.value * factor, self.error * factor)

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.value + other.value, sqrt(self.error**2 + other.error**2))


@dataclass(frozen=True)
class Estimate:
    """What a run is expected to take.

    Args:
        units: of all stages, that are left to do.
        blocks: of these, of the finest level.
        tried: blocks that were measured.
        work_seconds: as the ledger will say, of all workers.
        wall_seconds: from the command to its end.
        start_seconds: of these, until the first block is begun.
        audit_seconds: of these, at the end.
        stored_bytes: of all objects, as they are compressed.
        untried: names of stages that are left to do and were not reached.
    """

    units: int
    blocks: int
    tried: int
    work_seconds: Amount
    wall_seconds: Amount
    start_seconds: float
    audit_seconds: float
    stored_bytes: Amount
    untried: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tried:
    """What a trial saw.

    Args:
        records: of its units, but of those of each stage that ended first, which warmed the workers up.
        units: that it computed by the name of their stage, all of them.
        start_seconds: until the first block was begun; the end of the workers is among it.
        audit_seconds: for each unit.
        workers: that worked at once.
    """

    records: Sequence[Record]
    units: Mapping[str, int]
    start_seconds: float
    audit_seconds: float
    workers: int


def choose_blocks(grid: BlockGrid, left: Sequence[int], count: int) -> list[int]:
    """Blocks to try, so that any first few of them are a sample too; always the same ones.

    Args:
        grid: of the finest level.
        left: blocks that are to be done.
        count: how many to choose.
    """
    strata = _strata(grid, left)
    weights = [len(blocks) * Box.from_shape(shape).voxel_count for shape, blocks in strata.items()]
    taken = [0] * len(strata)
    turns: list[int] = []
    while len(turns) < min(count, len(left)):  # D'Hondt's method: in proportion, and so is every beginning
        free = [number for number, blocks in enumerate(strata.values()) if taken[number] < len(blocks)]
        turn = max(free, key=lambda number: (weights[number] / (taken[number] + 1), -number))
        taken[turn] += 1
        turns.append(turn)
    chosen = [iter(_strewn(blocks, many)) for blocks, many in zip(strata.values(), taken, strict=True)]
    return [next(chosen[turn]) for turn in turns]


def _strata(grid: BlockGrid, blocks: Iterable[int]) -> dict[Shape, list[int]]:
    found: dict[Shape, list[int]] = {}
    for index in blocks:
        found.setdefault(grid.block(index).shape, []).append(index)
    return found


def _strewn(blocks: Sequence[int], count: int) -> list[int]:
    """One drawn from each of so many equal parts, the parts in a drawn order."""
    random = np.random.default_rng(0)
    parts = [part for part in np.array_split(np.array(blocks), count) if len(part)] if count else []
    return [int(random.choice(parts[number])) for number in random.permutation(len(parts))]


def estimate(plan: Plan, left: Mapping[str, Sequence[int]], tried: Tried) -> Estimate:
    """What is left of a plan will take, from a trial of it.

    Args:
        plan: of both.
        left: units to do, by the name of their stage.
        tried: what was seen.
    """
    work, held, stored = (Amount(0.0, 0.0) for _ in range(3))
    blocks = len(left[plan.stages[0].name])
    for stage in plan.stages:
        records = [record for record in tried.records if record.stage == stage.name]
        wanted = left.get(stage.name, ())
        if not records or not wanted:
            continue
        seconds = {record.index: record.work_seconds for record in records}
        device = {record.index: _held(record, stage.kind) for record in records}
        sizes = {record.index: float(sum(shard.size_bytes for shard in record.objects)) for record in records}
        if stage.kind == "segment":
            grid = stage.grid
            work, held = work + _all_of(plan, grid, wanted, seconds), held + _all_of(plan, grid, wanted, device)
            stored += _all_of(plan, grid, wanted, sizes)
            continue
        done = tried.units[stage.name]
        by_units, by_blocks = len(wanted) / done, blocks / tried.units[plan.stages[0].name]
        # The one unit of a stage takes some time whatever there is, and some for each block. Of what a coarser unit is made from, a trial
        # has some blocks only: it takes more than that, and less than in proportion.
        is_shared = stage.grid.block_count == 1 or stage.kind in _LEVELS
        factor = sqrt(by_units * by_blocks) if is_shared else by_units
        work += Amount(fmean(seconds.values()) * done * factor, 0.0)
        held += Amount(fmean(device.values()) * done * factor, 0.0)
        stored += Amount(fmean(sizes.values()) * done * (by_blocks if is_shared else by_units), 0.0)
    units = sum(len(indices) for indices in left.values())
    busiest = held if held.value >= work.value / _THREADS else work.times(1 / _THREADS)
    last = 0.5 * work.value / max(1, blocks) if tried.workers > 1 else 0.0  # workers do not end at the same time
    audit = tried.audit_seconds * units
    fixed = tried.start_seconds + last + audit
    wall = busiest.times(1 / min(tried.workers, max(1, blocks)))
    return Estimate(
        units=units,
        blocks=blocks,
        tried=sum(record.stage == plan.stages[0].name for record in tried.records),
        work_seconds=work,
        wall_seconds=Amount(wall.value + fixed, wall.error),
        start_seconds=tried.start_seconds,
        audit_seconds=audit,
        stored_bytes=stored,
        untried=tuple(name for name, wanted in left.items() if wanted and not any(name == one.stage for one in tried.records)),
    )


def _held(record: Record, kind: str) -> float:
    """Seconds in which a unit had the device of its worker for itself."""
    return 0.0 if kind in _LEVELS else record.seconds.get("predict" if kind == "segment" else kind, 0.0)


def _all_of(plan: Plan, grid: BlockGrid, wanted: Sequence[int], values: Mapping[int, float]) -> Amount:
    """The sum over all blocks, by strata; those that hold no sample are told by what they read.

    The interval is Student's, of a stratified sample without replacement (Cochran 1977, "Sampling Techniques", 5.4); where a stratum has one
    block only, its spread is that of all, relative to their mean.
    """
    before, after = plan.footprint.before, plan.footprint.after

    def reads(shape: Shape) -> float:
        return float(np.prod([a + size + b for a, size, b in zip(before, shape, after, strict=True)]))

    rate = sum(values.values()) / sum(reads(grid.block(index).shape) for index in values)
    strata = _strata(grid, wanted)
    seen = {shape: [values[index] for index in blocks if index in values] for shape, blocks in strata.items()}
    many = [found for found in seen.values() if len(found) > 1]
    freedom = sum(len(found) - 1 for found in many)
    pooled = sqrt(sum(len(found) * np.var(_relative(found)) for found in many) / freedom) if freedom else 0.0
    total, variance = 0.0, 0.0
    for shape, blocks in strata.items():
        found = seen[shape]
        mean = fmean(found) if found else rate * reads(shape)
        total += len(blocks) * mean
        spread = float(np.std(found, ddof=1)) if len(found) > 1 else pooled * mean
        share = 1 - len(found) / len(blocks)
        variance += len(blocks) ** 2 * spread**2 / max(1, len(found)) * share
    return Amount(total, _student(max(1, freedom)) * sqrt(variance))


def _relative(values: Sequence[float]) -> list[float]:
    mean = fmean(values)
    return [value / mean if mean else 0.0 for value in values]


def _student(freedom: int) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + CONFIDENCE) / 2, freedom))


def peak_memory() -> tuple[int, int]:
    """Bytes that this process had at most: of main memory, and of the GPU."""
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    torch = sys.modules.get("torch")
    on_gpu = torch.cuda.max_memory_reserved() if torch is not None and torch.cuda.is_initialized() else 0
    return kib * (1 if sys.platform == "darwin" else 1024), int(on_gpu)

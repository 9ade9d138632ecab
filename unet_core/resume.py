"""What an output holds already, and what is left to do: created or taken up, never overwritten. Computes nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import combinations, product
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from unet_core import ledger, output
from unet_core.attempts import release_quarantined
from unet_core.changed_options import changed_option
from unet_core.errors import JobError, ResumeError
from unet_core.geometry import BlockGrid, Box, Shape, boxes_of
from unet_core.lease import fence
from unet_core.ledger import Record, Request
from unet_core.packing import pack_stage
from unet_core.places import check_size, check_writable
from unet_core.plan import Plan
from unet_core.stages import Stage
from unet_core.store import CONVERSION_KEY, Store, open_store

if TYPE_CHECKING:
    from unet_core.planning import Planned

_Regions = tuple[tuple[Shape, Shape], ...]
_MOST_CHOSEN = 8
_FILE_ENDINGS = (".tif", ".tiff", ".svs", ".png", ".jpg", ".jpeg", ".geojson", ".csv", ".h5", ".zip")
_CHOSEN: dict[tuple[int, Shape, Shape], tuple[_Regions, NDArray[np.bool_], NDArray[np.bool_]]] = {}


def check_output(planned: Planned, output_url: str) -> bool:
    """Whether the output holds a run of this very plan, to be taken up; reads only.

    Raises:
        ResumeError: if it holds something else; the message names the first field that differs.
    """
    store = open_store(output_url)
    check_writable(output_url)
    if planned.attachment:
        planned.attachment.check_free(planned.plan)
    existing = ledger.find_plan(store)
    if existing is None:
        _refuse_foreign(store, output_url)
        _refuse_file_name(output_url)
        check_size(output_url, _wanted_bytes(planned))
        return False
    old_plan, new_plan = (plan.model_dump(mode="json", by_alias=True) for plan in (existing, planned.plan))
    difference = changed_option(old_plan, new_plan)
    if difference:
        name, old, new = difference
        raise ResumeError(
            f"Output {output_url} was begun with another {name}: {old} then, {new} now; give a new output, or the old option."
        )
    return True


def is_finished(planned: Planned, output_url: str) -> bool:
    """Whether the audit passed for all that a plan and its request want; reads plan, request and mark only.

    Raises:
        ResumeError: if the output holds something else.
    """
    store = open_store(output_url)
    if not check_output(planned, output_url):
        return False
    earlier = ledger.find_request(store)
    return earlier is not None and ledger.is_complete(store, earlier) and grown(earlier, planned.request).id == earlier.id


def prepare(planned: Planned, output_url: str, generation: int = 0) -> Request:
    """Create the output, or take up the one that this plan began; the request that now holds.

    Args:
        generation: of the lease under which the caller holds the output; 0 without one.

    Raises:
        ResumeError: if the output holds something else.
        LeaseLostError: if another run has taken it over.
    """
    store = open_store(output_url)
    if planned.attachment:
        planned.attachment.check_writable(probe=True)
    try:
        while not check_output(planned, output_url):
            store.put_if_absent(ledger.PLAN_KEY, planned.plan.canonical())
        store.delete_leftovers()
        release_quarantined(store)
        store.delete(ledger.FAILURES_KEY)
        request = grown(ledger.find_request(store) or _lost(store, planned), planned.request)
        request = request.model_copy(update={"generation": generation})
        fence(store, generation)
        if not ledger.is_complete(store, request):
            store.delete(ledger.COMPLETE_KEY)
            store.delete(ledger.REPORT_KEY)  # it would tell of an earlier state
        output.create_output(store, planned.plan)
        fence(store, generation)
        store.put(ledger.REQUEST_KEY, ledger.to_bytes(request))
        for stage in planned.plan.stages:
            pack_stage(store, planned.plan.id, stage.name)
    except OSError as error:  # such as a directory in the place of a file
        raise ResumeError(
            f"Output {output_url} cannot be written: {error.filename2 or error.filename} ({error.strerror}); "
            "put that right, or give a new output."
        ) from error
    return request


def _refuse_foreign(store: Store, output_url: str) -> None:
    names = store.child_names()
    if names and (names != (ledger.FOLDER,) or store.exists(CONVERSION_KEY)):
        raise ResumeError(
            f"Output {output_url} exists and was not made by this program (it holds {', '.join(names[:3])}); give a new folder."
        )


def _refuse_file_name(output_url: str) -> None:
    """A folder by the name of a picture would be taken for one by every other program."""
    name, ending = os.path.splitext(output_url.rstrip("/"))
    if ending.lower() in _FILE_ENDINGS:
        raise JobError(
            f"Output {output_url} would be a folder, OME-Zarr, although {ending} names a file; give {name}.zarr, and 'unet export' writes files."
        )


def _wanted_bytes(planned: Planned) -> int:
    """Size before compression of the part of the output that is asked for."""
    plan, roi = planned.plan, planned.request.roi
    if roi is None:
        return plan.raw_bytes
    blocks = (Box(start, stop).scale_down(plan.block_shape).scale_up(plan.block_shape) for start, stop in roi)
    whole = Box.from_shape(plan.levels[0].shape).voxel_count
    return plan.raw_bytes * min(whole, sum(box.voxel_count for box in blocks)) // whole


def grown(earlier: Request | None, wanted: Request) -> Request:
    """The union of what was wanted before and what is wanted now."""
    if earlier is None or earlier.plan != wanted.plan:
        return wanted
    wanted = wanted.model_copy(update={"owner": wanted.owner or earlier.owner, "project": wanted.project or earlier.project})
    if earlier.roi is None or wanted.roi is None:
        return wanted.model_copy(update={"roi": None, "masks": ()})
    masks = (*earlier.masks, *(mask for mask in wanted.masks if mask not in earlier.masks))
    return wanted.model_copy(update={"roi": tuple(sorted({*earlier.roi, *wanted.roi})), "masks": masks})


def _lost(store: Store, planned: Planned) -> Request | None:
    """What was asked for before, by the blocks that are there, where the request itself is not; None if it is no more than now."""
    plan, request = planned.plan, planned.request
    finest = plan.stages[0]
    recorded = ledger.recorded_units(store, finest.name, plan.id)
    there = np.setdiff1d(recorded[recorded < finest.grid.block_count], wanted_numbers(plan, request, finest)).tolist()
    if not there:
        return None
    boxes = boxes_of(finest.grid.coordinates(index) for index in there)
    whole = Box.from_shape(finest.shape)
    regions = (box.scale_up(plan.block_shape).intersect(whole) for box in boxes)
    return request.model_copy(update={"roi": tuple((box.start, box.stop) for box in regions)})


def wanted_numbers(plan: Plan, request: Request, stage: Stage) -> NDArray[np.int64]:
    """Numbers of the units of a stage that the request needs, ascending."""
    if request.roi is None:
        return np.arange(stage.grid.block_count, dtype=np.int64)
    chosen = _chosen_blocks(plan, request.roi)[stage.kind == "parts"]
    step, factor = np.array(plan.block_shape), _coarser(plan, stage)
    starts = np.argwhere(chosen) * step
    stops = np.minimum(starts + step, plan.levels[0].shape)
    # A block lies under one unit, or under two along an axis where units do not begin with blocks.
    first, last = starts // factor // stage.block_shape, (-(-stops // factor) - 1) // stage.block_shape
    corners = [np.where(corner, last, first) for corner in product((False, True), repeat=len(step))]
    return np.unique(np.ravel_multi_index(tuple(np.concatenate(corners).T), stage.grid.counts)).astype(np.int64)


def wanted_units(plan: Plan, request: Request, stage: Stage) -> Iterator[int]:
    """The same, one after the other."""
    return map(int, wanted_numbers(plan, request, stage))


def is_wanted(plan: Plan, request: Request, stage: Stage, index: int) -> bool:
    """Whether ``wanted_units`` names a unit, told without naming the others."""
    if request.roi is None:
        return True
    finest = (
        stage.grid.block(index).scale_up(tuple(_coarser(plan, stage).tolist())).intersect(Box.from_shape(plan.levels[0].shape))
    )
    chosen = _chosen_blocks(plan, request.roi)[stage.kind == "parts"]
    return bool(chosen[finest.scale_down(plan.block_shape).slices()].any())


def _coarser(plan: Plan, stage: Stage) -> NDArray[np.int64]:
    """Voxels of the finest level that one of a stage's level covers, along each axis."""
    return np.array([level.factor for level in plan.levels[: stage.level + 1]], dtype=np.int64).prod(axis=0)


def _chosen_blocks(plan: Plan, regions: _Regions) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Of the grid of the finest level: blocks that regions touch; and those that are cut into parts, which may be more.

    Masks leave many regions, and every unit asks, so that the answer is kept, for these very regions.
    """
    key = (id(regions), plan.levels[0].shape, plan.block_shape)
    kept = _CHOSEN.get(key)  # that of other regions at the same place in memory cannot be there: these are kept, too
    if kept is None:
        grid = BlockGrid(plan.levels[0].shape, plan.block_shape)
        blocks = np.zeros(grid.counts, dtype=bool)
        for start, stop in regions:
            blocks[Box(start, stop).intersect(Box.from_shape(grid.shape)).scale_down(grid.block_shape).slices()] = True
        if len(_CHOSEN) >= _MOST_CHOSEN:
            _CHOSEN.clear()
        _CHOSEN[key] = kept = regions, blocks, blocks | _between(blocks)
    return kept[1:]


def _between(chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Blocks at whose edge or corner two chosen blocks meet, which no other block sees both.

    here  | one
    ------+-----     a block sees the first voxels of those after it
    other |
    """
    after = np.pad(chosen, [(0, 1)] * chosen.ndim)

    def reached(step: Shape) -> NDArray[np.bool_]:
        return after[tuple(slice(first, first + size) for first, size in zip(step, chosen.shape, strict=True))]

    steps = [step for step in product((0, 1), repeat=chosen.ndim) if any(step)]
    pairs = ((one, other) for one, other in combinations(steps, 2) if not any(map(min, one, other)))
    return np.any([reached(one) & reached(other) for one, other in pairs], axis=0)


def done_units(store: Store, plan: Plan, request: Request, stage: Stage) -> NDArray[np.int64]:
    """Units of a stage that the request needs and the ledger has; of all stages but the segmentation those of this very request."""
    wanted = wanted_numbers(plan, request, stage)
    return wanted[_is_recorded(store, plan, request, stage)[wanted]]


def remaining_units(store: Store, plan: Plan, request: Request, stage: Stage) -> NDArray[np.int64]:
    """Units of a stage that the request needs and the ledger lacks, likewise."""
    wanted = wanted_numbers(plan, request, stage)
    return wanted[~_is_recorded(store, plan, request, stage)[wanted]]


def wanted_records(store: Store, plan: Plan, request: Request, stage: Stage) -> Iterator[Record]:
    """Records of the units of a stage that the request needs, likewise, ascending."""
    wanted = _flags(stage, wanted_numbers(plan, request, stage))
    records = ledger.iterate_records(store, stage.name, plan.id, _asked(request, stage))
    return (record for record in records if record.index < len(wanted) and wanted[record.index])


def _is_recorded(store: Store, plan: Plan, request: Request, stage: Stage) -> NDArray[np.bool_]:
    """Of each unit of a stage, whether the ledger has it."""
    return _flags(stage, ledger.recorded_units(store, stage.name, plan.id, _asked(request, stage)))


def _flags(stage: Stage, numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
    flags = np.zeros(stage.grid.block_count, dtype=bool)
    flags[numbers[numbers < len(flags)]] = True
    return flags


def _asked(request: Request, stage: Stage) -> str | None:
    """The request whose records of a stage count; all but the segmentation is done again for another one."""
    return None if stage.kind == "segment" else request.id

"""What an output holds already, and what is left to do: created or taken up, never overwritten. Computes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import combinations, product
from operator import add, sub
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from unet_core import ledger, output
from unet_core.changed_options import changed_option
from unet_core.errors import ResumeError
from unet_core.geometry import BlockGrid, Box, Shape
from unet_core.ledger import Record, Request
from unet_core.places import check_size, check_writable
from unet_core.plan import Plan
from unet_core.stages import Stage
from unet_core.store import CONVERSION_KEY, Store, open_store

if TYPE_CHECKING:
    from unet_core.planning import Planned


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


def prepare(planned: Planned, output_url: str) -> Request:
    """Create the output, or take up the one that this plan began; the request that now holds.

    Raises:
        ResumeError: if the output holds something else.
    """
    store = open_store(output_url)
    if planned.attachment:
        planned.attachment.check_writable(probe=True)
    try:
        while not check_output(planned, output_url):
            store.put_if_absent(ledger.PLAN_KEY, planned.plan.canonical())
        store.delete_leftovers()
        request = _grown(ledger.find_request(store), planned.request)
        if not ledger.is_complete(store, request):
            store.delete(ledger.COMPLETE_KEY)
            store.delete(ledger.REPORT_KEY)  # it would tell of an earlier state
        output.create_output(store, planned.plan)
        store.put(ledger.REQUEST_KEY, ledger.to_bytes(request))
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


def _wanted_bytes(planned: Planned) -> int:
    """Size before compression of the part of the output that is asked for."""
    plan, roi = planned.plan, planned.request.roi
    if roi is None:
        return plan.raw_bytes
    blocks = (Box(start, stop).scale_down(plan.block_shape).scale_up(plan.block_shape) for start, stop in roi)
    whole = Box.from_shape(plan.levels[0].shape).voxel_count
    return plan.raw_bytes * min(whole, sum(box.voxel_count for box in blocks)) // whole


def _grown(earlier: Request | None, wanted: Request) -> Request:
    """The union of what was wanted before and what is wanted now."""
    if earlier is None or earlier.plan != wanted.plan:
        return wanted
    if earlier.roi is None or wanted.roi is None:
        return wanted.model_copy(update={"roi": None, "masks": ()})
    masks = (*earlier.masks, *(mask for mask in wanted.masks if mask not in earlier.masks))
    return wanted.model_copy(update={"roi": tuple(sorted({*earlier.roi, *wanted.roi})), "masks": masks})


def wanted_units(plan: Plan, request: Request, stage: Stage) -> Iterator[int]:
    """Numbers of the units of a stage that the request needs, ascending."""
    if request.roi is None:
        yield from range(stage.grid.block_count)
        return
    chosen: set[int] = set()
    finest = plan.stages[0].grid
    blocks = {index for start, stop in request.roi for index in finest.touching(Box(start, stop))}
    for index in blocks:
        box = finest.block(index)
        for level in plan.levels[1 : stage.level + 1]:
            box = box.scale_down(level.factor)
        chosen.update(stage.grid.touching(box))
    if stage.kind == "parts":
        chosen |= {index for index in _before(stage.grid, chosen) if _meet(stage.grid, index, chosen.__contains__)}
    yield from sorted(chosen)


def is_wanted(plan: Plan, request: Request, stage: Stage, index: int) -> bool:
    """Whether ``wanted_units`` names a unit, told without naming the others."""
    if request.roi is None:
        return True
    box = stage.grid.block(index)
    for level in reversed(plan.levels[1 : stage.level + 1]):
        box = box.scale_up(level.factor)
    starts, stops = _whole_blocks(request.roi, plan.block_shape, plan.levels[0].shape)
    if ((starts < box.stop) & (stops > box.start)).all(axis=1).any():
        return True
    finest = plan.stages[0]
    return stage.kind == "parts" and _meet(stage.grid, index, lambda other: is_wanted(plan, request, finest, other))


@lru_cache(maxsize=8)
def _whole_blocks(
    regions: tuple[tuple[Shape, Shape], ...], block_shape: Shape, shape: Shape
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First voxels of the blocks that regions touch, and the ones after their last; masks leave many regions."""
    boxes = [
        Box(start, stop).scale_down(block_shape).scale_up(block_shape).intersect(Box.from_shape(shape)) for start, stop in regions
    ]
    return np.array([box.start for box in boxes]), np.array([box.stop for box in boxes])


def _before(grid: BlockGrid, chosen: set[int]) -> set[int]:
    """Blocks that see voxels of the chosen ones, and are not among them."""
    steps = tuple(product((0, 1), repeat=len(grid.shape)))
    places = {tuple(map(sub, grid.coordinates(index), step)) for index in chosen for step in steps}
    return {grid.index(place) for place in places if min(place) >= 0} - chosen


def _meet(grid: BlockGrid, index: int, is_chosen: Callable[[int], bool]) -> bool:
    """Whether two chosen blocks meet at an edge or corner of a block that is not chosen, and no other block sees both.

    index | one
    ------+-----     a block sees the first voxels of those after it
    other |
    """
    position = grid.coordinates(index)
    after = []
    for step in product((0, 1), repeat=len(position)):
        reached = tuple(map(add, position, step))
        if any(step) and all(place < count for place, count in zip(reached, grid.counts, strict=True)):
            after += [step] if is_chosen(grid.index(reached)) else []
    return any(not any(map(min, one, other)) for one, other in combinations(after, 2))


def remaining_units(store: Store, plan: Plan, request: Request, stage: Stage) -> list[int]:
    """Units of a stage that the request needs and the ledger lacks; all but the segmentation is redone for another request."""
    done = ledger.read_records(store, stage.name, plan.id, None if stage.kind == "segment" else request.id)
    return [index for index in wanted_units(plan, request, stage) if index not in done]


def wanted_records(store: Store, plan: Plan, request: Request, stage: Stage) -> list[Record]:
    """Records of the units of a stage that the request needs; of all stages but the segmentation those of this very request."""
    records = ledger.read_records(store, stage.name, plan.id, None if stage.kind == "segment" else request.id)
    return [records[index] for index in wanted_units(plan, request, stage) if index in records]

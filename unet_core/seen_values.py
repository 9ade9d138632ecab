"""From what was read to what is stored of a box that networks see at once, in parts. Knows no storage and no blocks."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from unet_core.averaging import Seen, logits_of, mean_of, slabs
from unet_core.geometry import Box
from unet_core.readout import activations, readout, readout_means
from unet_core.sections import join, split

if TYPE_CHECKING:
    from unet_core.worker import Worker


def seen_values(worker: Worker, image: NDArray[Any], read: Box, box: Box, keep: Box) -> Iterator[tuple[Box, list[NDArray[Any]]]]:
    """Values of what networks see at once (a block, one section of it, or a tile) in parts, each with its place.

    Args:
        image: (C, *read.shape), what was read.
        read: where that lies; may hold more sections than the box.
        box: that the networks see; one section thick where they see sections.
        keep: the part of it whose values are wanted.
    """
    dims, shape = worker.dims, worker.source.spatial_shape
    (section, inside), (first, around) = split(box, dims), split(read, dims)
    number: tuple[Any, ...] = tuple(a - b for a, b in zip(section.start, first.start, strict=True))
    seen = Seen(image[(slice(None), *number)], around, inside, split(keep, dims)[1], shape[-dims:])
    for place, parts in _values(worker, seen):
        yield (
            join(section, place),
            [part.reshape(*part.shape[: part.ndim - dims], *section.shape, *place.shape) for part in parts],
        )


def _values(worker: Worker, seen: Seen) -> Iterator[tuple[Box, list[NDArray[Any]]]]:
    """Values along the networks' axes: of the logits of one pass as they come, or of the mean of several."""
    plan = worker.plan
    if len(worker.passes) == 1:
        for place, logits in logits_of(worker.passes[0], worker.predictors[0], seen, plan.strip):
            with worker.predictors[0].planned_threads():
                parts = readout(plan, worker.channels, logits)
            yield place, parts
        return
    means = mean_of(worker.passes, worker.predictors, seen, plan.strip, partial(activations, plan, worker.channels))
    for place in slabs(seen.keep, plan.strip):
        first = place.start[0] - seen.keep.start[0]
        with worker.predictors[0].planned_threads():
            parts = readout_means(plan, [mean.narrow(1, first, place.shape[0]) for mean in means])
        yield place, parts

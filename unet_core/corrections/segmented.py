"""A result of ``unet segment`` as it is sampled: which of its blocks count, its labels and probabilities, the image it was made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, reduce

import numpy as np
from numpy.typing import NDArray

from unet_core import inputs, ledger
from unet_core.corrections.places import Starts, sums_between
from unet_core.errors import InputError, VolumeError
from unet_core.geometry import BlockGrid, Box, Shape
from unet_core.ledger import Request
from unet_core.plan import Plan
from unet_core.result import Result, open_result
from unet_core.resume import done_units, wanted_units
from unet_core.store import absolute, open_store
from unet_core.volumes import Volume
from unet_core.wording import counted

_VALUES = 1 << 22  # of probabilities that are read at once
MAX_REGIONS = 7  # that may overlap: each combination of them is a class


@dataclass(frozen=True)
class Segmented:
    """A result and the blocks of its finest level that count.

    Args:
        result: opened.
        request: of the result.
        is_computed: of each block, in the shape of the grid.
        image: where the image lies, if not where it did.
    """

    result: Result
    request: Request
    is_computed: NDArray[np.bool_]
    image: str | None = None

    @property
    def plan(self) -> Plan:
        return self.result.plan

    @property
    def shape(self) -> Shape:
        return self.plan.levels[0].shape

    @property
    def image_url(self) -> str:
        return self.request.image if self.image is None else absolute(self.image)

    @cached_property
    def source(self) -> inputs.Source:
        """The image that was segmented.

        Raises:
            InputError: if it is not there, or has changed.
        """
        try:
            return inputs.reopen(self.image_url, self.plan)
        except VolumeError as error:
            if self.image is None and str(error).startswith("input not found"):
                raise VolumeError(f"{error} The result was made of it; say where it lies now with --image.") from None
            raise

    @cached_property
    def _labels(self) -> tuple[tuple[Volume, int | None], ...]:
        images = [image for image in self.plan.images if image.kind == "labels"]
        return tuple((self.result.volume(image.path), image.label_value) for image in images)

    @cached_property
    def probabilities(self) -> Volume:
        """Of the labels' head, of shape (K, *spatial).

        Raises:
            InputError: if the run did not keep them.
        """
        if self.plan.images[0].kind != "probabilities":
            raise InputError(
                f"{self.result.url} holds no probabilities, of which the entropy is; segment into a new output with --probabilities uint8, or "
                "sample --by random, or --by disagreement with another result."
            )
        return self.result.volume("")

    def read_labels(self, box: Box) -> NDArray[np.uint8]:
        """Label values of a box; of regions that may overlap, the number of their combination: bit i is region i."""
        (first, value), *others = self._labels
        if value is None:
            labels: NDArray[np.uint8] = first.read(box)[0]
            return labels
        combined = (first.read(box)[0] != 0).astype(np.uint8)
        for bit, (volume, _) in enumerate(others, start=1):
            combined |= (volume.read(box)[0] != 0).astype(np.uint8) << np.uint8(bit)
        return combined

    def blocks(self) -> Iterator[Box]:
        """Boxes of blocks that count, in parts that are read at once."""
        channels = max((image.channels or 1 for image in self.plan.images), default=1)
        grid = self.plan.stages[0].grid
        for index in np.flatnonzero(self.is_computed.ravel()):
            block = grid.block(int(index))
            rest = block.voxel_count // block.shape[0] * channels
            step = max(1, _VALUES // rest)
            step = max(step // self.plan.chunk_shape[0] * self.plan.chunk_shape[0], min(step, self.plan.chunk_shape[0]))
            parts = BlockGrid(block.shape, (min(step, block.shape[0]), *block.shape[1:]))
            yield from (part.shift(block.start) for part in parts.blocks())

    def covers(self, firsts: Starts, lasts: Starts) -> NDArray[np.bool_]:
        """Whether all blocks count that a box touches, for boxes ``first`` to ``last`` of every combination along the axes."""
        ranges = [
            (first // step, -(-last // step)) for first, last, step in zip(firsts, lasts, self.plan.block_shape, strict=True)
        ]
        touched = reduce(np.multiply.outer, (last - first for first, last in ranges))
        result: NDArray[np.bool_] = sums_between(self.is_computed.astype(np.int64), ranges) == touched
        return result


def open_segmented(url: str, partial: bool = False, image: str | None = None) -> Segmented:
    """Open a result of ``unet segment``.

    Args:
        url: of the output.
        partial: take the blocks that are there of one that is not complete.
        image: where its image lies now, if it was moved.

    Raises:
        InputError: if it is no result, is not complete, or has more regions than labels can tell apart.
    """
    result = open_result(url)
    plan, store = result.plan, open_store(url)
    request, finest = ledger.read_request(store), plan.stages[0]
    if result.status.state != "complete" and not partial:
        done, wanted = result.status.stages[finest.name]
        raise InputError(
            f"{url} is not complete ({done} of {wanted} blocks are done); run unet segment again to finish it, or sample what is there with "
            "--partial."
        )
    regions = [entry.name for entry in plan.model.classes] if plan.model.kind == "regions" else []
    if len(regions) > MAX_REGIONS:
        raise InputError(
            f"{url} has {counted(len(regions), 'region')} that may overlap; a label image shows the combinations of {MAX_REGIONS} at most."
        )
    computed = np.zeros(finest.grid.counts, dtype=bool)
    indices = done_units(store, plan, request, finest).tolist()
    if result.status.state == "complete":
        indices = list(wanted_units(plan, request, finest))
    computed.ravel()[indices] = True
    return Segmented(result, request, computed, image)


def common(first: Segmented, second: Segmented) -> Segmented:
    """The first, with the blocks that count in both.

    Raises:
        InputError: naming both values, if they are not results of the same voxels with the same classes.
    """
    names = first.result.url, second.result.url
    kept = ("level", "series", "time", "fingerprint")
    for what, own, other in (
        ("shape", first.shape, second.shape),
        ("level", first.plan.input.level, second.plan.input.level),
        *((field, getattr(first.plan.input, field), getattr(second.plan.input, field)) for field in kept[1:]),
    ):
        if own != other:
            told = f"{own} and {other}" if what != "fingerprint" else f"of {first.image_url} and {second.image_url}"
            told = "images " + told if what == "fingerprint" else f"{what} {told}"
            raise InputError(
                f"{names[0]} and {names[1]} are not of the same voxels ({told}); give two results of one image and level."
            )
    classes = [[(entry.value, entry.name) for entry in each.plan.model.classes] for each in (first, second)]
    if classes[0] != classes[1] or first.plan.model.kind != second.plan.model.kind:
        told = " and ".join(", ".join(f"{value} {name}" for value, name in each) for each in classes)
        raise InputError(f"{names[0]} and {names[1]} have other classes ({told}), so that their labels cannot be compared.")
    grid = first.plan.stages[0].grid
    starts = tuple(np.arange(count) * step for count, step in zip(grid.counts, grid.block_shape, strict=True))
    ends = zip(starts, grid.block_shape, grid.shape, strict=True)
    stops = tuple(np.minimum(start + step, extent) for start, step, extent in ends)
    return replace(first, is_computed=first.is_computed & second.covers(starts, stops))

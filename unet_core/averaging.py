"""Networks on one box of an image: the logits of a pass in parts, and means over passes. Knows no storage and no plans.

Shapes: C channels of the image, K of the logits, then the spatial axes. Logits come back as the image lies, not as it was turned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from unet_core.errors import BlockError
from unet_core.geometry import Box, Shape
from unet_core.passes import Pass
from unet_core.predict import Predictor, crop_to


@dataclass(frozen=True)
class Seen:
    """What was read for a box of an image that networks run on.

    Args:
        values: (C, *read.shape), mirrored where it leaves the image.
        read: where they lie; at least what every pass reads for ``box``.
        box: a block, or a tile, which may hang over the image.
        keep: the part of it whose logits are wanted.
        image_shape: spatial.
    """

    values: NDArray[Any]
    read: Box
    box: Box
    keep: Box
    image_shape: Shape


def logits_of(step: Pass, predictor: Predictor, seen: Seen, strip: int | None) -> Iterator[tuple[Box, Tensor]]:
    """The logits (K, *part) of one pass, in parts of ``seen.keep``, each with its place in the image.

    Args:
        step: which symmetry, and where the network is aligned.
        predictor: with the weights of its model.
        seen: what was read.
        strip: rows of the turned image that the network is fed at a time; None for all at once.

    Raises:
        BlockError: if input or logits are not finite.
    """
    shape = seen.image_shape
    own = step.read_box(seen.box, shape).shift(tuple(-first for first in seen.read.start))
    image = step.symmetry.turn(seen.values[(slice(None), *own.slices())])
    write, keep = step.write_box(seen.box, shape), step.symmetry.turned_box(seen.keep, shape)
    for first, logits in _rows(predictor, image, write.start[0], strip):
        given = Box((first, *write.start[1:]), (first + logits.shape[1], *write.stop[1:]))
        part = given.intersect(keep)
        if part.is_empty:  # rows before the block, or beyond it up to the next legal size
            continue
        skip = tuple(a - b + more for a, b, more in zip(part.start, given.start, step.footprint.skip, strict=True))
        yield step.symmetry.box_before(part, shape), step.symmetry.turn_back(crop_to(logits, part.shape, skip))


def _rows(predictor: Predictor, image: NDArray[Any], first: int, strip: int | None) -> Iterator[tuple[int, Tensor]]:
    """Logits with the number of their first row, where the first of all has the number ``first``."""
    if strip is None:
        yield first, predictor.logits(image)
        return
    length = image.shape[1]
    strips = (image[:, start : start + strip] for start in range(0, length, strip))
    for logits in predictor.streamed(strips, length):
        yield first, logits
        first += logits.shape[1]


@torch.inference_mode()
def mean_of(
    passes: tuple[Pass, ...],
    predictors: tuple[Predictor, ...],
    seen: Seen,
    strip: int | None,
    activations: Callable[[Tensor], list[Tensor]],
) -> list[Tensor]:
    """The mean over passes of what ``activations`` makes of logits: for each head one array (K, *seen.keep.shape) on the device.

    Parts of a pass are added to one sum as they come, so that memory does not grow with the number of passes. The sum of n
    probabilities in float32 is off by at most n 2^-24 of it.

    Raises:
        BlockError: naming the pass whose input or logits are not finite.
    """
    sums: list[Tensor] = []
    for step in passes:
        predictor = predictors[step.model]
        try:
            for place, logits in logits_of(step, predictor, seen, strip):
                inside: tuple[Any, ...] = place.shift(tuple(-first for first in seen.keep.start)).slices()
                with predictor.planned_threads():
                    parts = activations(logits)
                    sums = sums or [part.new_zeros((len(part), *seen.keep.shape)) for part in parts]
                    for total, part in zip(sums, parts, strict=True):
                        total[(slice(None), *inside)] += part
        except BlockError as error:
            raise BlockError(f"{step.name}: {error}") from error
    for total in sums:
        total /= len(passes)
    return sums


def slabs(box: Box, rows: int | None) -> Iterator[Box]:
    """A box in parts of some rows, so that what is made of means needs little memory beside them."""
    for first in range(box.start[0], box.stop[0], rows or box.shape[0]):
        last = min(first + (rows or box.shape[0]), box.stop[0])
        yield Box((first, *box.start[1:]), (last, *box.stop[1:]))

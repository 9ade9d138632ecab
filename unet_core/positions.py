"""Where the samples of a network's values lie along one axis, step by step. Knows no networks, sizes or images.

A value is a row of samples whose centres lie at input coordinates ``offset + i * stride`` (exact fractions). A window of
kernel k and dilation d moves the offset by ``d (k - 1) / 2`` strides, a pooling multiplies the stride, an up-convolution
divides it:

    input     0   1   2   3   4   5   6   7   8   9     offset 0    stride 1
    conv 3        1   2   3   4   5   6   7   8         offset 1    stride 1
    pool 2         1.5     3.5     5.5     7.5          offset 3/2  stride 2
    up 2          1   2   3   4   5   6   7   8         offset 1    stride 1
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import floor

from unet_core.errors import FootprintError
from unet_core.operations import Collapse, Crop, Expand, Interpolate, Pointwise, Step, Trace, Trim, Window, inputs_of


@dataclass(frozen=True)
class Samples:
    """A row of samples: the centre of the first, the distance of two, and ``count = input size / stride + surplus``.

    The first ``spoilt[0]`` and the last ``spoilt[1]`` of them depend on padding, hence on where the input ends.
    """

    offset: Fraction
    stride: Fraction
    surplus: Fraction
    spoilt: tuple[int, int] = (0, 0)


def samples_of(traced: Trace, axis: int) -> dict[str, Samples]:
    """The row of every value of a network, by the name of its step; a sample that stands for the whole box has none.

    Raises:
        FootprintError: naming the layer that joins values on different positions.
    """
    rows = {traced.source: Samples(Fraction(0), Fraction(1), Fraction(0))}
    for step in traced.steps:
        inputs = [rows[name] for name in step.inputs if name in rows]
        if len(inputs) < len(step.inputs):
            _check_broadcast(step, axis)
        if inputs and not isinstance(step.operation, Collapse):
            rows[step.name] = _after(step, inputs, axis)
    return rows


def _check_broadcast(step: Step, axis: int) -> None:
    """Refuse what does not take a single sample that stands for the whole box."""
    operation = step.operation
    if isinstance(operation, Pointwise) and (operation.broadcasts or len(step.inputs) == 1):
        return
    if isinstance(operation, Window):  # a convolution of one sample, as in squeeze-and-excite
        here = (operation.kernel, operation.stride, operation.before, operation.after)
        if [values[axis] for values in here] == [1, 1, 0, 0]:
            return
    raise FootprintError(
        f"Layer '{step.name}' takes one sample that stands for the whole box; only convolutions of one voxel, layers that work "
        "sample for sample, addition and multiplication do."
    )


def _after(step: Step, inputs: list[Samples], axis: int) -> Samples:
    operation, row = step.operation, inputs[0]
    first, last = row.spoilt
    if isinstance(operation, Window):
        reach = operation.dilation[axis] * (operation.kernel[axis] - 1)
        factor, before, after = operation.stride[axis], operation.before[axis], operation.after[axis]
        return Samples(
            row.offset + (Fraction(reach, 2) - before) * row.stride,
            row.stride * factor,
            (row.surplus + before + after - reach - 1) / factor + 1,
            (-(-(first + before) // factor), -(-(last + after) // factor)),
        )
    if isinstance(operation, Expand):
        kernel, factor = operation.kernel[axis], operation.factor[axis]
        before, after = operation.before[axis], operation.after[axis]
        return Samples(
            row.offset + (before - Fraction(kernel - 1, 2)) * row.stride / factor,
            row.stride / factor,
            (row.surplus - 1) * factor + kernel - before - after,
            (max(0, (first - 1) * factor + kernel - before), max(0, (last - 1) * factor + kernel - after)),
        )
    if isinstance(operation, Interpolate):
        factor, crop = operation.factor[axis], operation.crop[axis]
        finer = row.stride / factor
        return Samples(
            row.offset + (crop - Fraction(factor - 1, 2)) * finer,
            finer,
            row.surplus * factor - 2 * crop,
            (max(0, first * factor + factor // 2 - crop), max(0, last * factor + factor // 2 - crop)),
        )
    if isinstance(operation, Trim):
        count = operation.count[axis]
        spoilt = (max(0, first - count), max(0, last - count))
        return Samples(row.offset + count * row.stride, row.stride, row.surplus - 2 * count, spoilt)
    if isinstance(operation, Crop):
        before, after = crop_counts(step.name, operation, row, inputs[1])
        spoilt = (max(0, first - before), max(0, last - after))
        return Samples(row.offset + before * row.stride, row.stride, row.surplus - before - after, spoilt)
    if any(other.stride != row.stride or other.surplus != row.surplus or not _meet(other, row) for other in inputs):
        places = "; ".join(f"from {other.offset} every {other.stride}, {other.surplus:+} samples" for other in inputs)
        raise FootprintError(
            f"Layer '{step.name}' joins values whose samples lie on different positions ({places}); crop one like the other first."
        )
    spoilt = (max(other.spoilt[0] for other in inputs), max(other.spoilt[1] for other in inputs))
    return Samples(row.offset, row.stride, row.surplus, spoilt)


def padded_offsets(traced: Trace, axis: int) -> dict[str, Fraction]:
    """Offset of every value in the padded form of a network, which keeps size over size: the usual padding of each operation.

    Windows that do not overlap (pooling) are not padded, others by half their reach; nothing is cropped.
    """
    offsets = {traced.source: Fraction(0)}
    strides = {name: row.stride for name, row in samples_of(traced, axis).items()}
    for step in traced.steps:
        if step.name not in strides:
            continue
        operation, source = step.operation, next(name for name in step.inputs if name in strides)
        moved = Fraction(0)
        if isinstance(operation, Window):
            reach = operation.dilation[axis] * (operation.kernel[axis] - 1)
            moved = Fraction(reach, 2) - (reach // 2 if reach >= operation.stride[axis] else 0)
            moved *= strides[source]
        elif isinstance(operation, Expand):
            kernel, factor = operation.kernel[axis], operation.factor[axis]
            moved = ((kernel - factor + 1) // 2 - Fraction(kernel - 1, 2)) * strides[step.name]
        elif isinstance(operation, Interpolate):
            moved = -Fraction(operation.factor[axis] - 1, 2) * strides[step.name]
        offsets[step.name] = offsets[source] + moved
    return offsets


def _meet(a: Samples, b: Samples) -> bool:
    """Whether two rows lie on the same positions, or half a stride apart, as a 3x3 up-convolution leaves them."""
    return abs(a.offset - b.offset) in (0, a.stride / 2)


def crop_counts(name: str, operation: Crop, value: Samples, reference: Samples) -> tuple[int, int]:
    """How many samples of ``value`` are cut before the first and after the last of ``reference``.

    Raises:
        FootprintError: naming the layer, if what it cuts does not bring the two to the same positions.
    """
    exact = (reference.offset - value.offset) / value.stride
    before = floor(exact) if operation.start is None else operation.start
    after = value.surplus - reference.surplus - before
    least = min(Fraction(before), after)
    meets = before == exact == after if operation.start is None else abs(exact - before) in (0, Fraction(1, 2))
    if value.stride != reference.stride or least < 0 or not meets:
        first = "as many" if operation.start is None else operation.start
        raise FootprintError(
            f"Layer '{name}' cuts {first} samples before the first, but its two values lie {exact} samples apart and {after} remain "
            f"after the last (strides {value.stride} and {reference.stride}); the result would be shifted."
        )
    return before, int(after)


def dependency(traced: Trace, rows: dict[str, Samples], axis: int, voxel: int) -> tuple[int, int]:
    """First and last input voxel that output sample ``voxel`` depends on, walking backwards; may lie outside the input.

    What it owes to statistics over the whole box does not count.
    """
    needed: dict[str, tuple[int, int]] = {traced.result: (voxel, voxel)}
    for step in reversed(traced.steps):
        if step.name not in needed:
            continue
        first, last = needed[step.name]
        for name in (name for name in inputs_of(step) if name in rows):
            part = source_rows(step, rows, axis, first, last)
            known = needed.get(name, part)
            needed[name] = (min(known[0], part[0]), max(known[1], part[1]))
    return needed[traced.source]


def source_rows(step: Step, rows: dict[str, Samples], axis: int, first: int, last: int) -> tuple[int, int]:
    """Samples of a step's input that its samples ``first`` to ``last`` see."""
    operation = step.operation
    if isinstance(operation, Window):
        factor, before = operation.stride[axis], operation.before[axis]
        return first * factor - before, last * factor - before + operation.dilation[axis] * (operation.kernel[axis] - 1)
    if isinstance(operation, Expand):
        factor, before = operation.factor[axis], operation.before[axis]
        return -((operation.kernel[axis] - 1 - before - first) // factor), (last + before) // factor
    if isinstance(operation, Interpolate):
        factor, crop = operation.factor[axis], operation.crop[axis]
        # Sample o lies at (2 o + 1 - factor) / (2 factor) of its input, between the floor and the ceiling of that.
        lower, upper = 2 * (first + crop) + 1 - factor, 2 * (last + crop) + 1 - factor
        return lower // (2 * factor), -(-upper // (2 * factor))
    if isinstance(operation, Trim):
        return first + operation.count[axis], last + operation.count[axis]
    if isinstance(operation, Crop):
        before, _ = crop_counts(step.name, operation, rows[step.inputs[0]], rows[step.inputs[1]])
        return first + before, last + before
    return first, last

"""What a network needs around what it predicts, derived from its operations. Nothing here knows of images or blocks.

Along each axis a value of the network is a row of samples whose centres lie at input coordinates
``offset + i * stride`` (exact fractions). A window of kernel k and dilation d moves the offset by ``d (k - 1) / 2``
strides, a pooling multiplies the stride, an up-convolution divides it:

    input     0   1   2   3   4   5   6   7   8   9     offset 0    stride 1
    conv 3        1   2   3   4   5   6   7   8         offset 1    stride 1
    pool 2         1.5     3.5     5.5     7.5          offset 3/2  stride 2
    up 2          1   2   3   4   5   6   7   8         offset 1    stride 1
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import lcm

from torch import nn

from unet_core.errors import FootprintError, GridError
from unet_core.geometry import Box, Shape
from unet_core.rules import Crop, Expand, Step, Trace, Window, trace

_AXIS_NAMES = "zyx"


@dataclass(frozen=True)
class _Samples:
    """A row of samples: the centre of the first, the distance of two, and ``count = input size / stride + surplus``."""

    offset: Fraction
    stride: Fraction
    surplus: Fraction


@dataclass(frozen=True)
class _AxisFootprint:
    before: int
    after: int
    stride: int
    phase: int | None
    support: tuple[int, int]
    period: int
    rows: frozenset[tuple[Fraction, Fraction]]  # (stride, surplus) of every value; each must count at least 1, exactly

    def is_legal(self, size: int) -> bool:
        counts = (size / stride + surplus for stride, surplus in self.rows)
        return all(count.denominator == 1 and count >= 1 for count in counts)

    def legal_size(self, at_least: int) -> int:
        smallest = max(1, max(int((1 - surplus) * stride) for stride, surplus in self.rows))
        first = max(at_least, smallest)
        for size in range(first, first + self.period + 1):
            if self.is_legal(size):
                return size
        raise FootprintError("No input size keeps every pooling of this network exact; its poolings contradict each other.")


@dataclass(frozen=True)
class Footprint:
    """What a network needs around what it predicts, per spatial axis, in voxels.

        read   |<- before ->|<---------- write ---------->|<- after ->|<- surplus to the next legal size ->|

    For the U-Net of 2015: before = after = 92, stride 16, phase 14, legal sizes 12 mod 16 from 188 on.

    Args:
        before: voxels read before the first that is written.
        after: voxels read after the last.
        stride: starts of write boxes are multiples of it, so that every pooling window of every block lies on one grid.
        phase: a write box that starts at ``phase`` (mod stride) has its pooling windows on multiples of their sizes from
            the origin of the image, like the padded form of the network; None if no start does that.
        support: farthest that any single output voxel reaches (before, after); up to stride - 1 more than the margin.
    """

    axes: tuple[_AxisFootprint, ...]

    @property
    def dims(self) -> int:
        return len(self.axes)

    @property
    def before(self) -> Shape:
        return tuple(axis.before for axis in self.axes)

    @property
    def after(self) -> Shape:
        return tuple(axis.after for axis in self.axes)

    @property
    def margin(self) -> tuple[Shape, Shape]:
        """Voxels (before, after) what is written that must be read."""
        return self.before, self.after

    @property
    def stride(self) -> Shape:
        return tuple(axis.stride for axis in self.axes)

    @property
    def phase(self) -> tuple[int | None, ...]:
        return tuple(axis.phase for axis in self.axes)

    @property
    def support(self) -> tuple[Shape, Shape]:
        return tuple(axis.support[0] for axis in self.axes), tuple(axis.support[1] for axis in self.axes)

    def legal_shape(self, at_least: Shape) -> Shape:
        """The smallest legal input shape of at least ``at_least`` voxels on every axis."""
        return tuple(axis.legal_size(size) for axis, size in zip(self.axes, at_least, strict=True))

    def is_legal(self, shape: Shape) -> bool:
        return all(axis.is_legal(size) for axis, size in zip(self.axes, shape, strict=True))

    def output_shape(self, shape: Shape) -> Shape:
        """Shape of the output for a legal input of ``shape``.

        Raises:
            GridError: if the shape is not legal, with the nearest legal ones.
        """
        for name, axis, size in zip(_AXIS_NAMES[-self.dims :], self.axes, shape, strict=True):
            if not axis.is_legal(size):
                larger = axis.legal_size(size)
                smaller = larger - axis.period
                nearest = f"{smaller} or {larger}" if smaller > 0 and axis.is_legal(smaller) else f"{larger}"
                raise GridError(
                    f"Input axis {name}: {size} voxels is not a legal size for this network, its poolings would drop rows; use {nearest}."
                )
        return tuple(size - axis.before - axis.after for size, axis in zip(shape, self.axes, strict=True))

    def read_box(self, write: Box) -> Box:
        """The smallest legal input whose output covers ``write`` from its start on."""
        needed = tuple(a + size + b for a, size, b in zip(self.before, write.shape, self.after, strict=True))
        start = tuple(first - before for first, before in zip(write.start, self.before, strict=True))
        return Box.from_shape(self.legal_shape(needed), start)


def footprint(network: nn.Module) -> Footprint:
    """Derive the footprint of a network of unpadded operations, without running it.

    Args:
        network: in evaluation mode, one input (N, C, *spatial) and one output of the same resolution.

    Raises:
        FootprintError: naming the first layer whose result would depend on how the image is cut.

    Example:
        >>> from unet_core.networks import build
        >>> paper = footprint(build("unet", in_channels=1, classes=2).eval())
        >>> paper.margin, paper.stride, paper.output_shape((572, 572)), paper.legal_shape((696, 696))
        (((92, 92), (92, 92)), (16, 16), (388, 388), (700, 700))
    """
    return footprint_of(trace(network))


def footprint_of(traced: Trace) -> Footprint:
    """The footprint of a traced network; see ``footprint``."""
    return Footprint(tuple(_along_axis(traced, axis) for axis in range(traced.dims)))


def _along_axis(traced: Trace, axis: int) -> _AxisFootprint:
    rows = {traced.source: _Samples(Fraction(0), Fraction(1), Fraction(0))}
    pool_starts: list[tuple[int, int]] = []  # (first sample's extent begins at, width) of every value that pooling made
    for step in traced.steps:
        row = rows[step.name] = _after(step, [rows[name] for name in step.inputs], axis)
        if isinstance(step.operation, Window) and step.operation.stride[axis] > 1:
            begin = row.offset - (row.stride - 1) / 2
            if begin.denominator == 1 and row.stride.denominator == 1:
                pool_starts.append((int(begin), int(row.stride)))
    output = rows[traced.result]
    if output.stride != 1 or output.offset.denominator != 1:
        raise FootprintError(
            f"The output has one sample every {output.stride} voxels, beginning at {output.offset}; "
            "a network must return its logits at the resolution of its input."
        )
    before = int(output.offset)
    stride = lcm(*(row.stride.numerator for row in rows.values()))
    return _AxisFootprint(
        before=before,
        after=int(-output.surplus) - before,
        stride=stride,
        phase=_phase(pool_starts, before, stride),
        support=_support(traced, axis, before, stride),
        period=stride,
        rows=frozenset((row.stride, row.surplus) for row in rows.values()),
    )


def _after(step: Step, inputs: list[_Samples], axis: int) -> _Samples:
    operation, row = step.operation, inputs[0]
    if isinstance(operation, Window):
        reach = operation.dilation[axis] * (operation.kernel[axis] - 1)
        factor = operation.stride[axis]
        return _Samples(row.offset + Fraction(reach, 2) * row.stride, row.stride * factor, (row.surplus - reach - 1) / factor + 1)
    if isinstance(operation, Expand):
        factor = operation.factor[axis]
        finer = row.stride / factor
        return _Samples(row.offset - Fraction(factor - 1, 2) * finer, finer, row.surplus * factor)
    if isinstance(operation, Crop):
        _crop_before(step.name, row, inputs[1])
        return inputs[1]
    if any(other != row for other in inputs):
        raise FootprintError(
            f"Layer '{step.name}' joins values whose samples lie on different positions ({inputs}); crop one like the other first."
        )
    return row


def _crop_before(name: str, value: _Samples, reference: _Samples) -> int:
    """How many samples of ``value`` lie before the first of ``reference``."""
    before = (reference.offset - value.offset) / value.stride
    after = value.surplus - reference.surplus - before
    if value.stride != reference.stride or before.denominator != 1 or before < 0 or before != after:
        raise FootprintError(
            f"Layer '{name}' crops to the centre, but its two values do not share one (strides {value.stride} and "
            f"{reference.stride}, {before} samples before and {after} after); the result would be shifted."
        )
    return int(before)


def _support(traced: Trace, axis: int, before: int, stride: int) -> tuple[int, int]:
    """Farthest reach (before, after) of any single output voxel, over one period of positions."""
    rows = {traced.source: _Samples(Fraction(0), Fraction(1), Fraction(0))}
    for step in traced.steps:
        rows[step.name] = _after(step, [rows[name] for name in step.inputs], axis)
    reaches = [_dependency(traced, rows, axis, voxel) for voxel in range(stride)]
    return (
        max(voxel + before - first for voxel, (first, _) in enumerate(reaches)),
        max(last - voxel - before for voxel, (_, last) in enumerate(reaches)),
    )


def _dependency(traced: Trace, rows: dict[str, _Samples], axis: int, voxel: int) -> tuple[int, int]:
    """First and last input voxel (of the row that begins at 0) that an output voxel depends on, walking backwards."""
    needed: dict[str, tuple[int, int]] = {traced.result: (voxel, voxel)}
    for step in reversed(traced.steps):
        if step.name not in needed:
            continue
        first, last = needed[step.name]
        operation = step.operation
        for position, name in enumerate(step.inputs):
            if isinstance(operation, Window):
                factor, reach = operation.stride[axis], operation.dilation[axis] * (operation.kernel[axis] - 1)
                part = (first * factor, last * factor + reach)
            elif isinstance(operation, Expand):
                part = (first // operation.factor[axis], last // operation.factor[axis])
            elif isinstance(operation, Crop):
                if position > 0:
                    continue  # only the size of the reference matters
                before = _crop_before(step.name, rows[name], rows[step.inputs[1]])
                part = (first + before, last + before)
            else:
                part = (first, last)
            known = needed.get(name, part)
            needed[name] = (min(known[0], part[0]), max(known[1], part[1]))
    return needed[traced.source]


def _phase(pool_starts: list[tuple[int, int]], before: int, stride: int) -> int | None:
    for read_start in range(stride):
        if all((read_start + begin) % width == 0 for begin, width in pool_starts):
            return (read_start + before) % stride
    return None

"""What a network needs around what it predicts, derived from its operations. Nothing here knows of images or blocks."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import lcm

from torch import nn

from unet_core.errors import FootprintError, GridError
from unet_core.geometry import Box, Shape
from unet_core.operations import Pointwise, Trace
from unet_core.positions import Samples, dependency, padded_offsets, samples_of
from unet_core.rules import trace

_AXIS_NAMES = "zyx"
_LARGEST = 1 << 16  # margins, strides and inputs that are stated; more is a typing error


@dataclass(frozen=True)
class _AxisFootprint:
    before: int
    after: int
    skip: int
    shrink: int
    stride: int
    phase: int | None
    support: tuple[int, int]
    rows: frozenset[tuple[Fraction, Fraction]]  # (stride, surplus) of every value; each must count at least 1, exactly

    def is_legal(self, size: int) -> bool:
        counts = (size / stride + surplus for stride, surplus in self.rows)
        return all(count.denominator == 1 and count >= 1 for count in counts)

    def legal_size(self, at_least: int) -> int:
        smallest = max(1, max(int((1 - surplus) * stride) for stride, surplus in self.rows))
        first = max(at_least, smallest)
        for size in range(first, first + self.stride + 1):
            if self.is_legal(size):
                return size
        raise FootprintError("No input size keeps every pooling of this network exact; its poolings contradict each other.")


@dataclass(frozen=True)
class Footprint:
    """What a network needs around what it predicts, per spatial axis, in voxels.

        read   |<- before ->|<---------- write ---------->|<- after ->|<- surplus to the next legal size ->|

    For the U-Net of 2015: before = after = 92, stride 16, phase 14, legal sizes 12 mod 16 from 188 on.

    A network that pads its values returns as much as it reads, spoilt at the ends. Its margin is what is spoilt, rounded
    up so that read boxes too start on multiples of the stride; ``skip`` voxels of what it returns come before the write box.

    Args:
        before: voxels read before the first that is written.
        after: voxels read after the last.
        stride: starts of write boxes are multiples of it, so that every pooling window of every block lies on one grid.
        phase: a write box that starts at ``phase`` (mod stride) has its samples where the padded form of the network, run
            on the whole image, has them; None if no start does that.
        skip: voxels of the network's output before the write box; 0 for unpadded networks.
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
    def skip(self) -> Shape:
        return tuple(axis.skip for axis in self.axes)

    @property
    def is_padded(self) -> bool:
        """Whether what the network returns for a box depends, near its faces, on where the box ends."""
        return any(self.skip)

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
        """Shape of what the network returns for a legal input of ``shape``.

        Raises:
            GridError: if the shape is not legal, with the nearest legal ones.
        """
        for name, axis, size in zip(_AXIS_NAMES[-self.dims :], self.axes, shape, strict=True):
            if not axis.is_legal(size):
                larger = axis.legal_size(size)
                smaller = larger - axis.stride
                nearest = f"{smaller} or {larger}" if smaller > 0 and axis.is_legal(smaller) else f"{larger}"
                raise GridError(
                    f"Input axis {name}: {size} voxels is not a legal size for this network, its poolings would drop rows; use {nearest}."
                )
        return tuple(size - axis.shrink for size, axis in zip(shape, self.axes, strict=True))

    def read_box(self, write: Box) -> Box:
        """The smallest legal input whose output covers ``write`` from its start on."""
        needed = tuple(a + size + b for a, size, b in zip(self.before, write.shape, self.after, strict=True))
        start = tuple(first - before for first, before in zip(write.start, self.before, strict=True))
        return Box.from_shape(self.legal_shape(needed), start)


def footprint(network: nn.Module, approximate: bool = False) -> Footprint:
    """Derive the footprint of a network, without running it.

    Args:
        network: in evaluation mode, one input (N, C, *spatial) and one output of the same resolution.
        approximate: allow layers whose result depends on the whole box; the footprint is then that of the others.

    Raises:
        FootprintError: naming the first layer whose result would depend on how the image is cut.

    Example:
        >>> from unet_core.networks import build
        >>> paper = footprint(build("unet", in_channels=1, classes=2).eval())
        >>> paper.margin, paper.stride, paper.output_shape((572, 572)), paper.legal_shape((696, 696))
        (((92, 92), (92, 92)), (16, 16), (388, 388), (700, 700))
    """
    return footprint_of(trace(network, approximate))


def footprint_of(traced: Trace) -> Footprint:
    """The footprint of a traced network; see ``footprint``."""
    return Footprint(tuple(_along_axis(traced, axis) for axis in range(traced.dims)))


def stated_footprint(before: Shape, after: Shape, stride: Shape, shrink: Shape, smallest: Shape, *, dims: int) -> Footprint:
    """The footprint of a network that cannot be traced, from what was measured or stated about it; voxels, one number an axis.

    Args:
        before: voxels read before the first that is written.
        after: voxels read after the last.
        stride: starts of write boxes and steps of legal sizes.
        shrink: how much shorter the output is than the input; its first sample lies at ``shrink // 2``.
        smallest: the shortest legal input.

    Raises:
        FootprintError: if the numbers contradict each other.
    """
    if {len(numbers) for numbers in (before, after, stride, shrink, smallest)} != {dims}:
        raise FootprintError(f"The network has {dims} axes; before, after, stride, shrink and smallest need one number for each.")
    axes = []
    for name, first, last, step, lost, least in zip(_AXIS_NAMES[-dims:], before, after, stride, shrink, smallest, strict=True):
        offset = lost // 2
        if not (0 <= lost < least <= _LARGEST and 1 <= step <= _LARGEST):
            raise FootprintError(
                f"Axis {name}: stride {step}, shortest input {least}, {lost} voxels shorter output; an output needs a voxel at least."
            )
        if not (offset <= first <= _LARGEST and lost - offset <= last <= _LARGEST):
            raise FootprintError(f"Axis {name}: margin {first} before and {last} after, but the output is {lost} voxels shorter.")
        if first != offset and first % step:
            raise FootprintError(f"Axis {name}: a margin of {first} before is not a multiple of the stride {step}.")
        axes.append(
            _AxisFootprint(
                before=first,
                after=last,
                skip=first - offset,
                shrink=lost,
                stride=step,
                phase=None if lost else 0,
                support=(first, last),
                rows=frozenset({(Fraction(step), 1 - Fraction(least, step))}),
            )
        )
    return Footprint(tuple(axes))


def _along_axis(traced: Trace, axis: int) -> _AxisFootprint:
    rows = samples_of(traced, axis)
    if traced.result not in rows:
        raise FootprintError(
            "The network returns one value for the whole box; it must return its logits at the resolution of its input."
        )
    output = rows[traced.result]
    if output.stride != 1 or output.offset.denominator != 1:
        raise FootprintError(
            f"The output has one sample every {output.stride} voxels, beginning at {output.offset}; "
            "a network must return its logits at the resolution of its input."
        )
    offset, (spoilt_before, spoilt_after) = int(output.offset), output.spoilt
    stride = lcm(*(row.stride.numerator for row in rows.values()))
    before = offset if not any(output.spoilt) else -(-(spoilt_before + offset) // stride) * stride
    return _AxisFootprint(
        before=before,
        after=max(0, spoilt_after - offset - int(output.surplus)),
        skip=before - offset,
        shrink=-int(output.surplus),
        stride=stride,
        phase=_phase(traced, rows, axis, before, stride),
        support=_support(traced, rows, axis, offset, stride),
        rows=frozenset((row.stride, row.surplus) for row in rows.values()) | _normalised(traced, rows, axis),
    )


def _normalised(traced: Trace, rows: dict[str, Samples], axis: int) -> set[tuple[Fraction, Fraction]]:
    """What statistics over the box add to the legal sizes: torch refuses those of a single sample, so the last axis has two."""
    steps = [step for step in traced.steps if isinstance(step.operation, Pointwise) and step.operation.whole_box]
    if axis != traced.dims - 1:
        return set()
    return {(rows[step.name].stride, rows[step.name].surplus - 1) for step in steps if step.name in rows}


def _support(traced: Trace, rows: dict[str, Samples], axis: int, offset: int, stride: int) -> tuple[int, int]:
    """Farthest reach (before, after) of any single output voxel, over one period of positions."""
    reaches = [dependency(traced, rows, axis, voxel) for voxel in range(stride)]
    return (
        max(voxel + offset - first for voxel, (first, _) in enumerate(reaches)),
        max(last - voxel - offset for voxel, (_, last) in enumerate(reaches)),
    )


def _phase(traced: Trace, rows: dict[str, Samples], axis: int, before: int, stride: int) -> int | None:
    """Where a write box may start, modulo the stride, for all samples to lie where those of the padded form do."""
    padded = padded_offsets(traced, axis)
    for read_start in range(stride):
        if all((read_start + row.offset - padded[name]) % row.stride == 0 for name, row in rows.items()):
            return (read_start + before) % stride
    return None

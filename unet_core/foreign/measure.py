"""Margin, stride and legal sizes of a network that cannot be traced, found by running it. Knows no files and no images.

Two windows of one row of noise share one end; what the network returns for them differs near the other, the cut face:

    longer    |-----------------------------------------------|
    shorter          |----------------------------------------|
    differs          |#### spoilt ####|      equal to the end

The windows begin ``stride`` apart, or nothing would ever be equal. What is measured is a lower bound: other weights of
noise, other images or a finer tolerance may show a dependency that lies farther out. Hence ``exact: unproven``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unet_core.errors import FootprintError
from unet_core.foreign.observe import REFUSALS, Network, Shapes
from unet_core.geometry import Shape
from unet_core.wording import counted

# Of the range of the output. float64 rounds at 1e-16, so there it tells every dependency that matters; float32 rounds at 1e-7.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-6}
_MOST_ROUNDING = 10  # times the tolerance; windows of other lengths may round otherwise
_PERIODS = {2: 192, 3: 48}  # a multiple of every stride that is tried
_LARGEST_STRIDE = 64
_UNKNOWN_STRIDE = 32  # of a network that takes every size, until it is known
_FIRST_LENGTHS, _DOUBLINGS = {2: 384, 3: 96}, 3  # of windows beyond what the network drops
_SEEDS = (0, 1)
_USUAL_SIZES = (64, 128, 256, 96, 32, 192)


@dataclass(frozen=True)
class AxisMeasure:
    """What was found along one axis, in voxels.

    Args:
        stride: windows that begin a multiple of it apart give the same values.
        shrink: how much shorter the output is than the input.
        smallest: the shortest input; the others are a multiple of the stride longer.
        spoilt: output voxels at the start and at the end that depend on where the input ends.
    """

    stride: int
    shrink: int
    smallest: int
    spoilt: tuple[int, int]


@dataclass(frozen=True)
class _Sizes:
    first: int
    step: int
    shrink: int


def measure(
    network: Network, channels: int, dims: int, test_input: NDArray[np.float32] | None = None, dtype: torch.dtype = torch.float64
) -> tuple[AxisMeasure, ...]:
    """Find the geometry of a network along each axis by running it on noise, and on the test input if there is one.

    Args:
        network: in evaluation mode on the CPU, from (1, C, *spatial) to (1, K, *spatial), in arithmetic of ``dtype``.
        channels: C.
        dims: number of spatial axes.
        test_input: (C, *spatial) of a shape that the network takes; noise has its mean and deviation.
        dtype: float64, or float32 with a coarser tolerance (see ``TOLERANCES``).

    Raises:
        FootprintError: if values never settle, as with InstanceNorm or global pooling; or if no shape is taken.
    """
    shapes = Shapes(network, channels, dtype)
    base = _working_shape(shapes, channels, dims, test_input)
    sizes = [_sizes_along(shapes, base, axis) for axis in range(dims)]
    narrow = _narrow(shapes, sizes, base)
    found = []
    for axis, size in enumerate(sizes):
        rows = _Rows(network, (channels, *narrow), axis, test_input, dtype)
        stride, length = _stride_along(rows, size, dims)
        spoilt = _spoilt_along(rows, length, stride)
        found.append(AxisMeasure(stride, size.shrink, _smallest(shapes, narrow, axis, size, length, stride), spoilt))
    return tuple(found)


def takes(
    network: Network, channels: int, dims: int, test_input: NDArray[np.float32] | None = None, dtype: torch.dtype = torch.float32
) -> bool:
    """Whether the network runs in arithmetic of ``dtype`` at all."""
    shape = Shapes(network, channels, dtype).first_taken(_candidates(dims, test_input))
    try:  # without values, torch does not compare the types of input and weights
        with torch.no_grad():
            return shape is not None and network(torch.zeros((1, channels, *shape), dtype=dtype)) is not None
    except REFUSALS:
        return False


def stated(
    network: Network, channels: int, dims: int, stride: int, test_input: NDArray[np.float32] | None = None
) -> tuple[AxisMeasure, ...]:
    """Legal sizes for a stated stride; nothing else is measured, ``spoilt`` is 0."""
    shapes = Shapes(network, channels)
    base = _working_shape(shapes, channels, dims, test_input)
    found = []
    for axis in range(dims):
        size = _sizes_along(shapes, base, axis)
        if stride % size.step:
            raise FootprintError(
                f"Stride {stride} is stated, but along axis {axis} the network takes sizes {size.step} voxels apart; state a multiple."
            )
        found.append(AxisMeasure(stride, size.shrink, _smallest(shapes, base, axis, size, size.first, stride), (0, 0)))
    return tuple(found)


def _working_shape(shapes: Shapes, channels: int, dims: int, test_input: NDArray[np.float32] | None) -> Shape:
    """A spatial shape that the network takes: that of the test input, or a cube."""
    candidates = _candidates(dims, test_input)
    found = shapes.first_taken(candidates)
    if found is None or len(shapes.after(found) or ()) != dims:
        tried = f"{counted(len(candidates), 'shape')} from {min(candidates)} to {max(candidates)}"
        raise FootprintError(
            f"The network does not turn {counted(channels, 'channel')} and {tried} into one array of {dims} spatial axes; check the number of "
            f"channels and axes, or give another test input. It says: {shapes.refusal or 'nothing'}"
        )
    return found


def _candidates(dims: int, test_input: NDArray[np.float32] | None) -> list[Shape]:
    if test_input is not None:
        return [tuple(test_input.shape[1:])]
    return [(size,) * dims for size in (*_USUAL_SIZES, *range(193, 193 + _LARGEST_STRIDE))]


def _sizes_along(shapes: Shapes, base: Shape, axis: int) -> _Sizes:
    """The sizes along one axis that lose the fewest voxels: the first that was tried, and the distance of two."""

    def lost(size: int) -> int | None:
        output = shapes.after((*base[:axis], size, *base[axis + 1 :]))
        return None if output is None or output[axis] < 1 else size - output[axis]

    start = base[axis]
    at_start = lost(start)
    step = next((s for s in _strides(len(base)) if all(lost(start + n * s) == at_start for n in (1, 2, 3))), None)
    if step is None or at_start is None:
        raise FootprintError(
            f"Along axis {axis} the network takes {start} voxels, but not sizes a fixed step longer (steps to {_LARGEST_STRIDE} were "
            "tried), or it loses other numbers of voxels there; it cannot run on blocks."
        )
    # Poolings that drop a remainder take other sizes too, and lose it.
    losses = {size: loss for size in range(start, start + step) if (loss := lost(size)) is not None}
    first = min(losses, key=lambda size: (losses[size], size))
    if losses[first] < 0:
        raise FootprintError(f"Along axis {axis} the output is {-losses[first]} voxels longer than the input; it must not be.")
    # A network that takes every size resizes inside; whole multiples of its strides are the sizes without a remainder.
    period = _PERIODS[len(base)]
    return _Sizes(first if step > 1 or losses[first] else -(-first // period) * period, step, losses[first])


def _narrow(shapes: Shapes, sizes: list[_Sizes], base: Shape) -> Shape:
    """A small shape for the axes that are not looked at."""
    for count in (1, 2, 4):
        shape = tuple(_legal(size, size.shrink + count * max(size.step, 8)) for size in sizes)
        if shapes.after(shape):
            return shape
    return base


def _legal(size: _Sizes, at_least: int) -> int:
    step = size.step if size.step > 1 or size.shrink else _UNKNOWN_STRIDE
    return size.first + -(-(at_least - size.first) // step) * step


def _smallest(shapes: Shapes, base: Shape, axis: int, size: _Sizes, length: int, stride: int) -> int:
    """The shortest input that is taken and whole strides shorter than ``length``."""
    first = size.shrink + 1 + (length - size.shrink - 1) % stride
    shorter = range(first, length, stride)
    return next((taken for taken in shorter if shapes.after((*base[:axis], taken, *base[axis + 1 :]))), length)


def _strides(dims: int) -> list[int]:
    return [step for step in range(1, _LARGEST_STRIDE + 1) if _PERIODS[dims] % step == 0]


class _Rows:
    """The network on windows of one long row of noise, or of the test input, along one axis."""

    def __init__(
        self,
        network: Network,
        shape: Shape,
        axis: int,
        test_input: NDArray[np.float32] | None,
        dtype: torch.dtype,
    ) -> None:
        self._network, self._shape, self._axis = network, shape, axis
        self._test_input, self._dtype = test_input, dtype
        self.tolerance = TOLERANCES[dtype]
        self.sources: tuple[int | None, ...] = (*_SEEDS, None) if test_input is not None else _SEEDS

    def row(self, length: int, source: int | None) -> torch.Tensor:
        """Input (1, C, *spatial), ``length`` long: noise of a seed, or the test input, mirrored to the length."""
        shape = (*self._shape[: 1 + self._axis], length, *self._shape[2 + self._axis :])
        if source is not None:
            values: NDArray[Any] = np.random.default_rng(source).normal(size=shape)
            if self._test_input is not None:
                values = values * float(self._test_input.std() or 1) + float(self._test_input.mean())
        else:
            assert self._test_input is not None
            pad = [(0, max(0, size - had)) for size, had in zip(shape, self._test_input.shape, strict=True)]
            values = np.pad(self._test_input, pad, mode="symmetric")[tuple(slice(size) for size in shape)]
        return torch.from_numpy(np.ascontiguousarray(values))[None].to(self._dtype)

    @torch.no_grad()
    def run(self, image: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Output (rows, everything else) of the window from ``start`` to ``stop``."""
        try:
            result = self._network(image.narrow(2 + self._axis, start, stop - start).contiguous())
        except REFUSALS as error:
            raise FootprintError(
                f"The network does not take {stop - start} voxels along axis {self._axis}: {str(error)[-200:]}"
            ) from error
        if not bool(torch.isfinite(result).all()):
            raise FootprintError(
                "The network returns NaN or infinite values for noise; give a test input of its usual intensities."
            )
        return result[0].movedim(1 + self._axis, 0).flatten(1)

    def differences(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Greatest difference of two outputs in each row, as a part of the range of the second."""
        span = float(b.max() - b.min())
        if span <= 1e-6 * float(b.abs().max()):
            raise FootprintError(
                f"The network returns the same value everywhere ({float(b.max()):.4g}), so nothing can be measured; give a test "
                "input of its usual intensities, or state margin and stride."
            )
        return (a - b).abs().amax(1) / span

    def differing(self, a: torch.Tensor, b: torch.Tensor) -> list[int]:
        """Rows in which two outputs differ by more than the tolerance."""
        return torch.nonzero(self.differences(a, b) > self.tolerance).flatten().tolist()


def _lengths(size: _Sizes, dims: int) -> Iterator[int]:
    for doubling in range(_DOUBLINGS + 1):
        yield _legal(size, (_FIRST_LENGTHS[dims] << doubling) + size.shrink)


def _stride_along(rows: _Rows, size: _Sizes, dims: int) -> tuple[int, int]:
    """The smallest shift that leaves values as they are, and a length at which that shows."""
    for length in _lengths(size, dims):
        image = rows.row(length, _SEEDS[0])
        longer = rows.run(image, 0, length)
        far = (longer.shape[0] - _PERIODS[dims]) * 3 // 4

        def unsettled(shift: int) -> float:
            """The greatest difference far from the cut face."""
            return float(rows.differences(rows.run(image, shift, length), longer[shift:])[far:].max())  # noqa: B023

        rounding = unsettled(_PERIODS[dims])
        if rounding <= _MOST_ROUNDING * rows.tolerance:
            rows.tolerance = max(rows.tolerance, 2 * rounding)
            tried = [s for s in (*_strides(dims), _PERIODS[dims]) if s % size.step == 0]
            return next(s for s in tried if s == _PERIODS[dims] or unsettled(s) <= rows.tolerance), length
    raise FootprintError(
        f"The result of the network depends on the whole box: in an input of {length} voxels, the values far from a cut face still "
        "change with it. Layers that look at the whole box (InstanceNorm, GroupNorm, global pooling, attention over all positions) "
        f"do that; so does a stride that does not divide {_PERIODS[dims]}. Give a model without them."
    )


def _spoilt_along(rows: _Rows, length: int, stride: int) -> tuple[int, int]:
    """How many output voxels the start and the end of the input spoil, at most, over rows and shifts."""
    before = after = 0
    for number, source in enumerate(rows.sources):
        shift = (1 + 2 * number) * stride
        image = rows.row(length, source)
        whole = rows.run(image, 0, length)
        shorter = rows.run(image, shift, length)
        before = max([before, *(1 + row for row in rows.differing(shorter, whole[shift:]))])
        shorter = rows.run(image, 0, length - shift)
        after = max([after, *(len(shorter) - row for row in rows.differing(shorter, whole[: len(shorter)]))])
    return before, after

"""The words in which a traced network is told: what each step does to a row of samples along one axis. Plain data, no rules.

Nothing here knows of sizes, boxes or images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.fx

PerAxis = tuple[int, ...]


@dataclass(frozen=True)
class Window:
    """Each output sample sees ``kernel`` input samples, ``dilation`` apart; windows begin ``stride`` apart.

    ``before`` and ``after`` samples that are none of the image's stand at the ends of the row (padding).
    """

    kernel: PerAxis
    stride: PerAxis
    dilation: PerAxis
    before: PerAxis = (0, 0, 0)
    after: PerAxis = (0, 0, 0)


@dataclass(frozen=True)
class Expand:
    """Each input sample is spread over ``kernel`` output samples, ``factor`` apart (a transposed convolution).

    ``before`` and ``after`` samples are cut off the ends of the result.
    """

    kernel: PerAxis
    factor: PerAxis
    before: PerAxis = (0, 0, 0)
    after: PerAxis = (0, 0, 0)


@dataclass(frozen=True)
class Interpolate:
    """``factor`` output samples for each input sample, each mixed of its two nearest, then ``crop`` cut off both ends."""

    factor: PerAxis
    crop: PerAxis


@dataclass(frozen=True)
class Crop:
    """The first input, cut to as many samples as the second one has: its centre, or from ``start`` on."""

    start: int | None


@dataclass(frozen=True)
class Trim:
    """``count`` samples cut off both ends."""

    count: PerAxis


@dataclass(frozen=True)
class Pointwise:
    """Sample for sample; several inputs must lie on the same positions.

    Args:
        broadcasts: one of the inputs may instead be a single sample that stands for the whole box.
        whole_box: each sample also depends on statistics over all samples of the box (instance, group and batch normalisation).
    """

    broadcasts: bool = True
    whole_box: bool = False


@dataclass(frozen=True)
class Collapse:
    """All samples of the box become one, which is valid everywhere (global pooling)."""


Operation = Window | Expand | Interpolate | Crop | Trim | Pointwise | Collapse


@dataclass(frozen=True)
class Step:
    """One operation of a traced network: its name, the names of its inputs, and what it does."""

    name: str
    inputs: tuple[str, ...]
    operation: Operation


@dataclass(frozen=True)
class Trace:
    """A network as a list of steps; ``graph`` is the torch.fx module that executes them.

    Args:
        dims: number of spatial axes.
        source: name of the input.
        steps: in order of execution.
        result: name of the step whose value is returned.
        graph: the traced module.
        whole_box: layers whose result depends on the whole box, as "'name' (type)"; empty for networks that any cut leaves exact.
    """

    dims: int
    source: str
    steps: tuple[Step, ...]
    result: str
    graph: torch.fx.GraphModule
    whole_box: tuple[str, ...] = ()


def depends_on_box(operation: Operation) -> bool:
    """Whether a step gives other values in another box, however wide its margin."""
    return isinstance(operation, Collapse) or (isinstance(operation, Pointwise) and operation.whole_box)


def inputs_of(step: Step) -> tuple[str, ...]:
    """Inputs whose samples a step reads: of the reference of a crop only the size matters."""
    return step.inputs[:1] if isinstance(step.operation, Crop) else step.inputs

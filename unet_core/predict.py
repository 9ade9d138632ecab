"""Weights on a device: intensities in, labels or probabilities out. Knows no storage and no blocks.

Shapes: C channels of the image, K of the logits, then the spatial axes.
"""

from __future__ import annotations

import copy
import platform
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unet_core.cpu import keep_freed_memory, use_onednn
from unet_core.errors import BlockError, JobError
from unet_core.fold import fold_graph
from unet_core.foreign.opaque_network import OpaqueNetwork
from unet_core.geometry import Shape
from unet_core.model_package import ModelPackage
from unet_core.normalisation import Normalisation
from unet_core.operations import Trace
from unet_core.plan import Precision
from unet_core.pulse import PULSE
from unet_core.rules import trace
from unet_core.streaming import AXIS, Streamer

_CHANNELS_LAST: dict[int, Any] = {2: torch.channels_last, 3: torch.channels_last_3d}
_PRECISIONS = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}
_TRAVEL = (np.uint8, np.int8, np.uint16, np.int16, np.float32)  # types that torch takes as they are and float32 holds exactly


def resolve_device(name: str) -> str:
    """The device that ``name`` means on this machine.

    Args:
        name: ``auto`` (a GPU if there is one), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        JobError: if the device does not exist here; there is no silent fallback.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if count else "cpu"
    if name == "cpu":
        return name
    kind, _, number = name.partition(":")
    if kind != "cuda" or (number and not number.isdigit()):
        raise JobError(f"Device '{name}' is not known; use auto, cpu, cuda or cuda:N.")
    if int(number or 0) >= count:
        raise JobError(f"Device '{name}' is not there: this machine has {count} CUDA devices; use --device cpu or auto.")
    return name


def check_precision(precision: Precision, device: str) -> None:
    """Refuse arithmetic that a device does not have; there is no silent fallback.

    Raises:
        JobError: for TF32 on a CPU.
    """
    if precision == "tf32" and torch.device(device).type != "cuda":
        raise JobError(
            f"Precision 'tf32' is of GPUs, the device is '{device}'; use --precision float32 or bfloat16, or --device cuda."
        )


def hardware_class(device: str) -> str:
    """What decides the last bits besides the plan: GPU model, or instruction set of the CPU."""
    if device.startswith("cuda"):
        return f"cuda {torch.cuda.get_device_name(device)}"
    return f"cpu {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


@dataclass(frozen=True)
class Predictor:
    """A network with its weights on a device.

    Args:
        network: on ``device``, in ``dtype``, channels last.
        device: torch name.
        dtype: of the arithmetic.
        dims: spatial axes.
        threads: CPU threads of a forward pass.
        traced: the steps of ``network``; None if they are not known.
        normalisation: of intensities, on the device; None if they come normalised.
        ahead: strips that are given to the device before the logits of an earlier one are asked for, so that it never waits for
            this process; a CPU has nobody to wait for.
    """

    network: torch.nn.Module
    device: str
    dtype: torch.dtype
    dims: int
    threads: int
    traced: Trace | None
    normalisation: Normalisation | None = None
    ahead: int = 0

    @torch.inference_mode()
    def logits(self, image: NDArray[Any]) -> Tensor:
        """Logits (K, *output) in float32, on the device, of an image (C, *input) of legal shape.

        Raises:
            BlockError: if an input voxel or a logit is NaN or infinite; never a label.
        """
        with self.planned_threads():
            batch = self._batch(image)
            return _settled(_Pass(batch, batch.sum(), 0).with_logits(self.network(batch), 0))

    @torch.inference_mode()
    def streamed(self, strips: Iterable[NDArray[Any]], length: int) -> Iterator[Tensor]:
        """The same logits in parts (K, rows, ...) that follow one another along the first spatial axis.

        Args:
            strips: the image in parts (C, rows, ...), likewise.
            length: rows of the whole image, legal.

        Raises:
            BlockError: as for ``logits``.
        """
        assert self.traced is not None  # the plan streams no other
        streamer, given = Streamer(self.traced, AXIS, length), deque[_Pass]()
        read = made = 0
        for rows in strips:
            PULSE.beat()
            with self.planned_threads():
                batch = self._batch(rows)
                step, part = _Pass(batch, batch.sum(), read), streamer.push(batch)
                read += rows.shape[1 + AXIS]
                if part is not None:
                    step = step.with_logits(part, made)
                    made += part.shape[2 + AXIS]
            given.append(step)
            if len(given) > self.ahead:
                yield from _parts(given.popleft())
        for step in given:
            yield from _parts(step)

    def _batch(self, image: NDArray[Any]) -> Tensor:
        """(1, C, *spatial) on the device, normalised there: integers of one or two bytes are a fraction of what travels otherwise."""
        if image.dtype not in _TRAVEL:
            image = image.astype(np.float32)
        values = torch.from_numpy(np.ascontiguousarray(image))[None]
        if torch.device(self.device).type != "cpu":
            values = values.pin_memory()  # else the copy waits for the device
        values = values.to(self.device, non_blocking=True).to(torch.float32)
        if self.normalisation is not None:
            shape = (1, -1) + (1,) * self.dims
            offset, scale = (
                torch.tensor(numbers, dtype=torch.float32, device=self.device).view(shape)
                for numbers in (self.normalisation.offset, self.normalisation.scale)
            )
            values = (values - offset).div_(scale)
        return values.to(self.dtype, memory_format=_CHANNELS_LAST[self.dims])

    @contextmanager
    def planned_threads(self) -> Iterator[None]:
        """As many CPU threads as were planned: where torch cuts an array among them decides last bits, also of probabilities."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


@dataclass(frozen=True)
class _Pass:
    """What the device was given, and what it will have said when it gets there.

    Args:
        batch: (1, C, *spatial) input.
        input_sum: NaN or infinite if a value of it is.
        first_input: its first row in the read box.
        logits: (K, *spatial) in float32; None if there are none yet.
        logits_sum: likewise.
        first_logit: their first row in the write box.
    """

    batch: Tensor
    input_sum: Tensor
    first_input: int
    logits: Tensor | None = None
    logits_sum: Tensor | None = None
    first_logit: int = 0

    def with_logits(self, batch: Tensor, first_row: int) -> _Pass:
        logits = batch[0].float()
        return replace(self, logits=logits, logits_sum=logits.sum(), first_logit=first_row)


def _settled(step: _Pass) -> Tensor:
    (logits,) = _parts(step)
    return logits


def _parts(step: _Pass) -> Iterator[Tensor]:
    """The logits of a pass, if it has any; waits for the device.

    Raises:
        BlockError: if input or logits are not finite, with the first place.
    """
    if not _finite(step.batch, step.input_sum):
        raise BlockError(
            f"input is NaN or infinite at {_first(step.batch[0], step.first_input)} of the read box (channel, then axes)"
        )
    if step.logits is None or step.logits_sum is None:
        return
    if not _finite(step.logits, step.logits_sum):
        raise BlockError(
            f"logits not finite at {_first(step.logits, step.first_logit)} of the write box (channel, then axes); "
            "the intensities may lie far outside those of the training"
        )
    yield step.logits


def _finite(values: Tensor, total: Tensor) -> bool:
    """Whether all values are finite: one pass that adds them up says so, but for sums that are too large themselves."""
    return isfinite(float(total)) or bool(torch.isfinite(values).all())


def _first(values: Tensor, first_row: int) -> tuple[int, ...]:
    """Where the first value is that is not finite."""
    channel, row, *rest = (int(position) for position in torch.argwhere(~torch.isfinite(values))[0])
    return (channel, first_row + row, *rest)


def load_predictor(
    package: ModelPackage,
    device: str,
    precision: Precision,
    threads: int,
    normalisation: Normalisation | None = None,
    keep_package: bool = True,
) -> Predictor:
    """Put a model on a device, channels last.

    Args:
        precision: of the network's arithmetic; ``tf32`` rounds the inputs of convolutions to 10 bits, on GPUs only.
        normalisation: of the intensities that will come; None if they come normalised.
        keep_package: leave the package's own network as it is, which takes memory for its weights twice.
    """
    keep_freed_memory()
    # torch's own defaults round float32 convolutions to TF32 on GPUs, and may choose other kernels from run to run.
    # The older flag too, since torch's ONNX exporter asks by it and fails where the two differ.
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.conv.fp32_precision = torch.backends.cudnn.rnn.fp32_precision = "tf32" if precision == "tf32" else "ieee"  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    # The traced graph frees each value after its last use; the module's own forward keeps its arguments to the end.
    network: Any = (copy.deepcopy(package.network) if keep_package else package.network).eval()
    traced = None
    if not isinstance(network, OpaqueNetwork):
        approximate = bool(package.whole_box)
        traced = trace(fold_graph(trace(network, approximate).graph), approximate)
    graph: Any = network if traced is None else traced.graph
    graph = graph.to(device=device, dtype=_PRECISIONS[precision]).to(memory_format=_CHANNELS_LAST[package.dims])
    if device == "cpu" and precision == "float32":
        use_onednn(graph)
    ahead = 0 if device == "cpu" else 1
    return Predictor(graph.eval(), device, _PRECISIONS[precision], package.dims, threads, traced, normalisation, ahead)


def crop_to(logits: Tensor, shape: Shape, skip: Shape) -> Tensor:
    """The ``shape`` voxels after the first ``skip`` of the spatial axes; what a legal input gives beyond the write box is dropped."""
    for axis, (size, first) in enumerate(zip(shape, skip, strict=True), start=1):
        logits = logits.narrow(axis, first, size)
    return logits

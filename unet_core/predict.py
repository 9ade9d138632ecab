"""Weights on a device: normalised intensities in, labels or probabilities out. Knows no storage and no blocks.

Shapes: C channels of the image, K of the logits, then the spatial axes.
"""

from __future__ import annotations

import copy
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unet_core.cpu import keep_freed_memory, use_onednn
from unet_core.errors import BlockError, JobError
from unet_core.foreign.opaque_network import OpaqueNetwork
from unet_core.geometry import Shape
from unet_core.model_package import ModelPackage
from unet_core.operations import Trace
from unet_core.rules import trace
from unet_core.streaming import AXIS, Streamer

_CHANNELS_LAST: dict[int, Any] = {2: torch.channels_last, 3: torch.channels_last_3d}
_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


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
    """

    network: torch.nn.Module
    device: str
    dtype: torch.dtype
    dims: int
    threads: int
    traced: Trace | None

    @torch.inference_mode()
    def logits(self, image: NDArray[np.float32]) -> Tensor:
        """Logits (K, *output) in float32, on the device, of a normalised image (C, *input) of legal shape.

        Raises:
            BlockError: if an input voxel or a logit is NaN or infinite; never a label.
        """
        with self._threads():
            return _checked(self.network(self._batch(image, 0)), 0)

    @torch.inference_mode()
    def streamed(self, strips: Iterable[NDArray[np.float32]], length: int) -> Iterator[Tensor]:
        """The same logits in parts (K, rows, ...) that follow one another along the first spatial axis.

        Args:
            strips: the normalised image in parts (C, rows, ...), likewise.
            length: rows of the whole image, legal.

        Raises:
            BlockError: as for ``logits``.
        """
        assert self.traced is not None  # the plan streams no other
        streaming = Streamer(self.traced, AXIS, length)
        read = made = 0
        for rows in strips:
            with self._threads():
                part = streaming.push(self._batch(rows, read))
                read += rows.shape[1]
                if part is None:
                    continue
                logits = _checked(part, made)
            made += logits.shape[1]
            yield logits

    def _batch(self, image: NDArray[np.float32], first_row: int) -> Tensor:
        """(1, C, Z, Y, X) on the device."""
        finite = np.isfinite(image)
        if not finite.all():
            raise BlockError(f"input is NaN or infinite at {_first(~finite, first_row)} of the read box (channel, then axes)")
        return torch.from_numpy(image)[None].to(self.device, self.dtype, memory_format=_CHANNELS_LAST[self.dims])

    @contextmanager
    def _threads(self) -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _checked(batch: Tensor, first_row: int) -> Tensor:
    """Logits (K, *spatial) in float32 of a batch of one."""
    logits = batch[0].float()
    finite = torch.isfinite(logits)
    if not bool(finite.all()):
        raise BlockError(
            f"logits not finite at {_first((~finite).cpu().numpy(), first_row)} of the write box (channel, then axes); "
            "the intensities may lie far outside those of the training"
        )
    return logits


def load_predictor(package: ModelPackage, device: str, precision: Literal["float32", "bfloat16"], threads: int) -> Predictor:
    """Put a model on a device, channels last; the package's own network is left as it is."""
    keep_freed_memory()
    # torch's own defaults round float32 convolutions to TF32 on GPUs, and may choose other kernels from run to run.
    # The older flag too, since torch's ONNX exporter asks by it and fails where the two differ.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.conv.fp32_precision = torch.backends.cudnn.rnn.fp32_precision = "ieee"  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    # The traced graph frees each value after its last use; the module's own forward keeps its arguments to the end.
    network: Any = copy.deepcopy(package.network).eval()
    traced = None if isinstance(network, OpaqueNetwork) else trace(network, approximate=bool(package.whole_box))
    graph: Any = network if traced is None else traced.graph
    graph = graph.to(device=device, dtype=_PRECISIONS[precision]).to(memory_format=_CHANNELS_LAST[package.dims])
    if device == "cpu" and precision == "float32":
        use_onednn(graph)
    return Predictor(graph.eval(), device, _PRECISIONS[precision], package.dims, threads, traced)


@torch.inference_mode()
def labels_of(logits: Tensor, values: tuple[int, ...]) -> NDArray[np.uint8]:
    """Label of the greatest logit of each voxel (the first among equals), of shape (*spatial)."""
    table = torch.tensor(values, dtype=torch.uint8, device=logits.device)
    labels: NDArray[np.uint8] = table[logits.argmax(dim=0)].cpu().numpy()
    return labels


@torch.inference_mode()
def regions_of(logits: Tensor) -> NDArray[np.bool_]:
    """Where each region's probability is above one half, of shape (K, *spatial)."""
    inside: NDArray[np.bool_] = (logits > 0).cpu().numpy()
    return inside


@torch.inference_mode()
def probabilities_of(logits: Tensor, kind: Literal["classes", "regions"], dtype: str) -> NDArray[Any]:
    """Probabilities (K, *spatial): float32, or uint8 as round(255 p), which is off by at most 1/510."""
    probabilities = logits.softmax(dim=0) if kind == "classes" else logits.sigmoid()
    if dtype == "uint8":
        probabilities = (probabilities * 255).round().to(torch.uint8)
    result: NDArray[Any] = probabilities.cpu().numpy()
    return result


def crop_to(logits: Tensor, shape: Shape, skip: Shape) -> Tensor:
    """The ``shape`` voxels after the first ``skip`` of the spatial axes; what a legal input gives beyond the write box is dropped."""
    for axis, (size, first) in enumerate(zip(shape, skip, strict=True), start=1):
        logits = logits.narrow(axis, first, size)
    return logits


def _first(where: NDArray[np.bool_], first_row: int) -> tuple[int, ...]:
    channel, row, *rest = (int(position) for position in np.argwhere(where)[0])
    return (channel, first_row + row, *rest)

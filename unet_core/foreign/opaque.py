"""A model package of a TorchScript file, its geometry measured, or stated by the user. Knows no images and no blocks."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unet_core.errors import FootprintError, ModelPackageError
from unet_core.footprint import Footprint
from unet_core.foreign.measure import AxisMeasure, measure, stated, takes
from unet_core.foreign.new_package import check_new_package
from unet_core.foreign.observe import REFUSALS
from unet_core.foreign.opaque_network import check_trusted, load_opaque, load_script, runnable
from unet_core.model_description import (
    SCRIPT_FILE,
    TORCHSCRIPT,
    ModelDescription,
    NetworkSpec,
    WeightsFile,
    check_description,
    write_description,
)
from unet_core.store import open_store
from unet_core.wording import counted

MAX_STRIDE = 1 << 12  # that may be stated; more is a typing error
# torch has no fast float64 convolution in 3D. float32 hides the faintest: of 46 voxels that the padded form of a trained nucleus
# model spoils, float64 sees 46 and float32 37 to 46, at strides of 8; hence a stride more there.
_MEASURED_IN = {2: torch.float64, 3: torch.float32}
_OFF_BY = 1e-3  # what probabilities of classes may miss 1 by, in sum


def package_torchscript(
    script: Path,
    out: str | Path,
    description: ModelDescription,
    *,
    dims: int,
    probabilities: bool,
    halo: tuple[int, ...] | None = None,
    test_input: NDArray[np.float32] | None = None,
    margin: int | None = None,
    stride: int | None = None,
    trusted: bool,
) -> Footprint:
    """Make a model package of a TorchScript file, its geometry measured, or stated with ``margin`` and ``stride``.

    Args:
        script: file, as ``torch.jit.save`` writes it; its bytes go into the package as they are.
        out: folder or URL of the package; must not hold one.
        description: complete but for ``network``, which is replaced.
        dims: spatial axes.
        probabilities: whether the output has been through sigmoid or soft-max already.
        halo: voxels of the output, along each axis, that its author says are spoilt at both ends; the margin is no smaller.
        test_input: (C, *spatial), normalised, of a shape that the network takes.
        margin: voxels on both sides that the network looks at; needs ``stride``.
        stride: product of its poolings.
        trusted: the user's word that the file may be loaded.

    Raises:
        ModelPackageError: if the file is not trusted, or is not what the description says.
        FootprintError: if no geometry can be found for it.
    """
    check_trusted(str(script), trusted)
    check_new_package(str(out))
    if (margin is None) != (stride is None):
        raise FootprintError("Margin and stride are stated together or not at all; give both.")
    if margin is not None and stride is not None and not (margin >= 0 and 1 <= stride <= MAX_STRIDE):
        raise FootprintError(f"Margin {margin}, stride {stride}: a margin is 0 or more voxels, a stride 1 to {MAX_STRIDE}.")
    try:
        data = script.read_bytes()
    except OSError as error:
        raise ModelPackageError(f"TorchScript {script} cannot be read ({error.strerror}).") from None
    if halo is not None and len(halo) != dims:
        raise FootprintError(
            f"The halo {halo} has {counted(len(halo), 'number')}, the network {counted(dims, 'axis', 'axes')}; give one an axis."
        )
    loaded = load_script(data, str(script))
    channels = len(description.input_channels)
    if test_input is not None and (test_input.ndim != dims + 1 or len(test_input) != channels):
        raise ModelPackageError(
            f"The test input has shape {test_input.shape}; {counted(channels, 'channel')} and {counted(dims, 'axis', 'axes')} are needed."
        )
    network = runnable(loaded)
    if margin is not None and stride is not None:
        found = stated(network, channels, dims, stride, test_input)
        dropped = [axis.shrink // 2 for axis in found]
        spoilt = [(max(0, margin - lost), max(0, margin - axis.shrink + lost)) for axis, lost in zip(found, dropped, strict=True)]
    else:
        found, spoilt = _measured(loaded, channels, dims, test_input)
    arguments = _arguments(description, found, spoilt, halo, margin)
    complete = description.model_copy(
        update={"network": NetworkSpec(name=TORCHSCRIPT, arguments=arguments | {"dims": dims, "probabilities": probabilities})}
    )
    check_description(complete, str(out))
    _check_output(network, complete, test_input, arguments["smallest"], probabilities)
    result = load_opaque(data, complete, str(script))
    open_store(str(out)).put(SCRIPT_FILE, data)
    sha256 = hashlib.sha256(data).hexdigest()
    write_description(str(out), complete, WeightsFile(file=SCRIPT_FILE, sha256=sha256, size_bytes=len(data)))
    return result.footprint


def _measured(
    script: Any, channels: int, dims: int, test_input: NDArray[np.float32] | None
) -> tuple[tuple[AxisMeasure, ...], list[tuple[int, int]]]:
    """Geometry, and the spoilt voxels at start and end along each axis; a stride more in float32."""
    dtype = _MEASURED_IN[dims]
    network = runnable(copy.deepcopy(script).to(dtype))
    if not takes(network, channels, dims, test_input, dtype):  # it has float32 written into its code
        dtype, network = torch.float32, runnable(script)
    found = measure(network, channels, dims, test_input, dtype)
    more = [axis.stride if dtype == torch.float32 else 0 for axis in found]
    return found, [
        (axis.spoilt[0] + extra, axis.spoilt[1] + extra) if any(axis.spoilt) else (0, 0)
        for axis, extra in zip(found, more, strict=True)
    ]


def _arguments(
    description: ModelDescription,
    found: tuple[AxisMeasure, ...],
    spoilt: list[tuple[int, int]],
    halo: tuple[int, ...] | None,
    margin: int | None,
) -> dict[str, Any]:
    geometry: dict[str, list[int]] = {name: [] for name in ("before", "after", "stride", "shrink", "smallest")}
    for number, (axis, (first, last)) in enumerate(zip(found, spoilt, strict=True)):
        least = halo[number] if halo else 0
        # What is spoilt is counted in output voxels, the first of which lies at the offset; the rest is at the end.
        offset = axis.shrink // 2
        first, last = max(first, least), max(last, least)
        geometry["before"].append(-(-(first + offset) // axis.stride) * axis.stride if first else offset)
        geometry["after"].append(last + axis.shrink - offset)
        for name in ("stride", "shrink", "smallest"):
            geometry[name].append(getattr(axis, name))
    return geometry | {
        "in_channels": len(description.input_channels),
        "classes": sum(len(head.channels) for head in description.heads),
        "margin": "measured" if margin is None else "stated",
    }


def _check_output(
    network: Any, description: ModelDescription, test_input: NDArray[np.float32] | None, smallest: list[int], probabilities: bool
) -> None:
    """Refuse a network whose output is not what the description says: number of channels, and what the values mean."""
    classes, kind = sum(len(head.channels) for head in description.heads), description.heads[0].kind
    shape = (len(description.input_channels), *smallest)
    values = np.random.default_rng(0).normal(size=shape) if test_input is None else test_input
    try:
        with torch.no_grad():
            result = network(torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[None])
    except REFUSALS as error:
        raise ModelPackageError(f"The network does not run on {values.shape} in float32: {str(error)[-200:]}") from error
    if result.shape[1] != classes:
        raise ModelPackageError(f"The network returns {result.shape[1]} channels, its description names {classes}; name each.")
    low, high = float(result.min()), float(result.max())
    if probabilities and not 0 <= low <= high <= 1:
        raise ModelPackageError(f"The network returns values from {low:.4g} to {high:.4g}, which are no probabilities.")
    total = result.sum(dim=1)
    if probabilities and kind == "classes" and float((total - 1).abs().max()) > _OFF_BY:
        raise ModelPackageError(
            f"The probabilities of the classes add up to {float(total.min()):.4g} to {float(total.max()):.4g}, not 1; "
            "classes that may overlap are regions."
        )

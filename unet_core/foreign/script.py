"""A package whose TorchScript the user trusts, packaged to be run as it is. The only place of an import that runs foreign code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import ModelPackageError
from unet_core.footprint import Footprint
from unet_core.foreign.describe import OutputKind, describe
from unet_core.foreign.opaque import package_torchscript
from unet_core.foreign.opaque_network import load_script, runnable
from unet_core.foreign.reproduce import Difference, compare, logits_of
from unet_core.foreign.source import StoredFile
from unet_core.model_description import ModelDescription, NetworkSpec, read_description

if TYPE_CHECKING:
    from unet_core.foreign.bioimageio import Task

_OFF_BY = 1e-3  # what probabilities of classes may miss 1 by, in sum


@dataclass(frozen=True)
class Packaged:
    """What became of a script."""

    description: ModelDescription
    footprint: Footprint
    difference: Difference
    notes: tuple[str, ...]


def package_script(
    task: Task,
    script: StoredFile,
    out: str,
    kind: OutputKind,
    facts_of: Callable[[Task, str, Difference], dict[str, Any]],
) -> Packaged:
    """Run a script on the package's test input, compare with its test output, and package it.

    Where the package states no activation and the test output could be probabilities of ``kind``, it is taken for them.

    Raises:
        ModelPackageError: if it is no script, or gives anything else.
        FootprintError: if no geometry can be found for it.
    """
    where = task.source.where
    if task.input_axes.spatial != tuple("zyx"[-task.input_axes.dims :]):
        raise ModelPackageError(
            f"{where}: its script takes the axes {task.input_axes.spatial}; run as it is, it must take (z,) y, x."
        )
    network = runnable(load_script(script.path.read_bytes(), f"{where}: {script.name}"))
    difference = compare(logits_of(network, task.image), task.activation, task.expected)
    if not difference.is_small:
        raise ModelPackageError(f"{where}: its TorchScript does not give its test output: {difference.in_words}.")
    probabilities = task.activation == "none" and could_be_probabilities(task.expected, kind)
    network_spec = NetworkSpec(
        name="torchscript",
        arguments={"in_channels": len(task.input_axes.channel_names), "classes": len(task.output_axes.channel_names)},
    )
    description = describe(
        task.source,
        network_spec,
        task.input_axes,
        task.output_axes,
        kind,
        task.normalisation,
        facts_of(task, "torchscript", difference),
    )
    geometry = package_torchscript(
        script.path,
        out,
        description,
        dims=task.input_axes.dims,
        probabilities=probabilities,
        halo=task.output_axes.halo,
        test_input=task.image,
        trusted=True,
    )
    note = "its test output lies in 0..1 and is taken for probabilities; if it holds logits, package its script by import-torchscript"
    return Packaged(read_description(out)[0], geometry, difference, (note,) if probabilities else ())


def could_be_probabilities(values: NDArray[np.floating], kind: OutputKind) -> bool:
    """Whether an output (1, K, *spatial) lies in 0..1, and for classes adds up to 1 over the channels."""
    inside = bool(((values >= 0) & (values <= 1)).all())
    return inside and (kind == "regions" or bool((np.abs(values.sum(axis=1) - 1) <= _OFF_BY).all()))

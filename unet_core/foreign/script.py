"""A package whose TorchScript the user trusts, packaged to be run as it is. The only place of an import that runs foreign code."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from unet_core.errors import ModelPackageError
from unet_core.footprint import Footprint
from unet_core.foreign.describe import OutputKind, describe
from unet_core.foreign.processing import Activation
from unet_core.foreign.reproduce import ACTIVATIONS, Difference, compare, logits_of
from unet_core.foreign.source import StoredFile
from unet_core.model_description import ModelDescription, NetworkSpec, read_description

if TYPE_CHECKING:
    from unet_core.foreign.bioimageio import Task


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
    kind_of: Callable[[Activation], OutputKind],
    facts_of: Callable[[Task, str, Difference], dict[str, Any]],
) -> Packaged:
    """Run a script on the package's test input, compare with its test output, and package it.

    Raises:
        ModelPackageError: if it gives anything else.
    """
    where = task.source.where
    if task.input_axes.spatial != tuple("zyx"[-task.input_axes.dims :]):
        raise ModelPackageError(
            f"{where}: its script takes the axes {task.input_axes.spatial}; run as it is, it must take (z,) y, x."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is announced to go; there is nothing else that runs these files
        network = torch.jit.load(script.path, map_location="cpu").eval()
        output = logits_of(network, task.image)
    difference = compare(output, task.activation, task.expected)
    if not difference.is_small:
        raise ModelPackageError(f"{where}: its TorchScript does not give its test output: {difference.in_words}.")
    activation = task.activation
    probabilities = activation == "none" and bool(((task.expected >= 0) & (task.expected <= 1)).all())
    if probabilities:
        sums = task.expected.sum(axis=1)
        activation = "softmax" if task.expected.shape[1] > 1 and np.allclose(sums, 1, atol=1e-3) else "sigmoid"
    kind = kind_of(activation)
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
    package: Callable[..., Footprint] = import_module("unet_core.foreign.opaque").package_torchscript
    geometry = package(
        script.path,
        out,
        description,
        dims=task.input_axes.dims,
        probabilities=probabilities,
        halo=task.output_axes.halo,
        test_input=task.image,
        trusted=True,
    )
    notes = (
        [f"its {activation} is part of the script, as its output shows"] if probabilities and activation in ACTIVATIONS else []
    )
    return Packaged(read_description(out)[0], geometry, difference, tuple(notes))

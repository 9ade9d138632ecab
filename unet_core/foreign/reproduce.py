"""Whether a network gives the output that a package stores for its test input. Knows no package format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unet_core.errors import ModelPackageError
from unet_core.foreign.architectures import Candidate
from unet_core.foreign.observe import REFUSALS
from unet_core.foreign.processing import Activation
from unet_core.model_description import NetworkSpec

TOLERANCE = 1e-5  # of the range of the stored output

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "none": lambda logits: logits,
    "sigmoid": torch.sigmoid,
    "softmax": lambda logits: logits.softmax(dim=1),
}


@dataclass(frozen=True)
class Difference:
    """Greatest distance of two arrays, in their own unit and as a share of the stored one's range.

    ``why`` says what kept the network from giving anything comparable; the numbers are infinite then.
    """

    absolute: float
    relative: float
    why: str = ""

    @property
    def is_small(self) -> bool:
        return self.relative <= TOLERANCE

    @property
    def in_words(self) -> str:
        off = f"it is {self.absolute:.3g} off, {self.relative:.3g} of its range; allowed is {TOLERANCE:g}"
        return self.why or off


@dataclass(frozen=True)
class Chosen:
    """The network that gives the test output."""

    spec: NetworkSpec
    network: nn.Module
    activation: Activation
    difference: Difference


def choose(
    found: Sequence[Candidate], image: NDArray[np.float32], expected: NDArray[np.floating], activation: Activation, where: str
) -> Chosen | ModelPackageError:
    """The one candidate that gives the stored output, or why none can be chosen.

    Args:
        found: at least one.
        image: normalised, (C, *spatial).
        expected: stored output, (1, K, *spatial).
        activation: that the package states; if "none", the network may still end in one.
        where: for messages.
    """
    tried: list[Chosen] = []
    for candidate in found:
        network = candidate.build(where)
        logits = logits_of(network, image)
        names: tuple[Activation, ...] = tuple(ACTIVATIONS) if activation == "none" else (activation,)
        tried += [Chosen(candidate.spec, network, name, compare(logits, name, expected)) for name in names]
    good = [chosen for chosen in tried if chosen.difference.is_small]
    if len(good) == 1:
        return good[0]
    best = min(good or tried, key=lambda chosen: chosen.difference.relative)
    shown = f"network '{best.spec.name}' with {best.spec.arguments}"
    if good:
        return ModelPackageError(
            f"{where}: {len(good)} of {len(tried)} ways to read its weights give its test output, so that none can be chosen; one is {shown}."
        )
    return ModelPackageError(
        f"{where}: its weights do not give its test output in any of {len(tried)} ways; the nearest is {shown}: {best.difference.in_words}."
    )


def logits_of(network: Callable[[Tensor], Tensor], image: NDArray[np.float32]) -> Tensor | str:
    """Output (1, K, *spatial) for a normalised image (C, *spatial), or why there is none."""
    try:
        with torch.inference_mode():
            logits = network(torch.from_numpy(image)[None])
    except REFUSALS as error:  # a size or a number of channels that the network does not take
        lines = str(error).split("\n")  # of a script, its code comes before the reason
        return next((line.strip()[-300:] for line in reversed(lines) if line.strip()), type(error).__name__)
    return logits if isinstance(logits, Tensor) else f"it gives a {type(logits).__name__}"


def compare(logits: Tensor | str, activation: Activation, expected: NDArray[np.floating]) -> Difference:
    """How far the activated logits are from what is expected, (1, K, *spatial)."""
    if isinstance(logits, str):
        return Difference(np.inf, np.inf, logits)
    if tuple(logits.shape) != expected.shape:
        return Difference(np.inf, np.inf, f"it gives the shape {tuple(logits.shape)}, stored is {expected.shape}")
    with torch.inference_mode():
        found = ACTIVATIONS[activation](logits.double()).numpy()
    absolute = float(np.abs(found - expected).max())
    extent = float(np.ptp(expected))
    if not np.isfinite(absolute) or extent == 0:
        return Difference(np.inf, np.inf, "the network or the stored output is not finite, or the same everywhere")
    return Difference(absolute, absolute / extent)

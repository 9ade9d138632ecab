"""A network whose operations are not read: TorchScript, run when the user calls the file trusted.

A TorchScript file carries code, which runs when the file is loaded. Nothing in a package can say that it is safe to load; only
the user of this very run can. Nothing here knows of images or blocks.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from math import prod
from typing import Any, Literal

import pydantic
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from unet_core.errors import BlockError, FootprintError, ModelPackageError
from unet_core.footprint import stated_footprint
from unet_core.foreign.observe import Observed, observe
from unet_core.geometry import Shape
from unet_core.model_description import TORCHSCRIPT, ModelDescription
from unet_core.validation import first_problem

# Probabilities are kept this far from 0 and 1, so that their logits are finite; they come out of it unchanged to 1e-7.
PROBABILITY_EPS = 1e-7


class _Arguments(BaseModel):
    """What ``network.arguments`` of a TorchScript package says; sizes in voxels, one an axis; see ``stated_footprint``.

    Args:
        in_channels: of the input.
        classes: channels of the output.
        dims: spatial axes.
        probabilities: whether the output has been through sigmoid (regions) or soft-max (classes).
        before, after, stride, shrink, smallest: see ``stated_footprint``.
        margin: whether before, after and stride were measured, or stated by the user.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    in_channels: int = Field(ge=1, le=1 << 16)
    classes: int = Field(ge=1, le=1 << 16)
    dims: Literal[2, 3]
    probabilities: bool
    before: list[int]
    after: list[int]
    stride: list[int]
    shrink: list[int]
    smallest: list[int]
    margin: Literal["measured", "stated"]


class OpaqueNetwork(nn.Module):
    """A TorchScript module whose operations are not read, with its geometry; returns logits (1, K, *spatial).

    Args:
        script: on any device.
        arguments: of the package.
        kind: of the head, which tells how probabilities become logits.

    Raises:
        FootprintError: if the geometry contradicts itself.
    """

    def __init__(self, script: Any, arguments: _Arguments, kind: str) -> None:
        super().__init__()
        self.script = script
        self.arguments = arguments
        self.footprint = stated_footprint(
            *(tuple(getattr(arguments, name)) for name in ("before", "after", "stride", "shrink", "smallest")),
            dims=arguments.dims,
        )
        self._kind = kind

    def forward(self, value: Tensor) -> Tensor:
        expected = (1, self.arguments.classes, *self.footprint.output_shape(tuple(value.shape[2:])))
        result = runnable(self.script)(value)
        if tuple(result.shape) != expected:
            raise BlockError(
                f"TorchScript returns shape {tuple(result.shape)} for {tuple(value.shape)}, its description says {expected}; "
                "import the file again"
            )
        return _logits(result, self._kind) if self.arguments.probabilities else result

    def observe(self, input_shape: Shape) -> Observed:
        """Memory and operations of one forward pass on (C, *spatial)."""
        small = self.footprint.legal_shape(
            tuple(2 * (lost + step) for lost, step in zip(self.arguments.shrink, self.footprint.stride, strict=True))
        )

        def output_voxels(shape: Shape) -> int:
            return prod(self.footprint.output_shape(shape))

        return observe(self, input_shape, (self.arguments.in_channels, *small), output_voxels)

    @property
    def why_unproven(self) -> str:
        """The sentence that tells the user what ``exact: unproven`` means here."""
        before, after = self.footprint.margin
        return (
            f"The margin of {before} voxels before and {after} after was {self.arguments.margin}, not derived, since the operations of "
            "TorchScript are not read; if the network looks farther, the result depends on how the image is cut."
        )


def check_trusted(where: str, trusted: bool) -> None:
    """Refuse TorchScript that the user has not called trusted; to be called before a byte of it is read.

    Raises:
        ModelPackageError: with what to do.
    """
    if not trusted:
        raise ModelPackageError(
            f"Model {where} holds TorchScript, which can carry code; use --trust-model if you know where it comes from."
        )


def load_opaque(data: bytes, description: ModelDescription, url: str) -> OpaqueNetwork:
    """The network of a package, from the bytes of its file; the caller has checked trust and hash.

    Raises:
        ModelPackageError: if the file is no TorchScript, or the arguments are not what it needs.
    """
    try:
        arguments = _Arguments.model_validate(description.network.arguments)
        return OpaqueNetwork(load_script(data, url), arguments, description.heads[0].kind).eval()
    except pydantic.ValidationError as error:
        raise ModelPackageError(
            f"{url}: argument {first_problem(error)} of network '{TORCHSCRIPT}'; import the file again."
        ) from None
    except FootprintError as error:
        raise ModelPackageError(f"{url}: {error}") from None


def alone(result: Any) -> Tensor:
    """The only array that a network returns.

    Raises:
        ModelPackageError: if it returns something else.
    """
    if isinstance(result, tuple | list) and len(result) == 1:
        result = result[0]
    if not isinstance(result, Tensor):
        raise ModelPackageError(f"The network returns a {type(result).__name__}, not one array; only one output can be run.")
    return result


def runnable(script: Any) -> Callable[[Tensor], Tensor]:
    """A loaded script as the function that it is: one array in, one array out, each run as the first one."""

    def network(value: Tensor) -> Tensor:
        with unprofiled():
            return alone(script(value))

    return network


def _logits(values: Tensor, kind: str) -> Tensor:
    """Logits of probabilities; NaN, which is refused later, where a value is no probability."""
    values = values.float()
    clamped = values.clamp(PROBABILITY_EPS, 1 - PROBABILITY_EPS)
    logits = clamped.log() if kind == "classes" else clamped.logit()
    return torch.where((values >= 0) & (values <= 1), logits, torch.nan)


def unprofiled() -> Any:
    """Each run of a script as the first one; else it is profiled, and later runs may round otherwise."""
    return torch.jit.optimized_execution(False)  # type: ignore[attr-defined]


def load_script(data: bytes, where: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit is here to be read, not to be written anew
            script: Any = torch.jit.load(io.BytesIO(data), map_location="cpu")
    except (RuntimeError, ValueError, EOFError) as error:
        raise ModelPackageError(f"{where} is no TorchScript file ({str(error).strip()[:200]}); export the model again.") from None
    script.eval()
    for parameter in script.parameters():
        parameter.requires_grad_(False)
    return script

"""The models of a run and the symmetries that they see the image under: what all must share, and what they need together.

Knows no images and runs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import lcm
from typing import Any

from unet_core.errors import ModelPackageError
from unet_core.geometry import Shape
from unet_core.model_package import ModelDescription, ModelPackage
from unet_core.passes import Pass
from unet_core.symmetries import SYMMETRIES, SymmetrySet


@dataclass(frozen=True)
class Ensemble:
    """Models whose probabilities are averaged, each over the same symmetries; one model without symmetries most of the time.

    Args:
        packages: at least one; alike, see ``check_alike``.
        symmetries: of the square, or "none".
    """

    packages: tuple[ModelPackage, ...]
    symmetries: SymmetrySet = "none"

    @property
    def description(self) -> ModelDescription:
        """Of the first model: heads, classes, channels and voxel size are those of all."""
        return self.packages[0].description

    @property
    def dims(self) -> int:
        return self.packages[0].dims

    @property
    def input_channels(self) -> int:
        return len(self.description.input_channels)

    @cached_property
    def stride(self) -> Shape:
        """Blocks of whole multiples of it lie on the grid of every model."""
        return tuple(lcm(*steps) for steps in zip(*(package.footprint.stride for package in self.packages), strict=True))

    @cached_property
    def whole_box(self) -> tuple[str, ...]:
        """Layers of any model whose result depends on the whole box."""
        return tuple(dict.fromkeys(layer for package in self.packages for layer in package.whole_box))

    @cached_property
    def passes(self) -> tuple[Pass, ...]:
        """One for each model and symmetry."""
        return tuple(
            Pass(
                number,
                f"model '{package.description.name}', image {symmetry.name}",
                package.footprint,
                symmetry,
                bool(package.whole_box),
            )
            for number, package in enumerate(self.packages)
            for symmetry in SYMMETRIES[self.symmetries]
        )

    @cached_property
    def margin(self) -> tuple[Shape, Shape]:
        """Voxels (before, after) a block that some pass needs, but for what keeps it aligned and its size legal."""
        before, after = [], []
        for step in self.passes:
            near = step.footprint
            ends = [(near.before[axis], near.after[axis]) for axis in range(near.dims)]
            for axis, flip in zip((-2, -1), step.symmetry.flips, strict=True):
                ends[axis] = ends[axis][::-1] if flip else ends[axis]
            if step.symmetry.swaps:
                ends[-2:] = ends[:-3:-1]
            before.append(tuple(first for first, _ in ends))
            after.append(tuple(last for _, last in ends))
        return tuple(map(max, zip(*before, strict=True))), tuple(map(max, zip(*after, strict=True)))

    @property
    def skip(self) -> Shape:
        return tuple(map(max, zip(*(package.footprint.skip for package in self.packages), strict=True)))


def check_alike(packages: tuple[ModelPackage, ...]) -> None:
    """Refuse models whose probabilities have no common meaning, and one that is named twice.

    Raises:
        ModelPackageError: naming both models and the field in which they differ.
    """
    first = packages[0]
    for number, other in enumerate(packages[1:], 1):
        for field, own, its in zip(_FIELDS, _shared(first), _shared(other), strict=True):
            if own != its:
                raise ModelPackageError(
                    f"Models {first.url} and {other.url} have different {field}: {_short(own)} and {_short(its)}; the mean of their "
                    "probabilities would mean nothing, use models that were trained alike."
                )
        twin = next((earlier for earlier in packages[:number] if earlier.sha256 == other.sha256), None)
        if twin is not None:
            raise ModelPackageError(f"Models {twin.url} and {other.url} are the same, and would count twice; name each once.")


_FIELDS = ("axes", "input channels", "heads", "classes", "voxel size (um)")


def _shared(package: ModelPackage) -> tuple[Any, ...]:
    stated = package.description
    heads = tuple(head.model_dump(mode="json") for head in stated.heads)
    classes = tuple(entry.model_dump() for entry in stated.classes)
    return package.dims, stated.input_channels, heads, classes, stated.voxel_size_um


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:197]}..."

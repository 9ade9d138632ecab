"""What a package of bioimage.io says of itself, as a ``model.json`` of ours. Reads no file and knows no tensors."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any, Literal

import pydantic

from unet_core.errors import ModelPackageError
from unet_core.foreign.axes import Axes
from unet_core.foreign.processing import Normalised
from unet_core.foreign.source import Source, StoredFile
from unet_core.model_description import Head, LabelClass, ModelDescription, NetworkSpec
from unet_core.validation import first_problem

OutputKind = Literal["classes", "regions"]

CONFIG_KEY = "unet_flows"  # of the yaml's config, where our own packages keep their description


def describe(
    source: Source,
    network: NetworkSpec,
    input_axes: Axes,
    output_axes: Axes,
    kind: OutputKind,
    normalisation: Normalised,
    facts: dict[str, Any],
) -> ModelDescription:
    """The description of a package.

    Args:
        source: the package.
        network: as found.
        input_axes: gives the names of channels and the voxel size.
        output_axes: gives the names of classes.
        kind: of the head.
        normalisation: of intensities.
        facts: further provenance: what the import read, and what it measured.
    """
    names = output_axes.channel_names
    first = 0 if kind == "classes" else 1  # the first class is the background, regions have none
    return ModelDescription(
        name=str(source.description.name),
        network=network,
        heads=(Head(kind=kind, name=kind, channels=tuple(range(len(names)))),),
        classes=tuple(
            LabelClass(value=number, name=name, color=_color(number)) for number, name in enumerate(names, start=first)
        ),
        input_channels=input_axes.channel_names,
        voxel_size_um=input_axes.voxel_size_um or "unknown",
        normalisation=normalisation,
        provenance=_provenance(source) | facts,
    )


def stated_description(source: Source) -> ModelDescription | None:
    """The description that a package of ours keeps in its yaml, or None.

    Raises:
        ModelPackageError: if it is there and is none.
    """
    config = source.content.get("config")
    stated = config.get(CONFIG_KEY) if isinstance(config, dict) else None
    if stated is None:
        return None
    try:
        return ModelDescription.model_validate(stated)
    except pydantic.ValidationError as error:
        raise ModelPackageError(f"{source.where}: config.{CONFIG_KEY}: {first_problem(error)}; export the model again.") from None


def files_of(files: Sequence[StoredFile]) -> dict[str, str]:
    return {file.name: file.sha256 for file in files}


def _provenance(source: Source) -> dict[str, Any]:
    """Where the model comes from, whose it is, and under which terms."""
    description = source.description
    facts = {
        "format": f"bioimage.io {source.content.get('format_version')}",
        "id": description.id,
        "version": description.version,
        "description": description.description,
        "authors": [str(author.name) for author in description.authors or ()],
        "license": description.license,
        "cite": [
            {name: str(value) for name in ("text", "doi", "url") if (value := getattr(entry, name, None)) is not None}
            for entry in description.cite or ()
        ],
        "git_repo": description.git_repo,
    }
    return {name: value if isinstance(value, list) else str(value) for name, value in facts.items() if value}


def _color(number: int) -> str:
    """Black for the background, then hues far apart from each other."""
    if number == 0:
        return "#000000"
    red, green, blue = colorsys.hsv_to_rgb(
        (number - 1) * 0.618034 % 1, 0.85, 1.0
    )  # the golden section never comes near a former hue
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"

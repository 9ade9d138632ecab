"""What a package of bioimage.io says of itself, as a ``model.json`` of ours. Reads no file and knows no tensors."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from math import isclose
from typing import Any, Literal

import pydantic

from unet_core.errors import ModelPackageError
from unet_core.foreign.axes import Axes, distinct
from unet_core.foreign.bioimageio_description import CONFIG_KEY
from unet_core.foreign.processing import Normalised
from unet_core.foreign.source import Source, StoredFile
from unet_core.model_description import Head, LabelClass, ModelDescription, NetworkSpec, check_description
from unet_core.validation import first_problem, shorten

OutputKind = Literal["classes", "regions"]


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
    try:
        return ModelDescription(
            name=str(source.description.name),
            network=network,
            heads=(one_head(kind, len(names)),),
            classes=label_classes(names, kind),
            input_channels=input_axes.channel_names,
            voxel_size_um=input_axes.voxel_size_um or "unknown",
            normalisation=normalisation,
            provenance=_provenance(source) | facts,
        )
    except pydantic.ValidationError as error:
        raise ModelPackageError(f"{source.where} cannot be described here: {first_problem(error)}.") from None


def one_head(kind: OutputKind, count: int) -> Head:
    """The head of a network whose ``count`` channels are all of one kind."""
    return Head(kind=kind, name=kind, channels=tuple(range(count)))


def label_classes(names: Sequence[str], kind: OutputKind) -> tuple[LabelClass, ...]:
    """One class a channel, in its order; the first of ``classes`` is the background, regions have none.

    Raises:
        ModelPackageError: for a name that is empty or too long.
    """
    first = 0 if kind == "classes" else 1
    try:
        return tuple(LabelClass(value=number, name=name, color=_color(number)) for number, name in enumerate(names, first))
    except pydantic.ValidationError as error:
        raise ModelPackageError(f"Classes {shorten(', '.join(names))}: {first_problem(error)}.") from None


def stated_description(source: Source, input_axes: Axes, output_axes: Axes) -> ModelDescription | None:
    """The description that a package of ours keeps in its yaml, or None.

    Raises:
        ModelPackageError: if it is there and is none, or says something else than the rest of the yaml.
    """
    config = source.content.get("config")
    stated = config.get(CONFIG_KEY) if isinstance(config, dict) else None
    if stated is None:
        return None
    place = f"{source.where}: config.{CONFIG_KEY}"
    try:
        description = ModelDescription.model_validate(stated)
    except pydantic.ValidationError as error:
        raise ModelPackageError(f"{place}: {first_problem(error)}; export the model again.") from None
    check_description(description, place)
    _check_same(description, input_axes, output_axes, place)
    return description


def _check_same(description: ModelDescription, input_axes: Axes, output_axes: Axes, place: str) -> None:
    """Refuse names and sizes that differ from those of the axes: exchanged, they would label a result wrongly."""
    by_channel = sorted(zip(description.heads[0].channels, description.classes, strict=True), key=lambda pair: pair[0])
    compared = (
        ("classes", distinct(entry.name for _, entry in by_channel), output_axes.channel_names),
        ("input channels", distinct(description.input_channels), input_axes.channel_names),
    )
    for what, stated, seen in compared:
        if stated != seen:
            raise ModelPackageError(
                f"{place} has the {what} {shorten(', '.join(stated))}, the axes {shorten(', '.join(seen))}; export the model again."
            )
    size = None if description.voxel_size_um == "unknown" else description.voxel_size_um
    axes_size = input_axes.voxel_size_um
    if (size is None) != (axes_size is None) or (size and axes_size and not _nearly(size, axes_size)):
        raise ModelPackageError(
            f"{place} has the voxel size {size or 'unknown'}, the axes {axes_size or 'unknown'} in micrometre; export the model again."
        )


def _nearly(first: Sequence[float], second: Sequence[float]) -> bool:
    """Equal but for what is lost when a voxel size is written in float32."""
    return len(first) == len(second) and all(isclose(a, b, rel_tol=1e-6) for a, b in zip(first, second, strict=True))


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

"""What ``bioimageio.yaml`` says of a model package, in the words of format 0.5. Knows neither files nor weights.

Source: the specification of bioimage.io model descriptions 0.5, https://bioimage-io.github.io/spec-bioimage-io.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any

import numpy as np

from unet_core.errors import ModelPackageError
from unet_core.footprint import Footprint
from unet_core.geometry import Shape
from unet_core.model_description import ImageNormalisation, ModelDescription

INPUT_ID, OUTPUT_ID = "image", "probabilities"
CONFIG_KEY = "unet_flows"  # holds model.json without its weights, from which a package is restored as it was
_AXES = "zyx"
_NAME_LETTERS = set(string.ascii_letters + string.digits + "_+- ()")
_SMALLEST_NAME = 5
_LONGEST_NAME, _LONGEST_TEXT = 128, 1024
_DTYPES = ("float32", "float64", "uint8", "int8", "uint16", "int16", "uint32", "int32")
# Readers add 1e-6 to what they divide by; below this that would show, so we multiply instead.
_SMALLEST_DIVISOR = 1e-2
_NEARLY_NO_EPS = 1e-12  # the format has no 0
_READERS_EPS = 1e-6  # that bioimageio.core 0.11 adds whatever the package states


_EPS_NOTE = (
    "Percentiles of the image go to 0 and 1, with nothing added to their distance. Readers that add "
    f"{_READERS_EPS:g} differ by that share of it: 10 % where the distance is 1e-5. Scale such images up before."
)


def intensity_type(description: ModelDescription) -> str:
    """Type of the intensities that a reader should give the model: that of the training images, if the format has it."""
    dtype = getattr(description.normalisation, "dtype", None)
    return dtype if dtype in _DTYPES else "float32"


def halo(geometry: Footprint) -> Shape:
    """Voxels at each end of every output axis that padding spoils; 0 if the network is unpadded. Whole strides."""
    margins = zip(geometry.before, geometry.after, geometry.stride, strict=True)
    return tuple(-(-max(before, after) // step) * step if geometry.is_padded else 0 for before, after, step in margins)


def smallest_shape(geometry: Footprint) -> Shape:
    """The smallest legal input of which something is left when the halo is cut off."""
    return geometry.legal_shape(tuple(2 * cut + 1 for cut in halo(geometry)))


def tensors(description: ModelDescription, geometry: Footprint) -> tuple[dict[str, Any], dict[str, Any]]:
    """The input and the output, without their test tensors.

    An unpadded network returns less than it reads (a negative ``offset`` of each size); a padded one as much, of
    which ``halo`` is to be cut off.
    """
    shape = geometry.legal_shape((1,) * geometry.dims)
    shrinks = tuple(kept - size for size, kept in zip(shape, geometry.output_shape(shape), strict=True))
    sizes = [None] * geometry.dims if description.voxel_size_um == "unknown" else description.voxel_size_um
    inputs: list[dict[str, Any]] = [{"type": "batch"}, {"type": "channel", "channel_names": list(description.input_channels)}]
    outputs: list[dict[str, Any]] = [
        {"type": "batch"}, {"type": "channel", "channel_names": [entry.name for entry in description.classes]}
    ]  # fmt: skip
    for axis, size_um, smallest, step, shrink, cut in zip(
        _AXES[-geometry.dims :], sizes, smallest_shape(geometry), geometry.stride, shrinks, halo(geometry), strict=True
    ):
        space = {"type": "space", "id": axis} | ({} if size_um is None else _scale(size_um))
        inputs.append(space | {"size": {"min": smallest, "step": step}})
        size = {"tensor_id": INPUT_ID, "axis_id": axis, "offset": shrink}
        outputs.append(space | {"size": size} | ({"halo": cut} if cut else {}))
    image = {
        "id": INPUT_ID,
        "axes": inputs,
        "data": {"type": intensity_type(description)},
        "preprocessing": [_to_float32(), *_preprocessing(description, geometry.dims), _to_float32()],
    }
    softmax: dict[str, Any] = {"id": "softmax", "kwargs": {"axis": "channel"}}
    activation = softmax if description.heads[0].activation == "softmax" else {"id": "sigmoid"}
    probabilities = {
        "id": OUTPUT_ID,
        "axes": outputs,
        "data": {"type": "float32", "range": [0.0, 1.0]},
        "postprocessing": [activation, _to_float32()],
    }
    return image, probabilities


def _scale(size_um: float) -> dict[str, Any]:
    """Voxel size and unit such that readers, who compute ``int(count * scale / scale)``, get the count.

    Whole nanometres do that, and so does any number of float32: its product with a count below 2**29 is exact in float64.
    With 0.325 micrometre 7 voxels would become 6.
    """
    nanometre = size_um * 1000
    if round(nanometre) > 0 and abs(nanometre - round(nanometre)) < 1e-9 * nanometre:
        return {"unit": "nanometer", "scale": float(round(nanometre))}
    return {"unit": "micrometer", "scale": float(np.float32(size_um))}


def _to_float32() -> dict[str, Any]:
    return {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}}


def _preprocessing(description: ModelDescription, dims: int) -> list[dict[str, Any]]:
    kind = description.normalisation.kind
    if kind not in _NORMALISATIONS:
        raise ModelPackageError(
            f"Normalisation of kind '{kind}' has no export to bioimage.io; kinds {', '.join(_NORMALISATIONS)} have. "
            "Export to ONNX and normalise before running it."
        )
    return _NORMALISATIONS[kind](description.normalisation, dims)


def _fixed(stated: Any, dims: int) -> list[dict[str, Any]]:
    if min(stated.scale) >= _SMALLEST_DIVISOR:
        kwargs = {"axis": "channel", "mean": list(stated.offset), "std": list(stated.scale)}
        return [{"id": "fixed_zero_mean_unit_variance", "kwargs": kwargs}]
    gain = [1 / scale for scale in stated.scale]
    shift = [-offset / scale for offset, scale in zip(stated.offset, stated.scale, strict=True)]
    return [{"id": "scale_linear", "kwargs": {"axis": "channel", "gain": gain, "offset": shift}}]


def _axes(stated: Any, dims: int) -> list[str]:
    return [*(["channel"] if stated.joint else []), *_AXES[-dims:]]


def _percentiles(stated: Any, dims: int) -> list[dict[str, Any]]:
    kwargs = {"axes": _axes(stated, dims), "min_percentile": stated.low, "max_percentile": stated.high}
    return [{"id": "scale_range", "kwargs": kwargs | {"eps": stated.eps or _NEARLY_NO_EPS}}]


def _moments(stated: Any, dims: int) -> list[dict[str, Any]]:
    return [{"id": "zero_mean_unit_variance", "kwargs": {"axes": _axes(stated, dims), "eps": stated.eps}}]


def _none(stated: Any, dims: int) -> list[dict[str, Any]]:
    return []


# A kind of normalisation is one line here: its steps in the format's words.
_NORMALISATIONS: dict[str, Callable[[Any, int], list[dict[str, Any]]]] = {
    "fixed": _fixed,
    "image": _percentiles,
    "moments": _moments,
    "none": _none,
}


def about(description: ModelDescription, authors: tuple[str, ...], licence: str | None) -> dict[str, Any]:
    """Name, text, authors, licence and citations: what is told, else what the package's provenance says, else nothing."""
    provenance = description.provenance
    named = authors or tuple(map(str, _listed(provenance.get("authors"))))
    classes = ", ".join(entry.name for entry in description.classes)
    text = (
        provenance.get("description")
        or f"{description.network.name} for {classes}. Data: {provenance.get('data', 'not stated')}."
    )
    name = "".join(letter if letter in _NAME_LETTERS else "-" for letter in description.name)
    if len(name) < _SMALLEST_NAME:
        name = f"{name} ({description.network.name} model)"
    facts: dict[str, Any] = {
        "name": name[:_LONGEST_NAME],
        "description": str(text)[:_LONGEST_TEXT],
        "authors": [{"name": author} for author in named],
        "cite": _listed(provenance.get("cite")),
    }
    chosen = licence or provenance.get("license")
    return facts | ({"license": str(chosen)} if chosen else {})


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def readme(description: ModelDescription, geometry: Footprint, whole_box: tuple[str, ...]) -> str:
    """The documentation that goes into the package, in Markdown; ``whole_box`` are the layers that look at the whole image."""
    provenance = description.provenance
    scores, stated = provenance.get("scores"), description.normalisation
    kind = "padded: what its halo spoils is to be cut off" if geometry.is_padded else "unpadded: it returns less than it reads"
    blocks = (
        f"Layers {', '.join(whole_box)} look at the whole image, so blocks of it give another result than one pass over the whole; "
        "margin and stride are those of the other layers."
        if whole_box
        else "Blocks that start on multiples of the stride and are read with this margin give the result of one pass over the whole image."
    )
    lines = [
        f"# {description.name}", "",
        f"Network {description.network.name}, {kind}. Margin in voxels: {geometry.before} before, {geometry.after} after; "
        f"stride {geometry.stride}. {blocks}", "",
        *([_EPS_NOTE, ""] if isinstance(stated, ImageNormalisation) and not stated.eps else []),
        f"Data: {provenance.get('data', 'not stated')}", "",
        "The weights in PyTorch's format need the Python package unet-flows. Its command `unet segment` runs the model on "
        f"images of any size; `config.{CONFIG_KEY}` holds the model's own description.", "",
        "## Validation", "",
        f"Held-out scores: {scores}." if scores else "No scores are recorded. Compare the labels with a drawn ground truth of your own data.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"

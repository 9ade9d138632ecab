"""Model packages of bioimage.io taken over as packages of ours, when their network is a known one and gives their test output.

No code of a package is run, unless the user calls its TorchScript trusted; nothing is downloaded. Format:
https://bioimage.io, versions 0.4 and 0.5, read by bioimageio.spec.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from unet_core.errors import ModelPackageError
from unet_core.footprint import Footprint
from unet_core.foreign.architectures import OURS, Architecture, Candidate, candidates, unknown
from unet_core.foreign.axes import Axes, axes_of
from unet_core.foreign.describe import OutputKind, describe, files_of, stated_description
from unet_core.foreign.new_package import check_new_package
from unet_core.foreign.processing import Activation, Normalised, activation_of, check_reference, normalisation_of
from unet_core.foreign.reproduce import Chosen, Difference, choose
from unet_core.foreign.script import could_be_probabilities, package_script
from unet_core.foreign.source import MAX_TENSOR_BYTES, READ, Source, StoredFile, open_package
from unet_core.foreign.torchscript import read_state
from unet_core.inputs import Source as ImageSource
from unet_core.model_description import ModelDescription, NetworkSpec
from unet_core.model_package import load_model, save_model
from unet_core.sampling import resolve_normalisation
from unet_core.volumes import ArrayVolume
from unet_core.wording import counted

KIND: dict[Activation, OutputKind] = {"sigmoid": "regions", "softmax": "classes"}


@dataclass(frozen=True)
class Imported:
    """What became of a package.

    Args:
        description: what ``model.json`` says.
        footprint: of the network; the notes say what of it depends on the whole image.
        difference: to the package's own test output.
        weights: format of what was read.
        notes: what the user should know.
    """

    description: ModelDescription
    footprint: Footprint
    difference: Difference
    weights: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """A package, its input and output in our terms, and its test tensors: the image normalised, (C, *spatial)."""

    source: Source
    input_axes: Axes
    output_axes: Axes
    normalisation: Normalised
    activation: Activation
    stated: ModelDescription | None
    image: NDArray[np.float32]
    expected: NDArray[np.float64]
    files: tuple[StoredFile, ...]


def import_model(
    source: str | Path, out: str | Path, *, trusted: bool = False, output_kind: OutputKind | None = None
) -> Imported:
    """Take a package over: find its network by the names of its weights, reproduce its test output, write a package of ours.

    Args:
        source: folder with bioimageio.yaml or rdf.yaml, that file, or a zip of the folder.
        out: folder or URL of the new package; must not hold one.
        trusted: whether TorchScript of an unknown network may be run, which can do anything that a program can.
        output_kind: what the output is, where the package ends in no activation.

    Raises:
        ModelPackageError: naming what has no counterpart here, or how far the network is from the test output.
    """
    check_new_package(str(out))
    with open_package(source) as package:
        task = _task(package)
        weights, file, state, found = _weights(package, trusted)
        task = _with_file(task, file)
        turned = [_in_zyx(candidate, task.input_axes) for candidate in found]
        chosen = choose(turned, task.image, task.expected, task.activation, package.where) if turned else None
        if isinstance(chosen, Chosen):
            return _write(task, chosen, weights, str(out), output_kind)
        if chosen is not None:  # a known network with other weights than its test output is of: no script mends that
            raise chosen
        script, problem = _script(package), unknown(state, f"{package.where}: {file.name}")
        if script is None:
            raise problem
        if not trusted:
            raise ModelPackageError(
                f"{problem} Its TorchScript could be run as it is, but can carry code: --trust-model does so, if you know where it comes from."
            )
        kind = _kind(task, task.activation, output_kind)
        done = package_script(_with_file(task, script), script, str(out), kind, _facts)
        return Imported(done.description, done.footprint, done.difference, "torchscript, run as it is", done.notes)


def _task(package: Source) -> Task:
    description, where = package.description, package.where
    if len(description.inputs) != 1 or len(description.outputs) != 1:
        raise ModelPackageError(
            f"{where} has {counted(len(description.inputs), 'input')} and {counted(len(description.outputs), 'output')}; "
            "models here take one image and give one."
        )
    entry, result = description.inputs[0], description.outputs[0]
    input_axes = axes_of(entry, f"{where}: input {entry.id}")
    output_axes = axes_of(result, f"{where}: output {result.id}", package.fixed_halo)
    if input_axes.spatial != output_axes.spatial:
        raise ModelPackageError(
            f"{where}: input along {input_axes.spatial}, output along {output_axes.spatial}; they must be alike."
        )
    check_reference(entry.preprocessing, str(entry.id), where)
    stated = stated_description(package, input_axes, output_axes) if _is_ours(package) else None
    normalisation = stated.normalisation if stated else normalisation_of(entry.preprocessing, input_axes, where)
    raw, input_file = _test_tensor(package, entry, input_axes)
    expected, output_file = _test_tensor(package, result, output_axes)
    spatial = "zyx"[-input_axes.dims :]
    image = ImageSource(ArrayVolume(raw[0], f"c{spatial}", url=f"{where}: {input_file.name}"), spatial)
    return Task(
        source=package,
        input_axes=input_axes,
        output_axes=output_axes,
        normalisation=normalisation,
        activation=activation_of(result.postprocessing, output_axes, where),
        stated=stated,
        image=resolve_normalisation(normalisation, image).apply(raw[0]),
        expected=expected.astype(np.float64),
        files=(input_file, output_file),
    )


def _is_ours(package: Source) -> bool:
    entry = package.description.weights.pytorch_state_dict
    architecture = _architecture(entry) if entry is not None else None
    return architecture is not None and (architecture.callable, architecture.import_from) == OURS


def _architecture(entry: Any) -> Architecture:
    stated = entry.architecture
    return Architecture(str(stated.callable), getattr(stated, "import_from", None), stated.kwargs)


def _test_tensor(package: Source, tensor: Any, axes: Axes) -> tuple[NDArray[Any], StoredFile]:
    """A test tensor as (1, C, (Z,) Y, X)."""
    if tensor.test_tensor is None:
        raise ModelPackageError(
            f"{package.where} has no test tensor for {tensor.id}; without one, nothing shows that the import is right."
        )
    file = package.file(tensor.test_tensor.source, tensor.test_tensor.sha256, MAX_TENSOR_BYTES)
    array = package.array(file)
    channels = len(axes.channel_names)
    if array.ndim != 2 + axes.dims or array.shape[:2] != (1, channels) or not array.size:
        raise ModelPackageError(
            f"{package.where}: {file.name} has the shape {array.shape}; expected are 1 image, {channels} channels and {axes.dims} spatial axes."
        )
    return axes.in_zyx(np.array(array, dtype=np.uint8 if array.dtype == bool else array.dtype)), file


def _with_file(task: Task, file: StoredFile) -> Task:
    return Task(**{**vars(task), "files": (*task.files, file)})


def _weights(package: Source, trusted: bool) -> tuple[str, StoredFile, Mapping[str, Tensor], tuple[Candidate, ...]]:
    """Format, file, tensors and candidates of the first weights whose network is known, else of the last that could be read."""
    last = None
    for name in READ:
        entry = getattr(package.description.weights, name)
        if entry is None or not package.has(entry.source):
            continue
        file = package.file(entry.source, _sha256(package, name, entry))
        where = f"{package.where}: {file.name}"
        try:
            state = read_state(file.path)
        except ModelPackageError:
            if name == "torchscript" and trusted:  # it will be run as it is
                state = {}
            else:
                raise
        found = candidates(state, _architecture(entry) if name == "pytorch_state_dict" else None, where)
        last = (name, file, state, found)
        if found:
            break
    if last is None:
        links = ", ".join(f"{name}: {entry.source}" for name in READ if (entry := getattr(package.description.weights, name)))
        raise ModelPackageError(
            f"{package.where} only links to its weights ({links}); nothing is downloaded, get the package with its files."
        )
    return last


def _sha256(package: Source, name: str, entry: Any) -> Any:
    """What the package states; the conversion from version 0.4 forgets it."""
    raw = package.content.get("weights", {}).get(name, {})
    return entry.sha256 or raw.get("sha256")


def _script(package: Source) -> StoredFile | None:
    entry = package.description.weights.torchscript
    if entry is None or not package.has(entry.source):
        return None
    return package.file(entry.source, _sha256(package, "torchscript", entry))


def _in_zyx(candidate: Candidate, axes: Axes) -> Candidate:
    """The same network for an image whose axes are (z,) y, x: its kernels turned likewise."""
    if axes.spatial == tuple("zyx"[-axes.dims :]):
        return candidate
    turned = (0, 1, *(2 + axis for axis in axes.to_zyx))
    state = {name: tensor.permute(turned) if tensor.ndim == len(turned) else tensor for name, tensor in candidate.state.items()}
    return Candidate(candidate.spec, state)


def _kind(task: Task, activation: Activation, output_kind: OutputKind | None) -> OutputKind:
    """What the output is, by its activation, else by the user's word."""
    found = KIND.get(activation)
    if found is None and output_kind is None:
        ends = "; its test output lies in 0..1" if could_be_probabilities(task.expected, "regions") else ""
        raise ModelPackageError(
            f"{task.source.where} states no activation{ends}. So it does not say what "
            f"{counted(len(task.output_axes.channel_names), 'channel')} of it mean; say so with --output-kind classes (one class a "
            "voxel) or regions (each channel above or below one half)."
        )
    if found is not None and output_kind not in (None, found):
        raise ModelPackageError(
            f"{task.source.where} ends in a {activation}, which makes {found}; --output-kind {output_kind} contradicts it, leave it out."
        )
    return found or output_kind or "classes"


def _facts(task: Task, weights: str, difference: Difference) -> dict[str, Any]:
    """Provenance that the import itself adds."""
    return {
        "weights": weights,
        "sha256": files_of(task.files),
        "difference_to_test_output": {"absolute": difference.absolute, "of_range": difference.relative},
    }


def _as_json(spec: NetworkSpec) -> Any:
    return json.loads(spec.model_dump_json())  # tuples and lists are the same there


def _write(task: Task, chosen: Chosen, weights: str, out: str, output_kind: OutputKind | None) -> Imported:
    kind = _kind(task, chosen.activation, output_kind)
    if task.stated is not None:
        description = task.stated
        if description.heads[0].kind != kind or _as_json(description.network) != _as_json(chosen.spec):
            raise ModelPackageError(
                f"{task.source.where}: its config states {description.network} and {description.heads[0].kind}, its weights are of "
                f"{chosen.spec} and its output is {kind}; export the model again."
            )
    else:
        facts = _facts(task, weights, chosen.difference)
        description = describe(task.source, chosen.spec, task.input_axes, task.output_axes, kind, task.normalisation, facts)
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as folder:  # what does not load is never written where the user wants it
        try:
            save_model(folder, chosen.network, description)
            package = load_model(folder)
        except ModelPackageError as error:
            raise ModelPackageError(str(error).replace(folder, task.source.where)) from None
    if package.whole_box:
        notes.append(
            f"layers {', '.join(package.whole_box)} look at the whole image, so it is not exact in parts; run it with --approximate"
        )
    if package.footprint.is_padded:
        notes.append(
            "its own tools continue the image by zeros at its border, here it is mirrored; results differ there by design"
        )
    if task.activation == "none" and chosen.activation != "none":
        notes.append(f"its {chosen.activation} is part of the network, as the test output shows")
    if description.voxel_size_um == "unknown":
        notes.append("it states no voxel size; choose the level of an image yourself")
    save_model(out, chosen.network, description)
    return Imported(description, package.footprint, chosen.difference, weights, tuple(notes))

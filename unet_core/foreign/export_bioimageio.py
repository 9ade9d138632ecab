"""A model package in the format of bioimage.io, checked by running what was written. Knows nothing of blocks.

Shapes: N batch, C channels, then the spatial axes (Z,) Y, X.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import torch
from numpy.typing import NDArray

from unet_core import __version__, networks
from unet_core.errors import ModelPackageError
from unet_core.foreign.architectures import OURS
from unet_core.foreign.bioimageio_description import (
    CONFIG_KEY,
    about,
    intensity_type,
    readme,
    smallest_shape,
    tensors,
)
from unet_core.foreign.export_onnx import OPSET, check_onnx, compared, onnx_model, run_onnx
from unet_core.foreign.exporting import (
    Check,
    Exported,
    check_shapes,
    new_output,
    refuse_unexportable,
    require_extra,
    require_passed,
)
from unet_core.inputs import Source
from unet_core.model_package import ModelPackage
from unet_core.normalisation import Normalisation
from unet_core.sampling import resolve_normalisation
from unet_core.store import local_path
from unet_core.volumes import ArrayVolume

DESCRIPTION_FILE = "bioimageio.yaml"
_INPUT_FILE, _OUTPUT_FILE, _STATE_FILE, _ONNX_FILE, _README = (
    "test_input.npy", "test_output.npy", "weights.pt", "weights.onnx", "README.md"
)  # fmt: skip


def export_bioimageio(
    package: ModelPackage, path: str, *, onnx: bool = False, authors: tuple[str, ...] = (), licence: str | None = None
) -> Exported:
    """Write a model package as a folder, or a .zip file, that programs of bioimage.io read.

    It holds the weights as a PyTorch state dict (the architecture is ``unet_core.networks.build`` of this library) and, if
    asked, as ONNX; a seeded test image and the probabilities for it; and ``model.json`` under ``config``. Its
    description is checked by bioimageio.spec, without use of a network.

    Args:
        package: the model.
        path: of the folder or .zip file; must not exist.
        onnx: also write the weights as ONNX.
        authors: names; else those of the provenance, else none.
        licence: SPDX identifier, such as CC-BY-4.0; else that of the provenance, else none.

    Raises:
        ModelPackageError: if the format cannot say what the package says, or what was written, when run, gives other
            probabilities than the network; nothing is left then.
        JobError: if ``path`` cannot be written.
    """
    refuse_unexportable(package.description, package.url)
    require_extra("bioimageio.spec", *(("onnx", "onnxscript", "onnxruntime") if onnx else ()))
    _require_serialisation()
    with new_output(path) as work:
        folder = work / "files"
        folder.mkdir()
        image, probabilities = _test_tensors(package)
        np.save(folder / _INPUT_FILE, image)
        np.save(folder / _OUTPUT_FILE, probabilities)
        (folder / _README).write_text(readme(package.description, package.footprint, package.whole_box))
        torch.save({name: value.cpu() for name, value in package.network.state_dict().items()}, folder / _STATE_FILE)
        checks = [_check_state(package, folder / _STATE_FILE, image, probabilities)]
        if onnx:
            model = onnx_model(package)
            checks += check_onnx(model, package, path)
            logits = torch.from_numpy(run_onnx(model, _normalised(package, image), path))
            checks.append(compared("probabilities by ONNX Runtime", image.shape, _activated(package, logits), probabilities))
            (folder / _ONNX_FILE).write_bytes(model)
        for check in checks:
            require_passed(check, path)
        _save(_content(package, onnx, authors, licence), folder, work / "output", path)
    target = local_path(path)
    files = sorted(target.iterdir()) if target.is_dir() else [target]
    return Exported(target, {file.name: file.stat().st_size for file in files}, tuple(checks))


def _content(package: ModelPackage, onnx: bool, authors: tuple[str, ...], licence: str | None) -> dict[str, Any]:
    """What goes into ``bioimageio.yaml``, with paths relative to it."""
    description = package.description
    image, probabilities = tensors(description, package.footprint)
    torch_version = torch.__version__.split("+")[0]
    state = {
        "source": _STATE_FILE,
        "pytorch_version": torch_version,
        "comment": f"Needs the Python package unet-flows; written by version {__version__}.",
        "architecture": {
            "callable": OURS[0],
            "import_from": OURS[1],
            "kwargs": {"name": description.network.name} | description.model_dump(mode="json")["network"]["arguments"],
        },
    }
    weights: dict[str, Any] = {"pytorch_state_dict": state}
    if onnx:
        weights["onnx"] = {"source": _ONNX_FILE, "opset_version": OPSET, "parent": "pytorch_state_dict"}
    return {
        "type": "model",
        "format_version": _format_version(),
        **about(description, authors, licence),
        "documentation": {"source": _README},
        "inputs": [image | {"test_tensor": {"source": _INPUT_FILE}}],
        "outputs": [probabilities | {"test_tensor": {"source": _OUTPUT_FILE}}],
        "weights": weights,
        "config": {CONFIG_KEY: description.model_dump(mode="json")},
    }


def _require_serialisation() -> None:
    """Refuse a bioimageio.spec that cannot write what it describes: up to 0.5.12 its serialisers call pydantic in a way that
    pydantic 2.14 made an error."""
    spec, model = require_extra("bioimageio.spec", "bioimageio.spec.model.v0_5")
    with spec.ValidationContext(perform_io_checks=False):
        file = model.OnnxWeightsDescr(source="weights.onnx", opset_version=OPSET)
    try:
        file.model_dump(mode="json")
    except (TypeError, ValueError) as error:  # pydantic's error of serialisation is a ValueError
        raise ModelPackageError(
            f"bioimageio.spec {spec.__version__} cannot write descriptions with pydantic {pydantic.VERSION}; "
            "pip install 'pydantic<2.14', or export to ONNX."
        ) from error


def _format_version() -> str:
    (model,) = require_extra("bioimageio.spec.model.v0_5")
    version: str = model.ModelDescr.implemented_format_version
    return version


def _save(content: dict[str, Any], files: Path, output: Path, path: str) -> None:
    """Validate the description with its files, and write both to ``output``, which takes the form of ``path``."""
    spec, model = require_extra("bioimageio.spec", "bioimageio.spec.model.v0_5")
    urls = {str(pydantic.AnyUrl(entry["url"])): None for entry in content["cite"] if isinstance(entry, dict) and "url" in entry}
    context = spec.ValidationContext(
        root=files, file_name=DESCRIPTION_FILE, perform_io_checks=True, known_files=urls, log_warnings=False
    )
    with context:
        described = spec.build_description(content, context=context)
        if not isinstance(described, model.ModelDescr):
            raise ModelPackageError(f"Export to {path} refused by bioimageio.spec: {_reason(described)}.")
        if path.endswith(".zip"):
            spec.save_bioimageio_package(described, output_path=output.with_suffix(".zip"))
            shutil.move(output.with_suffix(".zip"), output)
        else:
            spec.save_bioimageio_package_as_folder(described, output_path=output)


def _reason(described: Any) -> str:
    return " ".join(str(described.get_reason()).split())[:400]


def _test_tensors(package: ModelPackage) -> tuple[NDArray[np.generic], NDArray[np.float32]]:
    """A seeded image (1, C, *spatial) in the intensities of the training images, and the probabilities for it."""
    description, geometry = package.description, package.footprint
    spatial, _ = check_shapes(geometry, smallest_shape(geometry))
    shape = (len(description.input_channels), *spatial)
    noise = np.random.default_rng(0).standard_normal(shape)
    usual = _numbers(package, noise)
    dtype = np.dtype(intensity_type(description))
    image = np.moveaxis(np.moveaxis(noise, 0, -1) * usual.scale + usual.offset, -1, 0)
    if dtype.kind in "ui":
        image = np.clip(np.rint(image), np.iinfo(dtype).min, np.iinfo(dtype).max)
    batch: NDArray[np.generic] = image.astype(dtype)[None]
    with torch.inference_mode():
        logits = package.network(torch.from_numpy(_normalised(package, batch)))
    return batch, _activated(package, logits)


def _normalised(package: ModelPackage, image: NDArray[np.generic]) -> NDArray[np.float32]:
    """Of shape (1, C, *spatial), with the numbers of this one image where they are taken from the image."""
    return _numbers(package, image[0]).apply(image[0])[None]


def _numbers(package: ModelPackage, image: NDArray[np.generic]) -> Normalisation:
    """What a run subtracts and divides by, for an image (C, *spatial)."""
    spatial = "zyx"[-package.dims :]
    return resolve_normalisation(package.description.normalisation, Source(ArrayVolume(image, f"c{spatial}"), spatial))


def _activated(package: ModelPackage, logits: torch.Tensor) -> NDArray[np.float32]:
    softmax = package.description.heads[0].activation == "softmax"
    probabilities = torch.softmax(logits, dim=1) if softmax else torch.sigmoid(logits)
    found: NDArray[np.float32] = probabilities.numpy()
    return found


def _check_state(package: ModelPackage, file: Path, image: NDArray[np.generic], expected: NDArray[np.float32]) -> Check:
    """Build the network anew, as a reader would, with the state dict that was written."""
    spec = package.description.network
    network = networks.build(spec.name, **spec.arguments)
    network.load_state_dict(torch.load(file, weights_only=True))
    with torch.inference_mode():
        logits = network.eval()(torch.from_numpy(_normalised(package, image)))
    return compared("probabilities by the written state dict", image.shape, _activated(package, logits), expected)

"""A model package as one ONNX file of free spatial sizes, checked by running it. Knows nothing of images or blocks.

Shapes: N batch, C channels, then the spatial axes (Z,) Y, X.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unet_core.errors import ModelPackageError
from unet_core.footprint import Footprint
from unet_core.foreign.exporting import (
    Check,
    Exported,
    check_shapes,
    new_output,
    refuse_unexportable,
    require_extra,
    require_passed,
)
from unet_core.model_package import ModelPackage
from unet_core.store import local_path

INPUT_NAME, OUTPUT_NAME = "image", "logits"
OPSET = 18
MAX_BYTES = 2**31 - 2**20  # of a protobuf message, which an ONNX file is
_AXES = "zyx"
_FIRST_COUNT = 4  # torch.export wants sizes that are never 0 or 1, at any depth of the network


def export_onnx(package: ModelPackage, path: str) -> Exported:
    """Write the network of a model package as an ONNX file, if ONNX Runtime computes the same with it.

    Input ``image`` is (N, C, *spatial), normalised, float32; output ``logits`` is (N, classes, *spatial). N and all
    spatial sizes are free, but must be legal ones, or ONNX Runtime fails at a node named for that. ``metadata_props`` of
    the file state them beside classes, normalisation, margin and stride, as JSON; and which layers look at the whole image.

    Args:
        package: the model.
        path: of the file; must not exist.

    Raises:
        ModelPackageError: if the network cannot be exported, or ONNX Runtime's logits differ by more than 1e-4 of their range
            at either of two legal shapes; nothing is written then.
        JobError: if ``path`` cannot be written.
    """
    refuse_unexportable(package.description, package.url)
    require_extra("onnx", "onnxscript", "onnxruntime")
    with new_output(path) as work:
        model = onnx_model(package)
        checks = check_onnx(model, package, path)
        (work / "output").write_bytes(model)
    target = local_path(path)
    return Exported(path=target, sizes={target.name: len(model)}, checks=checks)


def onnx_model(package: ModelPackage) -> bytes:
    """The network as a serialised ONNX model, with its description in ``metadata_props``."""
    (onnx,) = require_extra("onnx")
    size = sum(value.numel() * value.element_size() for value in package.network.state_dict().values())
    if size > MAX_BYTES:
        raise ModelPackageError(
            f"The weights of {package.url} have {size:,} bytes, an ONNX file holds at most {MAX_BYTES:,}; export to bioimage.io without ONNX."
        )
    model = _converted(package)
    _name_axes(model, package.footprint)
    _drop_traces(model.graph)
    _refuse_other_sizes(model.graph, package.footprint)
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in metadata(package).items()})
    onnx.checker.check_model(model)
    serialised: bytes = model.SerializeToString()
    return serialised


def metadata(package: ModelPackage) -> dict[str, Any]:
    """What a reader of the file must know to use it; margins, strides and sizes in voxels along (z,) y, x."""
    description, geometry = package.description, package.footprint
    smallest = geometry.legal_shape((1,) * geometry.dims)
    return {
        "name": description.name,
        "axes": _AXES[-geometry.dims :],
        "heads": [head.model_dump(mode="json") for head in description.heads],
        "classes": [entry.model_dump(mode="json") for entry in description.classes],
        "input_channels": list(description.input_channels),
        "normalisation": description.normalisation.model_dump(mode="json"),
        "voxel_size_um": description.model_dump(mode="json")["voxel_size_um"],
        "margin": {"before": list(geometry.before), "after": list(geometry.after), "skip": list(geometry.skip)},
        "stride": list(geometry.stride),
        "legal_sizes": [{"min": size, "step": step} for size, step in zip(smallest, geometry.stride, strict=True)],
        "exact": not package.whole_box,  # whether parts of an image, read with the margin, give the result of the whole
        "whole_image_layers": list(package.whole_box),
        "model_sha256": package.sha256,
    }


def check_onnx(model: bytes, package: ModelPackage, path: str) -> tuple[Check, ...]:
    """Run a serialised model at two legal shapes and batch sizes, and compare with the network.

    Raises:
        ModelPackageError: if it differs.
    """
    random = np.random.default_rng(0)
    channels = len(package.description.input_channels)
    checks = []
    for batch, spatial in enumerate(check_shapes(package.footprint, (1,) * package.dims), start=1):
        image = random.standard_normal((batch, channels, *spatial), dtype=np.float32)
        with torch.inference_mode():
            expected = package.network(torch.from_numpy(image)).numpy()
        checks.append(compared("logits by ONNX Runtime", image.shape, run_onnx(model, image, path), expected))
        require_passed(checks[-1], path)
    return tuple(checks)


def run_onnx(model: bytes, image: NDArray[np.float32], path: str) -> NDArray[np.float32]:
    """Logits that ONNX Runtime computes on the CPU for an image of shape (N, C, *spatial)."""
    (onnxruntime,) = require_extra("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        logits: NDArray[np.float32] = session.run([OUTPUT_NAME], {INPUT_NAME: image})[0]
    except Exception as error:  # its own classes share no other root
        raise ModelPackageError(
            f"Export to {path} refused: ONNX Runtime fails at {image.shape}: {_line(error)}; export to bioimage.io without ONNX."
        ) from error
    return logits


def compared(what: str, shape: tuple[int, ...], found: NDArray[np.float32], expected: NDArray[np.float32]) -> Check:
    """The check of two results; different shapes differ infinitely."""
    if found.shape != expected.shape:
        return Check(f"{what} of shape {found.shape} instead of {expected.shape}", shape, float("inf"), float(np.ptp(expected)))
    return Check(what, shape, float(np.abs(found - expected).max()), float(np.ptp(expected)))


def _converted(package: ModelPackage) -> Any:
    """The ONNX model, from a graph that torch proved for all legal sizes: every check and crop of the network included."""
    geometry = package.footprint
    shape, dims = _symbolic_sizes(geometry)
    example = torch.zeros((2, len(package.description.input_channels), *shape))
    sizes = {0: torch.export.Dim("batch", min=2), **{2 + axis: dim for axis, dim in enumerate(dims)}}
    try:
        with _quiet():
            graph = torch.export.export(package.network, (example,), dynamic_shapes=(sizes,))
            program: Any = torch.onnx.export(
                graph, dynamo=True, opset_version=OPSET, input_names=[INPUT_NAME], output_names=[OUTPUT_NAME], verbose=False
            )
    except Exception as error:  # of torch's compiler, whose classes are many
        raise ModelPackageError(f"The network of {package.url} cannot be converted to ONNX: {_line(error)}.") from error
    return program.model_proto


def _symbolic_sizes(geometry: Footprint) -> tuple[tuple[int, ...], list[Any]]:
    """An example shape, and for each axis its legal sizes ``step * n + offset`` as torch writes them."""
    smallest = geometry.legal_shape((1,) * geometry.dims)
    shape: list[int] = []
    dims: list[Any] = []
    for axis, size, step in zip(_AXES[-geometry.dims :], smallest, geometry.stride, strict=True):
        count, offset = torch.export.Dim(f"n_{axis}", min=_FIRST_COUNT), size - 2 * step
        multiple = step * count if step > 1 else count
        dims.append(multiple + offset if offset else multiple)
        shape.append(step * (_FIRST_COUNT + 1 + len(shape)) + offset)
    return tuple(shape), dims


def _name_axes(model: Any, geometry: Footprint) -> None:
    """Call the free sizes batch, (z,) y, x, and say in the output's what the network takes off."""
    shape = geometry.legal_shape((1,) * geometry.dims)
    shrinks = (size - kept for size, kept in zip(shape, geometry.output_shape(shape), strict=True))
    axes = _AXES[-geometry.dims :]
    kept = [f"{axis} - {less}" if less else axis for axis, less in zip(axes, shrinks, strict=True)]
    for names, value in ((axes, model.graph.input[0]), (kept, model.graph.output[0])):
        sizes = value.type.tensor_type.shape.dim
        for size, name in zip((sizes[0], *sizes[2:]), ("batch", *names), strict=True):
            size.dim_param = name
    del model.graph.value_info[:]  # the sizes between, in names that no longer exist


def _drop_traces(graph: Any) -> None:
    """Lines and folders of the code that each operation came from are no business of who gets the file."""
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""


def _refuse_other_sizes(graph: Any, geometry: Footprint) -> None:
    """Make the file fail where the network would: poolings would floor the size, and the result be shifted.

        index = (size - smallest) mod stride + max(0, smallest - size);   image + [0.0][index]

    There is no other way to say it in ONNX: only at 0 is there something to gather.
    """
    (onnx,) = require_extra("onnx")
    smallest = geometry.legal_shape((1,) * geometry.dims)
    constants = {
        "smallest": np.array(smallest, np.int64),
        "stride": np.array(geometry.stride, np.int64),
        "none": np.zeros(geometry.dims, np.int64),
        "nothing": np.zeros(1, np.float32),
    }
    graph.initializer.extend(onnx.numpy_helper.from_array(value, f"legal/{name}") for name, value in constants.items())
    steps: tuple[tuple[str, tuple[str, ...], str, dict[str, int]], ...] = (
        ("Shape", (INPUT_NAME,), "sizes", {"start": 2}),
        ("Sub", ("legal/sizes", "legal/smallest"), "more", {}),
        ("Mod", ("legal/more", "legal/stride"), "remainder", {}),
        ("Sub", ("legal/smallest", "legal/sizes"), "less", {}),
        ("Max", ("legal/less", "legal/none"), "missing", {}),
        ("Add", ("legal/remainder", "legal/missing"), "index", {}),
        ("Gather", ("legal/nothing", "legal/index"), "the_size_of_the_image_is_not_legal", {}),
        ("ReduceSum", ("legal/the_size_of_the_image_is_not_legal",), "zero", {"keepdims": 0}),
        ("Add", (INPUT_NAME, "legal/zero"), "image", {}),
    )
    guard = [
        onnx.helper.make_node(kind, inputs, [f"legal/{output}"], name=f"legal/{output}", **attributes)
        for kind, inputs, output, attributes in steps
    ]
    nodes = list(graph.node)
    for node in nodes:
        node.input[:] = ["legal/image" if name == INPUT_NAME else name for name in node.input]
    del graph.node[:]
    graph.node.extend([*guard, *nodes])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's remarks on its own code and on a library of operators that no network of ours has."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated", category=FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"

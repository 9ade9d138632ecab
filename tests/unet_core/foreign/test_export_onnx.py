"""An exported ONNX file computes what the network does, at sizes it was not made with, or it is not written."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from tests.conftest import describe, random_network
from unet_core.errors import JobError, ModelPackageError
from unet_core.footprint import footprint
from unet_core.foreign.export_onnx import check_onnx, export_onnx, onnx_model
from unet_core.foreign.exporting import Check, check_shapes
from unet_core.model_package import ModelPackage, load_model, save_model
from unet_core.networks import NETWORKS, build

Make = Callable[..., Path]

# Each network once, both numbers of axes, both forms; the whole table (68 networks) takes ten minutes.
FAST: dict[str, dict[str, Any]] = {
    "unet": {"levels": 2, "base": 4, "dims": 2},
    "unet3d": {"levels": 2, "base": 2, "dims": 3, "padding": "same"},
    "resunet": {"units": [1, 2], "base": 2, "dims": 2, "padding": "same"},
    "attention_unet": {"levels": 3, "base": 2, "dims": 3, "padding": "same"},
    "fc_densenet": {"layers": [1, 2, 1], "growth": 2, "base": 2, "dims": 2, "padding": "same"},
    "fcn": {"stages": [1, 1], "skips": 1, "hidden": 4, "window": 3, "base": 2, "dims": 2},
    "vnet": {"depths": [[1, 2], [1]], "kernel": 3, "base": 2, "dims": 3},
}


def run(model: bytes, image: Any) -> Any:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"image": image})[0]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> ModelPackage:
    folder = tmp_path_factory.mktemp("model")
    arguments = {"in_channels": 1, "classes": 3, "levels": 2, "base": 2}
    save_model(folder, random_network(**arguments), describe(**arguments))
    return load_model(folder)


@pytest.fixture(scope="module")
def model(package: ModelPackage) -> bytes:
    return onnx_model(package)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name in FAST])
def test_the_file_computes_what_the_network_does_at_sizes_of_its_own(name: str, make_model: Make, tmp_path: Path) -> None:
    package = load_model(make_model(network=name, classes=2, in_channels=2, **FAST[name]))
    written = export_onnx(package, str(tmp_path / "model.onnx"))
    assert written.sizes == {"model.onnx": written.path.stat().st_size}
    shapes = {check.shape for check in written.checks}
    assert len(shapes) == 2
    model = onnx.load(written.path)
    facts = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    geometry = package.footprint
    assert (facts["margin"]["before"], facts["margin"]["after"]) == (list(geometry.before), list(geometry.after))
    assert facts["stride"] == list(geometry.stride)
    assert [entry["name"] for entry in facts["classes"]] == ["class 0", "class 1"]
    assert facts["normalisation"] == package.description.normalisation.model_dump(mode="json")
    sizes = tuple(size["min"] + count * size["step"] for size, count in zip(facts["legal_sizes"], (3, 0, 4), strict=False))
    image = np.random.default_rng(7).normal(size=(3, 2, *sizes)).astype(np.float32)
    assert image.shape not in shapes
    with torch.inference_mode():
        expected = package.network.double()(torch.from_numpy(image).double()).numpy()
    found = run(written.path.read_bytes(), image)
    assert found.shape == expected.shape == (3, 2, *geometry.output_shape(sizes))
    assert np.abs(found - expected).max() <= 1e-5 * np.ptp(expected)


def test_the_sizes_are_named_and_free(model: bytes) -> None:
    graph = onnx.load_from_string(model).graph
    names = [
        [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (graph.input[0], graph.output[0])
    ]
    assert names == [["batch", 1, "y", "x"], ["batch", 3, "y - 16", "x - 16"]]
    assert not any(node.metadata_props or node.doc_string for node in graph.node)  # they would tell folders


@pytest.mark.parametrize("shape", [(19, 18), (18, 21), (16, 20), (20, 14), (2, 2)])
def test_the_file_refuses_sizes_that_are_not_legal(model: bytes, package: ModelPackage, shape: tuple[int, int]) -> None:
    assert not package.footprint.is_legal(shape)
    with pytest.raises(Exception, match="the_size_of_the_image_is_not_legal"):
        run(model, np.zeros((1, 1, *shape), np.float32))
    assert run(model, np.zeros((1, 1, 18, 20), np.float32)).shape == (1, 3, 2, 4)


def altered(serialised: bytes, what: str) -> bytes:
    model = onnx.load_from_string(serialised)
    if what == "weight":
        weights = next(entry for entry in model.graph.initializer if len(entry.dims) == 4)
        values = onnx.numpy_helper.to_array(weights).copy()
        values.flat[0] += 0.1
        weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))
    else:
        model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 22
    return model.SerializeToString()


@pytest.mark.parametrize(("what", "words"), [("weight", "differs by"), ("size", "ONNX Runtime fails at")])
def test_a_file_of_other_weights_or_of_one_size_is_refused(model: bytes, package: ModelPackage, what: str, words: str) -> None:
    check_onnx(model, package, "model.onnx")
    with pytest.raises(ModelPackageError, match=words):
        check_onnx(altered(model, what), package, "model.onnx")


class Undecided(torch.nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image if image.sum() > 0 else -image


def test_nothing_is_left_of_an_export_that_fails(package: ModelPackage, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(ModelPackageError, match="cannot be converted to ONNX"):
        export_onnx(replace(package, network=Undecided()), str(place / "model.onnx"))
    assert list(place.iterdir()) == []


def test_what_exists_is_not_overwritten(package: ModelPackage, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_text("mine")
    with pytest.raises(JobError, match="exists; an export overwrites nothing"):
        export_onnx(package, str(file))
    assert file.read_text() == "mine"


def test_a_missing_extra_is_named(package: ModelPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ModelPackageError, match=r"'onnxscript', which is not installed; pip install 'unet-flows\[zoo\]'"):
        export_onnx(package, str(tmp_path / "model.onnx"))


@pytest.mark.parametrize("name", list(FAST))
def test_checked_shapes_are_legal_and_differ_along_every_axis(name: str) -> None:
    for dims in (2, 3):
        geometry = footprint(build(name, in_channels=1, classes=2, **FAST[name] | {"dims": dims}).eval())
        first, second = check_shapes(geometry, (1,) * dims)
        assert geometry.is_legal(first)
        assert geometry.is_legal(second)
        assert all(a != b for a, b in zip(first, second, strict=True))


def test_nan_and_other_shapes_never_pass() -> None:
    assert Check("", (1,), 1e-6, 1.0).passed
    assert not Check("", (1,), float("nan"), 1.0).passed
    assert not Check("", (1,), float("inf"), 1.0).passed
    assert not Check("", (1,), 2e-4, 1.0).passed

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.conftest import describe, random_network
from tests.unet_core.foreign.test_opaque import SAME, harmful, package
from unet_core.errors import ModelPackageError, ResumeError
from unet_core.job import make_job
from unet_core.model_package import bundled_models, load_model, save_model
from unet_core.planning import resolve
from unet_core.resume import prepare
from unet_core.worker import run_unit

Maker = Callable[..., Path]


@pytest.mark.parametrize("arguments", [{}, {"dims": 3, "levels": 2}, {"batch_norm": True}])
def test_what_is_saved_is_what_is_loaded(arguments: dict[str, Any], make_model: Maker) -> None:
    package = load_model(make_model(**arguments))
    expected = random_network(0, **({"in_channels": 1, "classes": 3, "base": 4, "levels": 3} | arguments)).state_dict()
    assert package.network.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in package.network.state_dict().items())


def damage_file(folder: Path, data: bytes | None) -> None:
    weights = folder / "weights.safetensors"
    weights.unlink()
    if data is not None:
        weights.write_bytes(data)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: None, "absent"),
        (lambda data: b"", "is empty"),
        (lambda data: b"<html>not found</html>", "HTML page"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "git-lfs pointer"),
        (lambda data: b"\x80\x02ctorch\n", "refused.*contains GLOBAL"),
        (lambda data: b"PK\x03\x04" + data, "refused"),
        (lambda data: data[:-5], r"truncated: .* expected \d+"),
        (lambda data: data + b"x", r"too long: .* expected \d+"),
        (lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:], "sha256 mismatch"),
    ],
)
def test_damaged_weights_are_told_apart(change: Callable[[bytes], bytes | None], words: str, make_model: Maker) -> None:
    folder = make_model()
    damage_file(folder, change((folder / "weights.safetensors").read_bytes()))
    with pytest.raises(ModelPackageError, match=words):
        load_model(folder)


def edit(folder: Path, **changes: Any) -> Path:
    record = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(record | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": 2}, "schema 2"),
        ({"devise": 1}, "devise"),
        ({"heads": []}, "heads"),
        ({"heads": [{"kind": "distance", "channels": [0, 1, 2]}]}, r"3 classes, but the heads \(distance\) give no labels"),
        ({"heads": [{"channels": [0, 1]}, {"kind": "distance", "channels": [2]}]}, "two heads have the name 'classes'"),
        ({"heads": [{"channels": [0, 1, 2], "scale": 5}]}, "'classes' of kind classes has scale, which belong to distance"),
        (
            {"heads": [{"channels": [0]}, {"name": "a", "kind": "affinities", "channels": [1, 2], "offsets": [[0, 1]]}]},
            r"2 channels and the offsets \(\(0, 1\),\); give each channel one",
        ),
        (
            {"heads": [{"channels": [0, 2]}, {"name": "d", "kind": "distance", "channels": [1], "scale": 5.0}]},
            r"label values \[0, 1, 2\] for 2 channels of head 'classes'",
        ),
        ({"heads": [{"kind": "classes", "channels": [0, 1]}]}, "heads use channels"),
        ({"input_channels": ["a", "b"]}, "takes 1 channel"),
        ({"network": {"name": "unett", "arguments": {"in_channels": 1, "classes": 3}}}, "did you mean 'unet'"),
        ({"network": {"name": "unet", "arguments": {"in_channels": 1, "classes": 3, "base": 8, "levels": 3}}}, "has shape"),
        ({"network": {"name": "unet", "arguments": {"in_channels": 1, "classes": 3, "base": 4, "levels": 2}}}, "unexpected"),
        ({"network": {"name": "unet", "arguments": {"in_channels": 1, "classes": 3, "base": "x"}}}, "cannot be built"),
        (
            {"network": {"name": "unet", "arguments": {"in_channels": 1, "classes": 3, "base": 10**9}}},
            "may have 12 levels and 65536 channels|at most 65536",
        ),
        *(
            ({"network": {"name": "unet", "arguments": {"in_channels": 1, "classes": 3} | arguments}}, words)
            for arguments, words in [
                ({"levels": 10_000_000}, "may have 12 levels|at most 12"),
                ({"levels": 12, "base": 32}, "would have .* parameters, more than"),
                ({"levels": 2, "kernels": [[65, 65], [3, 3]]}, "2 tuples of 2 sizes from 1 to 64"),
                ({"levels": 4, "poolings": [[64, 64]] * 3}, "product above 4096"),
                ({"classes": "x"}, "argument classes of the network is 'x'; give a whole number"),
                ({"classes": [2]}, r"argument classes of the network is \[2\]"),
                ({"classes": None}, "argument classes of the network is None"),
                ({"classes": 10**9}, "argument classes of the network is 1000000000"),
                ({"in_channels": True}, "argument in_channels of the network is True"),
            ]
        ),
        ({"normalisation": {"kind": "fixed", "offset": [1, 2], "scale": [1, 2]}}, "offsets for 1 channel"),
        (
            {"normalisation": {"kind": "fixed", "offset": [float("nan")], "scale": [1]}},
            r"normalisation.fixed.offset.0: .*got nan",
        ),
        ({"normalisation": {"kind": "fixed", "offset": [0], "scale": [float("inf")]}}, r"normalisation.fixed.scale.0: .*got inf"),
        ({"normalisation": {"kind": "fixed", "offset": [0], "scale": [1e-320]}}, r"normalisation.fixed.scale.0: "),
        (
            {"normalisation": {"kind": "fixed", "offset": [0], "scale": [1], "dtype": "uint7"}},
            r"normalisation.fixed.dtype: .*uint8",
        ),
        ({"normalisation": {"kind": "image", "low": 60, "high": 60}}, "percentiles 60.0 to 60.0; low must be below high"),
        ({"voxel_size_um": [0.5, 1e-320]}, r": voxel_size_um.1: "),
        ({"voxel_size_um": [0.5, -1]}, r": voxel_size_um.1: Input should be .*\(got -1\)\.$"),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(changes: dict[str, Any], words: str, make_model: Maker) -> None:
    with pytest.raises(ModelPackageError, match=words):
        load_model(edit(make_model(), **changes))


def test_a_description_that_is_no_json_or_no_file_is_told_in_a_sentence(make_model: Maker) -> None:
    description = make_model() / "model.json"
    text = description.read_text()
    description.write_text(text.replace('"value": 1', f'"value": {"1" * 5000}'))
    with pytest.raises(ModelPackageError, match="not readable JSON: it holds a number with thousands of digits"):
        load_model(description.parent)
    description.write_text(text.replace('"value": 1', f'"value": {"1" * 4000}'))
    with pytest.raises(ModelPackageError, match=r"label value 1+\.\.\. needs uint16"):
        load_model(description.parent)
    description.unlink()
    description.mkdir()
    with pytest.raises(ModelPackageError, match="has no model.json"):
        load_model(description.parent)


def test_a_directory_in_place_of_the_weights_is_told_in_a_sentence(make_model: Maker) -> None:
    weights = make_model() / "weights.safetensors"
    weights.unlink()
    weights.mkdir()
    with pytest.raises(ModelPackageError, match="Model file absent"):
        load_model(weights.parent)


def test_voxel_sizes_of_other_axes_than_the_network_are_refused(make_model: Maker) -> None:
    with pytest.raises(ModelPackageError, match="voxel_size_um has 3 numbers, the network works in 2D"):
        load_model(edit(make_model(), voxel_size_um=[1.0, 0.5, 0.5]))


def test_two_classes_of_one_name_are_refused(make_model: Maker) -> None:
    folder = make_model()
    classes = json.loads((folder / "model.json").read_text())["classes"]
    classes[2]["name"] = classes[1]["name"]
    with pytest.raises(ModelPackageError, match="two classes have the name 'class 1'"):
        load_model(edit(folder, classes=classes))


def test_classes_follow_the_channels_that_the_head_names(make_model: Maker) -> None:
    folder = make_model()
    original = load_model(folder)
    classes = json.loads((folder / "model.json").read_text())["classes"]
    turned = [classes[2], classes[0], classes[1]]
    head = {"name": "classes", "kind": "classes", "channels": [2, 0, 1]}
    package = load_model(edit(folder, classes=turned, heads=[head]))
    assert package.description.classes == original.description.classes
    assert package.sha256 == original.sha256  # said in another order, the same model


def test_label_values_above_255_are_refused(make_model: Maker) -> None:
    folder = make_model()
    classes = json.loads((folder / "model.json").read_text())["classes"]
    classes[2]["value"] = 256
    with pytest.raises(ModelPackageError, match="needs uint16 output"):
        load_model(edit(folder, classes=classes))


def test_not_finite_weights_are_named(tmp_path: Path) -> None:
    arguments = {"in_channels": 1, "classes": 3, "base": 4, "levels": 3}
    network = random_network(**arguments)
    with torch.no_grad():
        network.contracting[0][0].weight[0, 0, 0, 0] = torch.nan  # type: ignore[index]
    with pytest.raises(ModelPackageError, match=r"Weight contracting.0.0.weight of .* has NaN"):
        save_model(tmp_path / "m", network, describe(**arguments))
    assert not (tmp_path / "m").exists()


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """Change the stored tensors, and the description with them."""
    state = safetensors.torch.load((folder / "weights.safetensors").read_bytes())
    change(state)
    data = safetensors.torch.save(state)
    (folder / "weights.safetensors").write_bytes(data)
    weights = {"file": "weights.safetensors", "sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    return edit(folder, weights=weights)


def test_first_missing_and_unexpected_tensors_are_named(make_model: Maker) -> None:
    folder = rewrite(make_model(), lambda state: state.update(extra=state.pop("head.bias")))
    with pytest.raises(ModelPackageError, match=r"missing \['head.bias'\] .* unexpected \['extra'\]"):
        load_model(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("only", ["", "head"])
def test_half_precision_weights_become_float32_unchanged(dtype: torch.dtype, only: str, make_model: Maker) -> None:
    folder = make_model(batch_norm=True)
    stored: dict[str, torch.Tensor] = {}

    def change(state: dict[str, torch.Tensor]) -> None:
        state.update(
            {name: value.to(dtype) for name, value in state.items() if value.is_floating_point() and name.startswith(only)}
        )
        stored.update(state)

    network = load_model(rewrite(folder, change)).network
    for name, value in network.state_dict().items():
        assert value.dtype == (torch.int64 if name.endswith("num_batches_tracked") else torch.float32)
        assert torch.equal(value, stored[name].to(value.dtype))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("head.weight", lambda value: value.double(), "has type float64, the network needs float32"),
        ("head.weight", lambda value: value.int(), "has type int32, the network needs float32"),
        ("contracting.0.1.num_batches_tracked", lambda value: value.float(), "has type float32, the network needs int64"),
        ("contracting.0.1.running_var", lambda value: value - 3, "has the negative variance -"),
    ],
)
def test_tensors_that_no_network_can_use_are_refused_by_name(
    name: str, change: Callable[[torch.Tensor], torch.Tensor], words: str, make_model: Maker
) -> None:
    folder = rewrite(make_model(batch_norm=True), lambda state: state.update({name: change(state[name])}))
    with pytest.raises(ModelPackageError, match=f"Weight {name} of .* {words}"):
        load_model(folder)


def test_sha256_covers_what_decides_the_result_and_no_more(make_model: Maker) -> None:
    folder = make_model()
    original = load_model(folder).sha256
    assert load_model(edit(folder, name="other", provenance={"a": 1})).sha256 == original
    normalisation = json.loads((folder / "model.json").read_text())["normalisation"]
    assert load_model(edit(folder, normalisation=normalisation | {"dtype": "uint8"})).sha256 == original
    assert load_model(edit(folder, voxel_size_um=[0.5, 0.5])).sha256 != original


def test_bundled_models_load_and_state_their_scores() -> None:
    assert set(bundled_models()) == {"nuclei-he", "nuclei-fluorescence"}
    total = 0
    for name in bundled_models():
        package = load_model(name)
        assert package.description.provenance["scores"]["iou_pooled"] > 0.75
        total += (bundled_models()[name] / "weights.safetensors").stat().st_size
    assert total <= 8 << 20


def test_an_unknown_model_lists_the_bundled_ones() -> None:
    with pytest.raises(ModelPackageError, match=r"Model not found: nope; .*nuclei-he"):
        load_model("nope")


def test_a_home_directory_is_expanded(make_model: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_model()
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load_model(f"~/{folder.name}").url == str(folder)


def test_a_folder_that_hides_a_bundled_model_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nuclei-he").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelPackageError, match="has no model.json, and hides the bundled model 'nuclei-he'"):
        load_model("nuclei-he")


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_a_file_of_weights_is_no_package(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04")
    with pytest.raises(ModelPackageError, match="a model package is a folder with model.json and weights.safetensors"):
        load_model(tmp_path / name)


def test_a_script_swapped_after_planning_is_refused_before_its_code_runs(tmp_path: Path, make_image: Maker) -> None:
    model, proof = package(tmp_path, random_network(0, **SAME)), tmp_path / "written"
    job = make_job(image=str(make_image((40, 50))), output=str(tmp_path / "out"), model=str(model), trust_model=True)
    request = prepare(resolve(job), job.output)
    shutil.copytree(harmful(tmp_path, proof), model, dirs_exist_ok=True)
    with pytest.raises(ResumeError, match="is no longer the one of the plan"):
        run_unit(job.output, request.key, "segment", 0)
    assert not proof.exists()
    load_model(model, trusted=True)
    assert proof.exists(), "the file did not hold code that runs on loading after all"


def test_a_package_of_bioimage_io_is_told_from_a_folder_without_a_model(tmp_path: Path) -> None:
    (tmp_path / "bioimageio.yaml").write_text("format_version: 0.5.4\n")
    with pytest.raises(ModelPackageError, match=f"is a package of bioimage.io; .*unet model import {tmp_path} NEW_FOLDER"):
        load_model(tmp_path)

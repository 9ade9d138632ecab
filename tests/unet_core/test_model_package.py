from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.conftest import describe, random_network
from unet_core.errors import ModelPackageError
from unet_core.model_package import bundled_models, load_model, save_model

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
        ({"heads": [{"kind": "distance", "channels": [0, 1, 2]}]}, "cannot be run by this release"),
        ({"heads": [{"kind": "classes", "channels": [0, 1]}]}, "heads use channels"),
        ({"input_channels": ["a", "b"]}, "takes 1 channels"),
        ({"network": {"name": "unett", "arguments": {"in_channels": 1, "classes": 3}}}, "did you mean 'unet'"),
        ({"network": {"name": "unet", "arguments": {"in_channels": 1, "classes": 3, "base": 8, "levels": 3}}}, "has shape"),
        ({"network": {"name": "unet", "arguments": {"in_channels": 1, "classes": 3, "base": 4, "levels": 2}}}, "unexpected"),
        ({"network": {"name": "unet", "arguments": {"in_channels": 1, "classes": 3, "base": "x"}}}, "cannot be built"),
        (
            {"network": {"name": "unet", "arguments": {"in_channels": 1, "classes": 3, "base": 10**9}}},
            "cannot be built|has shape|unexpected|missing",
        ),
        ({"normalisation": {"kind": "fixed", "offset": [1, 2], "scale": [1, 2]}}, "offsets for 1 channels"),
        ({"voxel_size_um": [0.5, -1]}, "voxel_size_um"),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(changes: dict[str, Any], words: str, make_model: Maker) -> None:
    with pytest.raises(ModelPackageError, match=words):
        load_model(edit(make_model(), **changes))


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


def test_first_missing_and_unexpected_tensors_are_named(make_model: Maker) -> None:
    folder = make_model()
    state = safetensors.torch.load_file(folder / "weights.safetensors")
    state["extra"] = state.pop("head.bias")
    data = safetensors.torch.save(state)
    (folder / "weights.safetensors").write_bytes(data)
    import hashlib

    edit(folder, weights={"file": "weights.safetensors", "sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)})
    with pytest.raises(ModelPackageError, match=r"missing \['head.bias'\] .* unexpected \['extra'\]"):
        load_model(folder)


def test_sha256_covers_what_decides_the_result_and_no_more(make_model: Maker) -> None:
    folder = make_model()
    original = load_model(folder).sha256
    assert load_model(edit(folder, name="other", provenance={"a": 1})).sha256 == original
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

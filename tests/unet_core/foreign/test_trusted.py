"""TorchScript inside a package of bioimage.io: run only when its network is unknown and the user trusts it; refused in one line."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.unet_core.foreign.test_bioimageio import REAL, copy
from tests.unet_core.foreign.test_torchscript import save_script
from unet_core.errors import ModelPackageError
from unet_core.foreign.bioimageio import import_model
from unet_core.foreign.torchscript import read_tensors
from unet_core.model_package import load_model

pytest.importorskip("bioimageio.spec", reason="packages of bioimage.io need the extra 'zoo'")

Edit = Callable[[dict[str, Any]], None]
IMAGE = np.random.default_rng(0).random((1, 1, 72, 96)).astype(np.float32)


def small(classes: int = 1, low: float = 0.4) -> nn.Module:
    """Two convolutions, which see two voxels; their output lies in 0..1 although it is no probability."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, classes, 3, padding=1))
    with torch.no_grad():
        network[2].weight.mul_(0.2)
        network[2].bias.copy_(torch.linspace(low, low + 0.3, classes))
    return network.eval()


def script_package(
    folder: Path, network: nn.Module, activation: str = "", classes: int = 1, halo: int = 0, edit: Edit | None = None
) -> Path:
    """A package of a script alone, with the test output that it has."""

    def change(content: dict[str, Any]) -> None:
        script = content["weights"]["torchscript"]
        content["weights"] = {"torchscript": {name: script[name] for name in ("source", "pytorch_version")}}
        for tensor in (content["inputs"][0], content["outputs"][0]):
            tensor["test_tensor"].pop("sha256")
            tensor.pop("sample_tensor", None)
            tensor.pop("data", None)
            for axis in tensor["axes"][2:]:
                axis.pop("halo", None)
        for axis, size in zip(content["inputs"][0]["axes"][2:], IMAGE.shape[2:], strict=True):
            axis["size"] = size
        for axis, name in zip(content["outputs"][0]["axes"][2:], "yx", strict=True):
            axis |= {"halo": halo, "size": {"tensor_id": "raw", "axis_id": name}} if halo else {}
        content["inputs"][0] |= {"id": "raw", "preprocessing": []}
        content["outputs"][0]["axes"][1]["channel_names"] = [f"c{number}" for number in range(classes)]
        content["outputs"][0]["postprocessing"] = [{"id": activation}] if activation else []
        if edit is not None:
            edit(content)

    copy(folder, change)
    save_script(network, folder / "weights.pt")
    with torch.inference_mode():
        output = network(torch.from_numpy(IMAGE))
    output = output[0] if isinstance(output, tuple) else output
    output = {"": lambda value: value, "sigmoid": torch.sigmoid, "softmax": lambda value: value.softmax(1)}[activation](output)
    np.save(folder / "test_input.npy", IMAGE)
    np.save(folder / "test_output.npy", output.numpy())
    return folder


class Wrapped(nn.Module):
    """Returns a tuple of one array."""

    def __init__(self) -> None:
        super().__init__()
        self.network = small()

    def forward(self, value: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.network(value),)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_trusted_script_of_an_unknown_network_is_packaged_and_gives_its_test_output(wrapped: bool, tmp_path: Path) -> None:
    network = Wrapped() if wrapped else small()
    package = script_package(tmp_path / "package", network.eval(), "sigmoid", halo=16)
    with pytest.raises(ModelPackageError, match="can carry code: --trust-model does so"):
        import_model(package, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    done = import_model(package, tmp_path / "out", trusted=True)
    assert (done.weights, done.notes) == ("torchscript, run as it is", ())
    assert done.footprint.margin == ((16, 16), (16, 16))  # its author's halo is larger than the two voxels that it looks at
    assert done.description.heads[0].kind == "regions"
    assert (tmp_path / "out/network.pt").read_bytes() == (package / "weights.pt").read_bytes()
    taken = load_model(tmp_path / "out", trusted=True)
    with torch.inference_mode():
        found = torch.sigmoid(taken.network(torch.from_numpy(IMAGE))).numpy()
    assert np.abs(found - np.load(package / "test_output.npy")).max() < 1e-5


def test_a_halo_that_the_newer_format_has_no_word_for_is_kept(tmp_path: Path) -> None:
    from bioimageio.spec.utils import write_yaml

    package = script_package(tmp_path / "package", small(), "sigmoid")
    (package / "bioimageio.yaml").unlink()
    sizes = [1, 1, 72, 96]
    usual = {"axes": "bcyx", "data_type": "float32", "shape": sizes}
    content = {
        "type": "model", "format_version": "0.4.9", "name": "older", "description": "x", "authors": [{"name": "Nobody"}],
        "cite": [{"text": "none", "doi": "10.1000/182"}], "license": "MIT", "documentation": "README.md", "tags": ["unet"],
        "covers": ["cover.png"], "timestamp": "2019-12-11T12:22:32",
        "inputs": [{"name": "raw"} | usual],
        "outputs": [{"name": "out", "halo": [0, 0, 16, 8], "postprocessing": [{"name": "sigmoid"}]} | usual],
        "test_inputs": ["test_input.npy"], "test_outputs": ["test_output.npy"],
        "weights": {"torchscript": {"source": "weights.pt", "pytorch_version": "2.5.1"}},
    }  # fmt: skip
    write_yaml(content, package / "rdf.yaml")
    assert import_model(package, tmp_path / "out", trusted=True).footprint.margin == ((16, 8), (16, 8))


def damaged(data: bytes) -> bytes:
    return data[:5000]


@pytest.mark.parametrize("content", [damaged, lambda data: b"hello", lambda data: b""])
def test_what_is_no_script_is_refused_in_one_line(content: Callable[[bytes], bytes], tmp_path: Path) -> None:
    package = script_package(tmp_path / "package", small(), "sigmoid")
    (package / "weights.pt").write_bytes(content((package / "weights.pt").read_bytes()))
    with pytest.raises(ModelPackageError, match="weights.pt is no TorchScript file") as refusal:
        import_model(package, tmp_path / "out", trusted=True)
    assert str(refusal.value).startswith(str(package))
    assert not (tmp_path / "out").exists()


def test_a_script_of_another_number_of_channels_or_another_output_is_refused(tmp_path: Path) -> None:
    package = script_package(tmp_path / "package", small(), "sigmoid")
    save_script(nn.Sequential(nn.Conv2d(3, 1, 3, padding=1)), package / "weights.pt")
    with pytest.raises(
        ModelPackageError, match="does not give its test output: .*expected input.* to have 3 channels"
    ) as refusal:
        import_model(package, tmp_path / "out", trusted=True)
    assert "\n" not in str(refusal.value)
    save_script(small(low=0.5), package / "weights.pt")
    with pytest.raises(ModelPackageError, match=r"does not give its test output: it is 0.0\d+ off"):
        import_model(package, tmp_path / "out", trusted=True)
    assert not (tmp_path / "out").exists()


def test_weights_of_a_known_network_that_do_not_give_the_test_output_are_not_passed_over(tmp_path: Path) -> None:
    """The script beside them is intact, but the package contradicts itself."""
    state = {name: tensor.clone() for name, tensor in read_tensors(REAL / "weights.pt").items()}
    next(iter(state.values())).view(-1)[0] += 1

    def edit(content: dict[str, Any]) -> None:
        stated = content["weights"]["pytorch_state_dict"]
        stated["source"] = "state.pt"
        stated.pop("sha256")

    package = copy(tmp_path / "package", edit)
    torch.save(state, package / "state.pt")
    for trusted in (False, True):
        with pytest.raises(ModelPackageError, match="its weights do not give its test output") as refusal:
            import_model(package, tmp_path / "out", trusted=trusted)
        assert "--trust-model" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_without_an_activation_the_user_says_what_the_output_is(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        package = script_package(tmp_path / "package", small(2), classes=2)
        with pytest.raises(
            ModelPackageError, match=r"states no activation; its test output lies in 0..1. So .*--output-kind classes"
        ):
            import_model(package, tmp_path / "out", trusted=True)
        # two numbers in 0..1 that do not add up to 1 are no probabilities of classes
        done = import_model(package, tmp_path / "logits", trusted=True, output_kind="classes")
        assert (done.description.network.arguments["probabilities"], done.notes) == (False, ())
        done = import_model(package, tmp_path / "regions", trusted=True, output_kind="regions")
        assert done.description.network.arguments["probabilities"]
        assert "lies in 0..1 and is taken for probabilities" in done.notes[0]
        package = script_package(tmp_path / "softmax", nn.Sequential(small(2), nn.Softmax(1)).eval(), classes=2)
        done = import_model(package, tmp_path / "classes", trusted=True, output_kind="classes")
        assert done.description.network.arguments["probabilities"]
        package = script_package(tmp_path / "wide", small(2, low=3.0), classes=2)
        with pytest.raises(ModelPackageError, match="states no activation. So it does not say"):
            import_model(package, tmp_path / "out", trusted=True)

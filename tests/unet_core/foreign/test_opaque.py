"""TorchScript models: refused without trust before a byte is loaded; with it, the result of the same network traced."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from torch import nn

from flows import cli
from flows.run import segment_on_cluster
from tests.conftest import describe, random_network
from tests.unet_core.networks.test_conformance import SMALL
from tests.unet_core.test_segment import digest, labels_of
from unet_core.cost import operations
from unet_core.errors import FootprintError, ModelPackageError
from unet_core.footprint import footprint, stated_footprint
from unet_core.foreign import opaque
from unet_core.foreign.import_torchscript import import_torchscript
from unet_core.foreign.measure import measure, stated
from unet_core.foreign.opaque import package_torchscript
from unet_core.foreign.opaque_network import OpaqueNetwork
from unet_core.job import SegmentationJob, make_job
from unet_core.memory import peak_bytes
from unet_core.model_package import ModelPackage, load_model, save_model
from unet_core.planning import resolve
from unet_core.predict import load_predictor
from unet_core.rules import trace
from unet_core.segment import run

Maker = Callable[..., Path]
SAME: dict[str, Any] = {"in_channels": 1, "classes": 3, "base": 4, "levels": 3, "padding": "same"}


def script(network: nn.Module, path: Path, size: int = 64, dims: int = 2) -> Path:
    """A network as its author would export it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; sizes become constants
        torch.jit.save(torch.jit.trace(network, torch.rand(1, 1, *(size,) * dims), check_trace=False), str(path))
    return path


def compiled(network: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(network), str(path))
    return path


def package(tmp_path: Path, network: nn.Module, kind: str = "classes", **options: Any) -> Path:
    description = describe(kind, **SAME)
    options = {"dims": 2, "probabilities": False, "trusted": True} | options
    out = tmp_path / f"opaque-{len(list(tmp_path.iterdir()))}"
    package_torchscript(script(network, tmp_path / "script.pt"), out, description, **options)
    return out


def job(image: Path, output: Path, model: Path, **options: Any) -> SegmentationJob:
    return make_job(image=str(image), output=str(output), model=str(model), **options)


def test_any_cut_gives_the_result_of_the_same_network_traced(tmp_path: Path, make_image: Maker) -> None:
    network = random_network(0, **SAME)
    opaque_model, traced_model, image = package(tmp_path, network), tmp_path / "traced", make_image((75, 93))
    save_model(traced_model, network, describe(**SAME))
    results = []
    for name, model, block in (("a", traced_model, (76, 96)), ("b", opaque_model, (76, 96)), ("c", opaque_model, (32, 20))):
        asked = job(image, tmp_path / name, model, block_shape=block, probabilities="float32", trust_model=model == opaque_model)
        planned = resolve(asked)
        assert planned.plan.exact == ("unproven" if model == opaque_model else True)
        assert any("was measured, not derived" in text for text in planned.warnings) == (model == opaque_model)
        assert run(asked).status == "complete"
        results.append(np.asarray(zarr.open_array(tmp_path / name / "0")))
    np.testing.assert_allclose(results[1], results[0], atol=1e-5)
    np.testing.assert_allclose(results[2], results[0], atol=1e-5)
    assert results[0].std() > 0.01
    asked = job(image, tmp_path / "short", opaque_model, block_shape=(32, 20), probabilities="float32", trust_model=True)
    record = json.loads((opaque_model / "model.json").read_text())
    record["network"]["arguments"] |= {"before": [4, 4], "after": [4, 4]}
    (opaque_model / "model.json").write_text(json.dumps(record))
    run(asked)  # a margin that is too short shows
    assert np.abs(np.asarray(zarr.open_array(tmp_path / "short" / "0")) - results[0]).max() > 1e-3


@pytest.mark.slow
def test_a_worker_process_is_told_of_the_trust(tmp_path: Path, make_image: Maker) -> None:
    model, image = package(tmp_path, random_network(0, **SAME)), make_image((75, 93))
    options: dict[str, Any] = {"block_shape": (32, 32), "trust_model": True}
    assert segment_on_cluster(job(image, tmp_path / "a", model, **options), "local", 1).status == "complete"
    run(job(image, tmp_path / "b", model, **options))
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


class Writes(nn.Module):
    """Writes a file when it is loaded, and when it runs."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        torch.save(value, self.path + ".forward")
        return value.repeat(1, 3, 1, 1)

    @torch.jit.export
    def __getstate__(self) -> tuple[str, torch.Tensor]:
        return self.path, torch.zeros(1)

    @torch.jit.export
    def __setstate__(self, state: tuple[str, torch.Tensor]) -> None:
        self.path = state[0]
        self.training = False
        torch.save(state[1], state[0])


def harmful(tmp_path: Path, proof: Path) -> Path:
    """A package whose script writes ``proof``."""
    model = package(tmp_path, random_network(0, **SAME))
    data = compiled(Writes(str(proof)), tmp_path / "harmful.pt").read_bytes()
    (model / "network.pt").write_bytes(data)
    record = json.loads((model / "model.json").read_text())
    record["weights"] = {
        "file": "network.pt",
        "sha256": hashlib.sha256(data).hexdigest(),
        "size_bytes": len(data),
    }
    (model / "model.json").write_text(json.dumps(record))
    return model


def test_without_trust_no_code_of_a_model_runs(
    tmp_path: Path, make_image: Maker, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    proof = tmp_path / "written"
    model, image = harmful(tmp_path, proof), make_image((40, 50))
    with pytest.raises(ModelPackageError, match="can carry code; use --trust-model"):
        load_model(model)
    with pytest.raises(ModelPackageError, match="can carry code"):
        package_torchscript(tmp_path / "harmful.pt", tmp_path / "x", describe(**SAME), dims=2, probabilities=False, trusted=False)
    for command in ("plan", "segment"):
        monkeypatch.setattr("sys.argv", ["unet", command, str(image), str(tmp_path / "out"), "--model", str(model)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == 2
        assert "--trust-model" in capsys.readouterr().err
    assert not proof.exists()
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "x").exists()
    harmless = load_model(model, trusted=True)
    assert proof.exists(), "the file did not hold code that runs on loading after all"
    harmless.network(torch.zeros(1, 1, 64, 64))
    assert (tmp_path / "written.forward").exists()


def test_a_changed_file_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    proof = tmp_path / "written"
    model = harmful(tmp_path, proof)
    data = (model / "network.pt").read_bytes()
    (model / "network.pt").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ModelPackageError, match="sha256 mismatch"):
        load_model(model, trusted=True)
    assert not proof.exists()


def test_a_description_cannot_pass_off_a_script_as_weights(tmp_path: Path, make_model: Maker) -> None:
    model = make_model()
    record = json.loads((model / "model.json").read_text())
    record["weights"]["file"] = "network.pt"
    (model / "model.json").write_text(json.dumps(record))
    with pytest.raises(ModelPackageError, match=r"'unet' is not stored as network\.pt"):
        load_model(model, trusted=True)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("unet", {"levels": 4, "padding": "same"}),
        ("unet", {"levels": 4, "padding": "valid"}),
        ("attention_unet", {"levels": 3, "padding": "same"}),
        ("resunet", SMALL["resunet"][0] | {"padding": "same"}),
        ("unet", {"levels": 2, "dims": 3, "padding": "same"}),
    ],
    ids=["unet same", "unet valid", "attention same", "resunet same", "unet 3D"],
)
def test_what_is_measured_lies_within_what_is_derived(name: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    dims = arguments.get("dims", 2)
    network = random_network(0, name, **{"in_channels": 1, "classes": 2, "base": 2, "dims": dims} | arguments)
    derived = footprint(network)
    size = derived.legal_shape((64,) * dims)[0]
    loaded = opaque.load_script(script(network, tmp_path / "script.pt", size, dims).read_bytes(), "script")
    dtype = torch.float64 if dims == 2 else torch.float32
    for axis, found in enumerate(measure(loaded.to(dtype), 1, dims, dtype=dtype)):
        assert (found.stride, found.smallest) == (
            derived.stride[axis],
            max(derived.legal_shape((1,) * dims)[axis], found.smallest),
        )
        assert found.shrink == (0 if arguments["padding"] == "same" else sum(derived.margin[0][:1] + derived.margin[1][:1]))
        before, after = found.spoilt
        if arguments["padding"] == "same":  # random weights hide little: all but a stride is seen
            assert derived.after[axis] - derived.stride[axis] <= after <= derived.after[axis]
            assert derived.before[axis] - 2 * derived.stride[axis] < before <= derived.before[axis]
        else:
            assert (before, after) == (0, 0)


class Resizing(nn.Module):
    """Takes every size: what a pooling drops, resizing to the skip connection invents; looks at values before."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        if bool(torch.isnan(value).any()):
            value = torch.nan_to_num(value)
        fine = self.first(value)
        coarse = nn.functional.avg_pool2d(fine, 4)
        coarse = nn.functional.interpolate(coarse, size=[fine.shape[2], fine.shape[3]], mode="nearest")
        return self.last(torch.cat([fine, coarse], dim=1))


def test_a_network_that_takes_every_size_and_looks_at_values_is_measured(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = compiled(Resizing(), tmp_path / "script.pt")
    loaded = opaque.load_script(path.read_bytes(), "script")
    for found in measure(loaded.double(), 1, 2):
        assert (found.stride, found.shrink, found.smallest) == (4, 0, 4)
        assert found.spoilt == (5, 5)  # a coarse voxel of four sees one beyond itself, and the last layer sees it
    geometry = package_torchscript(path, tmp_path / "m", describe(**SAME), dims=2, probabilities=False, trusted=True)
    assert (geometry.before, geometry.after) == ((8, 8), (5, 5))
    assert peak_bytes(load_model(tmp_path / "m", trusted=True).network, (1, 64, 64)) > 0  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d(3), nn.GroupNorm(1, 3), nn.AdaptiveAvgPool2d(1)])
def test_what_looks_at_the_whole_box_is_refused(norm: nn.Module, tmp_path: Path) -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm = nn.Conv2d(1, 3, 3, padding=1), norm

        def forward(self, value: torch.Tensor) -> torch.Tensor:
            value = self.layer(value)
            return value + self.norm(value)

    torch.manual_seed(0)
    path = compiled(Whole().eval(), tmp_path / "script.pt")
    with pytest.raises(FootprintError, match=r"depends on the whole box.*InstanceNorm"):
        package_torchscript(path, tmp_path / "m", describe(**SAME), dims=2, probabilities=False, trusted=True)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("kind", ["classes", "regions"])
def test_probabilities_become_the_logits_they_came_from(kind: str, tmp_path: Path) -> None:
    network = random_network(0, **SAME)
    ending: nn.Module = nn.Softmax(dim=1) if kind == "classes" else nn.Sigmoid()
    model = package(tmp_path, nn.Sequential(network, ending), kind, probabilities=True)
    image = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, expected = load_model(model, trusted=True).network(image), network(image)
    back, truth = (value.softmax(1) if kind == "classes" else value.sigmoid() for value in (logits, expected))
    torch.testing.assert_close(back, truth, atol=2e-6, rtol=0)
    if kind == "regions":
        assert torch.equal(logits > 0, truth > 0.5)
    with pytest.raises(ModelPackageError, match="no probabilities"):
        package(tmp_path, network, kind, probabilities=True)


def test_a_stated_margin_is_taken_and_a_larger_halo_too(tmp_path: Path) -> None:
    network = random_network(0, **SAME)
    model = package(tmp_path, network, margin=21, stride=4)
    read = load_model(model, trusted=True)
    assert (read.footprint.before, read.footprint.after, read.footprint.stride) == ((24, 24), (21, 21), (4, 4))
    assert isinstance(read.network, OpaqueNetwork)
    assert "was stated, not derived" in read.network.why_unproven
    with pytest.raises(FootprintError, match="Stride 2 is stated, .* sizes 4 voxels apart"):
        package(tmp_path, network, margin=20, stride=2)
    valid = script(random_network(0, **SAME | {"padding": "valid"}), tmp_path / "valid.pt", 76)
    for margin, expected in ((20, (20, 20)), (23, (24, 23))):  # it drops 20 voxels on both sides itself
        found = package_torchscript(
            valid, tmp_path / f"v{margin}", describe(**SAME), dims=2, probabilities=False, margin=margin, stride=4, trusted=True
        )
        assert (found.before[0], found.after[0]) == expected
    with pytest.raises(FootprintError, match="Margin -1, stride 0"):
        package(tmp_path, network, margin=-1, stride=0)
    with pytest.raises(FootprintError, match="give both"):
        package(tmp_path, network, margin=20)
    assert package_torchscript(
        tmp_path / "script.pt", tmp_path / "m", describe(**SAME), dims=2, probabilities=False, halo=(40, 0), trusted=True
    ).margin == ((40, 24), (40, 22))


class Half(nn.Module):
    """Has its type written into its code; returns what ``wrapped`` says."""

    def __init__(self, wrapped: bool) -> None:
        super().__init__()
        self.layer, self.wrapped = nn.Conv2d(1, 3, 5, padding=2), wrapped

    def forward(self, value: torch.Tensor) -> Any:
        result = self.layer(value.float())
        return {"out": result} if self.wrapped else (result,)


def test_a_script_that_knows_float32_only_is_measured_in_float32(tmp_path: Path) -> None:
    path = script(Half(False), tmp_path / "script.pt")
    geometry = package_torchscript(path, tmp_path / "m", describe(**SAME), dims=2, probabilities=False, trusted=True)
    assert geometry.margin == ((3, 3), (3, 3))  # one stride more than the two voxels of the kernel
    assert geometry.stride == (1, 1)


def test_what_is_no_script_of_one_array_is_refused(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"dims": 2, "probabilities": False, "trusted": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        several = torch.jit.trace(Half(True), torch.rand(1, 1, 9, 9), strict=False)
        torch.jit.save(several, str(tmp_path / "several.pt"))
    with pytest.raises(FootprintError, match="returns a dict, not one array"):
        package_torchscript(tmp_path / "several.pt", tmp_path / "m", describe(**SAME), **arguments)
    torch.save({"weight": torch.zeros(3)}, tmp_path / "weights.pth")
    with pytest.raises(ModelPackageError, match="is no TorchScript file"):
        package_torchscript(tmp_path / "weights.pth", tmp_path / "m", describe(**SAME), **arguments)
    network = random_network(0, **SAME | {"classes": 2})
    with pytest.raises(ModelPackageError, match="returns 2 channels, its description names 3"):
        package(tmp_path, network)
    assert not (tmp_path / "m").exists()


def test_geometry_that_contradicts_itself_is_refused() -> None:
    right: dict[str, Any] = {"before": (8,), "after": (5,), "stride": (4,), "shrink": (0,), "smallest": (4,), "dims": 1}
    assert stated_footprint(**right).legal_shape((5,)) == (8,)
    for name, value in {"before": (7,), "after": (-1,), "stride": (0,), "shrink": (4,), "smallest": (0,), "dims": 2}.items():
        with pytest.raises(FootprintError):
            stated_footprint(**right | {name: value})


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_precision_cost_and_memory_are_those_of_the_traced_network(precision: Any, tmp_path: Path) -> None:
    network = random_network(0, **SAME)
    read, traced = load_model(package(tmp_path, network), trusted=True), trace(network)
    assert isinstance(read.network, OpaqueNetwork)
    shape = (1, 256, 320)
    assert operations(read.network, shape) == operations(traced, shape)
    assert 0.9 < peak_bytes(read.network, shape) / peak_bytes(traced, shape) < 1.3
    twin = ModelPackage("", read.description, network, read.footprint, "")
    image = np.random.default_rng(0).normal(size=(1, 64, 80)).astype(np.float32)
    values = [load_predictor(model, "cpu", precision, 1).logits(image) for model in (read, twin)]
    torch.testing.assert_close(*values, atol=1e-5 if precision == "float32" else 0.05, rtol=0)


def test_the_command_imports_shows_and_runs_a_script(
    tmp_path: Path, make_image: Maker, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, model = script(random_network(0, **SAME), tmp_path / "script.pt"), tmp_path / "model"
    common = [
        "--dims",
        "2",
        "--channels",
        "1",
        "--classes",
        "background,cell,wall",
        "--output-kind",
        "classes",
        "--normalisation",
        "image",
    ]

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["unet", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return int(stopped.value.code or 0), *capsys.readouterr()

    assert call("model", "import-torchscript", path, model, *common)[0] == 2
    code, out, err = call("model", "import-torchscript", path, model, *common, "--trust-model")
    assert (code, err) == (0, "")
    assert "margin (24, 24) before, (22, 22) after, stride (4, 4)" in out
    code, _, err = call("model", "import-torchscript", path, model, *common, "--trust-model")
    assert (code, "holds a model package already" in err) == (2, True)
    before = (model / "model.json").read_bytes()
    (model / "network.pt").rename(tmp_path / "aside.pt")
    assert call("model", "import-torchscript", tmp_path / "nothing.pt", model, *common, "--trust-model")[0] == 2
    assert (model / "model.json").read_bytes() == before
    assert not (model / "network.pt").exists()
    (tmp_path / "aside.pt").rename(model / "network.pt")
    code, _, err = call("model", "export", model, tmp_path / "x.onnx", "--format", "onnx")
    assert (code, "is TorchScript and cannot be exported" in err) == (2, True)
    assert call("model", "info", model)[0] == 2
    _, out, _ = call("model", "info", model, "--trust-model")
    assert "unproven: The margin of (24, 24)" in out
    assert "GFLOP per output voxel" in out
    arguments = (make_image((60, 70)), tmp_path / "out", "--model", model, "--trust-model", "--cluster", "serial")
    assert call("segment", *arguments)[0] == 0
    assert labels_of(tmp_path / "out").shape == (60, 70)


def test_what_is_said_of_a_script_is_checked(tmp_path: Path) -> None:
    usual: dict[str, Any] = {"dims": 2, "channels": 1, "classes": ["a", "b"], "output_kind": "classes", "trusted": True}
    path, out = script(random_network(0, **SAME | {"classes": 2}), tmp_path / "script.pt"), str(tmp_path / "out")
    for changes, words in (
        ({"channels": 70_000}, "said to take 70000 channels; allowed are 1 to 65536"),
        ({"channels": 0}, "said to take 0 channels"),
        ({"dims": 4}, "said to have 4 spatial axes; networks here have 2 or 3"),
        ({"classes": ["a", ""]}, "Classes a, : name: "),
        ({"trusted": False}, "can carry code"),
    ):
        with pytest.raises(ModelPackageError, match=words):
            import_torchscript(path, out, **usual | changes)
    with pytest.raises(ModelPackageError, match="s3://bucket/script.pt is remote"):
        import_torchscript("s3://bucket/script.pt", out, **usual)
    assert not (tmp_path / "out").exists()
    import_torchscript(path, out, **usual)
    classes = load_model(out, trusted=True).description.classes
    assert [(entry.value, entry.name, entry.color) for entry in classes] == [(0, "a", "#000000"), (1, "b", "#ff2626")]


def test_a_remote_place_stays_one(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = script(random_network(0, **SAME | {"classes": 1}), tmp_path / "script.pt")
    common = ["--dims", "2", "--channels", "1", "--classes", "cell", "--output-kind", "regions", "--trust-model"]
    arguments = ["model", "import-torchscript", str(path), "s3://bucket/model", *common]
    monkeypatch.setattr("sys.argv", ["unet", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 0
    assert list(tmp_path.iterdir()) == [path]
    assert load_model("s3://bucket/model", trusted=True).dims == 2


def test_stated_sizes_are_those_that_the_network_takes() -> None:
    network = random_network(0, **SAME | {"padding": "valid"})
    derived = footprint(network)
    assert [(axis.shrink, axis.smallest) for axis in stated(network, 1, 2, 4)] == [(40, derived.legal_shape((1, 1))[0])] * 2

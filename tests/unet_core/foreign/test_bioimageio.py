"""Packages of bioimage.io become packages of ours that give the package's own test output, or are refused in one line."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from torch import nn

from tests.conftest import describe, random_network
from tests.flows.test_cli import call
from tests.unet_core.foreign.test_torchscript import save_script
from tests.unet_core.test_footprint import one_pass
from unet_core.errors import InputError, ModelPackageError
from unet_core.foreign.bioimageio import import_model
from unet_core.job import make_job
from unet_core.model_description import FixedNormalisation, MomentsNormalisation
from unet_core.model_package import load_model
from unet_core.networks import build
from unet_core.networks.initialisation import initialise
from unet_core.segment import run

pytest.importorskip("bioimageio.spec", reason="packages of bioimage.io need the extra 'zoo'")

REAL = Path(__file__).resolve().parents[2] / "data" / "bioimageio" / "unet2d_nuclei_broad"

Edit = Callable[[dict[str, Any]], None]


def read_yaml(path: Path) -> dict[str, Any]:
    from bioimageio.spec.utils import read_yaml as read

    content = read(path)
    assert isinstance(content, dict)
    return dict(content)


def copy(target: Path, edit: Edit | None = None) -> Path:
    """A copy of the real package, its yaml edited."""
    from bioimageio.spec.utils import write_yaml

    shutil.copytree(REAL, target)
    if edit is not None:
        content = read_yaml(target / "bioimageio.yaml")
        edit(content)
        write_yaml(content, target / "bioimageio.yaml")
    return target


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real package, taken over once."""
    out = tmp_path_factory.mktemp("imported") / "model"
    import_model(REAL, out)
    return out


def test_the_published_package_gives_its_test_output(tmp_path: Path) -> None:
    done = import_model(REAL / "bioimageio.yaml", tmp_path / "out")
    assert done.difference.relative <= 1e-5
    assert done.weights == "torchscript"
    package = load_model(tmp_path / "out")
    assert package.description == done.description
    assert package.footprint == done.footprint
    assert package.footprint.stride == (8, 8)
    assert done.description.network.arguments["first"] == "skip"
    assert done.description.network.arguments["relus"] == 1
    assert done.description.normalisation == MomentsNormalisation(eps=1e-6)
    assert [(entry.value, entry.name) for entry in done.description.classes] == [(1, "probability")]
    assert done.description.input_channels == ("raw_intensity",)
    assert done.description.provenance["license"] == "MIT"
    assert done.description.provenance["authors"][1] == "Fynn Beuttenmueller"
    weights = hashlib.sha256((REAL / "weights.pt").read_bytes()).hexdigest()
    assert done.description.provenance["sha256"]["weights.pt"] == weights
    # an independent pass: numpy's statistics, the plain module
    raw, expected = np.load(REAL / "test_input.npy"), np.load(REAL / "test_output.npy")
    normalised = (raw - raw.mean(dtype=np.float64)) / (raw.std(dtype=np.float64) + 1e-6)
    with torch.inference_mode():
        found = torch.sigmoid(package.network(torch.from_numpy(normalised.astype(np.float32)))).numpy()
    assert np.abs(found - expected).max() <= 1e-5


def test_a_run_gives_the_mirrored_pass_everywhere_and_the_test_output_inside(imported: Path, tmp_path: Path) -> None:
    raw = np.load(REAL / "test_input.npy")[0, 0]
    zarr.create_array(tmp_path / "image.zarr", data=raw, chunks=(100, 130))
    stored = []
    for number, block_shape in enumerate([(184, 264), (512, 136)]):
        job = make_job(
            image=str(tmp_path / "image.zarr"),
            output=str(tmp_path / f"{number}"),
            model=str(imported),
            block_shape=block_shape,
            probabilities="float32",
        )
        assert run(job).status == "complete"
        stored.append(np.asarray(zarr.open_array(tmp_path / f"{number}" / "0", mode="r")[...])[0])
    package = load_model(imported)
    normalised = ((raw - raw.mean(dtype=np.float64)) / (raw.std(dtype=np.float64) + 1e-6)).astype(np.float32)
    logits = one_pass(package.network, normalised[None])[0]
    mirrored = 1 / (1 + np.exp(-logits))
    expected = np.load(REAL / "test_output.npy")[0, 0]
    inside = tuple(slice(before, size - after) for before, after, size in zip(*package.footprint.margin, raw.shape, strict=True))
    for values in stored:
        np.testing.assert_allclose(values, mirrored, atol=1e-5)
        np.testing.assert_allclose(values[inside], expected[inside], atol=1e-5)
    assert np.abs(mirrored - expected).max() > 1e-3  # at the border the two differ, so the margin is needed
    clear = np.abs(logits) > 1e-5 * np.ptp(logits)
    first, second = (
        np.asarray(zarr.open_array(next((tmp_path / f"{number}" / "labels").glob("*/0")), mode="r")[...]) for number in range(2)
    )
    np.testing.assert_array_equal(first[clear], second[clear])
    assert 0.05 < (first > 0).mean() < 0.5


def test_a_zip_and_a_folder_give_the_same_model(imported: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "package.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in REAL.iterdir():
            archive.write(path, path.name)
    import_model(tmp_path / "package.zip", tmp_path / "out")
    assert load_model(tmp_path / "out").sha256 == load_model(imported).sha256


@pytest.mark.parametrize("shape", ["fixed", "reference"])
def test_the_older_format_gives_the_same_model(shape: str, imported: Path, tmp_path: Path) -> None:
    """With a halo at a fixed shape too, for which the newer format has no word."""
    from bioimageio.spec.utils import write_yaml

    sizes: Any = [1, 1, 512, 512]
    scale = {"reference_tensor": "raw", "scale": [1.0, 0.0, 1.0, 1.0], "offset": [0.0, 0.5, 0.0, 0.0]}
    usual = {"axes": "bcyx", "data_type": "float32"}
    steps = [{"name": "zero_mean_unit_variance", "kwargs": {"mode": "per_sample", "axes": "yx"}}]
    outcome = {
        "name": "out",
        "shape": sizes if shape == "fixed" else scale,
        "halo": [0, 0, 32, 32],
        "postprocessing": [{"name": "sigmoid"}],
    }
    content = {
        "type": "model",
        "format_version": "0.4.9",
        "name": "older",
        "description": "the same in the older format",
        "authors": [{"name": "Constantin Pape"}],
        "cite": [{"text": "U-Net", "doi": "10.1007/978-3-319-24574-4_28"}],
        "license": "MIT",
        "tags": ["unet"],
        "documentation": "README.md",
        "covers": ["cover.png"],
        "timestamp": "2019-12-11T12:22:32",
        "inputs": [{"name": "raw", "shape": sizes, "preprocessing": steps} | usual],
        "outputs": [outcome | usual],
        "test_inputs": ["test_input.npy"],
        "test_outputs": ["test_output.npy"],
        "weights": {"torchscript": {"source": "weights.pt", "sha256": "0" * 64, "pytorch_version": "2.5.1"}},
    }
    package = copy(tmp_path / "package")
    (package / "bioimageio.yaml").unlink()
    write_yaml(content, package / "rdf.yaml")
    with pytest.raises(ModelPackageError, match="weights.pt has sha256"):
        import_model(package, tmp_path / "out")
    content["weights"]["torchscript"].pop("sha256")
    write_yaml(content, package / "rdf.yaml")
    import_model(package, tmp_path / "out")
    older, newer = load_model(tmp_path / "out"), load_model(imported)
    assert older.description.network == newer.description.network
    assert older.description.normalisation == newer.description.normalisation
    assert all(torch.equal(older.network.state_dict()[name], tensor) for name, tensor in newer.network.state_dict().items())


def rewritten(folder: Path, change: Callable[[str, bytes], bytes]) -> None:
    with zipfile.ZipFile(REAL / "weights.pt") as old, zipfile.ZipFile(folder / "weights.pt", "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))


def one_weight_changed(name: str, data: bytes) -> bytes:
    return np.float32(0.5).tobytes() + data[4:] if name.endswith("/data/8") else data


def test_a_changed_weight_is_refused_by_hash_and_without_one_by_the_output(tmp_path: Path) -> None:
    changed = copy(tmp_path / "hashed")
    rewritten(changed, one_weight_changed)
    with pytest.raises(ModelPackageError, match="weights.pt has sha256"):
        import_model(changed, tmp_path / "out")
    unhashed = copy(tmp_path / "unhashed", lambda content: content["weights"]["torchscript"].pop("sha256"))
    rewritten(unhashed, one_weight_changed)
    with pytest.raises(ModelPackageError, match="do not give its test output .* off, .* of its range; allowed is 1e-05"):
        import_model(unhashed, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_wrong_order_of_concatenation_or_number_of_relus_never_passes(imported: Path) -> None:
    """What the choice among candidates rests on: each of the other three is far from the test output."""
    package = load_model(imported)
    raw = np.load(REAL / "test_input.npy")[..., :128, :128]
    image = torch.from_numpy(((raw - 700) / 600).astype(np.float32))
    outputs = []
    for first in ("skip", "up"):
        for relus in (1, 2):
            network = build("zoo_unet", **package.description.network.arguments | {"first": first, "relus": relus}).eval()
            network.load_state_dict(package.network.state_dict())
            with torch.inference_mode():
                outputs.append(torch.sigmoid(network(image)))
    assert all((other - outputs[0]).abs().max() > 0.1 for other in outputs[1:])


def set_path(*path: Any, to: Any) -> Edit:
    def edit(content: dict[str, Any]) -> None:
        place: Any = content
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = to

    return edit


def keep_weights(*names: str) -> Edit:
    def edit(content: dict[str, Any]) -> None:
        content["weights"] = {name: {**content["weights"][name]} for name in names}
        content["weights"][names[0]].pop("parent", None)

    return edit


def voxel_size(size_um: float) -> Edit:
    def edit(content: dict[str, Any]) -> None:
        for axis in (*content["inputs"][0]["axes"][2:], *content["outputs"][0]["axes"][2:]):
            axis |= {"scale": size_um, "unit": "micrometer"}

    return edit


PREPROCESSING = ("inputs", 0, "preprocessing")
POSTPROCESSING = ("outputs", 0, "postprocessing")
REFUSED: dict[str, tuple[Edit, str]] = {
    "no model": (set_path("type", to="dataset"), "describes a dataset, no model"),
    "onnx only": (keep_weights("onnx"), "has its weights as onnx; read are pytorch_state_dict and torchscript"),
    "link only": (keep_weights("pytorch_state_dict"), "only links to its weights .*nothing is downloaded"),
    "clip": (
        set_path(*PREPROCESSING, to=[{"id": "clip", "kwargs": {"min": 0.0, "max": 1.0}}]),
        "processing step 'clip' cannot be taken over",
    ),
    "uint8": (set_path(*PREPROCESSING, to=[{"id": "ensure_dtype", "kwargs": {"dtype": "uint8"}}]), "it makes uint8 of the image"),
    "one axis": (
        set_path(*PREPROCESSING, to=[{"id": "zero_mean_unit_variance", "kwargs": {"axes": ["x"]}}]),
        "its axes are x; statistics are over all of y, x",
    ),
    "binarize": (
        set_path(*POSTPROCESSING, to=[{"id": "sigmoid"}, {"id": "binarize", "kwargs": {"threshold": 0.5}}]),
        "processing step 'binarize'",
    ),
    "no sigmoid": (set_path(*POSTPROCESSING, to=[]), ""),
    "other normalisation": (
        set_path(*PREPROCESSING, to=[{"id": "fixed_zero_mean_unit_variance", "kwargs": {"mean": 900.0, "std": 800.0}}]),
        "do not give its test output",
    ),
    "wrong hash": (set_path("inputs", 0, "test_tensor", "sha256", to="0" * 64), "test_input.npy has sha256"),
    "gain": (
        set_path(*PREPROCESSING, to=[{"id": "scale_linear", "kwargs": {"gain": 1e40, "offset": 0.0}}]),
        "offset or scale that float32 has no room for: scale.0",
    ),
    "small gain": (set_path(*PREPROCESSING, to=[{"id": "scale_linear", "kwargs": {"gain": 1e-310}}]), "float32 has no room for"),
    "mean": (
        set_path(*PREPROCESSING, to=[{"id": "fixed_zero_mean_unit_variance", "kwargs": {"mean": 1e300, "std": 1.0}}]),
        "float32 has no room for: offset.0",
    ),
    "voxel size": (voxel_size(1e12), "cannot be described here: voxel_size_um"),
    "absent file": (set_path("weights", "torchscript", "source", to="other.pt"), "lacks the file other.pt"),
    "path out": (set_path("weights", "torchscript", "source", to="../secret.pt"), "inside the package|does not follow"),
    "absolute": (set_path("weights", "torchscript", "source", to="/etc/passwd"), "only links to its weights|does not follow"),
    "no version": (set_path("format_version", to="7.8.9"), "does not follow the format"),
    "axes": (set_path("inputs", 0, "axes", 1, "id", to="y"), "does not follow the format"),
}


@pytest.mark.parametrize("case", [name for name, (_, words) in REFUSED.items() if words])
def test_what_has_no_counterpart_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    edit, words = REFUSED[case]
    package = copy(tmp_path / "package", edit)
    (tmp_path / "secret.pt").write_bytes(b"secret")
    with pytest.raises(InputError, match=words) as refusal:
        import_model(package, tmp_path / "out")
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 900
    assert not (tmp_path / "out").exists()


def test_a_network_of_another_number_of_channels_is_refused(tmp_path: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["inputs"][0]["axes"][1]["channel_names"] = ["a", "b", "c"]
        content["inputs"][0]["test_tensor"].pop("sha256")

    package = copy(tmp_path / "package", edit)
    np.save(package / "test_input.npy", np.repeat(np.load(REAL / "test_input.npy"), 3, axis=1))
    with pytest.raises(ModelPackageError, match="do not give its test output .*to have 1 channels, but got 3 channels"):
        import_model(package, tmp_path / "out")


def test_an_activation_inside_the_network_is_found_by_the_output(tmp_path: Path) -> None:
    done = import_model(copy(tmp_path / "package", REFUSED["no sigmoid"][0]), tmp_path / "out")
    assert done.description.heads[0].kind == "regions"
    assert any("sigmoid is part of the network" in note for note in done.notes)
    with pytest.raises(ModelPackageError, match="--output-kind classes contradicts"):
        import_model(REAL, tmp_path / "other", output_kind="classes")


def test_links_that_lead_out_of_a_package_are_not_followed(tmp_path: Path) -> None:
    package = copy(tmp_path / "package", lambda content: content["weights"]["torchscript"].pop("sha256"))
    shutil.move(package / "weights.pt", tmp_path / "weights.pt")
    (package / "weights.pt").symlink_to(tmp_path / "weights.pt")
    with pytest.raises(ModelPackageError, match="leads out of the package"):
        import_model(package, tmp_path / "out")


class TorchEm(nn.Module):
    """A U-Net with the names of torch-em's, written anew: a convolution and a ReLU, twice a block; below first in the concatenation."""

    def __init__(self, in_channels: int, classes: int, widths: tuple[int, ...], norm: bool) -> None:
        super().__init__()

        def block(channels: int, width: int) -> nn.Module:
            layers: list[nn.Module] = []
            for size in (channels, width):
                layers += [nn.InstanceNorm3d(size)] if norm else []
                layers += [nn.Conv3d(size, width, 3, padding=1), nn.ReLU()]
            result = nn.Module()
            result.block = nn.Sequential(*layers)
            return result

        *fine, coarse = widths
        self.encoder, self.decoder = nn.Module(), nn.Module()
        self.encoder.blocks = nn.ModuleList(block(a, b) for a, b in zip((in_channels, *fine), fine, strict=False))
        self.base = block(fine[-1], coarse)
        self.decoder.blocks = nn.ModuleList(block(2 * width, width) for width in reversed(fine))
        self.decoder.samplers = nn.ModuleList()
        for width in reversed(fine):
            sampler = nn.Module()
            sampler.conv = nn.Conv3d(2 * width, width, 1)
            self.decoder.samplers.append(sampler)
        self.out_conv = nn.Conv3d(fine[0], classes, 1)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        skips = []
        for block in self.encoder.blocks:
            value = block.block(value)
            skips.append(value)
            value = nn.functional.max_pool3d(value, 2)
        value = self.base.block(value)
        for sampler, block in zip(self.decoder.samplers, self.decoder.blocks, strict=True):
            value = sampler.conv(nn.functional.interpolate(value, scale_factor=2.0, mode="trilinear"))
            value = block.block(torch.cat([value, skips.pop()], dim=1))
        result: torch.Tensor = self.out_conv(value)
        return result


def write_package(
    folder: Path,
    network: nn.Module,
    shape: tuple[int, ...],
    spatial: str,
    architecture: dict[str, Any],
    names: tuple[str, ...] = ("background", "cell", "cell"),
) -> Path:
    """A package of a 3D network of two input channels and three classes with soft-max, in format 0.5."""
    from bioimageio.spec.utils import write_yaml

    folder.mkdir()
    random = np.random.default_rng(0)
    raw = random.integers(0, 4000, (1, 2, *shape)).astype(np.uint16)
    normalised = torch.from_numpy(((raw - np.array([900.0, 1100]).reshape(1, 2, 1, 1, 1)) / 700).astype(np.float32))
    with torch.inference_mode():
        probabilities = network(normalised).softmax(1).numpy()
    np.save(folder / "in.npy", raw)
    np.save(folder / "out.npy", probabilities)
    torch.save({"model_state": network.state_dict()}, folder / "state.pt")
    space = [
        {"type": "space", "id": name, "size": size, "unit": "nanometer", "scale": scale}
        for name, size, scale in zip(spatial, shape, {"zyx": (40.0, 8.0, 9.0), "xzy": (9.0, 40.0, 8.0)}[spatial], strict=True)
    ]
    channels = {"type": "channel", "channel_names": ["nuclei", "membrane"]}
    classes = {"type": "channel", "channel_names": list(names)}
    mean = {"axis": "channel", "mean": [900.0, 1100.0], "std": [700.0 - 1e-6, 700.0 - 1e-6]}
    content = {
        "type": "model",
        "format_version": "0.5.4",
        "name": "synthetic",
        "description": "a random network",
        "authors": [{"name": "Nobody"}],
        "cite": [{"text": "none", "doi": "10.1000/182"}],
        "license": "MIT",
        "documentation": "README.md",
        "inputs": [
            {
                "id": "raw",
                "axes": [{"type": "batch", "size": 1}, channels, *space],
                "test_tensor": {"source": "in.npy"},
                "preprocessing": [{"id": "fixed_zero_mean_unit_variance", "kwargs": mean}],
            }
        ],
        "outputs": [
            {
                "id": "out",
                "axes": [{"type": "batch"}, classes, *[{k: entry[k] for k in ("type", "id", "size")} for entry in space]],
                "test_tensor": {"source": "out.npy"},
                "postprocessing": [{"id": "softmax", "kwargs": {"axis": "channel"}}],
            }
        ],
        "weights": {"pytorch_state_dict": {"source": "state.pt", "pytorch_version": "2.10", "architecture": architecture}},
    }
    (folder / "README.md").write_text("synthetic")
    write_yaml(content, folder / "bioimageio.yaml")
    return folder


ELSEWHERE = {"callable": "UNet3d", "import_from": "torch_em.model", "kwargs": {"depth": 2}}


@pytest.mark.parametrize("spatial", ["zyx", "xzy"])
def test_a_3d_network_in_torch_em_s_names_is_taken_over_whatever_its_order_of_axes(spatial: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    network = TorchEm(2, 3, (4, 8, 16), norm=False).eval()
    initialise(network)
    package = write_package(tmp_path / "package", network, (8, 12, 20), spatial, ELSEWHERE)
    done = import_model(package, tmp_path / "out")
    description = done.description
    assert done.weights == "pytorch_state_dict"
    assert description.network.arguments["first"] == "up"
    assert description.network.arguments["relus"] == 2
    assert description.network.arguments["dims"] == 3
    assert description.heads[0].kind == "classes"
    assert [(entry.value, entry.name) for entry in description.classes] == [(0, "background"), (1, "cell 1"), (2, "cell 2")]
    assert description.voxel_size_um == pytest.approx((0.04, 0.008, 0.009))
    assert isinstance(description.normalisation, FixedNormalisation)
    assert description.normalisation.offset == (900.0, 1100.0)
    image = torch.randn(1, 2, 12, 16, 8)  # z y x
    order = tuple(2 + "zyx".index(name) for name in spatial)
    back = tuple(2 + spatial.index(name) for name in "zyx")
    with torch.inference_mode():
        expected = network(image.permute(0, 1, *order)).permute(0, 1, *back)
        found = load_model(tmp_path / "out").network(image)
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.max() - expected.min()), rtol=0)


def test_instance_normalisation_is_told_by_the_names_and_taken_over_with_a_note(tmp_path: Path) -> None:
    torch.manual_seed(2)
    network = TorchEm(2, 3, (4, 8), norm=True).eval()
    package = write_package(tmp_path / "package", network, (8, 12, 20), "zyx", ELSEWHERE)
    done = import_model(package, tmp_path / "out")
    assert done.description.network.arguments["norm"] == "instance"
    assert done.difference.is_small
    assert any("look at the whole image" in note and "--approximate" in note for note in done.notes)


CONTRADICTIONS: list[tuple[Edit, str]] = [
    (set_path("network", "arguments", "levels", to=3), "its config states"),
    (set_path("network", "arguments", "classes", to=2), r"heads use channels \[0, 1, 2\], the network gives 2"),
    (lambda stated: stated["classes"].reverse(), "has the classes class 2, class 1, class 0, the axes class 0, class 1, class 2"),
    (set_path("heads", 0, "channels", to=[1, 0, 2]), "has the classes class 1, class 0, class 2, the axes"),
    (lambda stated: stated["input_channels"].reverse(), "has the input channels membrane, nuclei, the axes nuclei, membrane"),
    (set_path("voxel_size_um", to=[0.04, 0.008]), r"has the voxel size \(0.04, 0.008\), the axes \(0.04, 0.008, 0.009"),
    (set_path("voxel_size_um", to=[0.04, 0.009, 0.008]), r"has the voxel size \(0.04, 0.009, 0.008\), the axes"),
    (set_path("voxel_size_um", to="unknown"), "has the voxel size unknown, the axes"),
    (set_path("normalisation", "offset", to=[1.0]), "1 offset for 2 channels"),
    (set_path("normalisation", to={"kind": "image", "low": 90, "high": 10}), "low must be below high"),
]


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_our_own_architecture_keeps_its_own_description(padding: str, tmp_path: Path) -> None:
    from bioimageio.spec.utils import write_yaml

    arguments = {"in_channels": 2, "classes": 3, "base": 2, "levels": 2, "dims": 3, "padding": padding}
    network = random_network(**arguments)
    stated = describe("classes", (0.04, 0.008, 0.009), **arguments).model_copy(
        update={
            "normalisation": FixedNormalisation(offset=(900.0, 1100.0), scale=(700.0, 700.0), dtype="uint16"),
            "input_channels": ("nuclei", "membrane"),
            "provenance": {"data": {"seed": 3}},
        }
    )
    names = tuple(entry.name for entry in stated.classes)
    architecture = {"callable": "build", "import_from": "unet_core.networks", "kwargs": {"name": "unet", **arguments}}
    package = write_package(tmp_path / "package", network, (20, 22, 24), "zyx", architecture, names)
    content = read_yaml(package / "bioimageio.yaml")
    content["config"] = {"unet_flows": stated.model_dump(mode="json")}
    if padding == "valid":
        for axis in content["outputs"][0]["axes"][2:]:
            axis["size"] -= 16
    write_yaml(content, package / "bioimageio.yaml")
    done = import_model(package, tmp_path / "out")
    assert done.description == load_model(tmp_path / "out").description == stated
    for change, words in CONTRADICTIONS:
        other = deepcopy(content)
        change(other["config"]["unet_flows"])
        write_yaml(other, package / "bioimageio.yaml")
        with pytest.raises(ModelPackageError, match=words) as refusal:
            import_model(package, tmp_path / "other")
        assert str(refusal.value).startswith(str(package))
        assert not (tmp_path / "other").exists()


def test_an_unknown_network_is_refused_by_its_first_names_and_trust_is_asked_for(tmp_path: Path) -> None:
    package = copy(tmp_path / "package", lambda content: content["weights"]["torchscript"].pop("sha256"))
    save_script(nn.Sequential(nn.Conv2d(1, 1, 3, padding=1)), package / "weights.pt")
    with pytest.raises(ModelPackageError, match="its 2 tensors begin with 0.weight, 0.bias. Known are .*--trust-model does so"):
        import_model(package, tmp_path / "out")
    (package / "weights.pt").unlink()
    torch.save({"0.weight": torch.zeros(1)}, package / "weights.pt")
    with pytest.raises(ModelPackageError, match="begin with 0.weight"):
        import_model(package, tmp_path / "out")


def test_an_existing_package_is_not_replaced(imported: Path) -> None:
    before = (imported / "model.json").read_bytes()
    with pytest.raises(ModelPackageError, match="holds a model package already"):
        import_model(REAL, imported)
    assert (imported / "model.json").read_bytes() == before


def test_without_the_library_one_line_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bioimageio.spec", None)
    with pytest.raises(ModelPackageError, match=r"pip install 'unet-flows\[zoo\]'"):
        import_model(REAL, tmp_path / "out")


def test_the_command_prints_what_was_mapped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, _ = call(monkeypatch, capsys, "model", "import", REAL, tmp_path / "out", "--json")
    facts = json.loads(out.splitlines()[-1])
    assert code == 0
    assert facts["margin"] == "(56, 56) before, (53, 53) after"
    assert facts["stride"] == [8, 8]
    assert facts["difference"]["of_range"] <= 1e-5
    assert facts["normalisation"] == {"kind": "moments", "joint": False, "eps": 1e-6}
    assert "reproduced to" in out
    code, _, err = call(monkeypatch, capsys, "model", "import", tmp_path / "nothing", tmp_path / "other")
    assert code == 2
    assert err.count("\n") == 1
    assert "Nothing is downloaded" in err


def test_the_command_prints_no_codes_that_a_terminal_obeys(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    package = copy(
        tmp_path / "package", set_path("outputs", 0, "axes", 1, "channel_names", to=["\x1b[31mred\x07\nnote  all is well"])
    )
    code, out, _ = call(monkeypatch, capsys, "model", "import", package, tmp_path / "out")
    assert code == 0
    assert "output  regions: [31mred note all is well" in out
    assert out.replace("\n", "").isprintable()

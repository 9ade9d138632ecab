"""An exported package runs in another program, which knows the format alone, and comes back as it was."""

from __future__ import annotations

import json
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from flows.foreign_commands import export
from tests.conftest import describe, random_network, textured
from unet_core.errors import JobError, ModelPackageError
from unet_core.footprint import footprint
from unet_core.foreign.bioimageio_description import about, halo, readme, smallest_shape, tensors
from unet_core.foreign.export_bioimageio import export_bioimageio
from unet_core.foreign.export_onnx import metadata
from unet_core.foreign.exporting import new_output
from unet_core.model_description import FixedNormalisation, ImageNormalisation, ModelDescription, NoNormalisation
from unet_core.model_package import load_model, save_model

Make = Callable[..., Path]


def make(folder: Path, kind: str = "classes", changes: dict[str, Any] | None = None, **arguments: Any) -> Path:
    settings = {"in_channels": 2, "classes": 2, "base": 2, "levels": 2} | arguments
    description = describe(kind, **settings).model_copy(update=changes or {})
    save_model(folder, random_network(**settings), description)
    return folder


PROVENANCE = {
    "data": "synthetic blobs: 'on', no, 1e-30", "license": "CC0-1.0", "authors": ["Ada L."], "seed": 3,
    "cite": [{"text": "a page", "url": "https://a.page.of.nobody/paper"}],
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "valid-2d-fixed": {
        "changes": {
            "normalisation": FixedNormalisation(offset=(120.0, 90.5), scale=(40.25, 31.0), dtype="uint8"),
            "provenance": PROVENANCE,
            "voxel_size_um": (0.325, 0.1),
        }
    },
    "same-3d-percentiles-regions": {
        "kind": "regions",
        "dims": 3,
        "padding": "same",
        "changes": {"normalisation": ImageNormalisation(low=2.0, high=99.5)},
    },
    "valid-2d-small-scale": {"changes": {"normalisation": FixedNormalisation(offset=(1e-3, 2e-3), scale=(4e-4, 3e-3))}},
    "same-2d-none": {"padding": "same", "changes": {"normalisation": NoNormalisation()}},
}


def predicted(folder: Path, image: Any, weights: str) -> Any:
    """What bioimageio.core computes for a whole image of shape (1, C, *spatial)."""
    from bioimageio.core import Sample, Tensor, create_prediction_pipeline
    from bioimageio.spec import load_model_description

    axes = ("batch", "channel", "z", "y", "x") if image.ndim == 5 else ("batch", "channel", "y", "x")
    described = load_model_description(folder / "bioimageio.yaml", perform_io_checks=False)
    sample = Sample(members={"image": Tensor(image, dims=axes)}, stat={}, id="one")  # type: ignore[dict-item]
    with create_prediction_pipeline(described, weight_format=weights) as pipeline:  # type: ignore[arg-type]
        result = pipeline.predict_sample_without_blocking(sample, skip_input_padding=True, skip_output_cropping=True)
    return np.asarray(result.members["probabilities"].data)  # type: ignore[index]


@pytest.mark.parametrize("case", list(CASES))
def test_another_program_computes_what_the_network_does(case: str, tmp_path: Path) -> None:
    package = load_model(make(tmp_path / "model", **CASES[case]))
    onnx = case == "valid-2d-fixed"
    written = export_bioimageio(package, str(tmp_path / "out"), onnx=onnx)
    expected = np.load(tmp_path / "out/test_output.npy")
    image = np.load(tmp_path / "out/test_input.npy")
    formats = ("pytorch_state_dict", "onnx") if onnx else ("pytorch_state_dict",)
    for weights in formats:
        found = predicted(tmp_path / "out", image, weights)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < 2e-4
    # At another size, against the network in float64 with our own arithmetic of intensities.
    normalisation = package.description.normalisation
    shape = tuple(size + 3 * step for size, step in zip(image.shape[2:], package.footprint.stride, strict=True))
    other = np.random.default_rng(5).normal(size=(1, 2, *shape))
    if isinstance(normalisation, FixedNormalisation):
        numbers = [np.reshape(values, (2, *[1] * len(shape))) for values in (normalisation.offset, normalisation.scale)]
        other = (other * numbers[1] + numbers[0]).astype(image.dtype)
        ready = (other - numbers[0]) / numbers[1]
    else:
        other = ready = other.astype(np.float32)
        if isinstance(normalisation, ImageNormalisation):
            space = tuple(range(2, ready.ndim))
            low, high = np.percentile(ready, (normalisation.low, normalisation.high), axis=space, keepdims=True)
            ready = (ready - low) / (high - low)
    with torch.inference_mode():
        logits = package.network.double()(torch.from_numpy(ready.astype(np.float64)))
        wanted = (logits.sigmoid() if package.description.heads[0].kind == "regions" else logits.softmax(1)).numpy()
    assert np.ptp(wanted) > 0.2
    assert np.abs(predicted(tmp_path / "out", other, "pytorch_state_dict") - wanted).max() < 2e-4
    assert all(check.passed for check in written.checks)


@pytest.mark.parametrize("case", ["valid-2d-fixed", "same-3d-percentiles-regions"])
def test_the_other_programs_own_test_passes_and_sees_other_weights(case: str, tmp_path: Path) -> None:
    from bioimageio.core import test_description as check_description

    export_bioimageio(load_model(make(tmp_path / "model", **CASES[case])), str(tmp_path / "out"))
    file = tmp_path / "out/bioimageio.yaml"
    assert check_description(file, weight_format="pytorch_state_dict").status == "passed"
    state = torch.load(tmp_path / "out/weights.pt", weights_only=True)
    state["head.bias"] += torch.tensor([0.5, 0.0])
    torch.save(state, tmp_path / "out/weights.pt")
    text = "\n".join(line for line in file.read_text().splitlines() if "sha256" not in line)
    file.write_text(text)
    assert check_description(file, weight_format="pytorch_state_dict").status != "passed"


def test_the_description_states_sizes_places_and_the_model_itself(tmp_path: Path) -> None:
    package = load_model(make(tmp_path / "model", **CASES["valid-2d-fixed"]))
    export_bioimageio(package, str(tmp_path / "out"))
    said = yaml.safe_load((tmp_path / "out/bioimageio.yaml").read_text())
    assert ModelDescription.model_validate(said["config"]["unet_flows"]) == package.description
    axes = said["inputs"][0]["axes"]
    assert axes[1]["channel_names"] == ["channel 0", "channel 1"]
    assert axes[2] == {"type": "space", "id": "y", "size": {"min": 18, "step": 2}, "unit": "nanometer", "scale": 325.0}
    assert said["outputs"][0]["axes"][3]["size"] == {"tensor_id": "image", "axis_id": "x", "offset": -16}
    assert (said["license"], said["authors"]) == ("CC0-1.0", [{"name": "Ada L."}])
    architecture = said["weights"]["pytorch_state_dict"]["architecture"]
    assert architecture["kwargs"] == {"name": "unet"} | package.description.network.arguments


def test_a_zip_holds_the_same_and_no_network_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError("a connection was made")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    package = load_model(make(tmp_path / "model", **CASES["valid-2d-fixed"]))
    for name in ("out", "out.zip"):
        export_bioimageio(package, str(tmp_path / name))
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        names = set(archive.namelist())
        tensor = archive.read("test_output.npy")
    assert names == {file.name for file in (tmp_path / "out").iterdir()}
    assert tensor == (tmp_path / "out/test_output.npy").read_bytes()


def test_the_command_tells_what_was_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = make(tmp_path / "model"), str(tmp_path / "out")
    assert export(str(model), out, format="bioimageio", author=("Ada L.", "Bo"), license="MIT", json=True) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(last["bytes"]) == {"README.md", "bioimageio.yaml", "test_input.npy", "test_output.npy", "weights.pt"}
    assert [check["difference"] for check in last["checks"]] == [0.0]
    assert [author["name"] for author in yaml.safe_load((tmp_path / "out/bioimageio.yaml").read_text())["authors"]] == [
        "Ada L.",
        "Bo",
    ]
    with pytest.raises(JobError, match="belong to --format bioimageio"):
        export(str(model), out, format="onnx", license="MIT")
    with pytest.raises(JobError, match="overwrites nothing"):
        export(str(model), out, format="bioimageio")


def test_nothing_is_left_of_what_the_format_refuses(tmp_path: Path) -> None:
    package = load_model(make(tmp_path / "model"))
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(ModelPackageError, match=r"refused by bioimageio.spec: .*license"):
        export_bioimageio(package, str(place / "out"), licence="my own")
    assert list(place.iterdir()) == []


def test_a_library_that_cannot_write_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **kwargs: Any) -> None:
        raise TypeError("model_dump() got an unexpected keyword")  # as under pydantic 2.14

    monkeypatch.setattr("bioimageio.spec.model.v0_5.OnnxWeightsDescr.model_dump", fails)
    package = load_model(make(tmp_path / "model"))
    with pytest.raises(ModelPackageError, match=r"cannot write descriptions with pydantic .*; pip install 'pydantic<2.14'"):
        export_bioimageio(package, str(tmp_path / "place/out"))
    assert not (tmp_path / "place").exists()


@given(st.floats(1e-4, 100.0), st.integers(1, 100_000))
def test_readers_get_every_size_back_whatever_the_voxel_size(size_um: float, count: int) -> None:
    description = describe(voxel_size_um=(size_um, 0.325), in_channels=1, classes=2, base=2, levels=2)
    image, _ = tensors(description, GEOMETRY)
    for axis in image["axes"][2:]:
        assert int(count * axis["scale"] / axis["scale"]) == count
    unit = {"nanometer": 1e-3, "micrometer": 1.0}[image["axes"][2]["unit"]]
    assert image["axes"][2]["scale"] * unit == pytest.approx(size_um, rel=1e-6)
    assert int(7 * 0.325 / 0.325) == 6  # why it is done at all


GEOMETRY = footprint(random_network(in_channels=1, classes=2, base=2, levels=2))


@pytest.mark.parametrize("network", ["unet", "resunet", "attention_unet"])
def test_what_is_left_without_the_halo_does_not_depend_on_where_the_image_ends(network: str) -> None:
    small = {"resunet": {"units": (1, 2)}}.get(network, {"levels": 3})
    built = random_network(network=network, in_channels=1, classes=2, base=2, dims=2, padding="same", **small).double()
    geometry = footprint(built)
    cut, least = halo(geometry), smallest_shape(geometry)
    assert geometry.is_legal(least)
    assert all(size > 2 * border for size, border in zip(least, cut, strict=True))
    whole = torch.from_numpy(textured(geometry.legal_shape((131, 97))) / 50.0)[None, None]
    part = whole[..., 4 * geometry.stride[0] :, : geometry.legal_shape((61, 61))[1]]
    part = part[..., : geometry.legal_shape((71, 61))[0], :]
    with torch.inference_mode():
        of_whole = built(whole)[0, :, 4 * geometry.stride[0] :][:, : part.shape[2], : part.shape[3]]
        of_part = built(part)[0]
    difference = (of_part - of_whole).abs()
    assert difference[:, cut[0] : -cut[0], : -cut[1]].max() < 1e-12
    assert difference.max() > 1e-6  # inside the halo it does depend


def test_the_documentation_says_what_does_not_hold(tmp_path: Path) -> None:
    exact, eps = "give the result of one pass over the whole image", "differ by that share"
    plain = load_model(make(tmp_path / "plain"))
    assert exact in readme(plain.description, plain.footprint, plain.whole_box)
    settings: dict[str, Any] = {"network": "zoo_unet", "norm": "instance", "padding": "same", "in_channels": 1, "classes": 2}
    settings |= {"base": 2, "levels": 2}
    description = describe(**settings).model_copy(update={"normalisation": ImageNormalisation()})
    save_model(tmp_path / "whole", random_network(**settings), description)
    whole = load_model(tmp_path / "whole")
    said = readme(whole.description, whole.footprint, whole.whole_box)
    assert whole.whole_box
    assert exact not in said
    assert f"Layers {', '.join(whole.whole_box)} look at the whole image" in said
    assert (eps in said, eps in readme(plain.description, plain.footprint, ())) == (True, False)
    facts = [metadata(package) for package in (plain, whole)]
    assert [entry["exact"] for entry in facts] == [True, False]
    assert [entry["whole_image_layers"] for entry in facts] == [[], list(whole.whole_box)]


def put(path: Path, text: str, kind: str = "file") -> None:
    if kind == "folder":
        path.mkdir()
        path /= "content"
    path.write_text(text)


def late(target: Path, kind: str = "file") -> None:
    """An export to a place where something appears while it is under way."""
    with new_output(str(target)) as work:
        put(work / "output", "mine", kind)
        put(target, "theirs", kind)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_appears_meanwhile_is_not_overwritten(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(JobError, match=r"out appeared meanwhile; an export overwrites nothing"):
        late(target, kind)
    assert (target / "content" if kind == "folder" else target).read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with new_output(str(tmp_path / "new" / "out")) as work:
        put(work / "output", "mine", kind)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]


def test_a_disk_without_second_names_of_files_takes_an_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    with new_output(str(tmp_path / "out")) as work:
        put(work / "output", "mine")
    assert (tmp_path / "out").read_text() == "mine"
    with pytest.raises(JobError, match="appeared meanwhile"):
        late(tmp_path / "other")
    assert (tmp_path / "other").read_text() == "theirs"


def test_folders_made_for_an_export_that_fails_are_removed(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    with pytest.raises(ModelPackageError, match="no"), new_output(str(tmp_path / "kept/b/c/out")):
        raise ModelPackageError("no")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["kept"]


def test_names_texts_and_people_are_told_given_or_left_out() -> None:
    plain = describe(in_channels=1, classes=2, base=2).model_copy(update={"name": "m/1"})
    assert about(plain, (), None) == {
        "name": "m-1 (unet model)",
        "description": "unet for class 0, class 1. Data: not stated.",
        "authors": [],
        "cite": [],
    }
    stated = plain.model_copy(update={"provenance": PROVENANCE})
    told = about(stated, ("Bo",), "MIT")
    assert (told["authors"], told["license"], told["cite"]) == ([{"name": "Bo"}], "MIT", PROVENANCE["cite"])

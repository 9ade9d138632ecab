"""Packages that are damaged, or made to harm: refused in one line, with no more memory, time or disk than they are worth."""

from __future__ import annotations

import struct
import tempfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.unet_core.foreign.test_bioimageio import REAL, copy
from unet_core.errors import ModelPackageError
from unet_core.foreign.architectures import Candidate
from unet_core.foreign.bioimageio import import_model
from unet_core.foreign.source import MAX_TENSOR_BYTES, Source, StoredFile
from unet_core.foreign.yaml_file import read_mapping
from unet_core.model_description import NetworkSpec

pytest.importorskip("bioimageio.spec", reason="packages of bioimage.io need the extra 'zoo'")


def test_no_yaml_changes_how_the_next_is_read(tmp_path: Path) -> None:
    text = "a: [yes, 010, 1:30, 0o10]\n"
    path = tmp_path / "rdf.yaml"

    def read(content: str) -> object:
        path.write_text(content)
        return read_mapping(path, "here")["a"]

    assert read(text) == ["yes", 10, "1:30", 8]
    assert read(f"%YAML 1.1\n---\n{text}") == [True, 8, 90, "0o10"]
    assert read(text) == ["yes", 10, "1:30", 8]
    with pytest.raises(ModelPackageError, match="not readable YAML"):
        read(f"%YAML 9.9\n---\n{text}")
    assert read(text) == ["yes", 10, "1:30", 8]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a: [1, 2", "not readable YAML"),
        ("- 1\n- 2", "no mapping"),
        ("!!python/object/apply:os.system ['touch here']", "not readable YAML|no mapping"),
        ("a: " + "[" * 3000, "not readable YAML"),
        (
            "type: model\nx0: &x0 [1, 1, 1, 1, 1, 1, 1, 1]\n"
            + "".join(f"x{n + 1}: &x{n + 1} [{', '.join([f'*x{n}'] * 8)}]\n" for n in range(12)),
            "more than 100000 entries",
        ),
        (
            "type: model\nweights: {torchscript: {source: weights.pt}}\nname: x\nformat_version: 0.5.4",
            "does not follow the format",
        ),
        ("type: model\n" + "x" * (1 << 20) + ": 1", "more than 1048576"),
        ("%YAML 9.9\n---\na: 1", "not readable YAML"),
        ("? [[a]]\n: b", "not readable YAML"),
        ("a: !!bool foo", "not readable YAML"),
        ('a: !!int ""', "not readable YAML"),
        ("a: 0001-01-01T00:00:00+23:00", "not readable YAML"),
    ],
    ids=["torn", "list", "code", "deep", "aliases", "nothing in it", "long", "version", "key", "bool", "int", "time"],
)
def test_hostile_yaml_is_refused_in_one_line(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "rdf.yaml").write_text(content)
    with pytest.raises(ModelPackageError, match=words) as refusal:
        import_model(tmp_path, tmp_path / "out")
    assert "\n" not in str(refusal.value)


def test_networks_too_large_for_anything_are_refused_before_they_take_memory() -> None:
    arguments = {"in_channels": 1, "classes": 2, "base": 10_000, "levels": 3}
    with pytest.raises(ModelPackageError, match="of here would have .* parameters, more than 2,147,483,648"):
        Candidate(NetworkSpec(name="unet", arguments=arguments), {}).build("here")
    with pytest.raises(ModelPackageError, match="A U-Net of the zoo needs levels of at least 1; got levels=0"):
        Candidate(NetworkSpec(name="zoo_unet", arguments=arguments | {"levels": 0}), {}).build("here")


HEADERS = {
    "open": "{'descr': (",
    "minus": "-" * 9000 + "1",
    "objects": "{'descr':'|O','fortran_order':False,'shape':(1,)}",
    "records": "{'descr':[('a','<f4')],'fortran_order':False,'shape':(1,)}",
    "longer than the file": "{'descr':'<f4','fortran_order':False,'shape':(1000000000000,)}",
    "negative": "{'descr':'<f4','fortran_order':False,'shape':(-1,)}",
    "boundless": "{'descr':'<f4','fortran_order':False,'shape':(1180591620717411303424,)}",
}


@pytest.mark.parametrize("name", [*HEADERS, "zip", "nothing"])
def test_what_is_no_array_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    header = HEADERS.get(name, "").encode()
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\0" * 64
    path.write_bytes({"zip": b"PK\3\4" + b"0" * 30, "nothing": b""}.get(name, content))
    with pytest.raises(ModelPackageError, match="x.npy is no array of numbers") as refusal:
        Source({}, None, tmp_path, None, "here").array(StoredFile(path, "x.npy", ""))
    assert "\n" not in str(refusal.value)


def test_a_test_tensor_is_not_read_before_its_size_and_shape_are_known(tmp_path: Path) -> None:
    package = copy(tmp_path / "package", lambda content: content["inputs"][0]["test_tensor"].pop("sha256"))
    path = package / "test_input.npy"
    for shape, words in [
        ((2, 1, 8192, 8192), r"shape \(2, 1, 8192, 8192\); expected are 1 image"),
        ((2, 1, 1 << 17, 1 << 17), "test_input.npy has 34359738496 bytes, more than 1073741824"),  # sparse on the disk
    ]:
        np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape).flush()
        tracemalloc.start()
        with pytest.raises(ModelPackageError, match=words):
            import_model(package, tmp_path / "out")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 30e6  # the first has 134 MB


def zipped(path: Path, damage: str) -> Path:
    """The real package as a zip, damaged."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in REAL.iterdir():
            name, data = file.name, file.read_bytes()
            if damage == "no yaml" and name.endswith("yaml"):
                continue
            if damage == "evil name":
                name = name.replace("weights.pt", "../weights.pt")
                data = data.replace(b"source: weights.pt", b"source: ../weights.pt")
            archive.writestr(name, data)
    data = path.read_bytes()
    if damage == "torn":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        path.write_bytes(data[:600_000] + bytes([data[600_000] ^ 255]) + data[600_001:])
    elif damage == "large":  # its table of contents states the size of one file
        position = data.index(b"test_input.npy", data.index(b"PK\1\2")) - 46
        assert data[position : position + 4] == b"PK\1\2"
        path.write_bytes(data[: position + 24] + struct.pack("<I", MAX_TENSOR_BYTES + 128) + data[position + 28 :])
    return path


DAMAGES = {
    "torn": "is a damaged zip|is no description",
    "evil name": "is no file inside the package|does not follow the format",
    "no yaml": "holds no bioimageio.yaml or rdf.yaml at its top",
    "flipped": "cannot be taken out of the zip",
    "large": f"test_input.npy has {MAX_TENSOR_BYTES + 128} bytes, more than {MAX_TENSOR_BYTES}",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_hostile_zips_are_refused_and_write_nothing_outside(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "temp"  # packages are unpacked below it
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    path = zipped(tmp_path / "package.zip", damage)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ModelPackageError, match=DAMAGES[damage]):
        import_model(path, tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before

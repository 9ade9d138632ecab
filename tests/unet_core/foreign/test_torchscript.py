"""Weight files of other tools are read as data: the same names and values as torch's own loader, and nothing is ever run."""

from __future__ import annotations

import pickle
import struct
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unet_core.errors import ModelPackageError
from unet_core.foreign.torchscript import read_state, read_tensors

REAL = Path(__file__).resolve().parents[2] / "data" / "bioimageio" / "unet2d_nuclei_broad" / "weights.pt"
PICKLE_START, PICKLE_END = b"\x80\x02", b"."


def load_with_torch(path: Path) -> dict[str, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; here it is the independent reader
        state: dict[str, torch.Tensor] = torch.jit.load(path).state_dict()
    return state


def save_script(module: torch.nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(module.eval()), path)
    return path


def rewrite(
    source: Path, target: Path, change: Callable[[str, bytes], bytes | None], compression: int = zipfile.ZIP_STORED
) -> Path:
    """A copy of a zip with the content of some files changed, or left out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            data = change(name, old.read(name))
            if data is not None:
                new.writestr(name, data)
    return target


def with_pickle(data: bytes, path: Path) -> Path:
    return rewrite(REAL, path, lambda name, old: data if name.endswith("/data.pkl") else old)


def check_same(path: Path) -> None:
    found, wanted = read_tensors(path), load_with_torch(path)
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_names_and_values_are_those_of_torch() -> None:
    check_same(REAL)
    assert sum(tensor.numel() for tensor in read_state(REAL).values()) == 449_489


def test_buffers_views_and_other_types_are_those_of_torch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv3d(2, 3, 3), torch.nn.BatchNorm3d(3), torch.nn.PReLU(3))
    module[0].weight = torch.nn.Parameter(torch.randn(4, 3, 3, 3, 2).permute(0, 4, 1, 2, 3)[1:])  # a view with an offset
    module[0].register_buffer("coarse", torch.randn(5).half())
    module[0].register_buffer("empty", torch.zeros(0, 3))
    module[0].register_buffer("flags", torch.tensor([True, False, True]))
    check_same(save_script(module, tmp_path / "script.pt"))


class Evil:
    """Unpickling it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, (f"open({str(self.path)!r}, 'w')",))


def test_a_pickle_that_would_run_code_is_refused_by_name_and_does_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    evil = with_pickle(pickle.dumps(Evil(trace), protocol=2), tmp_path / "evil.pt")
    with pytest.raises(ModelPackageError, match=r"'(__builtin__|builtins).exec'.*could run code"):
        read_state(evil)
    torch.save({"weight": Evil(trace)}, tmp_path / "state.pt")
    with pytest.raises(ModelPackageError, match="more than tensors"):
        read_state(tmp_path / "state.pt")
    assert not trace.exists()


HOSTILE = {
    "instruction OBJ": b"(cos\nsystem\n)o",
    "'os.system'": b"cos\nsystem\n(X\x02\x00\x00\x00lstR",
    "'torch._utils._rebuild_parameter'": b"ctorch._utils\n_rebuild_parameter\n)R",
    "'torch.QInt8Storage'": b"(X\x07\x00\x00\x00storagectorch\nQInt8Storage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ",
    "a state for a dict": b"}}b",
    "'subprocess.Popen'": b"csubprocess\nPopen\n)\x81",
    "damaged (a tuple out of place)": b"}((K\x01tK\x02u",
    "damaged (pop": b"R",
    "ends too early": b"",
    "20000 modules": b"c__torch__.m\nM\n)\x81q\x00}(" + b"".join(b"X\x03\x00\x00\x00%03dh\x00" % n for n in range(100)) + b"ub",
}


@pytest.mark.parametrize("words", HOSTILE)
def test_hostile_pickles_are_refused_in_one_line(words: str, tmp_path: Path) -> None:
    end = b"" if words == "ends too early" else PICKLE_END
    path = with_pickle(PICKLE_START + HOSTILE[words] + end, tmp_path / "hostile.pt")
    with pytest.raises(ModelPackageError) as refusal:
        read_tensors(path)
    if "pop" not in words and "early" not in words:
        assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_torn_short_compressed_and_boundless_archives_are_refused(tmp_path: Path) -> None:
    whole = REAL.read_bytes()
    torn = tmp_path / "torn.pt"
    torn.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelPackageError, match="copy it again"):
        read_state(torn)
    flipped = tmp_path / "flipped.pt"
    start = whole.index(load_with_torch(REAL)["encoders.1.0.weight"].numpy().tobytes()[:64])
    flipped.write_bytes(whole[:start] + b"\xff" + whole[start + 1 :])
    with pytest.raises(ModelPackageError, match="damaged TorchScript archive"):
        read_state(flipped)
    short = rewrite(REAL, tmp_path / "short.pt", lambda name, old: old[:-4] if name.endswith("/data/2") else old)
    with pytest.raises(ModelPackageError, match="encoders.0.1.weight has 9212 bytes, expected 9216"):
        read_state(short)
    absent = rewrite(REAL, tmp_path / "absent.pt", lambda name, old: None if name.endswith("/data/2") else old)
    with pytest.raises(ModelPackageError, match="lacks data/2"):
        read_state(absent)
    packed = rewrite(REAL, tmp_path / "packed.pt", lambda name, old: old, zipfile.ZIP_DEFLATED)
    with pytest.raises(ModelPackageError, match="is compressed"):
        read_state(packed)
    big = rewrite(REAL, tmp_path / "big.pt", lambda name, old: b"big" if name.endswith("/byteorder") else old)
    with pytest.raises(ModelPackageError, match="big-endian"):
        read_state(big)


@pytest.mark.parametrize("change", ["shape", "offset", "step"])
def test_a_tensor_outside_its_storage_is_refused(change: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(REAL) as archive:
        data = archive.read("weights_torchscript/data.pkl")
    first = b"K\x00(K\x10K\x01K\x03K\x03t(K\x09K\x09K\x03K\x01t"  # offset 0, shape 16 1 3 3, steps 9 9 3 1
    assert first in data
    other = {
        "shape": first.replace(b"K\x10", b"J" + struct.pack("<i", 2**30)),
        "offset": b"K\x01" + first[2:],
        "step": first.replace(b"(K\x10K\x01K\x03K\x03t(K\x09", b"(K\x10K\x01K\x03K\x03t(K\x00").replace(
            b"K\x10K\x01", b"K\x11K\x01"
        ),
    }[change]
    path = with_pickle(data.replace(first, other), tmp_path / "wild.pt")
    with pytest.raises(ModelPackageError, match="encoders.0.0.weight of shape .* does not lie in its 144 numbers"):
        read_tensors(path)


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "model_state", "module", "legacy"])
def test_state_dicts_are_unwrapped(wrap: str, tmp_path: Path) -> None:
    state = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(7)}
    stored: Any = {f"module.{name}": tensor for name, tensor in state.items()} if wrap == "module" else state
    stored = {"epoch": 3, wrap: state} if wrap in ("state_dict", "model_state") else stored
    torch.save(stored, tmp_path / "state.pt", _use_new_zipfile_serialization=wrap != "legacy")
    found = read_state(tmp_path / "state.pt")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


def with_member(name: bytes, value: bytes) -> bytes:
    """Pickle of a module with one member."""
    return b"c__torch__.m\nM\n)\x81}X" + struct.pack("<I", len(name)) + name + value + b"sb"


def tensor(shape: tuple[int, ...], steps: tuple[int, ...], offset: int = 0) -> bytes:
    """Pickle of a tensor of the 144 numbers that data/0 of the real archive holds."""

    def whole(number: int) -> bytes:
        return b"\x8a\x20" + number.to_bytes(32, "little")

    text = b"X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x90tQ"
    sizes, lengths = (b"(" + b"".join(map(whole, numbers)) + b"t" for numbers in (shape, steps))
    rest = b"\x89ccollections\nOrderedDict\n)RtR"
    return b"ctorch._utils\n_rebuild_tensor_v2\n((" + text + whole(offset) + sizes + lengths + rest


@pytest.mark.parametrize(
    ("shape", "steps", "offset"), [((0,), (1 << 200,), 0), ((0, 1 << 200), (1, 1), 0), ((0,), (1,), 1 << 63)]
)
def test_numbers_that_torch_has_no_room_for_are_refused(shape: Any, steps: Any, offset: int, tmp_path: Path) -> None:
    fits = with_pickle(PICKLE_START + with_member(b"w", tensor((3, 2), (1, 4))) + PICKLE_END, tmp_path / "fits.pt")
    assert read_tensors(fits)["w"].shape == (3, 2)
    path = with_pickle(PICKLE_START + with_member(b"w", tensor(shape, steps, offset)) + PICKLE_END, tmp_path / "wild.pt")
    with pytest.raises(ModelPackageError, match="a tensor of a shape that is none"):
        read_tensors(path)


@pytest.mark.parametrize("what", ["name", "attributes"])
def test_what_many_share_does_not_make_a_small_archive_large(what: str, tmp_path: Path) -> None:
    """One module, referred to by 300 names: with a name of a megabyte, or with 30,000 attributes."""
    shared = with_member(b"n" * 1_000_000, tensor((1,), (1,)))
    if what == "attributes":
        shared = b"c__torch__.m\nM\n)\x81}(" + b"".join(b"J" + struct.pack("<i", n) + b"\x88" for n in range(30_000)) + b"ub"
    names = b"".join(b"X\x03\x00\x00\x00%03dh\x07" % n for n in range(300))
    path = with_pickle(
        PICKLE_START + b"c__torch__.m\nM\n)\x81}(X\x01\x00\x00\x000" + shared + b"q\x07" + names + b"ub.", tmp_path / "x"
    )
    tracemalloc.start()
    with pytest.raises(ModelPackageError, match="more than 4096 letters" if what == "name" else "1048576 attributes"):
        read_tensors(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6


class Plain(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(1, 2, 3)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layer(value)
        return result


def test_a_network_of_the_script_that_saved_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plain, "__module__", "__main__")
    path = save_script(Plain(), tmp_path / "main.pt")
    with zipfile.ZipFile(path) as archive:
        assert b"c__torch__\nPlain\n" in archive.read("main/data.pkl")
    check_same(path)
    other = with_pickle(PICKLE_START + b"c__torch__x\nPlain\n)\x81" + PICKLE_END, tmp_path / "other.pt")
    with pytest.raises(ModelPackageError, match="'__torch__x.Plain'"):
        read_tensors(other)


ODD: dict[str, tuple[Callable[[], torch.Tensor], str]] = {
    "repeated": (lambda: torch.zeros(1).expand(30_000, 30_000), "900000000 numbers, its file 1;"),
    "sparse": (lambda: torch.eye(3).to_sparse(), "is sparse_coo; save plain tensors"),
    "rows": (lambda: torch.eye(3).to_sparse_csr(), "is sparse_csr; save plain tensors"),
    "meta": (lambda: torch.empty(3, 3, device="meta"), "is meta; save plain tensors"),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_what_is_no_array_of_numbers_in_the_file_is_refused(name: str, tmp_path: Path) -> None:
    make, words = ODD[name]
    torch.save({"a.weight": make()}, tmp_path / "odd.pt")
    with pytest.raises(ModelPackageError, match=f"tensor a.weight .*{words}"):
        read_state(tmp_path / "odd.pt")


def test_a_compressed_state_dict_or_one_of_parts_that_overlap_is_refused(tmp_path: Path) -> None:
    state = {"a": torch.zeros(100_000), "b": torch.ones(100_000)}
    torch.save(state, tmp_path / "state.pt")
    stored = rewrite(tmp_path / "state.pt", tmp_path / "stored.pt", lambda name, old: old)
    assert torch.equal(read_state(stored)["b"], state["b"])
    packed = rewrite(tmp_path / "state.pt", tmp_path / "packed.pt", lambda name, old: old, zipfile.ZIP_DEFLATED)
    with pytest.raises(ModelPackageError, match="is compressed; torch writes no such file"):
        read_state(packed)
    data = stored.read_bytes()
    with zipfile.ZipFile(stored) as archive:
        first, second = (info.header_offset for info in archive.infolist() if info.filename in ("state/data/0", "state/data/1"))
    table = data.index(b"PK\x01\x02")
    moved = data[table:].replace(struct.pack("<I", second) + b"state/data/1", struct.pack("<I", first) + b"state/data/1")
    start = data.index(b"PK\x03\x04", second + 4)
    cut = len(data[second:start])
    assert data[table:] != moved
    overlap = tmp_path / "overlap.pt"
    later = bytearray(moved)
    with zipfile.ZipFile(stored) as archive:  # the second's numbers are left out, all that follows moves up
        for info in archive.infolist():
            if info.header_offset > second:
                place = bytes(later).index(struct.pack("<I", info.header_offset) + info.filename.encode())
                later[place : place + 4] = struct.pack("<I", info.header_offset - cut)
    end = bytes(later).rindex(b"PK\x05\x06") + 16
    later[end : end + 4] = struct.pack("<I", table - cut)
    overlap.write_bytes(data[:second] + data[start:table] + later)
    with pytest.raises(ModelPackageError, match="its parts overlap"):
        read_state(overlap)


def test_legacy_state_dicts_with_random_bytes_changed_are_read_or_refused_by_our_own_error(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, tmp_path / "state.pt", _use_new_zipfile_serialization=False)
    whole, random = (tmp_path / "state.pt").read_bytes(), np.random.default_rng(0)
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(random.integers(1, 4)):
            data[random.integers(len(data))] = random.integers(256)
        (tmp_path / "changed.pt").write_bytes(data)
        with suppress(ModelPackageError):
            read_state(tmp_path / "changed.pt")


@pytest.mark.parametrize("content", [b"", b"weights", b"\x80\x02}q\x00.", b"PK\x03\x04", None])
def test_what_is_no_state_dict_is_refused_in_one_line(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelPackageError) as refusal:
        read_state(path)
    assert "\n" not in str(refusal.value)


def test_a_frozen_archive_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frozen = torch.jit.freeze(torch.jit.script(torch.nn.Conv2d(1, 2, 3).eval()))
        torch.jit.save(frozen, tmp_path / "frozen.pt")
    with pytest.raises(ModelPackageError, match="without torch.jit.freeze"):
        read_state(tmp_path / "frozen.pt")


def test_archives_with_random_bytes_changed_are_read_or_refused_by_our_own_error(tmp_path: Path) -> None:
    whole, random = REAL.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(3):  # in the table of contents, where most of the zip's structure is
            data[len(data) - 1 - int(random.integers(12_000))] = int(random.integers(256))
        (tmp_path / "changed.pt").write_bytes(data)
        try:
            read_state(tmp_path / "changed.pt")
        except ModelPackageError:
            refused += 1
    assert refused > 100

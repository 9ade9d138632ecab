"""Arrays as one file: the same bytes, no pickles, and one thread at a time where Python's parser is not safe."""

from __future__ import annotations

import ast
import io
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from unet_core.array_file import read_arrays, write_arrays
from unet_core.errors import LedgerError

ARRAYS = {
    "ids": np.arange(7, dtype=np.uint64),
    "rows": np.zeros((0, 3), dtype=np.uint64),
    "value": np.array([255], dtype=np.uint8),
}


@pytest.mark.parametrize("compressed", [True, False])
def test_arrays_come_back_and_the_same_arrays_are_the_same_bytes(compressed: bool) -> None:
    data = write_arrays(ARRAYS, compressed)
    assert data == write_arrays({name: array.copy() for name, array in ARRAYS.items()}, compressed)
    found = read_arrays(data)
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    assert list(read_arrays(data, ("value",))) == ["value"]


def test_headers_are_parsed_by_one_thread_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    data, true, inside, most = write_arrays(ARRAYS), ast.literal_eval, [0], [0]

    def slow(text: Any) -> Any:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.002)
        inside[0] -= 1
        return true(text)

    monkeypatch.setattr(ast, "literal_eval", slow)
    with ThreadPoolExecutor(8) as threads:
        assert len(list(threads.map(lambda _: read_arrays(data), range(16)))) == 16
    assert most == [1]


def _pickled(compressed: bool) -> bytes:
    target = io.BytesIO()
    if compressed:
        np.savez_compressed(target, ids=np.array([Trap()], dtype=object))
    else:
        np.save(target, np.array([Trap()], dtype=object))
    return target.getvalue()


class Trap:
    def __reduce__(self) -> Any:
        return pytest.fail, ("a pickle was opened",)


FOREIGN = {
    "empty": b"",
    "no archive": b"PK\x03\x04 no archive",
    "half": write_arrays(ARRAYS)[:-9],
    "pickle": pickle.dumps(Trap()),
    "pickle in npy": _pickled(False),
    "pickle in npz": _pickled(True),
    "others": write_arrays({"others": np.zeros(1)}),
    "flipped": write_arrays(ARRAYS).replace(b"ids.npy", b"ids.npz", 1),
}


@pytest.mark.parametrize("data", FOREIGN.values(), ids=FOREIGN)
def test_what_is_no_such_file_is_refused_and_no_pickle_opened(data: bytes) -> None:
    with pytest.raises(LedgerError, match="is not as this program writes it"):
        read_arrays(data, ("ids",))

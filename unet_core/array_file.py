"""Named arrays as the bytes of one file of numpy's (.npz), and back; from any number of threads. Knows no storage."""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping
from threading import Lock
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import LedgerError

# numpy reads a header with Python's parser, which counts its depth for all threads at once up to Python 3.11.7 and 3.12.1: now and
# then "SystemError: AST constructor recursion depth mismatch" (https://github.com/python/cpython/issues/106905).
_PARSING = Lock()


def write_arrays(arrays: Mapping[str, NDArray[Any]], compressed: bool = True) -> bytes:
    """The same bytes for the same arrays."""
    target = io.BytesIO()
    write = np.savez_compressed if compressed else np.savez
    write(target, allow_pickle=False, **arrays)
    return target.getvalue()


def read_arrays(data: bytes, names: tuple[str, ...] = ()) -> dict[str, NDArray[Any]]:
    """The arrays of these names, or all.

    Raises:
        LedgerError: if ``data`` is no such file, lacks one, or holds a pickle, which is never opened.
    """
    try:
        with _PARSING, np.load(io.BytesIO(data), allow_pickle=False) as stored:
            return {name: stored[name] for name in names or stored.files}
    except (ValueError, KeyError, TypeError, EOFError, OSError, BadZipFile, zlib.error) as error:
        raise LedgerError(
            f"A file of arrays is not as this program writes it ({type(error).__name__}: {error}); start again with a new output."
        ) from error

"""A new file that is written in pieces and compressed meanwhile, in a thread. The same bytes for the same pieces."""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

_LEVEL = 4  # of gzip
_PIECE_BYTES = 1 << 20
_AHEAD = 8  # pieces that wait to be written


@contextmanager
def open_compressed(path: Path, name: str) -> Iterator[Callable[[bytes], None]]:
    """A function that appends bytes to a new file.

    Args:
        path: of the file.
        name: that it will have: one in ``.gz`` is compressed by gzip, one in ``.zip`` becomes an archive with one file inside.
    """
    with ExitStack() as stack:
        file = stack.enter_context(path.open("wb"))
        target: IO[bytes] | gzip.GzipFile = file
        if name.endswith(".gz"):
            target = stack.enter_context(gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=_LEVEL, mtime=0))
        elif name.endswith(".zip"):
            archive = stack.enter_context(zipfile.ZipFile(file, "w"))
            entry = zipfile.ZipInfo(_entry_name(name))  # of the first day that zip knows, always
            entry.compress_type = zipfile.ZIP_DEFLATED
            target = stack.enter_context(archive.open(entry, "w", force_zip64=True))
        writer = _Pieces(target, stack.enter_context(ThreadPoolExecutor(1)))
        yield writer.append
        writer.finish()


def _entry_name(name: str) -> str:
    inside = name.removesuffix(".zip")
    return inside if inside.endswith(".geojson") else f"{inside}.geojson"


class _Pieces:
    """Gathers small pieces into larger ones and hands them to a thread; what went wrong there is raised here."""

    def __init__(self, target: IO[bytes] | gzip.GzipFile, thread: ThreadPoolExecutor) -> None:
        self._target, self._thread = target, thread
        self._gathered: list[bytes] = []
        self._bytes = 0
        self._pending: list[Future[int]] = []

    def append(self, data: bytes) -> None:
        self._gathered.append(data)
        self._bytes += len(data)
        if self._bytes >= _PIECE_BYTES:
            self._hand_over()

    def finish(self) -> None:
        self._hand_over()
        for future in self._pending:
            future.result()

    def _hand_over(self) -> None:
        piece = b"".join(self._gathered)
        self._gathered, self._bytes = [], 0
        self._pending.append(self._thread.submit(self._target.write, piece))
        if len(self._pending) > _AHEAD:
            self._pending.pop(0).result()

"""Where an export is written: under another name beside its place, and renamed when it is whole. Local disks only."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unet_core.errors import JobError
from unet_core.places import check_apart, check_location
from unet_core.store import is_remote, local_path, storage_errors, this_writer, writer_is_gone


def check_target(target: str, output: str) -> Path:
    """The path of a target, which must not exist yet.

    Raises:
        InputError: if it is no place for an export, or something lies there.
    """
    check_location("target", target)
    if is_remote(target):
        raise JobError(f"{target} is no local path; exports are written to a local disk: copy them from there.")
    check_apart(target, "output", output)
    path = local_path(target)
    if os.path.lexists(path):
        raise JobError(f"{target} exists; delete it, or give another name. Exports replace nothing.")
    if not path.absolute().parent.is_dir():
        raise JobError(f"{target} cannot be written: there is no folder {path.absolute().parent}; create it.")
    return path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A name to write a file or folder under; it gets its own name at the end, and is removed if there is an error.

    What a process that was killed leaves is named ``.NAME.*.part``, and the next export to the same place removes it.
    """
    folder = path.absolute().parent
    with storage_errors(str(path)):
        for leftover in folder.glob(f".{_escaped(path.name)}.*.part"):
            if writer_is_gone(leftover.name.split(".")[-2]):
                _remove(leftover)
        part = folder / f".{path.name}.{this_writer()}.part"
        _remove(part)
        try:
            yield part
            _sync(part)
            if os.path.lexists(path):  # a rename would replace it
                raise JobError(f"{path} was written by somebody else meanwhile; give another name.")
            os.rename(part, path)
        except BaseException:
            _remove(part)
            raise


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Have it on the disk before its name says that it is."""
    for file in [path] if path.is_file() else [entry for entry in path.rglob("*") if entry.is_file()]:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def byte_count(path: Path) -> int:
    """Of a file, or of all files of a folder."""
    return path.stat().st_size if path.is_file() else sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())

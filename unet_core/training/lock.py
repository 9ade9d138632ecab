"""One training at a time in a folder, on one machine. Knows no network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from unet_core.errors import ResumeError
from unet_core.store import local_path
from unet_core.training_folder import FOLDER

_FILE = "lock"


@contextmanager
def only_one(model_out: str) -> Iterator[None]:
    """Hold the folder of a planned training; the system lets go of it when this process ends, however that is.

    Raises:
        ResumeError: if another process trains there.
    """
    import fcntl

    with (local_path(model_out) / FOLDER / _FILE).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ResumeError(
                f"Another process trains in {model_out}; wait for it, or end it and run the same command again to go on."
            ) from None
        yield

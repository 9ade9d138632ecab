"""A store between zarr-python and the chunks: what is absent, empty or unreadable raises, where zarr-python reads fill values."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any, Literal

from zarr.core.sync import sync
from zarr.storage import WrapperStore

from unet_core.errors import ChunkError, InputError
from unet_core.store import StoredObject, storage_errors

Missing = Literal["error", "fill"]

_WAIT_SECONDS = 10.0
_WAITING = "waits for reads"


class GuardedStore(WrapperStore[Any]):
    """The chunks of one array.

    Args:
        store: that holds them.
        url: of the image, for messages.
        path: of the array in the store.
        listing: of the array, asked for when it is first needed; keys are relative to the array.
        missing: what absent chunks mean.
    """

    def __init__(
        self, store: Any, url: str, path: str, listing: Callable[[], Mapping[str, StoredObject]], missing: Missing
    ) -> None:
        super().__init__(store)
        self._url, self._path, self._listing, self._missing = url, path, listing, missing
        self._folders: set[str] | None = None

    def _with_store(self, store: Any) -> GuardedStore:
        return type(self)(store, self._url, self._path, self._listing, self._missing)

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        name = key.removeprefix(f"{self._path}/") if self._path else key
        listed = self._listing().get(name)
        if listed is not None and listed.size_bytes == 0:
            raise ChunkError(empty_message(name, self._url))
        value = await self._get(name, key, prototype, byte_range)
        # What was listed and is not found may be a passing fault of the store.
        for pause in (0.2, 1.0) if value is None and listed is not None else ():
            await asyncio.sleep(pause)
            value = await self._get(name, key, prototype, byte_range)
            if value is not None:
                break
        if value is None and (self._missing == "error" or listed is not None or self._is_folder(name)):
            raise ChunkError(missing_message(name, self._url, self._is_folder(name)))
        if value is not None and byte_range is None and len(value) == 0:
            raise ChunkError(empty_message(name, self._url))
        return value

    async def _get(self, name: str, key: str, prototype: Any, byte_range: Any) -> Any:
        try:
            with storage_errors(f"chunk {name} of {self._url}"):
                return await self._store.get(key, prototype, byte_range)
        except (IsADirectoryError, NotADirectoryError):
            return None
        except InputError as error:
            raise ChunkError(f"{error} A chunk that cannot be read is never filled.") from error

    def _is_folder(self, name: str) -> bool:
        if self._folders is None:
            self._folders = {str(folder) for known in self._listing() for folder in PurePosixPath(known).parents}
        return name in self._folders


def missing_message(name: str, url: str, is_folder: bool = False) -> str:
    place = " (a directory is in its place)" if is_folder else ""
    return f"chunk {name} is missing{place} in {url}; use --missing fill to read absent chunks as background."


def empty_message(name: str, url: str) -> str:
    return f"chunk {name} is empty in {url}; restore it from the original, or delete it and use --missing fill."


def finish_reads() -> None:
    """Let the reads end that one with an error has left behind.

    zarr-python gathers the reads of many chunks, and hands on the first error while the others go on; asyncio reports each
    that is still under way when the process ends.
    """
    sync(_finish_reads(), timeout=2 * _WAIT_SECONDS)


async def _finish_reads() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.set_name(_WAITING)
    others = [other for other in asyncio.all_tasks() if other.get_name() != _WAITING]
    if others:
        await asyncio.wait(others, timeout=_WAIT_SECONDS)

"""Chunks of an image as stored bytes, one object each: which are there, and what they hold. Decodes nothing."""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from math import prod
from typing import Protocol, TypeVar

from unet_core.errors import ChunkError, InputError, VolumeError
from unet_core.geometry import Shape
from unet_core.store import Store, StoredObject, is_remote
from unet_core.volumes.zarr_array import MAX_CHUNKS, MAX_NAMED
from unet_core.volumes.zarr_guard import empty_message, missing_message

READERS = 8  # requests to an object store at a time
_PAUSES = (0.2, 1.0)  # before what is listed and not found counts as missing: it may be a passing fault

Ranges = Sequence[range]
Result = TypeVar("Result")


class StoredChunks(Protocol):
    """The chunks of one array, named by their position in its grid."""

    def fetch(self, positions: Sequence[Shape]) -> Iterator[bytes | None]:
        """Stored bytes of each chunk, in their order; None for one that is absent.

        Raises:
            ChunkError: if one cannot be read, or is empty.
        """

    def name(self, position: Shape) -> str:
        """Of a chunk, for messages."""

    def absent(self, ranges: Ranges) -> tuple[str, ...]:
        """Names of the chunks in a box of positions that are absent; the first of them, if there are very many.

        Raises:
            ChunkError: if one is there but empty.
            VolumeError: if there are more than can be looked at.
        """

    def fingerprint(self) -> str:
        """Changes whenever a chunk does."""


class ObjectChunks:
    """Chunks that are objects of their own below ``folder``.

    Args:
        store: that holds them.
        folder: in the store.
        key: of a position, below the folder.
        suffixes: that the stored key may have in addition, as gzipped copies do.
        url: of the image, for messages.
    """

    def __init__(
        self, store: Store, folder: str, key: Callable[[Shape], str], url: str, suffixes: tuple[str, ...] = ("",)
    ) -> None:
        self._store, self._folder, self._key, self._url, self._suffixes = store, folder, key, url, suffixes

    @cached_property
    def _listing(self) -> dict[str, StoredObject]:
        start = f"{self._folder}/" if self._folder else ""
        return {entry.key.removeprefix(start): entry for entry in self._store.list(self._folder)}

    def name(self, position: Shape) -> str:
        return self._key(position)

    def _stored(self, position: Shape) -> StoredObject | None:
        found = (self._listing.get(self._key(position) + suffix) for suffix in self._suffixes)
        return next((entry for entry in found if entry is not None), None)

    def fetch(self, positions: Sequence[Shape]) -> Iterator[bytes | None]:
        yield from in_parallel(self._fetch, positions, self._store)

    def _fetch(self, position: Shape) -> bytes | None:
        entry, name = self._stored(position), self._key(position)
        if entry is None:
            return None
        if entry.size_bytes == 0:
            raise ChunkError(empty_message(name, self._url))
        data = read_listed(self._store, entry.key, name, self._url)
        if not data:
            raise ChunkError(empty_message(name, self._url))
        return data

    def absent(self, ranges: Ranges) -> tuple[str, ...]:
        check_count(ranges, self._url)
        found = []
        for position in itertools.product(*ranges):
            entry = self._stored(position)
            if entry is None:
                found.append(self._key(position))
                if len(found) == MAX_NAMED:
                    break
            elif entry.size_bytes == 0:
                raise ChunkError(empty_message(self._key(position), self._url))
        return tuple(found)

    def fingerprint(self) -> str:
        return listing_hash(self._listing)


def listing_hash(listing: Mapping[str, StoredObject]) -> str:
    """Changes with each object of a listing, by its size and tag."""
    listed = [f"{key} {entry.size_bytes} {entry.tag}" for key, entry in sorted(listing.items())]
    return hashlib.sha256("\n".join(listed).encode()).hexdigest()


def check_count(ranges: Ranges, url: str) -> None:
    """Refuse a box of so many positions that it takes hours to look at them."""
    count = prod(len(numbers) for numbers in ranges)
    if count > MAX_CHUNKS:
        raise VolumeError(
            f"{url} has {count} chunks here; at most {MAX_CHUNKS} are handled at once: choose a --roi or a coarser --level."
        )


def in_parallel(work: Callable[[Shape], Result], positions: Sequence[Shape], store: Store) -> Iterator[Result]:
    """Results in the order of ``positions``; several requests at a time where each takes long."""
    if len(positions) < 2 or not is_remote(store.url):
        yield from map(work, positions)
        return
    with ThreadPoolExecutor(min(READERS, len(positions)), "unet-fetch") as readers:
        yield from readers.map(work, positions)


def read_listed(store: Store, key: str, name: str, url: str, start: int | None = None, size_bytes: int = 0) -> bytes:
    """An object that a listing showed, or ``size_bytes`` of it from ``start`` on.

    Raises:
        ChunkError: naming the chunk, if it cannot be read or is gone.
    """
    for pause in (0.0, *_PAUSES):
        time.sleep(pause)
        try:
            return store.get(key) if start is None else store.get_range(key, start, size_bytes)
        except FileNotFoundError:
            continue
        except InputError as error:
            raise ChunkError(f"{error} A chunk that cannot be read is never filled.") from error
    raise ChunkError(missing_message(name, url))

"""Objects below a prefix of an S3-compatible bucket, and what its errors mean. Nothing here knows of Zarr arrays or blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import obstore
from obstore.exceptions import AlreadyExistsError
from obstore.store import S3Store as ObstoreS3

from unet_core.errors import InputError
from unet_core.store import StoredObject, storage_errors

if TYPE_CHECKING:
    from zarr.abc.store import Store as ZarrStore

# Five tries over some three seconds ride out what servers answer in passing (503, resets); a block that still fails is
# retried as a whole. obstore's own default waits minutes before it says that nobody answers at all. No client options are
# given: they would replace AWS_ALLOW_HTTP and the like of the environment.
RETRY: Any = {
    "max_retries": 5,
    "retry_timeout": timedelta(seconds=30),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2},
}

_MOST_DELETED = 1000  # objects that one request may name

# What the text of an error holds -> what it means and what to do; the first that fits.
_REASONS = (
    (
        ("169.254.169.254", "169.254.170.2", "credential"),
        "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a public bucket",
    ),
    (("NoSuchBucket",), "the bucket does not exist; check its name, AWS_ENDPOINT_URL and AWS_REGION"),
    (
        ("403 Forbidden", "401 Unauthorized", "necessary privileges"),
        "permission denied; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what they may do with the bucket; without credentials only what "
        "is public can be read (AWS_SKIP_SIGNATURE)",
    ),
    (("incorrectly configured region", "301 Moved"), "the bucket lies in another region; set AWS_REGION to it"),
    (
        ("builder error", "InvalidUri"),
        "the address is refused; check AWS_ENDPOINT_URL, and set AWS_ALLOW_HTTP=true for an http:// address",
    ),
    (("error sending request",), "the server does not answer; check AWS_ENDPOINT_URL and the network"),
)


def explain(where: str, error: BaseException) -> str:
    """One line for an error of an object store: what, why, and what to do."""
    text = str(error)
    for marks, reason in _REASONS:
        if any(mark in text for mark in marks):
            return f"{where} cannot be used: {reason}."
    first = " ".join(text.partition("\n")[0].split())[:200]
    return f"{where} cannot be used: {first}; try again later, or check AWS_ENDPOINT_URL and the server."


class S3Store:
    """A prefix of a bucket, through obstore; credentials, region and endpoint come from the environment or role."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        bucket, _, prefix = self.url.removeprefix("s3://").partition("/")
        if not bucket:
            raise InputError(f"{url} names no bucket; write s3://BUCKET/PREFIX.")
        self._store: Any = ObstoreS3(bucket, prefix=prefix.strip("/") or None, retry_config=RETRY)

    def _at(self, key: str) -> AbstractContextManager[None]:
        return storage_errors(f"{self.url}/{key}" if key else self.url)

    def get(self, key: str) -> bytes:
        with self._at(key):
            return bytes(obstore.get(self._store, key).bytes())

    def get_range(self, key: str, start: int, size_bytes: int) -> bytes:
        with self._at(key):
            return bytes(obstore.get_range(self._store, key, start=start, length=size_bytes))

    def get_ranges(self, key: str, places: Sequence[tuple[int, int]]) -> list[bytes]:
        """Bytes of an object at each place (first byte, size), a request each, several at a time; all lie inside it."""
        starts, sizes = [start for start, _ in places], [size for _, size in places]
        with self._at(key):
            return [bytes(part) for part in obstore.get_ranges(self._store, key, starts=starts, lengths=sizes, coalesce=0)]

    def head(self, key: str) -> StoredObject | None:
        """What the store says of an object, None if there is none."""
        with self._at(key):
            try:
                found = obstore.head(self._store, key)
            except FileNotFoundError:
                return None
        return StoredObject(key, int(found["size"]), str(found["e_tag"]))

    def put(self, key: str, data: bytes) -> None:
        with self._at(key):
            obstore.put(self._store, key, data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        with self._at(key):
            try:
                obstore.put(self._store, key, data, mode="create")
            except AlreadyExistsError:
                return False
        return True

    def delete(self, key: str) -> None:
        with self._at(key):
            obstore.delete(self._store, key)

    def delete_all(self, keys: Iterable[str]) -> None:
        listed = list(keys)
        for begin in range(0, len(listed), _MOST_DELETED):
            with self._at(listed[begin]):
                obstore.delete(self._store, listed[begin : begin + _MOST_DELETED])

    def exists(self, key: str) -> bool:
        with self._at(key):
            try:
                obstore.head(self._store, key)
            except FileNotFoundError:
                return False
        return True

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        pages = iter(obstore.list(self._store, prefix=prefix or None))
        while True:
            with self._at(prefix):
                page = next(pages, None)
            if page is None:
                return
            for entry in page:
                modified = float(entry["last_modified"].timestamp())
                yield StoredObject(entry["path"], int(entry["size"]), str(entry["e_tag"]), modified)

    def child_names(self, prefix: str = "") -> tuple[str, ...]:
        with self._at(prefix):
            found = obstore.list_with_delimiter(self._store, prefix=prefix or None)
        paths = [*found["common_prefixes"], *(entry["path"] for entry in found["objects"])]
        return tuple(sorted(path.rstrip("/").rpartition("/")[2] for path in paths))

    def folder_names(self, prefix: str = "") -> tuple[str, ...]:
        with self._at(prefix):
            found = obstore.list_with_delimiter(self._store, prefix=prefix or None)
        return tuple(sorted(path.rstrip("/").rpartition("/")[2] for path in found["common_prefixes"]))

    def modified(self, key: str) -> float | None:
        with self._at(key):
            try:
                return float(obstore.head(self._store, key)["last_modified"].timestamp())
            except FileNotFoundError:
                return None

    def leftovers(self, folder: str = "", below: bool = False) -> Iterator[StoredObject]:
        """None, likewise."""
        return iter(())

    def delete_leftovers(self, folder: str = "", below: bool = False) -> None:
        """Nothing: an upload that was cut off leaves no object."""

    def as_zarr(self, read_only: bool = True) -> ZarrStore:
        from zarr.storage import ObjectStore

        return ObjectStore(self._store, read_only=read_only)

"""Objects under a URL: whole, atomic puts on a local directory or an S3-compatible store. Nothing here knows of Zarr arrays or blocks."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from unet_core.errors import InputError

if TYPE_CHECKING:
    from zarr.abc.store import Store as ZarrStore

_PART_SUFFIX = ".unet-part"


@dataclass(frozen=True)
class StoredObject:
    """One object of a listing.

    Args:
        key: relative to the store's root, with ``/`` between its parts.
        size_bytes: of the stored object.
        tag: changes whenever the object does: the etag on object stores, modification time and size locally.
    """

    key: str
    size_bytes: int
    tag: str


class Store(Protocol):
    """Objects below one root URL. A put is seen whole or not at all."""

    url: str

    def get(self, key: str) -> bytes:
        """The object's bytes; FileNotFoundError if there is none."""

    def put(self, key: str, data: bytes) -> None:
        """Store ``data`` under ``key``, replacing what is there."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Store ``data`` unless ``key`` exists; whether it was stored."""

    def delete(self, key: str) -> None:
        """Remove an object; an absent one is no error."""

    def exists(self, key: str) -> bool: ...

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """Objects whose key begins with the folder ``prefix`` ("" for all), in no particular order."""

    def child_names(self, prefix: str = "") -> tuple[str, ...]:
        """Sorted names of the folders and objects directly under the folder ``prefix``."""

    def delete_leftovers(self) -> None:
        """Remove what puts that were killed left behind; nothing that a listing shows."""

    def as_zarr(self, read_only: bool = True) -> ZarrStore:
        """The same root as a store of zarr-python."""


def is_remote(url: str) -> bool:
    """Whether a URL names an object store rather than a path of this machine."""
    return urlsplit(url).scheme not in ("", "file") and "://" in url


def local_path(url: str) -> Path:
    """The path a local URL (plain path or ``file://``) names.

    Raises:
        InputError: if the URL is remote.
    """
    if is_remote(url):
        raise InputError(f"{redacted(url)} is not a path of this machine.")
    return Path(urlsplit(url).path if url.startswith("file://") else url).expanduser()


def redacted(url: str) -> str:
    """The URL without user, password and query, for messages and records."""
    if "://" not in url:
        return url
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def check_url(url: str) -> None:
    """Refuse schemes we do not read, chained URLs, and credentials in a URL.

    Raises:
        InputError: naming the reason; the credentials are not repeated.
    """
    if "::" in url:
        raise InputError(f"Chained URL {redacted(url.split('::')[0])}::.. is not allowed; give the plain path or s3:// URL.")
    if "://" not in url:
        return
    parts = urlsplit(url)
    if parts.scheme not in ("file", "s3"):
        raise InputError(f"URL scheme '{parts.scheme}' is not known; use a local path, file:// or s3://.")
    if "@" in parts.netloc or parts.query:
        raise InputError(
            f"Credentials in the URL of {parts.scheme}://{parts.netloc.rpartition('@')[2]} are refused, since URLs end up in logs; "
            "give them by the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or by role."
        )


def open_store(url: str) -> Store:
    """The store whose root is ``url``: a local directory (which need not exist yet) or ``s3://bucket/prefix``.

    Raises:
        InputError: for a scheme that is not known, or credentials in the URL.
    """
    check_url(url)
    return S3Store(url) if is_remote(url) else LocalStore(url)


class LocalStore:
    """A directory. Puts go to a temporary name, are synced, and renamed; symbolic links that leave the root are refused."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.root = local_path(url)

    def _path(self, key: str) -> Path:
        path = self.root / key
        if ".." in Path(key).parts or Path(key).is_absolute():
            raise InputError(f"Key '{key}' leaves the folder {self.root}.")
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise InputError(f"Symlink leaves the archive: {key} in {self.root}.")
        return path

    def get(self, key: str) -> bytes:
        return self._path(key).read_bytes()

    def put(self, key: str, data: bytes) -> None:
        part = self._write_part(key, data)
        os.replace(part, self._path(key))
        _sync_folder(part.parent)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        part = self._write_part(key, data)
        try:
            os.link(part, self._path(key))
        except FileExistsError:
            return False
        finally:
            part.unlink()
        _sync_folder(part.parent)
        return True

    def _write_part(self, key: str, data: bytes) -> Path:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{uuid.uuid4().hex}{_PART_SUFFIX}")
        try:
            with part.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        return part

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        pending = [self._path(prefix) if prefix else self.root]
        while pending:
            folder = pending.pop()
            if not folder.is_dir():
                continue
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir():
                        pending.append(Path(entry.path))
                    elif not entry.name.endswith(_PART_SUFFIX):
                        status = entry.stat()
                        key = Path(entry.path).relative_to(self.root).as_posix()
                        yield StoredObject(key, status.st_size, f"{status.st_mtime_ns}-{status.st_size}")

    def child_names(self, prefix: str = "") -> tuple[str, ...]:
        folder = self._path(prefix) if prefix else self.root
        return tuple(sorted(child.name for child in folder.iterdir())) if folder.is_dir() else ()

    def delete_leftovers(self) -> None:
        for part in self.root.rglob(f".*{_PART_SUFFIX}"):
            part.unlink(missing_ok=True)

    def as_zarr(self, read_only: bool = True) -> ZarrStore:
        from zarr.storage import LocalStore as ZarrLocalStore

        return ZarrLocalStore(self.root, read_only=read_only)


class S3Store:
    """A prefix of a bucket, through obstore; credentials, region and endpoint come from the environment or role."""

    def __init__(self, url: str) -> None:
        from obstore.store import S3Store as ObstoreS3

        self.url = url.rstrip("/")
        parts = urlsplit(self.url)
        if not parts.netloc:
            raise InputError(f"{url} names no bucket; write s3://BUCKET/PREFIX.")
        self._store: Any = ObstoreS3(parts.netloc, prefix=parts.path.strip("/") or None)

    def get(self, key: str) -> bytes:
        import obstore

        return bytes(obstore.get(self._store, key).bytes())

    def put(self, key: str, data: bytes) -> None:
        import obstore

        obstore.put(self._store, key, data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError

        try:
            obstore.put(self._store, key, data, mode="create")
        except AlreadyExistsError:
            return False
        return True

    def delete(self, key: str) -> None:
        import obstore

        obstore.delete(self._store, key)

    def exists(self, key: str) -> bool:
        import obstore

        try:
            obstore.head(self._store, key)
        except FileNotFoundError:
            return False
        return True

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        import obstore

        for page in obstore.list(self._store, prefix=prefix or None):
            for entry in page:
                yield StoredObject(entry["path"], int(entry["size"]), str(entry["e_tag"]))

    def child_names(self, prefix: str = "") -> tuple[str, ...]:
        import obstore

        found = obstore.list_with_delimiter(self._store, prefix=prefix or None)
        paths = [*found["common_prefixes"], *(entry["path"] for entry in found["objects"])]
        return tuple(sorted(path.rstrip("/").rpartition("/")[2] for path in paths))

    def delete_leftovers(self) -> None:
        """Nothing: an upload that was cut off leaves no object."""

    def as_zarr(self, read_only: bool = True) -> ZarrStore:
        from zarr.storage import ObjectStore

        return ObjectStore(self._store, read_only=read_only)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Objects under a URL: whole, atomic puts on a local directory or an object store. Nothing here knows of Zarr arrays or blocks."""

from __future__ import annotations

import errno
import os
import socket
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import SplitResult, unquote, urlsplit

from unet_core.errors import InputError

if TYPE_CHECKING:
    from zarr.abc.store import Store as ZarrStore

_Pending = list[tuple[Path, tuple[str, ...]]]  # folders to list, with the real folders on the way to each
OWN_FOLDER = ".unet"  # of an output: what is no voxel and no metadata of its images
CONVERSION_KEY = f"{OWN_FOLDER}/conversion.json"  # of an image that a conversion writes, or has written
TRIAL_PREFIX = ".unet-trial-"  # of the name of a folder with blocks that are only tried, and removed again
_PART_SUFFIX = ".unet-part"
LEFTOVER_SECONDS = 3600.0  # after which a part of a put by another machine is nobody's any more
_OS_REASONS = {
    errno.EACCES: "permission denied: {}; grant this user the right to it.",
    errno.EPERM: "permission denied: {}; grant this user the right to it.",
    errno.EROFS: "permission denied: {} lies on a read-only file system; choose another place.",
    errno.ELOOP: "symbolic links in a loop: {}; replace the link by what it should point to.",
    errno.ENAMETOOLONG: "name too long for this file system: {}; check the path.",
}


@dataclass(frozen=True)
class StoredObject:
    """One object of a listing.

    Args:
        key: relative to the store's root, with ``/`` between its parts.
        size_bytes: of the stored object.
        tag: changes whenever the object does: the etag on object stores, modification time and size locally.
        modified: when it was put, in seconds since 1970.
    """

    key: str
    size_bytes: int
    tag: str
    modified: float = 0.0


class Store(Protocol):
    """Objects below one root URL. A put is seen whole or not at all."""

    url: str

    def get(self, key: str) -> bytes:
        """The object's bytes; FileNotFoundError if there is none."""

    def get_range(self, key: str, start: int, size_bytes: int) -> bytes:
        """Bytes of an object from ``start`` on, fewer where it ends before; FileNotFoundError if there is none."""

    def put(self, key: str, data: bytes) -> None:
        """Store ``data`` under ``key``, replacing what is there."""

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Store ``data`` unless ``key`` exists; whether it was stored."""

    def delete(self, key: str) -> None:
        """Remove an object; an absent one is no error."""

    def delete_all(self, keys: Iterable[str]) -> None:
        """Remove many objects, in few requests where the store allows it; absent ones are no error."""

    def exists(self, key: str) -> bool: ...

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """Objects whose key begins with the folder ``prefix`` ("" for all), in no particular order."""

    def child_names(self, prefix: str = "") -> tuple[str, ...]:
        """Sorted names of the folders and objects directly under the folder ``prefix``."""

    def folder_names(self, prefix: str = "") -> tuple[str, ...]:
        """Sorted names of the folders directly under the folder ``prefix``; no symbolic links."""

    def modified(self, key: str) -> float | None:
        """When an object was last put, in seconds since 1970; None if there is none."""

    def leftovers(self, folder: str = OWN_FOLDER, below: bool = False) -> Iterator[StoredObject]:
        """What puts that were killed left behind, which ``delete_leftovers`` would remove."""

    def delete_leftovers(self, folder: str = OWN_FOLDER, below: bool = False) -> None:
        """Remove what puts that were killed left behind in a folder, or ``below`` it too; nothing that a listing shows."""

    def as_zarr(self, read_only: bool = True) -> ZarrStore:
        """The same root as a store of zarr-python."""


@contextmanager
def storage_errors(where: str) -> Iterator[None]:
    """Say what is wrong with the storage, and what to do, in the errors of the operating system and of object stores.

    An absent object stays a FileNotFoundError; what has no reason that a user could mend stays what it is.

    Raises:
        InputError: naming ``where`` and the reason.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) and "NoSuchBucket" in str(error):
            from unet_core.object_store import explain

            raise InputError(explain(where, error)) from error
        if error.errno not in _OS_REASONS:
            raise
        raise InputError(_OS_REASONS[error.errno].format(_shown(where))) from error
    except BaseException as error:  # obstore panics, beyond Exception, on an endpoint that is no address
        if not type(error).__module__.startswith(("obstore", "pyo3_runtime")):
            raise
        from unet_core.object_store import explain

        raise InputError(explain(where, error)) from error


def _shown(text: str) -> str:
    """A path or URL in a message: on one line, and not longer than a path of a file system."""
    plain = text.encode("unicode_escape").decode() if not text.isprintable() else text
    return plain if len(plain) <= 500 else f"{plain[:240]}..{plain[-240:]}"


def is_remote(url: str) -> bool:
    """Whether a URL names an object store rather than a path of this machine."""
    scheme, separator, _ = url.partition("://")
    return bool(separator) and scheme.isalnum() and scheme != "file"


def local_path(url: str) -> Path:
    """The path a local URL (plain path or ``file://``) names.

    Only ``file://`` URLs have percent escapes; ``#`` and ``?`` belong to the path in both.

    Raises:
        InputError: if the URL is remote, or names another machine or an unknown home.
    """
    if is_remote(url):
        raise InputError(f"{redacted(url)} is not a path of this machine.")
    if not url.startswith("file://"):
        try:
            return Path(url).expanduser()
        except RuntimeError:
            raise InputError(f"{_shown(url)} begins with a home directory that does not exist; write the whole path.") from None
    host, slash, path = url.removeprefix("file://").partition("/")
    if host not in ("", "localhost") or not slash:
        raise InputError(f"{_shown(url)} names the machine '{host}', not a path; write file:///FOLDER/NAME, or the plain path.")
    return Path(unquote(f"/{path}"))


def absolute(url: str) -> str:
    """The URL as it is seen from any working directory of this machine."""
    return url if "://" in url else str(local_path(url).absolute())


def plain(url: str) -> str:
    """The URL, a ``file://`` one as a path: to that names can be added as they are, without percent escapes."""
    return str(local_path(url)) if url.startswith("file://") else url


def redacted(url: str) -> str:
    """The URL without user, password and query, for messages and records."""
    if not is_remote(url):
        return url
    parts = _split(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url, allow_fragments=False)
    except ValueError:
        raise InputError(f"{url.partition('://')[0]}:// URL cannot be read; write s3://BUCKET/PREFIX, or a local path.") from None


def check_url(url: str) -> None:
    """Refuse schemes we do not read, chained URLs, and credentials in a URL.

    Raises:
        InputError: naming the reason; the credentials are not repeated.
    """
    first, *rest = url.split("::")
    if any("://" in part for part in rest):
        raise InputError(f"Chained URL {redacted(first)}::.. is not allowed; give the plain path or s3:// URL.")
    if not is_remote(url):
        if "\0" in str(local_path(url)):
            raise InputError(f"{_shown(url)} holds a NUL character; check the path.")
        return
    parts = _split(url)
    if parts.scheme != "s3":
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
    if not is_remote(url):
        return LocalStore(url)
    from unet_core.object_store import S3Store

    return S3Store(url)


class LocalStore:
    """A directory. Puts go to a temporary name, are synced, and renamed; symbolic links that leave the root are refused.

    The temporary name of an output lies in its own folder, so that no put that was killed leaves a file among the voxels.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.root = local_path(url)

    def _path(self, key: str) -> Path:
        if ".." in Path(key).parts or Path(key).is_absolute() or "\0" in key:
            raise InputError(f"Key '{_shown(key)}' leaves the folder {self.root}.")
        path = self.root / key
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.root)):
            raise InputError(f"symlink leaves the archive: {key} in {self.root}; put a copy of what it points to in its place.")
        return path

    def get(self, key: str) -> bytes:
        with storage_errors(f"{self.root}/{key}"):
            try:
                return self._path(key).read_bytes()
            except (IsADirectoryError, NotADirectoryError):
                raise FileNotFoundError(
                    errno.ENOENT, "no file, since a folder or file lies where the other should", key
                ) from None

    def get_range(self, key: str, start: int, size_bytes: int) -> bytes:
        with storage_errors(f"{self.root}/{key}"):
            try:
                with self._path(key).open("rb") as file:
                    file.seek(start)
                    return file.read(size_bytes)
            except (IsADirectoryError, NotADirectoryError):
                raise FileNotFoundError(errno.ENOENT, "a folder, or nothing below a file", key) from None

    def put(self, key: str, data: bytes) -> None:
        with self._writing(key):
            part = self._write_part(key, data)
            try:
                os.replace(part, self._path(key))
            except OSError:
                part.unlink(missing_ok=True)
                raise
            _sync_folder(self._path(key).parent)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        with self._writing(key):
            part = self._write_part(key, data)
            try:
                os.link(part, self._path(key))
            except FileExistsError:
                return False
            finally:
                part.unlink()
            _sync_folder(self._path(key).parent)
        return True

    @contextmanager
    def _writing(self, key: str) -> Iterator[None]:
        with storage_errors(f"{self.root}/{key}"):
            try:
                yield
            except (IsADirectoryError, NotADirectoryError, FileExistsError) as error:
                raise InputError(
                    f"{key} cannot be written in {self.root}: a folder or file lies where the other should; "
                    "move it away, or choose another place."
                ) from error

    def _write_part(self, key: str, data: bytes) -> Path:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        own = self._path(OWN_FOLDER)  # refused if it is a link out of the root
        folder = own if own.is_dir() else path.parent
        part = folder / f".{path.name}.{this_writer()}.{uuid.uuid4().hex}{_PART_SUFFIX}"
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
        with storage_errors(f"{self.root}/{key}"):
            self._path(key).unlink(missing_ok=True)

    def delete_all(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.delete(key)

    def exists(self, key: str) -> bool:
        return os.path.isfile(self._path(key))

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """Objects below ``prefix``; a link that points nowhere is none, one that leaves the root or forms a loop is refused."""
        start = self._path(prefix) if prefix else self.root
        pending: _Pending = [(start, (os.path.realpath(start),))]
        while pending:
            folder, trail = pending.pop()
            if not folder.is_dir():
                continue
            with storage_errors(str(folder)), os.scandir(folder) as found:
                entries = [*found]
            for entry in entries:
                with storage_errors(entry.path):
                    try:
                        status = entry.stat()
                    except FileNotFoundError:
                        continue  # a link that points nowhere, or removed meanwhile
                    key = Path(entry.path).relative_to(self.root).as_posix()
                    if entry.is_symlink():
                        self._path(key)
                    if entry.is_dir():
                        real = os.path.realpath(entry.path)
                        if real in trail:
                            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                        pending.append((Path(entry.path), (*trail, real)))
                    elif not entry.name.endswith(_PART_SUFFIX):
                        yield StoredObject(key, status.st_size, f"{status.st_mtime_ns}-{status.st_size}", status.st_mtime)

    def child_names(self, prefix: str = "") -> tuple[str, ...]:
        folder = self._path(prefix) if prefix else self.root
        with storage_errors(str(folder)):
            return tuple(sorted(os.listdir(folder))) if folder.is_dir() else ()

    def folder_names(self, prefix: str = "") -> tuple[str, ...]:
        folder = self._path(prefix) if prefix else self.root
        if not folder.is_dir():
            return ()
        with storage_errors(str(folder)), os.scandir(folder) as found:
            return tuple(sorted(entry.name for entry in found if entry.is_dir(follow_symlinks=False)))

    def modified(self, key: str) -> float | None:
        try:
            return self._path(key).stat().st_mtime
        except (FileNotFoundError, NotADirectoryError):
            return None

    def leftovers(self, folder: str = OWN_FOLDER, below: bool = False) -> Iterator[StoredObject]:
        """What puts that were killed left behind in a folder, or ``below`` it too, and nobody goes on with."""
        oldest = time.time() - LEFTOVER_SECONDS
        for part in self._path(folder).glob(f"{'**/' if below else ''}.*{_PART_SUFFIX}"):
            with suppress(FileNotFoundError):
                status = part.lstat()
                if status.st_mtime < oldest or writer_is_gone(part.name.split(".")[-3]):
                    key = part.relative_to(self.root).as_posix()
                    yield StoredObject(key, status.st_size, f"{status.st_mtime_ns}-{status.st_size}", status.st_mtime)

    def delete_leftovers(self, folder: str = OWN_FOLDER, below: bool = False) -> None:
        for part in self.leftovers(folder, below):
            (self.root / part.key).unlink(missing_ok=True)

    def as_zarr(self, read_only: bool = True) -> ZarrStore:
        from zarr.storage import LocalStore as ZarrLocalStore

        return ZarrLocalStore(self.root, read_only=read_only)


def this_writer() -> str:
    """This process, among all that may write to a shared disk."""
    return f"{socket.gethostname().replace('.', '-')}@{os.getpid()}"


def writer_is_gone(writer: str) -> bool:
    """Whether the process that began a part is known to be gone: one of this machine that does not run any more."""
    host, _, process = writer.partition("@")
    if host != this_writer().partition("@")[0] or not process.isdecimal():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass
    return False


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

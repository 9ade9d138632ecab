"""A bioimage.io package on disk: a folder, its yaml, or a zip. Gives the parsed description and files inside; downloads nothing.

Nothing here knows networks.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from unet_core.errors import ModelPackageError
from unet_core.foreign.zips import ZIP_ERRORS, is_zip
from unet_core.places import check_location
from unet_core.store import is_remote, local_path
from unet_core.validation import first_problem, shorten

YAML_NAMES = ("bioimageio.yaml", "rdf.yaml")
READ = ("pytorch_state_dict", "torchscript")  # formats of weights that are read, the preferred first
MAX_YAML_BYTES = 1 << 20
MAX_ENTRIES = 100_000  # of the yaml, aliases followed
MAX_FILE_BYTES = 16 << 30


@dataclass(frozen=True)
class StoredFile:
    """A file of a package: where it lies, its name in the package, its sha256."""

    path: Path
    name: str
    sha256: str


@dataclass(frozen=True)
class Source:
    """An opened package.

    Args:
        content: of the yaml, as it stands.
        description: the same, checked, in the newest version of the format (``bioimageio.spec.model.v0_5.ModelDescr``).
        root: folder with its files, or what was taken out of a zip.
        archive: the zip, if it is one.
        where: for messages.
    """

    content: dict[str, Any]
    description: Any
    root: Path
    archive: zipfile.ZipFile | None
    where: str

    def has(self, source: Any) -> bool:
        """Whether a file is one of the package, not a link elsewhere."""
        return _is_relative(source)

    def file(self, source: Any, sha256: Any) -> StoredFile:
        """A file of the package, its hash checked where one is stated.

        Raises:
            ModelPackageError: if it leads out of the package, is absent, or is another than stated.
        """
        name = str(source)
        parts = PurePosixPath(name).parts
        if not _is_relative(source) or not parts or ".." in parts or "\\" in name:
            raise ModelPackageError(f"{self.where}: '{shorten(name)}' is no file inside the package; only those are read.")
        path = self.root.joinpath(*parts)
        try:
            if self.archive is not None:
                _take_out(self.archive, name, path, self.where)
            if not path.resolve().is_relative_to(self.root.resolve()):
                raise ModelPackageError(
                    f"{self.where}: '{shorten(name)}' leads out of the package; only files inside it are read."
                )
            if not path.is_file():
                raise ModelPackageError(f"{self.where} lacks the file {shorten(name)} that it names; copy the whole package.")
            actual = _sha256(path)
        except (OSError, ValueError) as error:  # no right to read, names too long or with a zero in them
            raise ModelPackageError(f"{self.where}: {shorten(repr(name))} cannot be read ({type(error).__name__}).") from None
        if sha256 is not None and actual != str(sha256):
            raise ModelPackageError(
                f"{self.where}: {shorten(name)} has sha256 {actual[:12]}.., the package says {str(sha256)[:12]}..; copy it again."
            )
        return StoredFile(path, name, actual)

    def array(self, file: StoredFile) -> NDArray[Any]:
        """A test tensor: the numbers of an ``.npy`` file."""
        try:
            array = np.load(file.path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError, TypeError, OverflowError, SyntaxError) as error:
            raise ModelPackageError(
                f"{self.where}: {file.name} is no array of numbers in .npy format ({str(error)[:100]})."
            ) from None
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
            raise ModelPackageError(f"{self.where}: {file.name} is no array of numbers in .npy format.")
        return np.array(array)


@contextmanager
def open_package(source: str | Path) -> Iterator[Source]:
    """Open a package: a folder with bioimageio.yaml (or rdf.yaml), that file itself, or a zip of such a folder.

    Raises:
        ModelPackageError: if it is none, or its yaml does not describe a model.
    """
    where = str(source)
    check_location("package", where)
    path = Path(where) if is_remote(where) else local_path(where)
    if is_remote(where) or not os.path.exists(path):
        raise ModelPackageError(
            f"Package not found on this machine: {where[:200]}; give a folder with {YAML_NAMES[0]}, that file, or a .zip. Nothing is downloaded."
        )
    if path.is_file() and is_zip(path):
        with tempfile.TemporaryDirectory() as folder, _open_zip(path) as archive:
            root = Path(folder).resolve()
            names = set(archive.namelist())
            name = next((name for name in YAML_NAMES if name in names), None)
            if name is None:
                raise ModelPackageError(
                    f"{where} holds no {' or '.join(YAML_NAMES)} at its top; it is no package of bioimage.io."
                )
            _take_out(archive, name, root / name, where, MAX_YAML_BYTES)
            yield _read(root / name, archive, where)
        return
    if path.is_dir():
        found = next((path / name for name in YAML_NAMES if (path / name).is_file()), None)
        if found is None:
            raise ModelPackageError(f"Folder {where} has no {' or '.join(YAML_NAMES)}; it is no package of bioimage.io.")
        path = found
    yield _read(path, None, where)


def _read(path: Path, archive: zipfile.ZipFile | None, where: str) -> Source:
    content = _parse(path, where)
    if content.get("type") != "model":
        raise ModelPackageError(f"{where} describes a {shorten(str(content.get('type')))}, no model; choose another package.")
    weights = content.get("weights")
    formats = [str(name) for name in weights] if isinstance(weights, dict) else []
    if not set(READ) & set(formats):
        raise ModelPackageError(f"{where} has its weights as {', '.join(formats) or 'nothing'}; read are {' and '.join(READ)}.")
    return Source(content, _validate(content, path, where), path.parent, archive, where)


def _parse(path: Path, where: str) -> dict[str, Any]:
    try:
        from bioimageio.spec.utils import read_yaml
        from ruyaml.error import YAMLError
    except ImportError as error:
        raise ModelPackageError(
            f"Packages of bioimage.io need the library {error.name}; install it with: pip install 'unet-flows[zoo]'."
        ) from None
    size = path.stat().st_size
    if size > MAX_YAML_BYTES:
        raise ModelPackageError(f"{where}: {path.name} has {size} bytes, more than {MAX_YAML_BYTES}; it is no description.")
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except (YAMLError, ValueError, RecursionError, OSError) as error:
        line = " ".join(str(error).split())[:200]
        raise ModelPackageError(f"{where}: {path.name} is not readable YAML ({line}).") from None
    if not isinstance(content, dict):
        raise ModelPackageError(f"{where}: {path.name} is no mapping of names to values; it is no description.")
    _check_size(content, where)
    return {str(name): value for name, value in content.items()}


def _check_size(content: Any, where: str) -> None:
    """Refuse a yaml whose aliases make much of little."""
    waiting, count = [content], 0
    while waiting:
        value = waiting.pop()
        count += 1
        if count + len(waiting) > MAX_ENTRIES:
            raise ModelPackageError(f"{where}: its yaml has more than {MAX_ENTRIES} entries; it is no description.")
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _validate(content: dict[str, Any], path: Path, where: str) -> Any:
    """The description in the newest version of the format."""
    from bioimageio.spec import InvalidDescr, ValidationContext, build_description

    context = ValidationContext(root=path.parent, file_name=path.name, perform_io_checks=False)
    try:
        description = build_description(_without_fixed_halos(content), context=context, format_version="latest")
    except ValidationError as error:  # what is not even a wrong description
        raise ModelPackageError(f"{where} does not follow the format of bioimage.io: {first_problem(error)}.") from None
    if isinstance(description, InvalidDescr):
        errors = [entry for detail in description.validation_summary.details for entry in detail.errors]
        first = f"{'.'.join(str(part) for part in errors[0].loc)}: {errors[0].msg}" if errors else "unknown reason"
        used = " with ".join(f"{name} {version(name)}" for name in ("bioimageio.spec", "pydantic"))
        if "Error calling function `package_file_descr_serializer`" in first:
            raise ModelPackageError(f"{used} cannot check any description of a model; pip install 'pydantic<2.14'.")
        raise ModelPackageError(
            f"{where} does not follow the format of bioimage.io: {' '.join(first.split())[:300]} (read by {used})."
        )
    return description


def _without_fixed_halos(content: dict[str, Any]) -> dict[str, Any]:
    """Leave out what version 0.5 has no word for: the halo of an output of fixed shape. It is no part of the network."""
    outputs = content.get("outputs")
    if not str(content.get("format_version", "")).startswith("0.4") or not isinstance(outputs, list):
        return content
    kept = [
        {name: value for name, value in entry.items() if name != "halo"}
        if isinstance(entry, dict) and isinstance(entry.get("shape"), list)
        else entry
        for entry in outputs
    ]
    return content | {"outputs": kept}


def _is_relative(source: Any) -> bool:
    from bioimageio.spec.common import RelativeFilePath

    return isinstance(source, RelativeFilePath)


@contextmanager
def _open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(path)
    except ZIP_ERRORS as error:
        raise ModelPackageError(f"{path} is a damaged zip ({str(error)[:100]}); copy it again.") from None
    with archive:
        yield archive


def _take_out(archive: zipfile.ZipFile, name: str, target: Path, where: str, limit: int = MAX_FILE_BYTES) -> None:
    """Copy one file out of a zip, no more than its stated size."""
    info = archive.NameToInfo.get(name)
    if info is None or target.exists():
        return
    if info.file_size > limit:
        raise ModelPackageError(f"{where}: {shorten(name)} has {info.file_size} bytes, more than {limit}; refused.")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with archive.open(info) as packed, target.open("wb") as plain:
            shutil.copyfileobj(packed, plain)
    except ZIP_ERRORS as error:  # torn, encrypted, or no space
        raise ModelPackageError(f"{where}: {shorten(name)} cannot be taken out of the zip ({error}); copy it again.") from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

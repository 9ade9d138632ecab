"""A bioimage.io package on disk: a folder, its yaml, or a zip. Gives the parsed description and files inside; downloads nothing.

Nothing here knows networks.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from unet_core.errors import ModelPackageError
from unet_core.foreign.yaml_file import MAX_YAML_BYTES, read_mapping
from unet_core.foreign.zips import ZIP_ERRORS, is_zip
from unet_core.places import check_location
from unet_core.store import is_remote, local_path
from unet_core.validation import first_problem, shorten
from unet_core.wording import near_path

YAML_NAMES = ("bioimageio.yaml", "rdf.yaml")
READ = ("pytorch_state_dict", "torchscript")  # formats of weights that are read, the preferred first
MAX_FILE_BYTES = 16 << 30
MAX_TENSOR_BYTES = 1 << 30  # of a test tensor; a few megabytes of a zip can hold much more


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
        fixed_halo: of the first output, axis to voxels, where the newest version has no word for it.
    """

    content: dict[str, Any]
    description: Any
    root: Path
    archive: zipfile.ZipFile | None
    where: str
    fixed_halo: Mapping[str, int] = field(default_factory=dict)

    def has(self, source: Any) -> bool:
        """Whether a file is one of the package, not a link elsewhere."""
        return _is_relative(source)

    def file(self, source: Any, sha256: Any, limit: int = MAX_FILE_BYTES) -> StoredFile:
        """A file of the package, its hash checked where one is stated.

        Args:
            source: its place in the package.
            sha256: as stated, or None.
            limit: bytes that it may have.

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
                _take_out(self.archive, name, path, self.where, limit)
            if not path.resolve().is_relative_to(self.root.resolve()):
                raise ModelPackageError(
                    f"{self.where}: '{shorten(name)}' leads out of the package; only files inside it are read."
                )
            if not path.is_file():
                raise ModelPackageError(f"{self.where} lacks the file {shorten(name)} that it names; copy the whole package.")
            size = path.stat().st_size
            if size > limit:
                raise ModelPackageError(f"{self.where}: {shorten(name)} has {size} bytes, more than {limit}; refused.")
            actual = _sha256(path)
        except (OSError, ValueError) as error:  # no right to read, names too long or with a zero in them
            raise ModelPackageError(f"{self.where}: {shorten(repr(name))} cannot be read ({type(error).__name__}).") from None
        if sha256 is not None and actual != str(sha256):
            raise ModelPackageError(
                f"{self.where}: {shorten(name)} has sha256 {actual[:12]}.., the package says {str(sha256)[:12]}..; copy it again."
            )
        return StoredFile(path, name, actual)

    def array(self, file: StoredFile) -> NDArray[Any]:
        """A test tensor: the numbers of an ``.npy`` file, mapped; nothing is read until they are used."""
        try:
            array = np.load(file.path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # numpy evaluates the header; what it says may raise anything, TokenError and MemoryError too
            line = " ".join(str(error).split())[:100] or type(error).__name__
            raise ModelPackageError(f"{self.where}: {file.name} is no array of numbers in .npy format ({line}).") from None
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
            raise ModelPackageError(f"{self.where}: {file.name} is no array of numbers in .npy format.")
        return array


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
        near = "" if is_remote(where) else near_path(path)
        raise ModelPackageError(
            f"Package not found on this machine: {where[:200]}{near}; give a folder with {YAML_NAMES[0]}, that file, or a .zip. Nothing is "
            "downloaded."
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
    content = read_mapping(path, where)
    if content.get("type") != "model":
        raise ModelPackageError(f"{where} describes a {shorten(str(content.get('type')))}, no model; choose another package.")
    weights = content.get("weights")
    formats = [str(name) for name in weights] if isinstance(weights, dict) else []
    if not set(READ) & set(formats):
        raise ModelPackageError(f"{where} has its weights as {', '.join(formats) or 'nothing'}; read are {' and '.join(READ)}.")
    converted, halo = _without_fixed_halo(content)
    return Source(content, _validate(converted, path, where), path.parent, archive, where, halo)


def _validate(content: dict[str, Any], path: Path, where: str) -> Any:
    """The description in the newest version of the format."""
    from bioimageio.spec import InvalidDescr, ValidationContext, build_description

    context = ValidationContext(root=path.parent, file_name=path.name, perform_io_checks=False)
    try:
        description = build_description(content, context=context, format_version="latest")
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


def _without_fixed_halo(content: dict[str, Any]) -> tuple[dict[str, Any], dict[str, int]]:
    """The content without what version 0.5 has no word for, the halo of an output of fixed shape; and that halo, by axis."""
    outputs = content.get("outputs")
    if not str(content.get("format_version", "")).startswith("0.4") or not isinstance(outputs, list) or not outputs:
        return content, {}
    entry = outputs[0] if isinstance(outputs[0], dict) else {}
    axes, halo = entry.get("axes"), entry.get("halo")
    if not isinstance(entry.get("shape"), list) or not isinstance(axes, str) or not isinstance(halo, list):
        return content, {}
    if len(halo) != len(axes) or any(type(voxels) is not int or voxels < 0 for voxels in halo):
        return content, {}  # refused by the format
    kept = {name: value for name, value in entry.items() if name != "halo"}
    return content | {"outputs": [kept, *outputs[1:]]}, dict(zip(axes, halo, strict=True))


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

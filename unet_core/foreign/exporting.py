"""What all exports share: the sizes they are checked at, what a check found, and outputs that appear whole or not at all.

Nothing here knows of a format.
"""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unet_core.errors import JobError, ModelPackageError
from unet_core.footprint import Footprint
from unet_core.geometry import Shape
from unet_core.model_description import SCRIPT_FILE, TORCHSCRIPT, ModelDescription
from unet_core.places import check_location, check_writable
from unet_core.store import is_remote, local_path

# Other libraries add the terms of a convolution in another order; float32 then differs by about 1e-6 of the logits' range.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Check:
    """One comparison of an export with the network it was made from.

    Args:
        what: was run, and by what.
        shape: of the input, (N, C, *spatial).
        difference: largest absolute one.
        range: of the values compared, largest minus smallest.
    """

    what: str
    shape: Shape
    difference: float
    range: float

    @property
    def passed(self) -> bool:
        return self.difference <= TOLERANCE * self.range  # false for NaN

    def __str__(self) -> str:
        return f"{self.what} at {self.shape}: differs by {self.difference:.2g}, range {self.range:.3g}"


@dataclass(frozen=True)
class Exported:
    """What was written, and how it was checked.

    Args:
        path: file or folder.
        sizes: bytes of each file in it.
        checks: all passed.
    """

    path: Path
    sizes: dict[str, int]
    checks: tuple[Check, ...]


def refuse_unexportable(description: ModelDescription, where: str) -> None:
    """Raises ModelPackageError for TorchScript, whose operations are not read, and for what the formats have no words for."""
    if len(description.heads) > 1 or description.label_head is None:
        kinds = ", ".join(head.kind for head in description.heads)
        raise ModelPackageError(
            f"Model {where} has the heads {kinds}; exports hold one head of kind classes or regions, train a model with that alone."
        )
    if description.network.name == TORCHSCRIPT:
        raise ModelPackageError(
            f"Model {where} is TorchScript and cannot be exported, since its operations are not read; its file {SCRIPT_FILE} is what other "
            "programs run."
        )


def require_passed(check: Check, path: str) -> None:
    """Raises ModelPackageError if what is about to be written does not do what the network does."""
    if not check.passed:
        raise ModelPackageError(
            f"Export to {path} refused: {check}, more than {TOLERANCE:g} of the range; what other tools would run is not this network."
        )


def check_shapes(geometry: Footprint, at_least: Shape) -> tuple[Shape, Shape]:
    """Two legal shapes of unequal sizes, each axis with another size in each, so that a size that was frozen or swapped shows."""
    smallest = geometry.legal_shape(at_least)
    first, second = ((0, 1, 2)[-geometry.dims :], (1, 0, 1)[-geometry.dims :])
    return _grown(smallest, geometry.stride, first), _grown(smallest, geometry.stride, second)


def _grown(shape: Shape, stride: Shape, counts: Shape) -> Shape:
    return tuple(size + step * count for size, step, count in zip(shape, stride, counts, strict=True))


def require_extra(*modules: str) -> tuple[Any, ...]:
    """The modules, imported.

    Raises:
        ModelPackageError: naming the extra that installs them.
    """
    try:
        return tuple(importlib.import_module(name) for name in modules)
    except ModuleNotFoundError as error:
        raise ModelPackageError(
            f"The export needs the Python package '{error.name}', which is not installed; pip install 'unet-flows[zoo]'."
        ) from None


@contextmanager
def new_output(path: str) -> Iterator[Path]:
    """A folder to work in; the file or folder ``output`` made in it takes the place ``path`` if nothing was raised.

    Raises:
        JobError: if ``path`` exists, is remote, or cannot be written.
    """
    if is_remote(path):
        raise JobError(f"Output {path} is remote; export to a local path and copy it.")
    check_location("output", path)
    target = local_path(path).absolute()
    if os.path.lexists(target):
        raise JobError(f"Output {path} exists; an export overwrites nothing, give another name or remove it.")
    check_writable(path)
    made = _make_folders(target.parent)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{target.name[:40]}.", suffix=".partial", dir=target.parent) as name:
            work = Path(name)
            yield work
            _put(work / "output", target, path)
    except BaseException:
        for folder in made:
            with suppress(OSError):  # somebody else has put something there meanwhile
                folder.rmdir()
        raise


def _make_folders(folder: Path) -> list[Path]:
    """Make a folder with those above it; the ones that were made, the deepest first."""
    made = []
    while not folder.exists():
        made.append(folder)
        folder = folder.parent
    for missing in reversed(made):
        missing.mkdir(exist_ok=True)
    return made


def _put(output: Path, target: Path, path: str) -> None:
    """Give a file or folder its place; what another program has put there meanwhile stays.

    A folder replaces an empty one at most. A file gets a second name, which fails where there is one; on disks without such names
    an empty file is created first, which fails likewise.
    """
    try:
        if output.is_dir():
            output.rename(target)
            return
        try:
            target.hardlink_to(output)
        except FileExistsError:
            raise
        except OSError:
            target.touch(exist_ok=False)
            output.replace(target)
    except OSError as error:
        why = "appeared meanwhile" if os.path.lexists(target) else f"cannot be written ({error.strerror})"
        raise JobError(f"Output {path} {why}; an export overwrites nothing, give another name.") from None

"""One label image of a finished output, written in a format of other programs. Knows the formats by name only."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from unet_core.errors import JobError
from unet_core.exports.naming import chosen_image, refuse_unfinished
from unet_core.exports.targets import byte_count, check_target, written_whole
from unet_core.plan import ImagePlan
from unet_core.result import Result, open_result


@dataclass(frozen=True)
class Options:
    """What a format may heed.

    Args:
        object_type: of GeoJSON; by what is exported unless told.
        measurements: whether objects bring theirs.
        min_voxels: smaller regions of GeoJSON are left out.
        image: where the image that was segmented lies now; where it lay unless told.
    """

    object_type: str | None = None
    measurements: bool = True
    min_voxels: int = 1
    image: str | None = None


@dataclass(frozen=True)
class Format:
    """How a format is recognised and written.

    Args:
        writer: ``module:function``, called with result, image, path to write to, name it will have, and options; it returns facts.
        suffixes: of targets.
        options: that it heeds.
        names: what it is, for the help.
    """

    writer: str
    suffixes: tuple[str, ...]
    options: tuple[str, ...] = ()

    def load(self) -> Callable[[Result, ImagePlan, Path, str, Options], dict[str, Any]]:
        module, _, name = self.writer.partition(":")
        loaded: Callable[[Result, ImagePlan, Path, str, Options], dict[str, Any]] = getattr(import_module(module), name)
        return loaded


FORMATS: dict[str, Format] = {
    "geojson": Format(
        "unet_core.exports.geojson:write_geojson",
        (".geojson", ".geojson.gz", ".geojson.zip"),
        ("object_type", "measurements", "min_voxels", "image"),
    ),
    "precomputed": Format("unet_core.exports.precomputed:write_precomputed", (".precomputed",), ("measurements",)),
    "ome-tiff": Format("unet_core.exports.ome_tiff:write_ome_tiff", (".ome.tif", ".ome.tiff")),
}


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        format: name.
        path: of the file or folder.
        image: path of the label image in the output.
        size_bytes: of all files.
        seconds: that it took.
        facts: of the format.
    """

    format: str
    path: str
    image: str
    size_bytes: int
    seconds: float
    facts: dict[str, Any] = field(default_factory=dict)


def export_result(
    output: str, target: str, *, format: str | None = None, labels: str | None = None, options: Options | None = None
) -> Exported:
    """Write one label image of a finished output for another program.

    Args:
        output: URL.
        target: new file or folder on a local disk.
        format: one of ``FORMATS``; told by the target's suffix unless stated.
        labels: name of the label image; the instances if there are some, else the first one, unless told.
        options: of the format.

    Raises:
        InputError: for what cannot be exported, before anything is written.
        LedgerError: if voxels that were written are no longer there.
    """
    options = options or Options()
    name = format or _format_of(target)
    _refuse_idle(name, options)
    path = check_target(target, output)
    result = open_result(output)
    image = chosen_image(result, labels)
    refuse_unfinished(result)
    write = FORMATS[name].load()
    started = time.perf_counter()
    with written_whole(path) as part:
        facts = write(result, image, part, path.name, options)
    return Exported(name, str(path), image.path, byte_count(path), time.perf_counter() - started, facts)


def _format_of(target: str) -> str:
    for name, entry in FORMATS.items():
        if target.lower().rstrip("/").endswith(entry.suffixes):
            return name
    known = "; ".join(f"{name} ({', '.join(entry.suffixes)})" for name, entry in FORMATS.items())
    raise JobError(f"{target} has a suffix that says no format; name one with --format, or use one of: {known}.")


def _refuse_idle(name: str, options: Options) -> None:
    """Refuse options that a format does not heed."""
    for option, default in vars(Options()).items():
        if getattr(options, option) != default and option not in FORMATS[name].options:
            flag = "no-measurements" if option == "measurements" else option.replace("_", "-")
            raise JobError(f"--{flag} has no meaning for the format {name}; leave it out.")

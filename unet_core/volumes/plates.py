"""Plates of OME-Zarr (0.4, 0.5): wells in rows and columns, and the fields of view in each. Reads no voxel.

PLATE/A/1/0    row A, column 1, field 0: an image like any other
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from unet_core.errors import VolumeError
from unet_core.store import Store, is_remote
from unet_core.volumes.zarr_codecs import REWRITE
from unet_core.volumes.zarr_nodes import Node, group_path, listed, locate, read_node

_READERS = 8  # wells of an object store that are looked into at a time
_SHOWN = 6

Item = TypeVar("Item")


@dataclass(frozen=True)
class Field:
    """One field of view of a plate.

    Args:
        url: of its image.
        row: name, such as A.
        column: name, such as 1.
        field: path of the image in its well, such as 0.
        acquisition: number of the run of the microscope that it belongs to; None if it is not stated.
    """

    url: str
    row: str
    column: str
    field: str
    acquisition: int | None

    @property
    def name(self) -> str:
        """Row, column and field, as ``A/1/0``: unique in a plate."""
        return f"{self.row}/{self.column}/{self.field}"


@dataclass(frozen=True)
class _Well:
    path: str
    row: str
    column: str


def fields(url: str) -> tuple[Field, ...]:
    """Every field of view of a plate, in the order of its wells and of the images in each.

    Args:
        url: of the plate, or of one of its wells.

    Raises:
        VolumeError: if it is neither, or names wells or images that are no paths in it, or wells that are not there.
    """
    store, path = locate(url)
    node = read_node(store, path)
    if node is not None and is_plate(node):
        return tuple(_every_field(store, path, node, url))
    if node is not None and isinstance(node.attributes.get("well"), dict):
        base, *names = url.rstrip("/").rsplit("/", 2)
        if len(names) == 2 and base:
            return tuple(_in_well(node, _Well("", *names), url))
    raise VolumeError(f"{url} is no plate and no well of one; name the folder whose metadata list the wells.")


def is_plate(node: Node) -> bool:
    return isinstance(node.attributes.get("plate"), dict)


def why_no_image(store: Store, path: str, node: Node, url: str) -> str:
    """Why a plate cannot be opened as an image, with its first fields and what to do."""
    wells = _wells(node, url)
    try:
        first = [field.url for field in itertools.islice(_every_field(store, path, node, url), _SHOWN + 1)]
    except VolumeError as error:
        return f"{url} is a plate of {len(wells)} wells, which is damaged: {error}"
    if not first:
        return f"{url} is a plate of {len(wells)} wells; name one image, no field of view is listed."
    more = ", .." if len(first) > _SHOWN else ""
    return (
        f"{url} is a plate of {len(wells)} wells, not one image; name one field of view, each gets a result of its own: "
        f"{listed(first[:_SHOWN])}{more}"
    )


def _every_field(store: Store, path: str, node: Node, url: str) -> Iterator[Field]:
    folder = f"{path}/" if path else ""
    base = url.rstrip("/")
    wells = _wells(node, url)
    for well, found in zip(wells, _read_all(store, [folder + well.path for well in wells]), strict=True):
        if found is None:
            raise VolumeError(f"well '{well.path}' missing in {url}; copy it again, or {REWRITE}.")
        yield from _in_well(found, well, f"{base}/{well.path}")


def _read_all(store: Store, paths: Iterable[str]) -> Iterator[Node | None]:
    """Groups in their order; those of an object store a few at a time, as they are asked for."""
    if not is_remote(store.url):
        yield from (read_node(store, path) for path in paths)
        return
    waiting = iter(paths)
    with ThreadPoolExecutor(_READERS, "unet-wells") as readers:
        while some := list(itertools.islice(waiting, _READERS)):
            yield from readers.map(lambda path: read_node(store, path), some)


def _wells(node: Node, url: str) -> list[_Well]:
    plate: Mapping[str, Any] = node.attributes["plate"]
    entries = plate.get("wells")
    names = {axis: _names(plate.get(axis)) for axis in ("rows", "columns")}
    found = []
    for number, entry in enumerate(entries if isinstance(entries, list) else []):
        stated = entry.get("path") if isinstance(entry, dict) else None
        well = group_path(stated, f"well {number}", url)
        parts = well.split("/")
        row = _named(names["rows"], entry.get("rowIndex"), parts[0])
        column = _named(names["columns"], entry.get("columnIndex"), parts[-1])
        found.append(_Well(well, row, column))
    return found


def _names(entries: Any) -> list[Any]:
    return [entry.get("name") if isinstance(entry, dict) else None for entry in entries] if isinstance(entries, list) else []


def _named(names: list[Any], index: Any, otherwise: str) -> str:
    """A row or column by its number, or by its part of the path where the number says nothing, or no name as the format wants it."""
    name = names[index] if type(index) is int and 0 <= index < len(names) else None
    return name if isinstance(name, str) and re.fullmatch("[A-Za-z0-9]{1,40}", name) else otherwise


def _in_well(node: Node, well: _Well, url: str) -> Iterator[Field]:
    stated = node.attributes.get("well")
    images = stated.get("images") if isinstance(stated, dict) else None
    for number, entry in enumerate(images if isinstance(images, list) else []):
        path = group_path(entry.get("path") if isinstance(entry, dict) else None, f"image {number}", url)
        acquisition = entry.get("acquisition")
        yield Field(f"{url.rstrip('/')}/{path}", well.row, well.column, path, acquisition if type(acquisition) is int else None)

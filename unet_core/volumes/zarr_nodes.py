"""Groups and arrays of a Zarr archive: their documents, what lies in them, and the archive around them. Reads no voxel."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from unet_core.errors import InputError, VolumeError
from unet_core.store import Store, is_remote, local_path, open_store
from unet_core.volumes.zarr_codecs import REWRITE
from unet_core.volumes.zarr_metadata import read_document

DOCUMENTS = ("zarr.json", ".zarray", ".zattrs", ".zgroup")
_MAX_LISTED = 12
_MAX_CHILDREN = 200  # looked into, to tell what a group holds


@dataclass(frozen=True)
class Node:
    """A group or array: its document, its attributes (those below ``ome`` in groups of version 3), and the version of Zarr."""

    is_array: bool
    document: Mapping[str, Any]
    attributes: Mapping[str, Any]
    zarr_format: int


def read_node(store: Store, path: str) -> Node | None:
    """The group or array at ``path`` ("" for the root of ``store``), or None if there is none."""
    folder = f"{path}/" if path else ""
    document = read_document(store, f"{folder}zarr.json")
    if document is not None:
        version = document.get("zarr_format")
        if type(version) is not int or version != 3:
            raise VolumeError(
                f"unsupported zarr_format {repr(version)[:60]}: {store.url}/{folder}zarr.json; 2 and 3 are read, {REWRITE}."
            )
        attributes = document.get("attributes") or {}
        if not isinstance(attributes, dict):
            raise VolumeError(f"attributes of {store.url}/{path} must be an object; {REWRITE}.")
        if document.get("node_type") == "array":
            return Node(True, document, attributes, 3)
        ome = attributes.get("ome", {})
        return Node(False, document, ome if isinstance(ome, dict) else {}, 3)
    array = read_document(store, f"{folder}.zarray")
    stated = read_document(store, f"{folder}.zattrs")
    if array is not None:
        return Node(True, array, stated or {}, 2)
    if stated is not None or store.exists(f"{folder}.zgroup"):
        return Node(False, {"attributes": stated or {}}, stated or {}, 2)
    return None


def group_path(value: Any, what: str, url: str) -> str:
    """A path that a group names, in its plain form, "0" for "./0/".

    Raises:
        VolumeError: if it is no path of something inside the group.
    """
    plain = str(PurePosixPath(value)) if isinstance(value, str) else ""
    parts = PurePosixPath(plain).parts
    if not isinstance(value, str) or plain.startswith("/") or ".." in parts or plain == ".":
        raise VolumeError(f"path leaves the group: {what} of {url} is {str(value)[:60]!r}; correct it in the metadata.")
    if not plain.isprintable() or any(len(part.encode()) > 255 for part in parts):
        raise VolumeError(f"path cannot be a name: {what} of {url} is {str(value)[:60]!r}; correct it in the metadata.")
    return plain


def locate(url: str) -> tuple[Store, str]:
    """The archive that a URL lies in, and the path of the URL in it.

    On this machine the archive is the topmost folder around the URL that is a Zarr group, without gaps: a symbolic link of an
    array may then point to another array of the same image, and nowhere else. Object stores have no links: there it is the URL.
    """
    if is_remote(url):
        return open_store(url), ""
    path = Path(os.path.abspath(local_path(url)))
    root = path
    while root.parent != root and any(os.path.isfile(root.parent / name) for name in DOCUMENTS):
        root = root.parent
    return open_store(str(root)), "" if root == path else path.relative_to(root).as_posix()


def groups_around(store: Store, path: str, url: str) -> Iterator[tuple[Store, str, Node, str, str]]:
    """Groups one and two levels above an array: their store and path there, node, URL, and the array's path in them."""
    for depth in (1, 2):
        base, *inside = url.rstrip("/").rsplit("/", depth)
        parts = path.split("/") if path else []
        try:
            if is_remote(url):
                if base.count("/") < 2:  # s3:/ and s3://: no bucket is left
                    return
                around, above = open_store(base), ""
            elif len(parts) >= depth:
                around, above, inside = store, "/".join(parts[:-depth]), parts[-depth:]
            else:
                return
            node = read_node(around, above)
        except InputError:
            return  # a group that may not be read, or is damaged, says nothing of the array: it stays one without a group
        if node is not None and not node.is_array:
            yield around, above, node, base, "/".join(inside)


def series_of(store: Store, path: str, node: Node, url: str) -> list[str]:
    """Paths of the images of a group in the layout of bioformats2raw; empty for other groups."""
    if node.attributes.get("bioformats2raw.layout") is None:
        return []
    folder = f"{path}/" if path else ""
    listing = read_node(store, f"{folder}OME")
    names = listing.attributes.get("series") if listing is not None else None
    if not isinstance(names, list):
        names = sorted((name for name in store.child_names(path) if name.isdecimal()), key=int)
    return [folder + group_path(name, f"series {number}", url) for number, name in enumerate(names)]


def what_else(store: Store, path: str, node: Node, url: str) -> str:
    """Why a group is no image, with what lies in it."""
    base = url.rstrip("/")
    well, labels = (node.attributes.get(name) for name in ("well", "labels"))
    if isinstance(well, dict):
        fields = _paths(well.get("images"))
        return f"{url} is a well of {len(fields)} images; name one: {listed([f'{base}/{field}' for field in fields])}."
    if isinstance(labels, list):
        return f"{url} lists label images; name one: {listed([f'{base}/{str(name)[:60]}' for name in labels])}."
    images: list[str] = []
    arrays: list[str] = []
    folder = f"{path}/" if path else ""
    # OME holds metadata of the others, never an image.
    names = [name for name in store.child_names(path) if not name.startswith(".") and name not in ("zarr.json", "OME")]
    for name in names[:_MAX_CHILDREN]:
        child = read_node(store, folder + name)
        if child is not None:
            (arrays if child.is_array else images).append(f"{base}/{name}")
    if images or arrays:
        return f"no OME multiscales in {url}; it holds several images or arrays, name one: {listed(images or arrays)}."
    return f"no OME multiscales and no array in {url}; name a folder that holds one."


def _paths(entries: Any) -> list[str]:
    return [str(entry.get("path"))[:60] for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def listed(urls: Sequence[str], separator: str = ", ") -> str:
    """The first of ``urls``, and how many more there are."""
    more = f" and {len(urls) - _MAX_LISTED} more" if len(urls) > _MAX_LISTED else ""
    return separator.join(urls[:_MAX_LISTED]) + more

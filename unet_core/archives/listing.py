"""Which images an archive has: of a folder, prefix, glob, plate, or list of rows. Opens none of them.

FOLDER/          every image below it; what is inside an image is none        sub/slide.svs -> sub-slide.zarr
FOLDER/*.tif     what matches, ** for any folders between
PLATE.zarr       every field of view                                          A/1/0         -> A-1-0.zarr
LIST.csv         a row an image, see ``rows``                                 column output, or the image's own name
"""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any
from unicodedata import normalize

from unet_core.archives.folders import Folders
from unet_core.archives.rows import is_list, read_rows
from unet_core.errors import InputError, JobError, VolumeError
from unet_core.ledger import PLAN_KEY
from unet_core.places import check_location
from unet_core.store import OWN_FOLDER, is_remote, local_path, open_store, storage_errors
from unet_core.volumes.plates import fields, is_plate
from unet_core.volumes.zarr_metadata import read_document
from unet_core.volumes.zarr_nodes import DOCUMENTS, read_node
from unet_core.wording import near_path, writable

FILES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".png", ".jpg", ".jpeg")
FOLDERS = (".zarr", ".n5")
_ENDINGS = (".ome.tif", ".ome.tiff", ".ome.zarr", *FILES, *FOLDERS)
_WILD = "*?["
_READERS = 16  # folders of an object store that are looked into at a time
_MOST_IMAGES = 1_000_000
_SHOWN = 12  # kinds of other files; where names are numbered by their ending, there are as many kinds as files
_DEEPEST = 64  # folders in folders; more are links in a loop


@dataclass(frozen=True)
class Item:
    """An image of an archive, and what is said of it alone.

    Args:
        image: path or URL.
        name: of its result in the output folder.
        options: fields of a job that differ from those of the others.
        owner: whose it is; empty if nobody said.
        project: that it belongs to, likewise.
    """

    image: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    owner: str = ""
    project: str = ""


@dataclass(frozen=True)
class Listing:
    """The images of an archive in a fixed order, and how many other files lie between them, by their ending."""

    items: tuple[Item, ...]
    passed_over: dict[str, int]

    def notes(self) -> list[str]:
        """What was found and is no image, in a sentence."""
        if not self.passed_over:
            return []
        first = sorted(self.passed_over.items(), key=lambda entry: (-entry[1], entry[0]))[:_SHOWN]
        rest = sum(self.passed_over.values()) - sum(count for _, count in first)
        every = ", ".join(
            [*(f"{count} {writable(ending)}" for ending, count in sorted(first)), *([f"{rest} others"] if rest else [])]
        )
        return [f"Passed over, no images: {every}."]


def list_images(source: str) -> Listing:
    """The images that ``source`` means, each with the name of its result.

    Args:
        source: folder, prefix of a bucket, glob, plate, single image, or list (``.csv``, ``.tsv``, ``.parquet``).

    Raises:
        InputError: if there is none, or two would have results of one name; both are named then.
    """
    check_location("images", split_glob(source)[0])
    if is_list(source):
        items = [
            Item(
                row.image,
                f"{row.output or name_of(row.image.rstrip('/').rpartition('/')[2])}.zarr",
                row.options,
                row.owner,
                row.project,
            )
            for row in read_rows(source)
        ]
        listing = Listing(tuple(items), {})
    else:
        listing = _found(source)
    if not listing.items:
        raise JobError(f"No image found in {source}{_holds(listing)}; images end in {', '.join((*FILES, *FOLDERS))}.")
    _check_names(listing.items)
    return listing


def name_of(path: str) -> str:
    """The name of a result, by the path of its image below the source: folders joined by ``-``, without the ending.

    Example:
        >>> name_of("mouse 1/slide.ome.tif"), name_of("plate.zarr/A/1/0"), name_of("v1.2/scan.5.svs")
        ('mouse 1-slide', 'plate-A-1-0', 'v1.2-scan.5')
    """
    return "-".join(_without_ending(part) for part in path.split("/"))


def _without_ending(name: str) -> str:
    ending = next((ending for ending in _ENDINGS if name.lower().endswith(ending) and len(name) > len(ending)), "")
    return name[: len(name) - len(ending)]


def _check_names(items: tuple[Item, ...]) -> None:
    """Also where letters differ in case only, or in how an accent is written, which some file systems do not tell apart."""
    seen: dict[str, Item] = {}
    for item in items:
        other = seen.setdefault(normalize("NFC", normalize("NFC", item.name).casefold()), item)
        if other is not item:
            raise JobError(
                f"{other.image} and {item.image} would both have the result {item.name}; name their results in a list (columns image, "
                "output), or choose one of them with a glob."
            )


def _holds(listing: Listing) -> str:
    return f" ({listing.notes()[0].rstrip('.')})" if listing.passed_over else ""


def _found(source: str) -> Listing:
    base = source.rstrip("/") or "/"
    root, pattern = split_glob(base)
    if not is_remote(root) and not os.path.isdir(local_path(root)):
        if os.path.isfile(local_path(root)):
            return Listing((Item(source, f"{name_of(os.path.basename(root))}.zarr"),), {})
        raise JobError(f"Images not found: {root}{near_path(local_path(root))}; check the path.")
    with ThreadPoolExecutor(_READERS, "unet-list") as readers:
        walk = _Walk(root, readers)
        walk.take(walk.matches(pattern) if pattern else [""], explicit=bool(pattern))
    if set(walk.images) == {""}:  # the source is an image itself
        return Listing((Item(base, f"{name_of(base.rpartition('/')[2])}.zarr"),), {})
    return Listing(tuple(Item(url, f"{name_of(path)}.zarr") for path, url in sorted(walk.images.items())), walk.passed_over)


def split_glob(base: str) -> tuple[str, str]:
    """The folder that a glob begins in, and the rest of it; no rest if it is none, or something has this very name."""
    parts = base.split("/")
    first = next((number for number, part in enumerate(parts) if any(letter in part for letter in _WILD)), None)
    if first is None or (not is_remote(base) and os.path.lexists(local_path(base))):
        return base, ""
    return "/".join(parts[:first]) or ("/" if base.startswith("/") else "."), "/".join(parts[first:])


class _Walk:
    """Images below a root, by their path there. Folders of one depth are looked into together, which matters on object stores.

    Args:
        root: folder or prefix.
        readers: that look into folders.
    """

    def __init__(self, root: str, readers: ThreadPoolExecutor) -> None:
        self.images: dict[str, str] = {}
        self.passed_over: dict[str, int] = {}
        self._root, self._readers = root, readers
        self._store = open_store(root) if is_remote(root) else None

    def matches(self, pattern: str) -> list[str]:
        """Paths that a glob means, part by part of it."""
        found = [""]
        for part in pattern.split("/"):
            if part == "**":
                found = self._folders_below(found)
            else:
                listed = zip(found, self._readers.map(self._names, found), strict=True)
                found = [_join(path, name) for path, names in listed for name in names or () if _matches(name, part)]
        return found

    def take(self, paths: list[str], explicit: bool) -> None:
        """Take every image that a path is, or that lies below it.

        Args:
            paths: below the root.
            explicit: whether they were named, so that files of any ending are taken for images.
        """
        folders, followed = self._folders(), set[str]()
        while paths or (followed := set(folders.follow())):
            paths = paths or sorted(followed)
            looked = list(zip(paths, self._readers.map(self._look, paths), strict=True))
            paths = []
            for path, found in looked:
                if found is None:
                    self._take_file(path, explicit)
                elif isinstance(found, dict):
                    self.images |= {_join(path, name): url for name, url in found.items()}
                elif path in followed or folders.enter(path):
                    paths += [_join(path, name) for name in found]
            explicit, followed = False, set()
            if len(self.images) > _MOST_IMAGES:
                raise JobError(f"{self._root} holds more than {_MOST_IMAGES:,} images; segment it in parts.")

    def _look(self, path: str) -> dict[str, str] | list[str] | None:
        """Images of a folder that is one, or is a plate, by their path in it; else what lies in it; None for a file."""
        names = self._names(path)
        if names is None:
            return None
        url = self._url(path)
        if OWN_FOLDER in names and open_store(url).exists(PLAN_KEY):
            self._pass_over("results of unet segment")
            return []
        if set(DOCUMENTS) & set(names):
            try:
                node = read_node(open_store(url), "")
                if node is not None and (is_plate(node) or isinstance(node.attributes.get("well"), dict)):
                    return {entry.url.removeprefix(f"{url.rstrip('/')}/"): entry.url for entry in fields(url)}
            except VolumeError:  # is told of it as an image
                pass
            return {"": url}
        if "attributes.json" in names or path.lower().endswith(FOLDERS) or ("info" in names and _is_precomputed(url)):
            return {"": url}
        return [name for name in names if not name.startswith(".")]

    def _take_file(self, path: str, explicit: bool) -> None:
        ending = os.path.splitext(path)[1].lower()
        if explicit or ending in FILES:
            self.images[path] = self._url(path)
        else:
            self._pass_over(ending or "without ending")

    def _pass_over(self, what: str) -> None:
        self.passed_over[what] = self.passed_over.get(what, 0) + 1

    def _folders_below(self, paths: list[str]) -> list[str]:
        """Folders of any depth, these among them."""
        folders = self._folders()
        found: list[str] = []
        fresh = [path for path in paths if folders.enter(path)]
        while fresh or (fresh := folders.follow()):
            found += fresh
            below = [
                _join(path, name)
                for path, names in zip(fresh, self._readers.map(self._names, fresh), strict=True)
                if names is not None and not set(DOCUMENTS) & set(names)  # what is inside an image is none
                for name in names
                if not name.startswith(".")
            ]
            listed = zip(below, self._readers.map(self._names, below), strict=True)
            fresh = [path for path, names in listed if names is not None and folders.enter(path)]
        return found

    def _folders(self) -> Folders:
        """For a walk: no image is found twice, by a link and by itself."""
        if self._store is not None:
            return Folders(None)
        return Folders(lambda path: local_path(self._url(path)), lambda: self._pass_over("links to folders that are listed"))

    def _url(self, path: str) -> str:
        return _join(self._root, path)

    def _names(self, path: str) -> tuple[str, ...] | None:
        """What lies in a folder; None if it is none."""
        if self._store is not None:
            if path.lower().endswith(FILES):
                return None
            names = self._store.child_names(path)
            return names or (None if path else ())
        folder = local_path(self._url(path))
        with storage_errors(str(folder)):
            if path.count("/") > _DEEPEST:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            return tuple(sorted(os.listdir(folder))) if folder.is_dir() else None


def _matches(name: str, part: str) -> bool:
    """As in a shell: hidden files, such as those that macOS leaves beside others, match only what begins with a dot."""
    return fnmatchcase(name, part) and (part.startswith(".") or not name.startswith("."))


def _is_precomputed(url: str) -> bool:
    try:
        return isinstance((read_document(open_store(url), "info") or {}).get("scales"), list)
    except InputError:
        return False


def _join(path: str, name: str) -> str:
    return f"{path.rstrip('/')}/{name}" if path and name else path or name

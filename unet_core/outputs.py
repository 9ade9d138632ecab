"""Outputs of this program below a folder or a prefix of a bucket, found by their plans. Follows no symbolic link, reads no voxel."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from unet_core.errors import JobError
from unet_core.ledger import PLAN_KEY
from unet_core.places import check_location
from unet_core.store import OWN_FOLDER, Store, is_remote, local_path, open_store, storage_errors
from unet_core.wording import near_path

_READERS = 16  # folders of an object store that are looked into together
_DEEPEST = 64  # folders in folders
_DOCUMENTS = ("zarr.json", ".zarray", ".zattrs", ".zgroup")  # a folder with one is an image: what is inside is none


def find_outputs(place: str, on_other: Callable[[str], None] = lambda url: None) -> Iterator[str]:
    """URLs of the outputs that a place is or holds, in the order of their names.

    Args:
        place: path or URL.
        on_other: told the URL of each folder that was looked into and is no output.

    Raises:
        InputError: if there is no such place, or it is a symbolic link.
    """
    check_location("place", place)
    base = place.rstrip("/") or "/"
    if not is_remote(base):
        path = local_path(base)
        if not os.path.lexists(path):
            raise JobError(f"Place not found: {place}{near_path(path)}; check the path.")
        if path.is_symlink() or not path.is_dir():
            kind = "a symbolic link" if path.is_symlink() else "no folder"
            raise JobError(f"{place} is {kind}; name the folder itself.")
    with ThreadPoolExecutor(_READERS, "unet-find") as readers:
        level = [base]
        for _ in range(_DEEPEST):
            fresh: list[str] = []
            for url, (is_output, below) in zip(level, readers.map(_look, level), strict=True):
                if is_output:
                    yield url
                else:
                    on_other(url)
                    fresh += below
            level = sorted(fresh)


def _look(url: str) -> tuple[bool, list[str]]:
    """Whether a folder is an output; if it is none, and no image either, the folders in it."""
    store = open_store(url)
    names, folders = _listed(url, store)
    if OWN_FOLDER in folders and store.exists(PLAN_KEY):
        return True, []
    if set(_DOCUMENTS) & set(names):
        return False, []
    return False, [f"{url.rstrip('/')}/{name}" for name in folders if not name.startswith(".")]


def _listed(url: str, store: Store) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of all that lies in a folder, and of the folders among it."""
    if is_remote(url):
        return store.child_names(), store.folder_names()
    with storage_errors(url), os.scandir(local_path(url)) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    real = (entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    return tuple(entry.name for entry in entries), tuple(real)

"""A data set opened by its ``dataset.yaml``, or from a plain folder: every pair written out, every path absolute. Reads no voxel
but for near-duplicates."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from unet_core.errors import InputError
from unet_core.store import absolute, check_url, is_remote, local_path, open_store, storage_errors
from unet_core.training.dataset_description import Dataset, DatasetClass, Pair, Split, make_dataset
from unet_core.training.files import read_file
from unet_core.training.near_duplicates import with_groups
from unet_core.training.opening import open_parts

__all__ = ["DATASET_FILE", "Dataset", "DatasetClass", "Pair", "Split", "load_dataset", "open_parts"]

DATASET_FILE = "dataset.yaml"
_MAX_YAML_BYTES = 16 << 20
_MAX_ENTRIES = 2_000_000  # aliases followed


def load_dataset(path: str | Path, root: str | Path | None = None) -> Dataset:
    """Read what to learn from.

    Args:
        path: of a ``dataset.yaml`` (local or ``s3://``), or a folder: with such a file, with ``images`` and ``labels`` of equal names,
            or with pairs like ``a.tif`` and ``a_mask.tif``.
        root: folder or URL that the paths of the yaml are relative to, instead of the one that it states.

    Returns:
        The data set with absolute paths, wildcards replaced by the pairs that they stand for, near-duplicates grouped.

    Raises:
        InputError: naming file and key, what is wrong with it and what it may be.
    """
    url = str(path)
    check_url(url)
    if not is_remote(url) and local_path(url).is_dir():
        if not (local_path(url) / DATASET_FILE).is_file():
            from unet_core.training.dataset_folder import folder_dataset

            return folder_dataset(local_path(url).absolute() if root is None else local_path(str(root)).absolute())
        url = str(local_path(url) / DATASET_FILE)
    dataset = make_dataset(read_yaml(url), url)
    base = str(root) if root is not None else _joined(_parent(absolute(url)), dataset.root)
    dataset = dataset.model_copy(update={"root": absolute(base)})
    pairs = tuple(
        pair for number, pair in enumerate(dataset.pairs) for pair in _written_out(pair, dataset.root, f"{url}: pairs.{number}")
    )
    dataset = dataset.model_copy(update={"pairs": pairs})
    return with_groups(dataset) if dataset.groups else dataset


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML as plain data, without keys that are stated twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge" and isinstance(key.value, str)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key '{key}' is there twice", node.start_mark)
        return dict(super().construct_mapping(node, deep))


def read_yaml(url: str) -> dict[str, Any]:
    """Names and values of a yaml file.

    Raises:
        InputError: if it is not there, no yaml, no mapping, or much larger than any description.
    """
    content = read_file(url, _MAX_YAML_BYTES, "description of a data set")
    try:
        fields = yaml.load(content.decode("utf-8"), Loader=_Loader)  # a subclass of the safe loader
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError, TypeError) as error:
        raise InputError(f"{url} is not readable YAML ({' '.join(str(error).split())[:300]}).") from None
    if not isinstance(fields, dict):
        raise InputError(f"{url} holds no keys with values; a data set begins with schema: 1.")
    _check_size(fields, url)
    return {str(key): value for key, value in fields.items()}


def _check_size(content: Any, url: str) -> None:
    """Refuse a yaml whose aliases make much of little."""
    waiting, count = [content], 0
    while waiting:
        value = waiting.pop()
        count += 1
        if count + len(waiting) > _MAX_ENTRIES:
            raise InputError(f"{url} has more than {_MAX_ENTRIES} entries; it is no description of a data set.")
        waiting += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _parent(url: str) -> str:
    return url.rpartition("/")[0] or "/"


def _joined(root: str, path: str) -> str:
    """``path`` as seen from ``root``."""
    if "://" in path or path.startswith(("/", "~")):
        return path
    if is_remote(root):
        return f"{root.rstrip('/')}/{path.removeprefix('./')}" if path != "." else root
    return str(local_path(root) / path)


def _written_out(pair: Pair, root: str, where: str) -> Iterator[Pair]:
    """The pairs that one entry of the yaml stands for, in order of their names."""
    if not _is_pattern(pair.image):
        names = [pair.image]
    else:
        if "{name}" not in pair.labels:
            raise InputError(
                f"{where}: {pair.image} may be many images, and {pair.labels} is one; write {{name}} for the image's name."
            )
        if "**" in pair.image or "://" in pair.image:
            raise InputError(f"{where}: wildcards are read as * and ? in paths below the root; got {pair.image}.")
        names = _matches(pair.image, root)
        if not names:
            raise InputError(f"{where}: no file matches {pair.image} in {root}; check the folder, or give the root with --root.")
    for name in names:
        labels = pair.labels.replace("{name}", PurePosixPath(name).stem)
        yield pair.model_copy(update={"image": _joined(root, name), "labels": _joined(root, labels)})


def _is_pattern(path: str) -> bool:
    return "*" in path or "?" in path


def _matches(pattern: str, root: str) -> list[str]:
    """Names below ``root`` that ``pattern`` fits; those that begin with a dot are hidden."""
    found = [""]
    start, parts = root, pattern.split("/")
    if pattern.startswith("/"):
        start, found, parts = "/", [""], parts[1:]
    store = open_store(start)
    for part in parts:
        if not _is_pattern(part):
            found = [f"{folder}{part}/" for folder in found]
            continue
        with storage_errors(start):
            found = [
                f"{folder}{name}/"
                for folder in found
                for name in store.child_names(folder.rstrip("/"))
                if fnmatchcase(name, part) and not name.startswith(".")
            ]
    lead = "/" if pattern.startswith("/") else ""
    return [lead + name.rstrip("/") for name in found]

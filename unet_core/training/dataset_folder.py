"""A data set from a plain folder: which files belong together, and what their labels mean where that is plain to see.

    DATA/images/a.tif  DATA/labels/a.png           or           DATA/a.tif  DATA/a_mask.tif

Where it is not, the error gives the ``dataset.yaml`` to begin with.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from unet_core.errors import InputError
from unet_core.geometry import BlockGrid
from unet_core.training.dataset_description import GEOJSON_SUFFIXES, MAX_CLASSES, Dataset, make_dataset
from unet_core.training.geojson import read_outlines
from unet_core.volumes import open_volume
from unet_core.wording import counted

IMAGE_FOLDERS = ("images", "image")
LABEL_FOLDERS = ("labels", "label", "masks", "annotations")
LABEL_ENDINGS = ("_mask", "_masks", "_labels", "_label", "_seg")
SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".svs", ".zarr")
_BLOCK_SIDE = {2: 2048, 3: 128}
_SHOWN_PAIRS = 3


def folder_dataset(folder: Path) -> Dataset:
    """The data set of a folder, with the default split; looks at every label to see what they are.

    Raises:
        InputError: if nothing belongs together, an image or its labels stand alone, or the labels can mean several things; then with a
            ``dataset.yaml`` to begin with.
    """
    pairs = find_pairs(folder)
    meaning, question = _meaning(folder, pairs)
    if question:
        error = InputError(f"{question} Write {folder}/dataset.yaml, for example:")
        error.add_note(_as_yaml(meaning, pairs))
        raise error
    entries = [{"image": str(folder / image), "labels": str(folder / labels)} for image, labels in pairs]
    return make_dataset({"schema": 1, "name": folder.name, "root": str(folder), **meaning, "pairs": entries}, str(folder))


def starting_yaml(folder: Path) -> str:
    """A ``dataset.yaml`` to begin with, for a folder of images and labels.

    Raises:
        InputError: if nothing in it belongs together.
    """
    pairs = find_pairs(folder)
    return _as_yaml(_meaning(folder, pairs)[0], pairs)


def find_pairs(folder: Path) -> list[tuple[str, str]]:
    """Images and their labels, relative to the folder, by name.

    Raises:
        InputError: naming what has no partner, or several.
    """
    names = sorted(entry.name for entry in folder.iterdir())
    images = next((name for name in IMAGE_FOLDERS if (folder / name).is_dir()), None)
    labels = next((name for name in LABEL_FOLDERS if (folder / name).is_dir()), None)
    if images and labels:
        return _matched(_stems(folder, images, SUFFIXES), _stems(folder, labels, (*SUFFIXES, *GEOJSON_SUFFIXES)), folder)
    files = {_stem(name): name for name in names if name.lower().endswith((*SUFFIXES, *GEOJSON_SUFFIXES))}
    found = [
        (files[stem.removesuffix(ending)], name)
        for stem, name in files.items()
        for ending in LABEL_ENDINGS
        if stem.endswith(ending) and stem.removesuffix(ending) in files
    ]
    if not found:
        raise InputError(
            f"{folder} has no images with labels: neither folders images and labels, nor files like a.tif with a_mask.tif or a_labels.tif "
            f"(it holds {', '.join(names[:5]) or 'nothing'}); arrange them so, or write a dataset.yaml that lists the pairs."
        )
    taken = {name for pair in found for name in pair}
    alone = next((name for name in files.values() if name not in taken), None)
    if alone:
        raise InputError(f"{folder / alone} has no labels, and is none of another image; move it away, or write a dataset.yaml.")
    return sorted(found)


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _stems(folder: Path, inner: str, suffixes: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in sorted(entry.name for entry in (folder / inner).iterdir()):
        if name.startswith(".") or not name.lower().endswith(suffixes):
            continue
        stem = _stem(name)
        for ending in LABEL_ENDINGS if inner in LABEL_FOLDERS else ():
            stem = stem.removesuffix(ending)
        if stem in found:
            raise InputError(
                f"{folder / found[stem]} and {folder / inner / name} have the same name; it is not clear which is meant."
            )
        found[stem] = f"{inner}/{name}"
    return found


def _matched(images: dict[str, str], labels: dict[str, str], folder: Path) -> list[tuple[str, str]]:
    if not images:
        raise InputError(f"{folder} has a folder for images, but no image in it; {', '.join(SUFFIXES)} are read.")
    for own, other, what in ((images, labels, "labels"), (labels, images, "image")):
        alone = next((stem for stem in own if stem not in other), None)
        if alone is not None:
            raise InputError(f"{folder / own[alone]} has no {what} of the same name; add it, or move the file away.")
    return [(images[stem], labels[stem]) for stem in images]


def _meaning(folder: Path, pairs: list[tuple[str, str]]) -> tuple[dict[str, Any], str]:
    """Keys of the yaml that say what labels mean; and what has to be decided by hand, if anything has."""
    drawn = [labels for _, labels in pairs if labels.lower().endswith(GEOJSON_SUFFIXES)]
    if drawn:
        names = sorted({name for labels in drawn for name in read_outlines(str(folder / labels), (1.0, 1.0)).names if name})
        meaning = {"labels": "classes", "unlabelled": "background"}
        return meaning | _classes([("background", None), *((name, None) for name in names)]), (
            f"{folder / drawn[0]} holds outlines, and what lies outside of them has to be said: unlabelled: background, or ignore."
        )
    values = _values(folder, pairs)
    above = [value for value in values if value]
    if len(values) == 2 and values[0] == 0 and above[0] in (1, 255):
        return {"labels": "classes"} | _classes([("background", 0), ("foreground", above[0])]), ""
    if values and values[0] >= 0 and values[-1] > 255 and 0 in values:
        return {"labels": "instances"}, ""
    shown = ", ".join(map(str, values[:8])) + (f", .. {values[-1]}" if len(values) > 8 else "")
    question = (
        f"The labels of {folder} have the values {shown}, which may be classes or numbers of single objects; say which: labels: classes "
        "with their names, or labels: instances."
    )
    many = len(values) > min(30, MAX_CLASSES)
    if many:
        return {"labels": "instances"}, question
    named = [("background" if value == 0 else f"class {value}", value) for value in values]
    return {"labels": "classes"} | _classes(named) | ({} if 0 in values else {"unlabelled": "ignore"}), question


def _classes(entries: Sequence[tuple[str, int | None]]) -> dict[str, Any]:
    return {"classes": [{"name": name} if value is None else {"name": name, "values": [value]} for name, value in entries]}


def _values(folder: Path, pairs: list[tuple[str, str]]) -> list[int]:
    """The label values of all files, ascending; some thousand of them at most, the largest one among them."""
    found: set[int] = set()
    for _, labels in pairs:
        volume = open_volume(str(folder / labels))
        if volume.channel_count != 1 or volume.dtype.kind not in "iub":
            raise InputError(
                f"Labels {folder / labels} have {counted(volume.channel_count, 'channel')} of {volume.dtype}; labels are "
                "one channel of whole numbers, one number a class or object."
            )
        side = _BLOCK_SIDE[len(volume.spatial_shape)]
        for block in BlockGrid(volume.spatial_shape, (side,) * len(volume.spatial_shape)).blocks():
            found |= set(np.unique(volume.read(block)).tolist())
        if len(found) > 5000:
            found = {min(found), 0 if 0 in found else min(found), max(found), *sorted(found)[:1000]}
    return sorted(int(value) for value in found)


def _as_yaml(meaning: dict[str, Any], pairs: list[tuple[str, str]]) -> str:
    lines = ["schema: 1", f"labels: {meaning['labels']}"]
    if "classes" in meaning:
        lines.append("classes:")
        lines += [
            f"  - {{name: {_quoted(entry['name'])}" + (f", values: {entry['values']}" if "values" in entry else "") + "}"
            for entry in meaning["classes"]
        ]
    lines += [f"unlabelled: {meaning['unlabelled']}"] if "unlabelled" in meaning else []
    lines.append("pairs:")
    listed = (_pattern(pairs) if len(pairs) > _SHOWN_PAIRS else None) or pairs
    lines += [f"  - {{image: {_quoted(image)}, labels: {_quoted(labels)}}}" for image, labels in listed]
    split = "{validation: 0.2, test: 0.2, seed: 0}" if len(pairs) > _SHOWN_PAIRS + 1 else "{validation: 0.2, seed: 0}"
    return "\n".join([*lines, f"split: {split}", ""])


def _pattern(pairs: list[tuple[str, str]]) -> list[tuple[str, str]] | None:
    """The one line that stands for all pairs of two folders, where names follow from one another."""
    found = set()
    for image, labels in pairs:
        own, other = PurePosixPath(image), PurePosixPath(labels)
        if own.parent == other.parent or not other.name.startswith(own.stem):
            return None
        found.add((f"{own.parent}/*{own.suffix}", f"{other.parent}/{{name}}{other.name.removeprefix(own.stem)}"))
    return list(found) if len(found) == 1 else None


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"

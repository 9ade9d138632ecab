"""``dataset.yaml`` of a folder of crops: what its labels mean, where the voxels of each are labelled. The pairs come last, so that more
can be added to a file that a person has edited. Opens no image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from unet_core.errors import InputError
from unet_core.training.dataset import DATASET_FILE
from unet_core.training.dataset_description import make_dataset

_HEAD = """\
# Crops of a result with its labels, to be corrected and learnt from. Edit the labels, then:
#   {command}
# crops.csv says where each crop lies in its image. Only the boxes are learnt from; around them lies what the network sees of its margin.
"""
_SHARED = ("labels", "classes", "ignore", "unlabelled", "normalisation")  # what crops of one file have in common


def new_description(fields: dict[str, Any], pairs: Sequence[dict[str, Any]], command: str) -> str:
    """The text of a new file.

    Args:
        fields: keys but for ``pairs``.
        pairs: of image and labels.
        command: that learns from it, for the comment at its head.
    """
    lines = [_HEAD.format(command=command)]
    lines += [_key(name, value) for name, value in fields.items()]
    return "".join([*lines, "pairs:\n", *map(_entry, pairs)])


def with_more(text: str, fields: dict[str, Any], pairs: Sequence[dict[str, Any]]) -> str:
    """A file with further pairs at its end; what a person wrote stays as it is.

    Args:
        text: of the file.
        fields: that the new pairs have; those that say what labels mean must be the file's own.
        pairs: to add.

    Raises:
        InputError: if they mean something else, or the pairs are not the last key of the file.
    """
    before = _parsed(text)
    own, more = (make_dataset(each | {"pairs": before["pairs"]}, DATASET_FILE) for each in (before, fields))
    for name in _SHARED:
        if _meaning(getattr(own, name)) != _meaning(getattr(more, name)):
            raise InputError(
                f"{DATASET_FILE} has another {name} than these crops: {_short(before.get(name))} and {_short(fields.get(name))}; give a new "
                "folder, and --exclude this one."
            )
    longer = text.rstrip("\n") + "\n" + "".join(map(_entry, pairs))
    try:
        after = _parsed(longer)
    except InputError:
        after = {}
    if after != before | {"pairs": [*before["pairs"], *pairs]}:
        raise InputError(
            f"{DATASET_FILE} does not end with its pairs as they were written, so that none can be added; move the key 'pairs' to its end, one "
            "pair a line, or give a new folder and --exclude this one."
        )
    return longer


def _meaning(value: Any) -> Any:
    """The same without colours."""
    return (
        [(entry.name, entry.values, entry.annotations) for entry in value]
        if isinstance(value, tuple) and value and hasattr(value[0], "annotations")
        else value
    )


def _parsed(text: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{DATASET_FILE} is not readable YAML ({' '.join(str(error).split())[:200]}); correct it.") from None
    if not isinstance(values, dict) or not isinstance(values.get("pairs"), list):
        raise InputError(f"{DATASET_FILE} holds no pairs; restore it, or give a new folder.")
    return values


def _key(name: str, value: Any) -> str:
    if name != "classes":
        return f"{name}: {_inline(value)}\n"
    return "".join(["classes:\n", *map(_entry, value)])


def _entry(value: dict[str, Any]) -> str:
    return f"  - {_inline(value)}\n"


def _inline(value: Any) -> str:
    """A value on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=float("inf"), allow_unicode=True)
    return text.removesuffix("...\n").rstrip("\n")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

"""Phrases that messages share: counted things, and what was probably meant by a name that leads nowhere. Knows no formats."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_MOST_NAMES = 1000  # among which one is looked for, 20 microseconds each


def counted(count: int, noun: str, plural: str = "") -> str:
    """A number of things.

    Args:
        count: how many.
        noun: one of them.
        plural: several; with an s at the end of ``noun`` unless told.

    Example:
        >>> counted(1, "channel"), counted(3, "axis", "axes")
        ('1 channel', '3 axes')
    """
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def writable(text: str) -> str:
    """Text that can be stored as UTF-8: bytes in names of files that are not are written as escapes.

    Example:
        >>> writable("caf\\udce9.tif")
        'caf\\\\udce9.tif'
    """
    return text.encode("utf-8", "backslashreplace").decode()


def no_formula(value: Any) -> Any:
    """Text that begins like a formula with an apostrophe before it, as spreadsheets themselves write such text; other values as they are.

    Example:
        >>> no_formula("=1+1"), no_formula("skin"), no_formula(-2)
        ("'=1+1", 'skin', -2)
    """
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def near_word(word: str, known: Iterable[str]) -> str:
    """The nearest of the known words.

    Example:
        >>> near_word("nuclei-hee", ["nuclei-he", "nuclei-fluorescence"])
        " (did you mean 'nuclei-he'?)"
    """
    match = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean '{match[0]}'?)" if match else ""


def near_path(path: Path) -> str:
    """What lies beside a path that does not exist, or why there is nothing."""
    if path.is_symlink():
        return " (it is a symbolic link to what does not exist)"
    parent = path.parent
    if not parent.is_dir():
        return f" (there is no folder {parent} either)"
    names = os.listdir(parent)
    match = difflib.get_close_matches(path.name, names, n=1) if len(names) <= _MOST_NAMES else []
    return f" (did you mean {parent / match[0]}?)" if match else ""

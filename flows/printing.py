"""What the commands print: machine-readable last lines, and plain values as lines for people."""

from __future__ import annotations

import json
import math
from typing import Any

_MOST_SHOWN = 12  # entries of a list that a line names


def print_json(value: Any) -> None:
    print(json.dumps(_finite(value), default=str, allow_nan=False))


def visible(value: Any) -> str:
    """A value as one line of letters: what others wrote may hold codes that a terminal obeys."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in str(value)).split())


def readable(value: Any) -> list[str]:
    """Plain values as lines: one for each key, and for each entry of a list that has keys of its own.

    Example:
        >>> readable({"seed": 0, "scores": {"iou": 0.5, "of": ["a", "b"]}})
        ['seed 0', 'scores: iou 0.5, of a, b']
    """
    if isinstance(value, dict):
        return [line for key, entry in value.items() for line in _keyed(str(key), entry)] or ["none"]
    if isinstance(value, list | tuple) and any(isinstance(entry, dict) for entry in value):
        return [_inline(entry) for entry in value]
    return [_inline(value)]


def _keyed(key: str, entry: Any) -> list[str]:
    if isinstance(entry, dict) and any(isinstance(inner, dict) for inner in entry.values()):
        return [f"{visible(key)}.{line}" for line in readable(entry)]
    return [f"{visible(key)}{':' if isinstance(entry, dict | list | tuple) else ''} {_inline(entry)}"]


def _inline(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        pairs = ((visible(key), entry) for key, entry in value.items())
        return ", ".join(
            f"{key} ({_inline(entry)})" if isinstance(entry, dict) else f"{key} {_inline(entry)}" for key, entry in pairs
        )
    if isinstance(value, list | tuple):
        shown = ", ".join(f"({_inline(entry)})" if isinstance(entry, dict) else _inline(entry) for entry in value[:_MOST_SHOWN])
        return shown + (f" and {len(value) - _MOST_SHOWN} more" if len(value) > _MOST_SHOWN else "") or "none"
    return visible(value)


def _finite(value: Any) -> Any:
    """The same without NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

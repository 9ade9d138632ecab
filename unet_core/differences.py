"""Where two JSON values differ, for messages. Knows no plan in particular."""

from __future__ import annotations

from typing import Any


def first_difference(old: Any, new: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """Name and both values of the first field in which two JSON values differ, or None."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(
            old.keys() | new.keys(),
            key=lambda key: (key not in ("input", "model", "further_models", "symmetries", "by_section", "tile_shape"), key),
        ):  # what explains the rest first
            found = first_difference(old.get(key), new.get(key), f"{name}.{key}".lstrip("."))
            if found:
                return found
        return None
    return None if old == new else (name, old, new)

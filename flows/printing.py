"""Machine-readable last lines of the commands."""

from __future__ import annotations

import json
import math
from typing import Any


def print_json(value: Any) -> None:
    print(json.dumps(_finite(value), default=str, allow_nan=False))


def visible(value: Any) -> str:
    """A value as one line of letters: what others wrote may hold codes that a terminal obeys."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in str(value)).split())


def _finite(value: Any) -> Any:
    """The same without NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

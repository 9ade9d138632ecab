"""What a pydantic model refused, as one readable clause. Knows no model in particular."""

from __future__ import annotations

import re

import pydantic

_SHOWN_LETTERS = 60
# Parts of a location that name pydantic's own schemas, as in voxel_size_um.tuple[constrained-float, ...].0
_INTERNAL = re.compile(r"\[|^constrained-")


def first_problem(error: pydantic.ValidationError) -> str:
    """The first thing that is wrong: field, reason and value.

    Example:
        >>> class Point(pydantic.BaseModel):
        ...     x: int
        >>> try:
        ...     Point(x="left")
        ... except pydantic.ValidationError as error:
        ...     first_problem(error)
        "x: Input should be a valid integer, unable to parse string as an integer (got 'left')"
    """
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"] if not _INTERNAL.search(str(part)))
    value = "" if first["type"] == "missing" else f" (got {shorten(repr(first['input']))})"
    return f"{field}: {first['msg']}{value}" if field else f"{first['msg']}{value}"


def shorten(text: str) -> str:
    """A text that fits into a sentence."""
    return text if len(text) <= _SHOWN_LETTERS else f"{text[: _SHOWN_LETTERS - 3]}..."

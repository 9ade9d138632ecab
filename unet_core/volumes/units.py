"""Units of length: what files call them, their name in OME-Zarr, and how many micrometre they are. Knows no format."""

from __future__ import annotations

UNIT_UM = {
    "picometer": 1e-6,
    "angstrom": 1e-4,
    "nanometer": 1e-3,
    "micrometer": 1.0,
    "millimeter": 1e3,
    "centimeter": 1e4,
    "decimeter": 1e5,
    "meter": 1e6,
    "inch": 25_400.0,
    "foot": 304_800.0,
}

_ALIASES = {
    "pm": "picometer",
    "å": "angstrom",
    "ångström": "angstrom",
    "nm": "nanometer",
    "um": "micrometer",
    "µm": "micrometer",  # U+00B5, micro sign
    "μm": "micrometer",  # U+03BC, Greek letter
    "\\u00b5m": "micrometer",  # as ImageJ writes it, in six characters
    "micron": "micrometer",
    "mm": "millimeter",
    "cm": "centimeter",
    "dm": "decimeter",
    "m": "meter",
    "in": "inch",
    '"': "inch",
    "inches": "inch",
    "ft": "foot",
    "feet": "foot",
}


def unit_name(text: str) -> str | None:
    """The name in OME-Zarr of a unit of length, or None if it is none that we know.

    >>> unit_name("µm"), unit_name("Microns"), unit_name("nanometre"), unit_name("pixel")
    ('micrometer', 'micrometer', 'nanometer', None)
    """
    plain = text.strip()
    for name in (plain, plain.casefold(), plain.casefold().removesuffix("s")):
        name = _ALIASES.get(name, name).replace("metre", "meter")
        if name in UNIT_UM:
            return name
    return None

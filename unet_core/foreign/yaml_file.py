"""The yaml of a package, read as plain data: nothing that one file says stays for the next. Knows no format of models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unet_core.errors import ModelPackageError

MAX_YAML_BYTES = 1 << 20
MAX_ENTRIES = 100_000  # aliases followed


def read_mapping(path: Path, where: str) -> dict[str, Any]:
    """Names and values of a yaml file, in YAML 1.2 unless it states another version.

    Raises:
        ModelPackageError: if it is no yaml, no mapping, or much larger than any description.
    """
    try:
        import bioimageio.spec  # noqa: F401  # what else a package needs; absent with the same extra
        from ruyaml import YAML
    except ImportError as error:
        raise ModelPackageError(
            f"Packages of bioimage.io need the library {error.name}; install it with: pip install 'unet-flows[zoo]'."
        ) from None
    size = path.stat().st_size
    if size > MAX_YAML_BYTES:
        raise ModelPackageError(f"{where}: {path.name} has {size} bytes, more than {MAX_YAML_BYTES}; it is no description.")
    yaml = YAML(typ="safe", pure=True)  # a new one: it keeps the version of the file that it read last
    yaml.version = (1, 2)  # type: ignore[assignment]
    try:
        content = yaml.load(path.read_text(encoding="utf-8"))
    except Exception as error:  # the parser lets errors of many kinds through: TypeError for '? [[a]]', IndexError for '!!int ""'
        line = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelPackageError(f"{where}: {path.name} is not readable YAML ({line}).") from None
    if not isinstance(content, dict):
        raise ModelPackageError(f"{where}: {path.name} is no mapping of names to values; it is no description.")
    _check_size(content, where)
    return {str(name): value for name, value in content.items()}


def _check_size(content: Any, where: str) -> None:
    """Refuse a yaml whose aliases make much of little."""
    waiting, count = [content], 0
    while waiting:
        value = waiting.pop()
        count += 1
        if count + len(waiting) > MAX_ENTRIES:
            raise ModelPackageError(f"{where}: its yaml has more than {MAX_ENTRIES} entries; it is no description.")
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value

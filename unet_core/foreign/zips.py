"""What Python's zip reader raises for files that are damaged or made to be so. Knows no format inside."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path

ZIP_ERRORS = (OSError, EOFError, ValueError, RuntimeError, NotImplementedError, struct.error, zlib.error, zipfile.BadZipFile)


def is_zip(path: Path) -> bool:
    """Whether the file is a zip, be it damaged."""
    try:
        return zipfile.is_zipfile(path)
    except ZIP_ERRORS:
        return True

"""Identity of an image that is one file. Knows no format."""

from __future__ import annotations

import hashlib
from pathlib import Path

_WHOLE_BYTES = 64 << 20
_END_BYTES = 1 << 20


def fingerprint(path: Path) -> dict[str, str]:
    """Hash of the content; of files above 64 MiB size, modification time, and hash of the first and last MiB."""
    status = path.stat()
    with path.open("rb") as file:
        if status.st_size <= _WHOLE_BYTES:
            return {"content": hashlib.file_digest(file, "sha256").hexdigest()}
        ends = hashlib.sha256(file.read(_END_BYTES))
        file.seek(-_END_BYTES, 2)
        ends.update(file.read())
    return {"size": str(status.st_size), "modified": str(status.st_mtime_ns), "ends": ends.hexdigest()}

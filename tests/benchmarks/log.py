"""Finished measurements, one line of JSON each, so that a killed run goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Entry = dict[str, Any]


class Log:
    """The lines of a file; a last line that was cut off does not count.

    Args:
        path: made when the first measurement ends.
        fresh: forget what it holds.
    """

    def __init__(self, path: Path, fresh: bool = False) -> None:
        self.path = path
        if fresh:
            path.unlink(missing_ok=True)
        self.entries: list[Entry] = []
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                self.entries.append(json.loads(line))
            except ValueError:
                continue

    def find(self, key: Entry) -> list[Entry]:
        """The measurements that agree with every field of ``key``, in their order."""
        return [entry for entry in self.entries if all(entry.get(name) == value for name, value in key.items())]

    def add(self, entry: Entry) -> None:
        """Append a measurement, on disk when this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        cut_off = self.path.exists() and self.path.stat().st_size and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a") as file:
            file.write(("\n" if cut_off else "") + json.dumps(entry) + "\n")
        self.entries.append(entry)

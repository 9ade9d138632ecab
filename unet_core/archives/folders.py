"""Which folders of a tree are walked through: each once, however many symbolic links lead there. Knows no images.

day 1/  day 2/         walked first
latest -> day 2        waits, and is passed by: that folder was walked
more -> /other/disk    waits, and is walked then; what is in it but was walked is not
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


class Folders:
    """Folders that were walked through, and links to folders that wait until the others were.

    Args:
        place: of a folder by its path below the root; None where there are no links, as on object stores.
        pass_by: called for each link to what was walked.
    """

    def __init__(self, place: Callable[[str], Path] | None, pass_by: Callable[[], None] = lambda: None) -> None:
        self._place, self._pass_by = place, pass_by
        self._walked: set[str] = set()
        self._waiting: list[str] = []

    def enter(self, path: str) -> bool:
        """Whether to walk through a folder now; the root, which is "", may be a link."""
        if self._place is None:
            return True
        if path and self._place(path).is_symlink():
            self._waiting.append(path)
            return False
        return self._is_new(path)

    def follow(self) -> list[str]:
        """The links that wait and lead to what was not walked, which is to be walked now."""
        waiting, self._waiting = self._waiting, []
        found = [path for path in waiting if self._is_new(path)]
        for _ in range(len(waiting) - len(found)):
            self._pass_by()
        return found

    def _is_new(self, path: str) -> bool:
        assert self._place is not None
        real = os.path.realpath(self._place(path))
        is_new = real not in self._walked
        self._walked.add(real)
        return is_new

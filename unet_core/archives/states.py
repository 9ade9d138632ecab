"""How far an archive is, by the ledgers of its results: the summary says which images there are, and is believed in nothing else."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from unet_core import ledger
from unet_core.archives.summary import ArchiveSummary, ImageRow, find_summary, finished_row, status_of
from unet_core.completion import find_completion
from unet_core.errors import JobError, UnetCoreError
from unet_core.following import Follower, Look
from unet_core.store import open_store, plain
from unet_core.wording import counted

_READERS = 8


class ArchiveFollower:
    """Looks at an archive again and again: what is complete is not opened again, and of the others each record is read once.

    Args:
        output: of the archive.
    """

    def __init__(self, output: str) -> None:
        self._output = plain(output)
        self._complete: dict[str, ImageRow] = {}  # by the name of the result
        self._followed: dict[str, Follower] = {}
        self.looks: dict[str, Look] = {}  # of images that were begun and are not complete

    def look(self) -> ArchiveSummary | None:
        """The summary with the states of its results as they are now; None if the folder holds no archive."""
        summary = find_summary(self._output)
        if summary is None:
            return None
        with ThreadPoolExecutor(_READERS, "unet-states") as readers:
            rows = tuple(readers.map(self._now, summary.images))
        return summary.model_copy(update={"images": rows, "status": status_of(rows), "output": self._output})

    def _now(self, row: ImageRow) -> ImageRow:
        name = row.result
        if name in self._complete:
            return self._complete[name]
        url = f"{self._output.rstrip('/')}/{name}"
        try:
            store = open_store(url)
            request = ledger.find_request(store)
            found = None if request is None else find_completion(store, request)
            if found is not None:
                self._followed.pop(name, None)
                self.looks.pop(name, None)
                return self._complete.setdefault(name, finished_row(row, found).model_copy(update={"reason": ""}))
            if request is None:  # nothing was begun
                return row if row.state == "failed" else row.model_copy(update={"state": "waiting"})
            if name not in self._followed:
                self._followed[name] = Follower(url)
            look = self.looks[name] = self._followed[name].look()
        except (UnetCoreError, OSError) as error:
            return row.model_copy(update={"state": "failed", "reason": str(error)})
        state = row.state if row.state in ("partial", "failed") else "waiting"
        return row.model_copy(update={"state": state, "reason": row.reason or f"{look.done} of {look.wanted} units done"})


def read_states(output: str) -> ArchiveSummary | None:
    """The summary of an archive with the states of its results as they are now; None if the folder holds no archive."""
    return ArchiveFollower(output).look()


def results_of(output: str, note: Callable[[str], None] = lambda text: None) -> list[str]:
    """The complete results of an archive, or the one result that ``output`` is.

    Args:
        output: of either.
        note: told in a sentence if an archive has images without a complete result.

    Raises:
        JobError: if an archive has none yet.
    """
    found = read_states(output)
    if found is None:
        return [output]
    results = [f"{found.output.rstrip('/')}/{row.result}" for row in found.images if row.state == "complete"]
    if not results:
        raise JobError(f"{output} has no complete result ({found.sentence()}); run the same unet archive command again.")
    if len(results) < len(found.images):
        note(
            f"{counted(len(found.images) - len(results), 'image')} of {output} without a complete result left out ({found.sentence()})."
        )
    return results

"""What ``unet status --watch`` shows: a display that is drawn anew on a terminal, a line a look elsewhere. Knows no Prefect."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from flows.printing import visible
from unet_core.archives.states import ArchiveFollower
from unet_core.archives.summary import ArchiveSummary, find_summary
from unet_core.following import Follower, Look
from unet_core.stages import title_of
from unet_core.training_folder import find_training

_PARTIAL = 3
_LOOK_SHARE = 0.1  # of the time, at most, that looking takes
_BAR = 30  # letters
_MOST_IMAGES = 12  # of an archive, under way
_LONGEST = 150  # letters of a reason


@dataclass(frozen=True)
class Shown:
    """One look: its line, its display, its facts, and the exit code if it was the last one."""

    line: str
    display: Group | Text
    facts: dict[str, Any]
    code: int | None


def watch_output(output: str, every: float, sleep: Callable[[float], None] = time.sleep) -> tuple[dict[str, Any], int]:
    """Show an output until its run has ended; facts and exit code of the last look.

    Args:
        output: of a run, an archive, or a training.
        every: seconds between looks, at least.
        sleep: between looks.

    Raises:
        InputError: if the output is none.
    """
    look = _looker(output)
    console = Console(highlight=False, markup=False, emoji=False)
    last = ""
    with Live(console=console, auto_refresh=False) if console.is_terminal else nullcontext() as live:
        shown: Shown | None = None
        while True:
            began = time.monotonic()
            trouble = ""
            try:
                shown = look()
            except OSError as error:
                if shown is None:
                    raise
                trouble = f"cannot be read just now: {visible(error)}"
            assert shown is not None
            if live is not None:
                live.update(Group(shown.display, Text(trouble, style="red")) if trouble else shown.display, refresh=True)
            elif (line := trouble or shown.line) != last:
                print(line, flush=True)
                last = line
            if shown.code is not None and not trouble:
                return shown.facts, shown.code
            sleep(max(every, (time.monotonic() - began) / _LOOK_SHARE))


def _looker(output: str) -> Callable[[], Shown]:
    if find_training(output):
        return lambda: _show_training(output)
    if find_summary(output) is not None:
        archive = ArchiveFollower(output)
        return lambda: _show_archive(archive, output)
    run = Follower(output)
    return lambda: _show_run(run.look(), output)


def _show_run(look: Look, output: str) -> Shown:
    table = Table(
        Column("step", min_width=18), Column(""), Column("done", justify="right"), Column("of", justify="right"), box=None
    )
    for name, (done, wanted) in look.stages.items():
        bar = ProgressBar(total=max(1, wanted), completed=done if wanted else 1, width=_BAR)
        table.add_row(title_of(name), bar, f"{done:,}", f"{wanted:,}")
    notes = [
        f"{rate / 1e6:.2f} million voxels per second by {visible(name)}"
        for name, rate in look.hardware.items()
        if len(look.hardware) > 1
    ]
    notes += [f"failed: {visible(text)}" for text in look.failures[:_MOST_IMAGES]]
    display = Group(Text(f"{visible(output)}, model {visible(look.model)}"), table, Text("\n".join([look.sentence(), *notes])))
    code = {"complete": 0, "partial": _PARTIAL}.get(look.state)
    return Shown(look.sentence(), display, asdict(look), code)


def _show_archive(archive: ArchiveFollower, output: str) -> Shown:
    found = archive.look()
    if found is None:
        raise FileNotFoundError(f"{output} has no summary any more")
    under_way = {name: look for name, look in archive.looks.items() if look.done}
    rate = sum(look.voxels_per_second or 0.0 for look in under_way.values())
    line = found.sentence() + (f"; {rate / 1e6:.2f} million voxels per second" if rate else "")
    table = Table(Column("result"), Column(""), Column("done", justify="right"), Column("of", justify="right"), box=None)
    for row in found.images:
        look = under_way.get(row.result)
        if look is not None and table.row_count < _MOST_IMAGES:
            bar = ProgressBar(total=max(1, look.wanted), completed=look.done, width=_BAR)
            table.add_row(visible(row.result), bar, f"{look.done:,}", f"{look.wanted:,}")
    wrong = [f"{row.result} {row.state}: {row.reason[:_LONGEST]}" for row in found.images if row.state in ("failed", "partial")]
    notes = [visible(text) for text in wrong[:_MOST_IMAGES]]
    display = Group(Text(line), table, Text("\n".join(notes)))
    return Shown(line, display, found.as_json(), _archive_code(found))


def _archive_code(found: ArchiveSummary) -> int | None:
    return {"complete": 0, "partial": _PARTIAL}.get(found.status)


def _show_training(output: str) -> Shown:
    found = find_training(output)
    if found is None:
        raise FileNotFoundError(f"{output} holds no training any more")
    line = f"{found.kept} of {found.steps} steps are kept" if not found.is_complete else visible(found.sentence())
    facts = asdict(found) | {"state": "complete" if found.is_complete else "unfinished"}
    return Shown(line, Text(f"{visible(output)}\n{line}"), facts, 0 if found.is_complete else None)

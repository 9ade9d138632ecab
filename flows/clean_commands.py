"""The command ``unet clean``: remove what runs that were killed left behind. Imports nothing heavy."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from flows.options import Flag
from flows.printing import print_json, visible
from unet_core.wording import counted

if TYPE_CHECKING:
    from unet_core.cleaning import Leftover

_SHOWN = 5  # files of others that are named
_WORDS = {"part": "temporary files of", "trial": "unfinished measurement", "partial": "partial output"}


def clean(
    place: str, *, partial: Flag = False, older: float = 7.0, yes: Flag = False, json: Flag = False, debug: Flag = False
) -> int:
    """Show what runs that were killed left behind, and remove it if told: temporary files, unfinished measurements, partial outputs.

    Only what this program wrote is removed; symbolic links are not followed. What is being written now is left alone as far as that can be
    told, by processes of this machine and by the age of files: partial outputs need --partial, and to be --older.

    Args:
        place: Output, or folder or s3:// prefix that holds outputs, at any depth.
        partial: Also outputs that were begun and not completed, with all that is in them.
        older: Days in which nothing in a partial output was written.
        yes: Remove without asking; without a terminal to ask at, nothing is removed unless this is given.
        json: Print a machine-readable last line.
        debug: Show tracebacks.
    """
    from unet_core.cleaning import find_leftovers, remove

    found = find_leftovers(place, partial, older)
    for leftover in found.leftovers:
        print(_line(leftover))
    for note in found.notes:
        print(f"note: {visible(note)}")
    size = sum(leftover.size_bytes for leftover in found.leftovers)
    whole = f"{counted(len(found.leftovers), 'place')}, {size / 2**20:,.2f} MiB"
    removed: list[Leftover] = []
    if not found.leftovers:
        print("nothing to remove")
    elif yes or _agreed(whole):
        for leftover in found.leftovers:
            if remove(leftover):
                removed.append(leftover)
            else:
                print(f"note: {visible(leftover.url)} changed meanwhile and stays.")
        print(f"removed: {counted(len(removed), 'place')}, {sum(one.size_bytes for one in removed) / 2**20:,.2f} MiB")
    else:
        print(f"nothing was removed ({whole}); add --yes to remove it")
    if json:
        print_json({"found": [_facts(one) for one in found.leftovers], "removed": len(removed), "notes": found.notes})
    return 0


def _agreed(whole: str) -> bool:
    return sys.stdin.isatty() and input(f"remove {whole}? [y/N] ").strip().lower() in ("y", "yes")


def _line(leftover: Leftover) -> str:
    count = f"{counted(len(leftover.objects), 'object')}, {leftover.size_bytes / 2**20:,.2f} MiB"
    days = (time.time() - leftover.newest) / 86400
    kept = f"; stays: {', '.join(leftover.others[:_SHOWN])}{' ..' if len(leftover.others) > _SHOWN else ''}"
    text = f"{_WORDS[leftover.kind]} {leftover.url}: {count}, {days:,.1f} days old{kept if leftover.others else ''}"
    return visible(text)


def _facts(leftover: Leftover) -> dict[str, object]:
    return {
        "kind": leftover.kind,
        "url": leftover.url,
        "objects": len(leftover.objects),
        "size_bytes": leftover.size_bytes,
        "newest": leftover.newest,
        "stays": leftover.others,
    }

"""What runs that were killed left behind, and outputs that were never completed: found first, removed when told. Touches nothing else.

part      .unet/.NAME.HOST@PID.HEX.unet-part      of a put that was cut off
trial     .unet-trial-HOST@PID-HEX/               of a measurement that was cut off
partial   an output with a plan and no mark of completion, only if asked for, and if nothing in it changed for a while
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from unet_core import ledger
from unet_core.errors import JobError, LeaseHeldError, UnetCoreError
from unet_core.lease import find_holder
from unet_core.output import documents
from unet_core.outputs import find_outputs
from unet_core.plan import Plan
from unet_core.store import (
    LEFTOVER_SECONDS,
    OWN_FOLDER,
    TRIAL_PREFIX,
    StoredObject,
    is_remote,
    local_path,
    open_store,
    writer_is_gone,
)

DAY = 86400.0  # seconds
_PART = re.compile(r"\..+\.[^.@]+@[0-9]+\.[0-9a-f]{32}\.unet-part")
_TRIAL = re.compile(re.escape(TRIAL_PREFIX) + r"(?P<writer>[^/]+@[0-9]+)-[0-9a-f]{32}")
_SHARD = re.compile(r"(c/)?[0-9]+([/.][0-9]+)*")
_TABLES = ("tables/objects.parquet", "tables/regions.parquet")


@dataclass(frozen=True)
class Leftover:
    """Objects of one place that can be removed together.

    Args:
        kind: ``part``, ``trial`` or ``partial``.
        url: of the output, trial, or folder that holds them.
        objects: of it.
        others: keys in it that are not of this program, and stay.
    """

    kind: Literal["part", "trial", "partial"]
    url: str
    objects: tuple[StoredObject, ...]
    others: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self.objects)

    @property
    def newest(self) -> float:
        """When the last of them was written, in seconds since 1970."""
        return max((entry.modified for entry in self.objects), default=0.0)


@dataclass(frozen=True)
class Found:
    """What can be removed, and what cannot although it looks like it, in a sentence each."""

    leftovers: tuple[Leftover, ...]
    notes: tuple[str, ...]


def find_leftovers(place: str, partial: bool = False, older_days: float = 7.0) -> Found:
    """Look below a place; removes nothing.

    Args:
        place: output, or folder or prefix that holds some.
        partial: whether outputs that are not complete are looked for too.
        older_days: how long nothing in these may have changed.

    Raises:
        InputError: if there is no such place, or it is a symbolic link.
    """
    if not 0 <= older_days < 1e6:
        raise JobError(f"older is {older_days}; give days, 0 or more.")
    found: list[Leftover] = []
    notes: list[str] = []
    others: list[str] = []
    for url in find_outputs(place, others.append):
        found += _parts(url, below=True)
        if not partial:
            continue
        try:
            leftover = _partial(url, older_days)
        except (UnetCoreError, OSError) as error:
            notes.append(f"{url} stays: {' '.join(str(error).split())}")
            continue
        found += [leftover] if leftover else []
    for url in others:
        found += [*_parts(url, below=False), *_trials(url, notes.append)]
    return Found(tuple(sorted(found, key=lambda one: (one.url, one.kind))), tuple(notes))


def remove(leftover: Leftover) -> bool:
    """Remove what was found, unless it changed meanwhile; whether it was removed."""
    store = open_store(leftover.url)
    if leftover.kind == "part":
        now = {part.key: part for one in _parts(leftover.url, below=True) for part in one.objects}
        for part in leftover.objects:
            if now.get(part.key) == part:
                store.delete(part.key)
        return True
    try:
        again = _partial(leftover.url, 0.0) if leftover.kind == "partial" else _trial(leftover.url)
    except (UnetCoreError, OSError):
        return False
    if again is None or again != leftover:
        return False
    for entry in sorted(leftover.objects, key=_order):
        store.delete(entry.key)
    if not is_remote(leftover.url):
        _remove_empty(leftover.url)
    return True


def _order(entry: StoredObject) -> tuple[int, str]:
    """Records first and the plan last, so that what is left when this is cut off is an output that resumes."""
    key = entry.key
    last = (ledger.REQUEST_KEY, ledger.PLAN_KEY)
    return (1 + last.index(key) if key in last else -1 if key.startswith(f"{OWN_FOLDER}/") else 0), key


def _parts(url: str, below: bool) -> Iterator[Leftover]:
    store = open_store(url)
    parts = tuple(part for part in store.leftovers("", below) if _PART.fullmatch(part.key.rpartition("/")[2]))
    if parts:
        yield Leftover("part", url, parts)


def _trials(url: str, note: Callable[[str], None]) -> Iterator[Leftover]:
    for name in open_store(url).folder_names():
        if _TRIAL.fullmatch(name):
            place = f"{url.rstrip('/')}/{name}"
            try:
                leftover = _trial(place)
            except (UnetCoreError, OSError) as error:
                note(f"{place} stays: {' '.join(str(error).split())}")
                continue
            if leftover:
                yield leftover


def _trial(url: str) -> Leftover | None:
    """A trial that nobody is busy with: its process is gone, or nothing was written for a while."""
    name = _TRIAL.fullmatch(url.rpartition("/")[2])
    objects = tuple(sorted(_objects(url), key=lambda entry: entry.key))
    if name is None or not objects:
        return None
    found = Leftover("trial", url, objects)
    return found if writer_is_gone(name["writer"]) or found.newest < time.time() - LEFTOVER_SECONDS else None


def _partial(url: str, older_days: float) -> Leftover | None:
    """An output that is not complete and was left alone for so long.

    Raises:
        InputError: if it cannot be read, holds symbolic links, or a run is at work in it.
    """
    store = open_store(url)
    plan, request = ledger.read_plan(store), ledger.find_request(store)
    if request is not None and ledger.is_complete(store, request):
        return None
    entries = sorted(_objects(url), key=lambda entry: entry.key)
    own = own_keys(plan, [entry.key for entry in entries])
    found = Leftover(
        "partial",
        url,
        tuple(entry for entry in entries if entry.key in own),
        tuple(entry.key for entry in entries if entry.key not in own),
    )
    newest = max((entry.modified for entry in entries), default=0.0)
    holder = find_holder(store)
    if holder is not None and newest > time.time() - LEFTOVER_SECONDS:
        raise LeaseHeldError(f"it is held by {holder.sentence()}")
    return found if newest <= time.time() - older_days * DAY else None


def own_keys(plan: Plan, keys: list[str]) -> set[str]:
    """Those of the keys in an output that this program wrote: metadata, shards, tables, and its own folder."""
    named = {*documents(plan), *_TABLES}
    arrays = tuple(f"{image.array_path(level)}/" for image in plan.all_images for level in range(len(plan.levels)))

    def is_own(key: str) -> bool:
        if key in named or key.startswith(f"{OWN_FOLDER}/"):
            return True
        return any(key.startswith(array) and _SHARD.fullmatch(key.removeprefix(array)) for array in arrays)

    return {key for key in keys if is_own(key)}


def _objects(url: str) -> Iterator[StoredObject]:
    """All objects below a URL.

    Raises:
        InputError: if there are symbolic links among them.
    """
    if not is_remote(url):
        for folder, folders, files in os.walk(local_path(url)):
            for name in (*folders, *files):
                if os.path.islink(os.path.join(folder, name)):
                    raise JobError(
                        f"{os.path.join(folder, name)} is a symbolic link, which is no part of an output; remove it first."
                    )
    yield from open_store(url).list()


def _remove_empty(url: str) -> None:
    """Remove the folders that hold nothing any more, the output itself among them."""
    for folder, _, _ in os.walk(local_path(url), topdown=False):
        with suppress(OSError):  # not empty
            os.rmdir(folder)

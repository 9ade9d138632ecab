"""How often a unit failed, and why: it is tried again, and quarantined after a few times, while the others go on. Computes nothing.

.unet/attempts/STAGE/INDEX.json   of a unit that failed and has no record since; gone when it has one, or when a run begins anew
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import suppress

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from unet_core.agenda import UnitId, Units
from unet_core.errors import InputError
from unet_core.plan import canonical_json
from unet_core.store import OWN_FOLDER, Store

ATTEMPTS_FOLDER = f"{OWN_FOLDER}/attempts"
MOST_ATTEMPTS = 3


class Attempts(BaseModel):
    """What is known of a unit that failed.

    Args:
        stage: of the plan.
        index: of the unit in the stage's grid.
        count: of attempts that failed.
        quarantined: whether this run tries it no more.
        reason: what went wrong the last time, with the place in the image.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_number: int = Field(default=1, alias="schema")
    stage: str
    index: int
    count: int
    quarantined: bool
    reason: str

    def sentence(self) -> str:
        return f"{self.reason} (quarantined after {self.count} attempts)" if self.quarantined else self.reason


class Retried:
    """Units that are handed out again when they failed, after all others that are ready, until they have failed too often.

    Args:
        units: to be done.
        store: of the output, where what failed is written down.
        most: attempts.
    """

    def __init__(self, units: Units, store: Store, most: int = MOST_ATTEMPTS) -> None:
        self._units, self._store, self._most = units, store, most
        self._again: deque[UnitId] = deque()
        self._counts: dict[UnitId, int] = {}

    def take(self) -> UnitId | None:
        return self._units.take() or (self._again.popleft() if self._again else None)

    def committed(self, stage: str, index: int) -> None:
        if self._counts.pop((stage, index), None):
            with suppress(OSError, InputError):
                self._store.delete(_key(stage, index))
        self._units.committed(stage, index)

    def tried(self, unit: UnitId) -> int:
        """How often a unit failed in this run."""
        return self._counts.get(unit, 0)

    def failed(self, unit: UnitId, reason: str, attempts: int = 1) -> str | None:
        """Count what failed; a sentence if the unit is quarantined by that, None if it will be tried again."""
        count = self._counts[unit] = self._counts.get(unit, 0) + attempts
        found = Attempts(stage=unit[0], index=unit[1], count=count, quarantined=count >= self._most, reason=reason)
        with suppress(OSError, InputError):  # it is told at the end, too
            self._store.put(_key(*unit), canonical_json(found.model_dump(mode="json", by_alias=True)))
        if found.quarantined:
            return found.sentence()
        self._again.append(unit)
        return None


def read_quarantined(store: Store) -> list[Attempts]:
    """Units that the last run tried no more, by stage and number."""
    return sorted((found for found in _read(store) if found.quarantined), key=lambda found: (found.stage, found.index))


def release_quarantined(store: Store) -> int:
    """Forget what failed, so that all is tried anew; how many units were quarantined."""
    count = 0
    for entry in list(store.list(ATTEMPTS_FOLDER)):
        store.delete(entry.key)
        count += 1
    return count


def _read(store: Store) -> Iterator[Attempts]:
    for entry in store.list(ATTEMPTS_FOLDER):
        try:
            yield Attempts.model_validate_json(store.get(entry.key))
        except (pydantic.ValidationError, OSError):
            continue


def _key(stage: str, index: int) -> str:
    return f"{ATTEMPTS_FOLDER}/{stage}/{index:08d}.json"

"""One run per output: a lease that the run renews as long as it works, and that others see die. Knows neither plans nor blocks.

.unet/lease/GENERATION.json   of the run that holds the output, or held it last; each one takes the next number

The number is taken by a put that fails if the object exists, so that of several runs one gets it. The holder raises a counter in its
object. Who finds the output held watches that object, by a clock of its own: a counter that stands still for as long as the lease says
belongs to a run that is dead, or that has to notice, when it wakes, that there is a newer generation. Clocks are compared nowhere.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from unet_core.errors import InputError, LeaseHeldError, LeaseLostError
from unet_core.owner import Owner, this_owner
from unet_core.plan import canonical_json
from unet_core.store import OWN_FOLDER, Store, open_store

LEASE_FOLDER = f"{OWN_FOLDER}/lease"
LEASE_SECONDS = 30.0  # without a sign of life, after which a holder is dead
_LONGEST_SECONDS = 3600.0  # that a lease may ask others to wait
_BEATS = 3  # signs of life in that time
_LOOKS = 30  # likewise, of who waits
_NAME = re.compile(r"(\d{8})\.json")


class Lease(BaseModel):
    """What the object of a lease holds.

    Args:
        generation: number of the lease, counted over all runs of the output from 1.
        counter: raised while the holder is at work.
        seconds: without a change, after which the holder is dead.
        since: when it was taken, by the holder's clock: for people only.
        released: whether the holder is done.
        owner: the holder.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_number: int = Field(default=1, alias="schema")
    generation: int
    counter: int = 0
    seconds: float = Field(gt=0, le=_LONGEST_SECONDS)
    since: str
    released: bool = False
    owner: Owner

    def to_bytes(self) -> bytes:
        return canonical_json(self.model_dump(mode="json", by_alias=True, exclude_none=True))

    def sentence(self) -> str:
        return f"{self.owner.sentence()} since {self.since}"


@dataclass(frozen=True)
class Claim:
    """How a run asks for an output.

    Args:
        run: id of the flow run; the same one takes over from itself at once.
        lease_seconds: without a sign of life, after which this run may be taken for dead.
        tell: is told why there is a wait.
        dead: leases that were seen to stand still for long enough, so that nobody has to wait for them twice.
    """

    run: str | None = None
    lease_seconds: float = LEASE_SECONDS
    tell: Callable[[str], None] = lambda text: None
    dead: set[tuple[str, bytes]] = field(default_factory=set, compare=False)


@dataclass(frozen=True)
class Seen:
    """The newest lease of an output, as it was found.

    Args:
        generation: its number.
        data: its object; what changes belongs to a holder that is alive.
        lease: what that says; None if it is damaged.
    """

    generation: int
    data: bytes
    lease: Lease | None

    @property
    def key(self) -> str:
        return _key(self.generation)

    def is_free(self, run: str | None = None) -> bool:
        """Whether the output can be taken at once."""
        lease = self.lease
        return lease is not None and (lease.released or lease.owner.is_gone or (run is not None and lease.owner.run == run))

    def holder(self, url: str) -> str:
        """Who holds an output, for messages."""
        if self.lease is None:
            return f"{url} is held by a run that cannot be named, since {self.key} is damaged"
        return f"{url} is held by {self.lease.sentence()}"


def find_newest(store: Store) -> Seen | None:
    """The newest lease of an output, None if it was never held."""
    for _ in range(_BEATS):
        numbers = [int(match[1]) for name in store.child_names(LEASE_FOLDER) if (match := _NAME.fullmatch(name))]
        if not numbers:
            return None
        newest = max(numbers)
        try:
            data = store.get(_key(newest))
        except FileNotFoundError:  # the next one was taken meanwhile, or a folder lies in its place
            continue
        try:
            lease = Lease.model_validate_json(data)
        except pydantic.ValidationError:
            lease = None
        return Seen(newest, data, lease)
    return Seen(newest, b"", None)


def find_holder(store: Store) -> Lease | None:
    """The lease of the run that holds an output, as far as can be told at once; None if none does."""
    seen = find_newest(store)
    return None if seen is None or seen.is_free() else seen.lease


def check_free(output_url: str, claim: Claim | None = None) -> None:
    """Wait until it is known that no run that is alive holds an output; writes nothing.

    Raises:
        LeaseHeldError: naming the holder, and what to do.
    """
    _wait_until_free(open_store(output_url), claim or Claim())


def fence(store: Store, generation: int) -> None:
    """Refuse to go on if an output was taken over from the holder of a generation; 0 is nobody's and passes.

    Raises:
        LeaseLostError: naming who holds it now.
    """
    seen = find_newest(store) if generation else None
    if seen is not None and seen.generation > generation:
        raise LeaseLostError(_lost(store.url, seen))


@contextmanager
def hold(output_url: str, claim: Claim | None = None) -> Iterator[HeldLease]:
    """Hold an output while the context lasts.

    Raises:
        LeaseHeldError: if another run that is alive holds it.
    """
    claim, store = claim or Claim(), open_store(output_url)
    held = HeldLease(store, _take(store, claim))
    try:
        held.start()
        yield held
    finally:
        held.release()


class HeldLease:
    """A lease of this process, renewed by a thread of its own."""

    def __init__(self, store: Store, lease: Lease) -> None:
        self._store, self._lease = store, lease
        self._lost: str | None = None
        self._done = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="unet-lease", daemon=True)

    @property
    def generation(self) -> int:
        return self._lease.generation

    def start(self) -> None:
        self._beating.start()

    def check(self) -> None:
        """Refuse to go on if the output is known to be lost; asks nobody, so that it may be called for every block.

        Raises:
            LeaseLostError: naming who holds it now.
        """
        if self._lost:
            raise LeaseLostError(self._lost)

    def release(self) -> None:
        """Let others have the output at once."""
        self._done.set()
        if self._beating.ident:
            self._beating.join()
        with suppress(OSError, InputError):  # others then see that this process has ended, or wait
            if not self._lost and self._is_newest():
                self._put(released=True)

    def _beat(self) -> None:
        while not self._lost and not self._done.wait(self._lease.seconds / _BEATS):
            with suppress(OSError, InputError):  # storage that does not answer now may do so next time; blocks tell of it
                if self._is_newest():
                    self._put(counter=self._lease.counter + 1)

    def _is_newest(self) -> bool:
        """Whether this lease still is the one that counts; otherwise it is lost, for good."""
        seen = find_newest(self._store)
        if seen is None or (seen.generation == self.generation and (seen.lease is None or seen.lease.owner == self._lease.owner)):
            return True  # what was deleted or damaged by hand is put back
        self._lost = _lost(self._store.url, seen)
        if seen.generation > self.generation:
            self._store.delete(_key(self.generation))  # which a put under way as the other one took over may have left
        return False

    def _put(self, **changes: object) -> None:
        self._lease = self._lease.model_copy(update=changes)
        self._store.put(_key(self.generation), self._lease.to_bytes())


def _take(store: Store, claim: Claim) -> Lease:
    owner = this_owner(claim.run)
    while True:
        generation = _wait_until_free(store, claim) + 1
        since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        lease = Lease(generation=generation, seconds=claim.lease_seconds, since=since, owner=owner)
        if not store.put_if_absent(_key(generation), lease.to_bytes()):
            continue
        # Read back: a slow taker may have got a number that was used and deleted meanwhile, and some servers only promise to
        # fail if the object exists.
        seen = find_newest(store)
        if seen is None or seen.lease is None or seen.lease.owner == owner:
            _delete_others(store, generation)
            return lease
        if seen.generation > generation:
            store.delete(_key(generation))


def _wait_until_free(store: Store, claim: Claim) -> int:
    """The generation after which a run may take the output, 0 at first.

    Raises:
        LeaseHeldError: if its holder is alive.
    """
    seen = find_newest(store)
    if seen is None or seen.is_free(claim.run) or (store.url, seen.data) in claim.dead:
        return seen.generation if seen else 0
    seconds = seen.lease.seconds if seen.lease else claim.lease_seconds
    claim.tell(f"{seen.holder(store.url)}; looking for at most {seconds:.0f} s whether that is still at work.")
    until = time.monotonic() + seconds
    while True:
        is_over = time.monotonic() >= until  # asked before the last look, which may take its time
        now = find_newest(store)
        if now is None or now.is_free(claim.run):
            return now.generation if now else 0
        if (now.generation, now.data) != (seen.generation, seen.data):
            raise LeaseHeldError(
                f"Output {now.holder(store.url)}; two runs never write one output. Let it end, or stop it; or give another output. "
                f"'unet status {store.url}' tells how far it is."
            )
        if is_over:
            claim.dead.add((store.url, now.data))
            return now.generation
        time.sleep(seconds / _LOOKS)


def _delete_others(store: Store, generation: int) -> None:
    for name in store.child_names(LEASE_FOLDER):
        match = _NAME.fullmatch(name)
        if match and int(match[1]) < generation:
            with suppress(OSError, InputError):  # such as a folder, which is in nobody's way
                store.delete(f"{LEASE_FOLDER}/{name}")


def _lost(url: str, seen: Seen) -> str:
    return (
        f"Output {seen.holder(url)}: it was taken over from this run, which had shown no sign of life for as long as its lease "
        "says (stopped, suspended, or cut off from the storage?). This run ends; what it committed stays, the other one goes on."
    )


def _key(generation: int) -> str:
    return f"{LEASE_FOLDER}/{generation:08d}.json"

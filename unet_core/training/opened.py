"""Images and labels that this process has open, those used last, within a bound of bytes. Knows no format."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any, TypeVar

Thing = TypeVar("Thing")
OPEN_BYTES = 1 << 30  # of what a process keeps decoded for training
OPEN_COUNT = 400  # files; operating systems often allow 1024


class Opened:
    """Opens things when they are first asked for, and lets go of those not used for longest. Threads may share it.

    A child process forgets what its parent had open: a file's position would be shared with it.
    """

    def __init__(self, limit_bytes: int = OPEN_BYTES, limit_count: int = OPEN_COUNT) -> None:
        self._limit_bytes, self._limit_count = limit_bytes, limit_count
        self._kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._bytes = 0
        self._process = os.getpid()
        self._lock = Lock()

    def get(self, key: Hashable, open_it: Callable[[], tuple[Thing, int]]) -> Thing:
        """What ``open_it`` gives, opened now or before; two threads that ask at once may both open it.

        Args:
            key: what it is.
            open_it: gives the thing, and the bytes that it may come to hold.
        """
        with self._lock:
            if self._process != os.getpid():
                self._kept.clear()
                self._bytes, self._process = 0, os.getpid()
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key][0]
        thing, size = open_it()
        with self._lock:
            if key not in self._kept:
                self._kept[key] = thing, size
                self._bytes += size
            while len(self._kept) > 1 and (self._bytes > self._limit_bytes or len(self._kept) > self._limit_count):
                self._bytes -= self._kept.popitem(last=False)[1][1]
        return thing

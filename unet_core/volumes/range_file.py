"""One object of an object store as a file that is read by ranges: small reads by pages that are kept, many at once in few requests.

    wanted    |--a--|  |-b-|             |----c----|        places in the object
    requests  |------------|             |---------|        joined where what lies between is little against what is wanted

Nothing here knows what the object holds.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

from unet_core.errors import VolumeError
from unet_core.store import StoredObject

if TYPE_CHECKING:
    from unet_core.object_store import S3Store

PAGE_BYTES = 16 << 10  # of small reads, such as those of a directory of a TIFF
_PAGES = 2048  # that are kept
_MOST_WASTE = 3  # times less must lie between what is wanted than is wanted

Place = tuple[int, int]  # first byte and size


class RangeFile(io.RawIOBase):
    """Reads an object; threads may share it for ``read_places``, and take turns else.

    Args:
        store: that holds it.
        entry: the object, by what the store says of it.
    """

    def __init__(self, store: S3Store, entry: StoredObject) -> None:
        self.entry, self.url = entry, f"{store.url}/{entry.key}"
        self._store, self._position = store, 0
        self._pages: OrderedDict[int, bytes] = OrderedDict()
        self._lock = Lock()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.entry.size_bytes}[whence]
        self._position = max(0, start + offset)
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = max(0, self.entry.size_bytes - self._position)
        wanted = left if size < 0 else min(size, left)
        data = self._at(self._position, wanted)
        self._position += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _at(self, start: int, size: int) -> bytes:
        if size >= PAGE_BYTES:
            return self._store.get_range(self.entry.key, start, size)
        stop = start + size
        parts = (self._page(number) for number in range(start // PAGE_BYTES, -(-stop // PAGE_BYTES)))
        return b"".join(parts)[start % PAGE_BYTES :][:size]

    def _page(self, number: int) -> bytes:
        with self._lock:
            page = self._pages.get(number)
            if page is None:
                start = number * PAGE_BYTES
                page = self._store.get_range(self.entry.key, start, min(PAGE_BYTES, self.entry.size_bytes - start))
                self._pages[number] = page
                if len(self._pages) > _PAGES:
                    self._pages.popitem(last=False)
            self._pages.move_to_end(number)
            return page

    def read_places(self, places: Sequence[Place]) -> list[bytes]:
        """The bytes at each place, in their order; shorter where the object ends before.

        Raises:
            VolumeError: if the object is gone.
        """
        groups = list(joined(sorted({place for place in places if place[0] < self.entry.size_bytes and place[1]})))
        bounds = [(group[0][0], min(max(start + size for start, size in group), self.entry.size_bytes)) for group in groups]
        try:
            read = self._store.get_ranges(self.entry.key, [(start, stop - start) for start, stop in bounds]) if bounds else []
        except FileNotFoundError:
            raise VolumeError(f"{self.url} is not there any more; it was removed while it was read.") from None
        found: dict[Place, bytes] = {}
        for group, (first, _), data in zip(groups, bounds, read, strict=True):
            found |= {(start, size): data[start - first : start - first + size] for start, size in group}
        return [found.get(place, b"") for place in places]


def open_object(url: str) -> RangeFile | None:
    """The object at a URL of an object store, None if there is none."""
    from unet_core.object_store import S3Store

    folder, _, key = url.rstrip("/").rpartition("/")
    if folder.count("/") < 2:  # s3:/ and s3://: the URL names a bucket
        return None
    store = S3Store(folder)
    entry = store.head(key)
    return None if entry is None else RangeFile(store, entry)


def joined(places: Sequence[Place]) -> Iterator[list[Place]]:
    """Groups of places that are read together, so that at most a third more is read than is wanted.

    Args:
        places: by their first byte.
    """
    group: list[Place] = []
    wanted = waste = end = 0
    for start, size in places:
        gap = max(0, start - end)
        if group and _MOST_WASTE * (waste + gap) > wanted + size:
            yield group
            group, wanted, waste, gap = [], 0, 0, 0
        if not group:
            end, gap = start, 0
        group.append((start, size))
        wanted += max(0, start + size - max(end, start))
        waste += gap
        end = max(end, start + size)
    if group:
        yield group

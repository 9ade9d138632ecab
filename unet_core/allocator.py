"""What the C library does with memory that a forward pass gives back: keep it for the next one. Nothing here knows of networks."""

from __future__ import annotations

import ctypes
import platform
from functools import cache

# malloc.h of glibc
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LARGEST_MMAP_THRESHOLD = 32 << 20  # what glibc accepts on 64-bit machines
_KEPT_BYTES = 1 << 30
_PAD_BYTES = 64 << 20


@cache
def keep_freed_memory() -> bool:
    """Let this process reuse the memory of tensors up to 32 MiB instead of returning it to the system after each layer.

    Returned pages are mapped anew, zeroed one fault at a time, by the next layer: up to half of the time of a forward pass. The
    environment that dask gives its workers (``MALLOC_TRIM_THRESHOLD_=65536``) makes it worse; this overrules it.

    Returns:
        Whether the C library took the settings; one that is not glibc has none.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD), (_M_TRIM_THRESHOLD, _KEPT_BYTES), (_M_TOP_PAD, _PAD_BYTES))
    return all([bool(mallopt(name, value)) for name, value in settings])

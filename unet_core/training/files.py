"""A small file of a data set, local or remote, read whole. Knows no format."""

from __future__ import annotations

import hashlib

from unet_core.errors import InputError
from unet_core.store import is_remote, local_path, open_store
from unet_core.wording import near_path


def read_file(url: str, limit_bytes: int, what: str) -> bytes:
    """The bytes of a file.

    Args:
        url: local path or ``s3://`` URL.
        limit_bytes: more is refused.
        what: it should be, for messages.

    Raises:
        InputError: if it is absent or larger.
    """
    folder, slash, name = url.rpartition("/")
    try:
        content = open_store(folder or slash or ".").get(name)
    except FileNotFoundError:
        near = "" if is_remote(url) else near_path(local_path(url))
        raise InputError(f"{what.capitalize()} not found: {url}{near}; check the path.") from None
    if len(content) > limit_bytes:
        raise InputError(f"{url} has {len(content)} bytes, more than {limit_bytes}; it is no {what}.")
    return content


def file_hash(url: str, limit_bytes: int, what: str) -> str:
    """The sha256 of a file, as ``read_file`` reads it."""
    return hashlib.sha256(read_file(url, limit_bytes, what)).hexdigest()

"""Where an output may lie: apart from image and model, on a disk that takes it. Knows no format; creates nothing."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from unet_core.errors import JobError
from unet_core.store import check_url, is_remote, local_path, redacted

MAX_OUTPUT_BYTES = 1 << 50  # 1 PiB; more is a typing error or needs other tools
# Labels shrink to a fiftieth or less, so the size before compression may exceed the free space, but not by more than this.
MAX_COMPRESSION = 50


def check_location(option: str, url: str) -> None:
    """Refuse what is no place at all: an empty text, an unknown home, a scheme that is not read.

    Args:
        option: of the job, for the message.
        url: its value.

    Raises:
        InputError: naming the option.
    """
    if not url.strip() or not url.isprintable():
        raise JobError(f"{option.capitalize()} is {url!r}; give a path or URL of visible letters.")
    check_url(url)


def check_apart(output: str, option: str, other: str) -> None:
    """Refuse an output that is the image or model, lies inside it, or holds it.

    Raises:
        JobError: naming both.
    """
    if is_remote(other) != is_remote(output):
        return
    if is_remote(other):
        first, second = (f"{url.rstrip('/')}/" for url in (other, output))
    else:
        try:
            first, second = (f"{local_path(url).resolve()}/" for url in (other, output))
        except (OSError, RuntimeError) as error:  # names too long, links in a circle
            raise JobError(f"Output {output} or {option} {other} is no usable path ({error}); give another.") from None
    if first == second:
        raise JobError(f"Output {output} is the {option} itself; give another place, input is never overwritten.")
    if second.startswith(first) or first.startswith(second):
        raise JobError(f"Output {output} and {option} {other} lie inside each other; give the output a place of its own.")


def check_writable(output: str) -> None:
    """Refuse a local output that could not be created or written into.

    Raises:
        JobError: naming the folder that is in the way, and why.
    """
    check_location("output", output)
    if is_remote(output):
        return
    path = local_path(output)
    folder = _nearest_folder(path)
    longest = os.pathconf(folder, "PC_NAME_MAX")
    if any(len(os.fsencode(part)) > longest for part in path.parts):
        raise JobError(f"Output {output[:60]}... has a name of more than {longest} bytes; give a shorter one.")
    try:
        # Permissions, read-only disks and full ones are told by trying; the file has no name where the system allows that.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise JobError(
            f"Output {output} cannot be written: {folder} takes no files ({error.strerror}); give another place."
        ) from None


def _nearest_folder(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    for folder in (path.absolute(), *path.absolute().parents):
        if os.path.isdir(folder):  # unlike Path.is_dir, no error for a name that is too long
            return folder
        if os.path.lexists(folder):
            raise JobError(f"Output {path} cannot be created: {folder} is a file, or a link to nothing; give another place.")
    raise JobError(f"Output {path} lies in no folder that exists; give another place.")


def check_size(output: str, size_bytes: int) -> None:
    """Refuse an output that is absurdly large for its disk, or for anybody.

    Args:
        output: URL.
        size_bytes: before compression.

    Raises:
        JobError: with both numbers.
    """
    if size_bytes > MAX_OUTPUT_BYTES:
        raise JobError(
            f"The output would be {size_bytes / 2**50:,.1f} PiB before compression; limit {MAX_OUTPUT_BYTES / 2**50:.0f} PiB. "
            "Segment a coarser --level, or parts of it with --roi."
        )
    if is_remote(output):
        return
    free = shutil.disk_usage(_nearest_folder(local_path(output))).free
    if size_bytes > MAX_COMPRESSION * free:
        raise JobError(
            f"The output would be {size_bytes / 2**30:,.1f} GiB before compression, the disk of {redacted(output)} has "
            f"{free / 2**30:,.2f} GiB free; even compressed to a fiftieth it does not fit. Give a place on another disk."
        )

"""Where a model that is taken over may go. Knows no format of other programs."""

from __future__ import annotations

from unet_core.errors import ModelPackageError
from unet_core.model_description import DESCRIPTION_FILE
from unet_core.places import check_writable
from unet_core.store import open_store


def check_new_package(out: str) -> None:
    """Refuse a place that cannot be written, or holds a model package already; to be called before anything is loaded.

    Raises:
        JobError: if it cannot be written.
        ModelPackageError: if it holds a package, whose weights would be left without their description.
    """
    check_writable(out)
    if open_store(out).exists(DESCRIPTION_FILE):
        raise ModelPackageError(f"{out} holds a model package already; give another place.")

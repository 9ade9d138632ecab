"""The command that shows a result: ``unet view``."""

from __future__ import annotations

import threading
import webbrowser
from typing import Annotated

from cyclopts import Parameter

from flows import settings
from flows.options import Flag, Whole
from flows.printing import print_json, visible


def view(
    output: str,
    image: str | None = None,
    *,
    port: Whole = 0,
    browser: Annotated[bool, Parameter(negative="--no-browser", show_default=False)] = True,
    napari: Flag = False,
    json: Flag = False,
    debug: Flag = False,
) -> int:
    """Show a result over its image in the browser (Neuroglancer), finished or not, until Ctrl-C.

    Args:
        output: Result of `unet segment`, a path or s3:// URL.
        image: Where the segmented image lies now, if it was moved.
        port: Of the page, on this machine only; any that is free unless told.
        browser: Open the page in the browser.
        napari: Open napari instead, where it is installed.
        json: Print a machine-readable line with the page's address.
        debug: Show tracebacks.
    """
    from unet_core.viewing.layers import view_of

    if napari:
        from unet_core.viewing.napari_window import open_napari, refuse_without_napari

        refuse_without_napari()
        found = view_of(output, image)
        for note in found.notes:
            print(f"  note: {visible(note)}")
        open_napari(found)
        return 0
    from unet_core.viewing.page import Page

    found = view_of(output, image)
    page = Page(found, port)
    names = [layer.name for layer in found.layers]
    print(page.url, flush=True)
    print(f"  {', '.join(names)}; Ctrl-C ends it")
    for note in found.notes:
        print(f"  note: {visible(note)}", flush=True)
    if json:
        print_json({"url": page.url, "layers": names, "notes": found.notes})
    try:
        if browser and settings.has_display():
            webbrowser.open(page.url)
        print(end="", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:  # how one ends it
        page.close()
    return 0

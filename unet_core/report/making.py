"""The report of an output, from opening it to its page."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from unet_core.report.facts import Facts, Told, gather_facts
from unet_core.report.gallery import draw_gallery
from unet_core.report.opened import open_output
from unet_core.report.page import check_place, render_report, report_json, write_page
from unet_core.seams import measure_seams

__all__ = ["make_report"]


def make_report(
    output: str, image: str | None = None, to: str | None = None, told: Told | None = None, seams: bool = False
) -> tuple[Facts, dict[str, Any]]:
    """Report an output, finished or not.

    Args:
        output: URL.
        image: where its image lies now; where it lay when it was segmented unless told.
        to: file of the page; None for no file.
        told: what the run knows, if it is at hand.
        seams: measure the seam score, which reads more of the result.

    Returns:
        The facts, and everything on the page as JSON has it.

    Raises:
        InputError: if output or image cannot be opened, or the page not be written.
        LedgerError: if voxels that were written are no longer there.
    """
    if to is not None:
        check_place(to)
    opened = open_output(output, image)
    told = told or Told()
    if seams and told.seams is None:
        told = replace(told, seams=measure_seams(output))
    facts, gallery = gather_facts(opened, told), draw_gallery(opened)
    written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    if to is not None:
        write_page(render_report(facts, gallery, written), to)
    return facts, report_json(facts, gallery) | {"written": written}

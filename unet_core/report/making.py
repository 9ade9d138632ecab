"""The report of an output, from opening it to its page; and that of a run, which it leaves in its output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from unet_core import ledger
from unet_core.errors import UnetCoreError
from unet_core.pictures.rgb import jpeg
from unet_core.pictures.summary import draw_summary
from unet_core.report.facts import Facts, Told, gather_facts
from unet_core.report.gallery import data_uri, draw_gallery
from unet_core.report.markdown import report_markdown
from unet_core.report.opened import open_output
from unet_core.report.page import check_place, now, render_report, report_json, write_page
from unet_core.seams import result_seams

__all__ = ["make_report", "report_run"]

_MOST_READ_BY_RUN = 1 << 29  # voxels of the image for one picture: a run that is over should not be kept waiting
_PICTURE_QUALITY = 70
_FACETS_BY_RUN = 50  # an axis: likewise


def make_report(
    output: str, image: str | None = None, to: str | None = None, told: Told | None = None
) -> tuple[Facts, dict[str, Any]]:
    """Report an output, finished or not.

    Args:
        output: URL.
        image: where its image lies now; where it lay when it was segmented unless told.
        to: file of the page; None for no file.
        told: what the run knows, if it is at hand.

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
    if told.seams is None:
        told = replace(told, seams=result_seams(opened.result, opened.segmented.units.tolist()))
    facts, gallery = gather_facts(opened, told), draw_gallery(opened)
    written = now()
    if to is not None:
        write_page(render_report(facts, gallery, written), to)
    return facts, report_json(facts, gallery) | {"written": written}


def report_run(output: str, told: Told, lines: Sequence[str] = ()) -> tuple[str, str | None]:
    """Write the page of a run that has just ended into its output, and tell its short form.

    Args:
        output: URL.
        told: what the run knows.
        lines: more that the short form says.

    Returns:
        Markdown, with a picture; and why there is no page or picture, if there is none.
    """
    opened = open_output(output)
    try:
        if told.seams is None:
            told = replace(told, seams=result_seams(opened.result, opened.segmented.units.tolist(), _FACETS_BY_RUN))
        facts = gather_facts(opened, told)
        scene = opened.scene(_MOST_READ_BY_RUN)
        opened.store.put(ledger.REPORT_KEY, render_report(facts, draw_gallery(opened, scene), now()).encode())
        sheet, _ = draw_summary(scene)
    except (UnetCoreError, OSError) as error:  # the result is there all the same
        return report_markdown(
            gather_facts(opened, told), lines=lines
        ), f"{error}; 'unet report {output}' writes a page about the result."
    picture = data_uri("jpeg", jpeg(np.asarray(sheet), _PICTURE_QUALITY))
    return report_markdown(facts, picture, f"{facts.output.rstrip('/')}/{ledger.REPORT_KEY}", lines), None

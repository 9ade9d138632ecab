"""The command ``unet report``. Imports nothing heavy."""

from __future__ import annotations

from flows.options import Flag
from flows.printing import print_json


def report(
    output: str,
    image: str | None = None,
    *,
    to: str = "report.html",
    json: Flag = False,
    debug: Flag = False,
) -> int:
    """Write a page about a result, finished or not: pictures, areas, objects, times, audit, seams and where it comes from.

    Args:
        output: Result of `unet segment`.
        image: Where its image lies now; where it lay when it was segmented unless told.
        to: File of the page, which needs nothing else; an earlier page is replaced.
        json: Print a machine-readable last line: every number of the page.
        debug: Show tracebacks.
    """
    from unet_core.report.making import make_report

    facts, found = make_report(output, image, to)
    audit = facts.audit
    print(f"{facts.state}: {audit.units_done} of {audit.units_wanted} units of {output}")
    print(f"  page: {to}")
    if json:
        print_json(found | {"page": to})
    return 0

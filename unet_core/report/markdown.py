"""The short form of a report, as Markdown: what a run shows of its result. Knows no Prefect."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from unet_core.report import numbers
from unet_core.report.facts import Facts

_MARKS = re.compile(r"([\\`*_{}\[\]()<>#+!|~&-])")


def plain(text: object) -> str:
    """Any text as one line that Markdown shows letter by letter."""
    return _MARKS.sub(r"\\\1", " ".join(str(text).split())).replace("\\<", "&lt;").replace("\\>", "&gt;").replace("\\&", "&amp;")


def report_markdown(facts: Facts, picture: str = "", page: str = "", lines: Sequence[str] = ()) -> str:
    """Areas, objects, seams, notes and what was skipped.

    Args:
        facts: of a result.
        picture: data URI; empty for none.
        page: where the whole report lies; empty for nowhere.
        lines: more to be said, shown as they are.
    """
    audit, skipped = facts.audit, facts.skipped
    head = "complete" if audit.is_complete else f"NOT COMPLETE: {audit.units_done:,} of {audit.units_wanted:,} units are done"
    parts = [f"# {head}", plain(facts.output)]
    if picture:
        parts.append(f"![the result, and a place of it at full resolution without and with outlines]({picture})")
    parts.append(_classes(facts))
    if facts.objects is not None:
        parts.append(_objects(facts))
    parts += [plain(line) for line in lines]
    said = [f"seams: {text}" for text, _ in facts.seam_lines]
    said += [*facts.warnings, *skipped.failures]
    if skipped.unwanted_blocks:
        why = "; ".join(skipped.masks) or "outside the region that was asked for"
        said.append(f"{skipped.unwanted_blocks:,} blocks were not wanted: {why}.")
    if skipped.undone_blocks:
        said.append(f"{skipped.undone_blocks:,} blocks are not computed: {'; '.join(skipped.undone_boxes)}.")
    if skipped.missing_chunks:
        said.append(f"{skipped.missing_chunks:,} absent chunks of the image were read as background.")
    if said:
        parts.append("\n".join(f"- {plain(text)}" for text in said))
    if page:
        parts.append(f"The whole report: {plain(page)}")
    return "\n\n".join(parts)


def _classes(facts: Facts) -> str:
    ndim = len(facts.shape)
    sizes = [entry.size_um for entry in facts.classes if entry.size_um is not None]
    unit = numbers.size_unit(sizes, ndim) if sizes else None
    head = ["class", "voxels", "share"] + ([unit.sign] if unit else [])
    rows = [
        [plain(entry.name), f"{entry.voxels:,}", numbers.percent(entry.share)]
        + ([numbers.digits((entry.size_um or 0.0) / unit.um)] if unit else [])
        for entry in facts.classes
    ]
    return table_of(head, rows)


def _objects(facts: Facts) -> str:
    ndim = len(facts.shape)
    medians = [entry.size_um.median for entry in facts.objects or () if entry.size_um]
    unit = numbers.size_unit(medians, ndim) if medians else numbers.VOXELS
    rows = []
    for entry in facts.objects or ():
        sizes = entry.size_um or entry.voxels
        row = [plain(entry.name), f"{entry.count:,}", numbers.digits(sizes.median / unit.um) if sizes else "–"]
        if entry.per_um is not None:
            per = numbers.density_unit(entry.per_um, ndim)
            row.append(f"{numbers.digits(entry.per_um * per.um)} per {per.sign}")
        rows.append(row)
    return table_of(["objects", "count", f"median size, {unit.sign}", *(["density"] if facts.computed_um else [])], rows)


def table_of(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose cells are Markdown already; all columns but the first are numbers."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

"""A picture of a report: how fast every contender is, one bar each, cases below one another. Draws; measures nothing."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from tests.benchmarks.report import Report, Row

WIDTH, LEFT, RIGHT, BAR, GAP, HEAD, MARGIN = 1400, 400, 330, 24, 8, 92, 24
OWN, OTHER, PADDED, INK, PALE = "#1f6fb4", "#9aa3ab", "#d08a3c", "#20262b", "#6b747b"


def draw(report: Report, path: Path) -> None:
    """Write a PNG of the cases that compare several contenders; none if there is no such case."""
    cases = [case for case in report["cases"] if len([row for row in case["rows"] if not row["failed"]]) > 1]
    if not cases:
        return
    height = MARGIN + sum(HEAD + len(case["rows"]) * (BAR + GAP) + MARGIN for case in cases)
    sheet = Image.new("RGB", (WIDTH, height), "white")
    pen, top = ImageDraw.Draw(sheet), MARGIN
    for case in cases:
        top = _draw_case(pen, case, top) + MARGIN
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def _draw_case(pen: ImageDraw.ImageDraw, case: Report, top: int) -> int:
    """Draw one case from ``top`` on; where it ends."""
    title, text = ImageFont.load_default(size=22), ImageFont.load_default(size=16)
    shape = " x ".join(map(str, case["shape"]))
    pen.text((MARGIN, top), f"{case['case']}: {case['network']}, base {case['arguments']['base']}, {shape} voxels", INK, title)
    legend = (
        "Mvoxel/s, more is better; beside it the time over that of the pipeline on as many cores, with its 95 % interval. "
        "Blue: this pipeline; grey: loops\naround the same network; orange: other tools, with the padded form of the network."
    )
    pen.text((MARGIN, top + 32), legend, PALE, text)
    top += HEAD
    done = [row for row in case["rows"] if not row["failed"]]
    most = max(row["voxels_per_second"] for row in done)
    for row in sorted(case["rows"], key=lambda row: (row["cores"], -row.get("voxels_per_second", 0.0))):
        cores = f"{row['cores']} core{'s' if row['cores'] > 1 else ''}"
        pen.text((LEFT - 12, top + BAR / 2), f"{row['contender']}  ·  {cores}", INK, text, anchor="rm")
        length = (WIDTH - LEFT - RIGHT) * row.get("voxels_per_second", 0.0) / most
        pen.rectangle((LEFT, top, LEFT + length, top + BAR), fill=_colour(row))
        pen.text((LEFT + length + 10, top + BAR / 2), _figure(row), INK, text, anchor="lm")
        top += BAR + GAP
    return top


def _colour(row: Row) -> str:
    if row["contender"].startswith("pipeline"):
        return OWN
    return PADDED if row.get("labels_equal") is None else OTHER


def _figure(row: Row) -> str:
    if row["failed"]:
        return "not measured"
    rate = f"{row['voxels_per_second'] / 1e6:.2f}"
    return f"{rate}   {row['ratio'][0]:.2f} x [{row['ratio'][1]:.2f}, {row['ratio'][2]:.2f}]" if row["ratio"] else rate

"""The page of an evaluation, and its short form: scores with intervals, each image as a dot, and the worst cases. Computes no score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import unet_core
from unet_core.evaluation import ScoreTable
from unet_core.pictures import Panel, draw_sheet
from unet_core.pictures.rgb import jpeg
from unet_core.report import charts, numbers
from unet_core.report.gallery import data_uri
from unet_core.report.markdown import plain, table_of
from unet_core.report.page import finite, now, render, write_page
from unet_core.report.worst import CONFUSED, FALSE_NEGATIVE, FALSE_POSITIVE, Case

_LISTED = 200  # images of the page's table; all of them are in its facts
_CASES_IN_MARKDOWN = 4
_PANEL_PIXELS = 240
_PICTURE_QUALITY = 70


@dataclass(frozen=True)
class Evaluated:
    """An evaluation, to be told.

    Args:
        prediction: as it was named.
        reference: likewise.
        sentences: what is foreground of both.
        table: of scores.
        value: the score by which cases are the worst.
        cases: the worst first.
        notes: what the reader should know.
    """

    prediction: str
    reference: str
    sentences: tuple[str, ...]
    table: ScoreTable
    value: str
    cases: Sequence[Case]
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Everything that the page says in numbers."""
        found: dict[str, Any] = finite(
            {
                "prediction": self.prediction,
                "reference": self.reference,
                "meaning": self.sentences,
                "notes": self.notes,
                **self.table.as_json(),
                "worst_by": self.value,
                "worst": [case.as_json() for case in self.cases],
                "written_by": f"unet-flows {unet_core.__version__}",
                "schema": 1,
            }
        )
        return found

    @property
    def order(self) -> list[int]:
        """Numbers of the images, the worst first; those without a score last."""
        best = next(entry.best for entry in self.table.summary if entry.name == self.value)
        scores = [row[self.value] for row in self.table.rows]
        sign = 1 if best == "high" else -1
        return sorted(range(len(scores)), key=lambda number: (scores[number] != scores[number], sign * scores[number]))


def render_evaluation(evaluated: Evaluated, written: str) -> str:
    """The page."""
    table = evaluated.table
    dots = {
        entry.name: charts.score_dots(table.names, [row[entry.name] for row in table.rows], entry.interval, entry.mean)
        for entry in table.summary
    }
    return render(
        "evaluation.html",
        title=f"{_last_part(evaluated.prediction)} against {_last_part(evaluated.reference)}",
        evaluated=evaluated,
        table=table,
        first=next(entry for entry in table.summary if entry.name == evaluated.value),
        dots=dots if len(table.names) > 1 else {},
        cases=[(case, case.pictures()) for case in evaluated.cases],
        order=evaluated.order[:_LISTED],
        colors={"false positive": FALSE_POSITIVE, "false negative": FALSE_NEGATIVE, "confused": CONFUSED},
        data=evaluated.as_json() | {"written": written},
        written=written,
    )


def write_evaluation(evaluated: Evaluated, to: str) -> None:
    """Write the page; its place has been checked."""
    write_page(render_evaluation(evaluated, now()), to)


def evaluation_markdown(evaluated: Evaluated) -> str:
    """Scores, and a picture of the worst cases."""
    rows = [
        [
            plain(entry.name),
            numbers.score(entry.mean),
            interval_text(entry.interval),
            f"{entry.images:,}",
            numbers.score(entry.pooled),
            entry.best,
        ]
        for entry in evaluated.table.summary
    ]
    head = ["score", "mean over images", "95 % interval", "images", "pooled", "better is"]
    parts = [
        f"# {plain(_last_part(evaluated.prediction))} against {plain(_last_part(evaluated.reference))}",
        table_of(head, rows),
    ]
    parts.append("\n".join(f"- {plain(text)}" for text in (*evaluated.sentences, *evaluated.notes)))
    if evaluated.cases:
        names = "; ".join(
            f"{case.name} {case.place}: {numbers.score(case.score)}" for case in evaluated.cases[:_CASES_IN_MARKDOWN]
        )
        legend = "orange: found where the reference has nothing; blue: missed; purple: another class or object"
        parts += [
            f"Worst by {plain(evaluated.value)} ({legend}): {plain(names)}.",
            f"![the worst cases]({_sheet(evaluated.cases)})",
        ]
    return "\n\n".join(parts)


def interval_text(ends: tuple[float, float] | None) -> str:
    return "–" if ends is None else f"{numbers.score(ends[0])} to {numbers.score(ends[1])}"


def _sheet(cases: Sequence[Case]) -> str:
    """Rows of cases as one picture, all panels of about one size."""
    shown = [case for case in cases[:_CASES_IN_MARKDOWN] if len(case.panels) == len(cases[0].panels)]
    scale = max(1, _PANEL_PIXELS // max(cases[0].box.shape[-2:]))
    columns = [
        [Panel(case.panels[number][1].flat(), case.panels[number][0] if case is shown[0] else "", scale) for case in shown]
        for number in range(len(cases[0].panels))
    ]
    return data_uri("jpeg", jpeg(np.asarray(draw_sheet(columns)), _PICTURE_QUALITY))


def _last_part(url: str) -> str:
    return url.rstrip("/").rpartition("/")[2] or url

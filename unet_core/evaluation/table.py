"""Scores of several images as a table: one row an image, their mean with its interval, and all images pooled."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unet_core.errors import InputError
from unet_core.evaluation.evidence import MEMORY_BYTES, Evidence, Need, gather, pool
from unet_core.evaluation.pairs import Pair
from unet_core.evaluation.scores import METRICS, check_metrics, definition_of
from unet_core.metrics.intervals import bootstrap_interval
from unet_core.metrics.overlap import class_iou_of


@dataclass(frozen=True)
class Summary:
    """One value over all images.

    Args:
        name: of the value.
        definition: in words.
        best: ``high`` or ``low``.
        images: with a value; those where it means nothing are left out.
        mean: over them, NaN if there are none.
        interval: of the mean, 95 % by bootstrap over images; None for fewer than two.
        pooled: of all images as one; None where that has no meaning.
    """

    name: str
    definition: str
    best: str
    images: int
    mean: float
    interval: tuple[float, float] | None
    pooled: float | None


@dataclass(frozen=True)
class ScoreTable:
    """Scores of images.

    Args:
        names: of the images.
        rows: values of each image, by name; NaN where a value means nothing (such as Rand scores without foreground).
        summary: over the images, one a value.
        class_iou: IoU by class number, all images pooled; empty where no classes were compared.
        foreground: share of the voxels that count, in (prediction, reference); None if no score asked for it.
        agreement: share of them that are foreground in both, or in neither; likewise.
    """

    names: tuple[str, ...]
    rows: tuple[dict[str, float], ...]
    summary: tuple[Summary, ...]
    class_iou: dict[int, float]
    foreground: tuple[float, float] | None
    agreement: float | None = None

    def __getitem__(self, name: str) -> float:
        """The mean of a value over the images."""
        return next(entry.mean for entry in self.summary if entry.name == name)

    @property
    def looks_inverted(self) -> bool:
        """Whether foreground of one is background of the other on most voxels, so that one may be meant the other way round."""
        return self.agreement is not None and self.agreement < 0.5

    def as_json(self) -> dict[str, Any]:
        return {
            "scores": {
                entry.name: {"mean": entry.mean, "images": entry.images, "interval": entry.interval, "pooled": entry.pooled}
                for entry in self.summary
            },
            "images": [{"name": name} | row for name, row in zip(self.names, self.rows, strict=True)],
            "class_iou": {str(number): value for number, value in self.class_iou.items()},
            "foreground": self.foreground,
            "agreement": self.agreement,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ScoreTable:
        """What ``as_json`` gave, also where JSON wrote NaN as null."""

        def number(value: float | None) -> float:
            return float("nan") if value is None else value

        images = values["images"]
        summary = []
        for name, entry in values["scores"].items():
            definition, best, _ = definition_of(name)
            interval = None if entry["interval"] is None else (entry["interval"][0], entry["interval"][1])
            summary.append(Summary(name, definition, best, entry["images"], number(entry["mean"]), interval, entry["pooled"]))
        return cls(
            tuple(image["name"] for image in images),
            tuple({name: number(image[name]) for name in values["scores"]} for image in images),
            tuple(summary),
            {int(number): value for number, value in values["class_iou"].items()},
            values["foreground"] and (values["foreground"][0], values["foreground"][1]),
            values["agreement"],
        )


def score_images(
    pairs: Iterable[Pair],
    metrics: Sequence[str],
    memory_bytes: int = MEMORY_BYTES,
    on_image: Callable[[Pair, Evidence, dict[str, float]], None] = lambda pair, evidence, row: None,
) -> ScoreTable:
    """Score predictions against references.

    Args:
        pairs: at least one; ``pair_of_arrays`` makes one of arrays.
        metrics: names of ``METRICS``.
        memory_bytes: that one image or section may take; block-wise scores need little.
        on_image: called after each image with what was counted and its scores.

    Raises:
        InputError: if a metric is unknown, there is no pair, or no reference has foreground.
    """
    chosen = check_metrics(metrics)
    needs = needs_of(chosen)
    names, evidence = [], []
    for pair in pairs:
        evidence.append(gather(pair, needs, memory_bytes))
        names.append(pair.name)
        on_image(pair, evidence[-1], row_of(evidence[-1], chosen))
    return tabulate(names, evidence, chosen)


def needs_of(metrics: Sequence[str]) -> set[Need]:
    """What must be counted for these scores."""
    return {METRICS[name].needs for name in metrics}


def tabulate(names: Sequence[str], evidence: Sequence[Evidence], metrics: Sequence[str]) -> ScoreTable:
    """Scores of what was counted of each image."""
    if not evidence:
        raise InputError("There is no image to score.")
    rows = tuple(row_of(part, metrics) for part in evidence)
    together = pool(evidence)
    pooled = row_of(together, [name for name in metrics if METRICS[name].adds_up])
    summary = tuple(_summarise(name, [row[name] for row in rows], pooled.get(name)) for name in rows[0])
    has_classes = together.meaning.has_classes and together.classes.voxels
    whole = together.foreground
    foreground, agreement = None, None
    if whole.voxels:
        both, predicted, truth = whole.count(None, None), whole.count(None, 0), whole.count(0, None)
        foreground = ((both + predicted) / whole.voxels, (both + truth) / whole.voxels)
        agreement = (both + whole.count(0, 0)) / whole.voxels
    by_class = class_iou_of(together.classes) if has_classes else {}
    return ScoreTable(tuple(names), rows, summary, by_class, foreground, agreement)


def row_of(evidence: Evidence, metrics: Sequence[str]) -> dict[str, float]:
    """The values of one image, by name."""
    row: dict[str, float] = {}
    for name in metrics:
        row |= METRICS[name].values(evidence)
    return row


def _summarise(name: str, values: list[float], pooled: float | None) -> Summary:
    definition, best, _ = definition_of(name)
    kept = [value for value in values if math.isfinite(value)]
    mean = sum(kept) / len(kept) if kept else float("nan")
    return Summary(name, definition, best, len(kept), mean, bootstrap_interval(kept) if len(kept) > 1 else None, pooled)

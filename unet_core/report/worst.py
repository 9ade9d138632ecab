"""The worst cases of an evaluation, kept as pictures while images come and go: image, reference, prediction, and how they differ.

Of many images the places with the most wrong voxels of those with the lowest scores; of few, several places of each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.errors import UnetCoreError
from unet_core.evaluation import METRICS, Evidence, Pair
from unet_core.evaluation.pairs import Shown
from unet_core.evaluation.scores import definition_of
from unet_core.geometry import BlockGrid, Box, Shape
from unet_core.pictures import Drawing, Rgb, contrast_of, edges_of, to_rgb
from unet_core.pictures.rgb import components, dimmed
from unet_core.report.differences import Compared, Differences
from unet_core.report.gallery import Picture, inlined, scale_bar

CASES = 8
SIDE = 384  # voxels of a place
FALSE_POSITIVE, FALSE_NEGATIVE, CONFUSED = "#d55e00", "#0072b2", "#cc79a7"  # told apart also by the colour-blind
_OUTLINE = "#19d94a"
_IGNORED = "#9aa3ab"
_READ_VOXELS = 1 << 22


@dataclass(frozen=True)
class Case:
    """One place of one image.

    Args:
        name: of the image.
        score: of the whole image, of the first score that was asked for; NaN if it has none.
        box: in voxels.
        false_positive: voxels of the place, as of ``Differences``, here and below.
        false_negative: voxels.
        confused: voxels.
        right: voxels.
        panels: with titles: the image, if it is at hand; reference, prediction, differences.
        spacing_um: of voxels along rows and columns; None if unknown.
    """

    name: str
    score: float
    box: Box
    false_positive: int
    false_negative: int
    confused: int
    right: int
    panels: tuple[tuple[str, Drawing], ...]
    spacing_um: tuple[float, float] | None

    @property
    def place(self) -> str:
        return ",".join(f"{first}:{last}" for first, last in zip(self.box.start, self.box.stop, strict=True))

    @property
    def wrong(self) -> int:
        return self.false_positive + self.false_negative + self.confused

    def pictures(self) -> tuple[Picture, ...]:
        """The panels for a page."""
        height, width = self.box.shape[-2:]
        down, across = self.spacing_um or (1.0, 1.0)
        bar, share = scale_bar(width, None if self.spacing_um is None else across)
        ratio = width * across / (height * down)
        return tuple(inlined(drawing, ratio, title, bar=bar, bar_percent=100 * share) for title, drawing in self.panels)

    def as_json(self) -> dict[str, Any]:
        names = ("name", "score", "false_positive", "false_negative", "confused", "right")
        return {name: getattr(self, name) for name in names} | {"box": self.place}


class WorstCases:
    """Collects the worst cases of pairs that are shown to it one after another.

    Args:
        metric: name of the score that decides, of ``METRICS``.
        count: of cases that are kept.
    """

    def __init__(self, metric: str, count: int = CASES) -> None:
        self.metric = metric
        self.value = next(iter(METRICS[metric].definitions))
        self._by_object = METRICS[metric].needs == "instances"
        self._sign = 1 if definition_of(self.value)[1] == "high" else -1
        self._count, self._seen = count, 0
        self._kept: list[tuple[float, int, list[Case]]] = []  # badness of the image (low is bad), its number, its places

    def add(self, pair: Pair, evidence: Evidence, row: dict[str, float]) -> None:
        """Look at a pair whose scores are known; it may be forgotten afterwards."""
        self._seen += 1
        score = row[self.value]
        rank = self._sign * score if isfinite(score) else float("inf")
        if len(self._kept) >= self._count and rank >= self._kept[-1][0]:
            return
        cases = self._draw(pair, evidence, score, -(-self._count // self._seen))
        self._kept.append((rank, self._seen, cases))
        self._kept.sort(key=lambda entry: entry[:2])
        del self._kept[self._count :]

    def cases(self) -> list[Case]:
        """The worst first: one place of each image, then further ones."""
        firsts = [cases[0] for _, _, cases in self._kept if cases]
        others = [case for _, _, cases in self._kept for case in cases[1:]]
        return (firsts + sorted(others, key=lambda case: -case.wrong))[: self._count]

    def _draw(self, pair: Pair, evidence: Evidence, score: float, count: int) -> list[Case]:
        compared = Compared(pair, evidence, self._by_object)
        boxes = worst_places(compared, count)
        image = pair.open_image()
        return [_case(pair, compared, box, score, image) for box in boxes]


def worst_places(compared: Compared, count: int) -> list[Box]:
    """The places with the most wrong voxels that do not overlap; at least one, and others only if something is wrong there."""
    from unet_core.corrections.places import Places  # its package imports torch

    shape = compared.pair.shape
    flat = len(shape) - 2
    places = Places(shape, (1,) * flat + tuple(min(SIDE, size) for size in shape[flat:]))
    for box in _boxes(shape):
        places.add(box, compared.read(box).wrong.astype(np.int64))
    found = places.choose(count, places.totals, lambda starts: places.totals(starts) > 0, [])
    if found:
        return found
    return places.choose(1, places.totals, lambda starts: np.ones(tuple(map(len, starts)), dtype=bool), [])


def _boxes(shape: Shape) -> Iterator[Box]:
    side = max(1, int(_READ_VOXELS ** (1 / len(shape))))
    return BlockGrid(shape, tuple(min(side, size) for size in shape)).blocks()


def _case(pair: Pair, compared: Compared, box: Box, score: float, image: Shown | None) -> Case:
    found = compared.read(box)
    voxel_size = pair.reference.voxel_size or pair.prediction.voxel_size
    return Case(
        name=pair.name,
        score=score,
        box=box,
        false_positive=int(np.count_nonzero(found.false_positive)),
        false_negative=int(np.count_nonzero(found.false_negative)),
        confused=int(np.count_nonzero(found.confused)),
        right=int(np.count_nonzero(found.right)),
        panels=_panels(found, box, image),
        spacing_um=None if voxel_size is None else (voxel_size[-2], voxel_size[-1]),
    )


def _panels(found: Differences, box: Box, image: Shown | None) -> tuple[tuple[str, Drawing], ...]:
    def flat(values: NDArray[Any]) -> NDArray[Any]:
        return values.reshape(box.shape[-2:])

    base = _base(box, image)
    panels = [] if base is None else [("image", Drawing.of(base, []))]
    for title, labels in (("reference", flat(found.reference)), ("prediction", flat(found.prediction))):
        panels.append((title, Drawing.of(_paper(labels) if base is None else base, [(edges_of(labels), _OUTLINE)])))
    marks = [
        (flat(found.ignored), _IGNORED),
        (flat(found.false_positive), FALSE_POSITIVE),
        (flat(found.false_negative), FALSE_NEGATIVE),
        (flat(found.confused), CONFUSED),
    ]
    under = _paper(flat(found.right)) if base is None else _pale(base)
    flattened = Drawing.of(under, marks).flat()  # not to be switched off with the outlines
    return (*panels, ("differences", Drawing.of(flattened, [])))


def _base(box: Box, image: Shown | None) -> Rgb | None:
    """The image; None where it is not at hand."""
    if image is None:
        return None
    try:
        values = image.read(box)
    except UnetCoreError:  # such as a chunk that is missing; the scores do without the image
        return None
    values = values.reshape(len(values), *box.shape[-2:])
    return to_rgb(values, contrast_of(values, values.dtype))


def _pale(rgb: Rgb) -> Rgb:
    """The picture in light grays, so that colours over it are seen."""
    grays = np.repeat(rgb.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2)
    return dimmed(grays, np.ones(rgb.shape[:2], dtype=bool), 255, 0.5)


def _paper(labels: NDArray[Any]) -> Rgb:
    """White, with what is not 0 in pale green."""
    rgb = np.full((*labels.shape, 3), 255, dtype=np.uint8)
    rgb[labels != 0] = [round(255 * 0.75 + 0.25 * value) for value in components(_OUTLINE)]
    return rgb

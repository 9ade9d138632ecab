"""What is counted of a pair of images, once for all its scores: blocks add up, sections and whole images where scores need them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Literal

import numpy as np

from unet_core.errors import InputError, MemoryBudgetError, VolumeError
from unet_core.evaluation.meaning import Meaning
from unet_core.evaluation.pairs import Pair
from unet_core.geometry import Box
from unet_core.metrics.contingency import Contingency
from unet_core.metrics.maps import PixelCounts, pair_tables
from unet_core.metrics.warping import splits_and_mergers, warp_sections

Need = Literal["foreground", "classes", "pixels", "instances", "components", "thinned", "warping", "splits_mergers"]
BY_BLOCK: frozenset[Need] = frozenset({"foreground", "classes", "pixels"})
BY_SECTION: frozenset[Need] = frozenset({"components", "thinned", "warping", "splits_mergers"})

_INSTANCE_BYTES = (
    150  # a voxel, of a watershed: two images, mask, distance, seeds, queue, ids (142 measured), or of ids by rank (138)
)
_SECTION_BYTES = 150  # a pixel, of warping: lists of numbers
MEMORY_BYTES = 8 << 30
GIB = 1 << 30


@dataclass(frozen=True)
class Evidence:
    """Counts of one pair; what no score asked for is None or empty.

    Args:
        foreground: of masks 0 and 1.
        classes: of class numbers; of masks where only one of the images holds classes.
        instances: of ids.
        pixels: at every threshold.
        pixels_at: at the one threshold.
        components: a table for each section and threshold, of connected components.
        thinned: the same, of components with thinned borders.
        warping: share of wrong pixels, one a section; those that are ignored everywhere have none, here and elsewhere.
        splits_mergers: share of pixels that split or merge, for each section and threshold.
        meaning: of the numbers.
    """

    meaning: Meaning
    foreground: Contingency
    classes: Contingency
    instances: Contingency
    pixels: PixelCounts | None = None
    pixels_at: PixelCounts | None = None
    components: list[list[Contingency]] = field(default_factory=list)
    thinned: list[list[Contingency]] = field(default_factory=list)
    warping: list[float] = field(default_factory=list)
    splits_mergers: list[list[float]] = field(default_factory=list)


def gather(pair: Pair, needs: Iterable[Need], memory_bytes: int = MEMORY_BYTES) -> Evidence:
    """Count what scores need of a pair.

    Args:
        pair: of images.
        needs: of the scores.
        memory_bytes: that sections and whole images may take.

    Raises:
        MemoryBudgetError: if an image, or a section, is too large to be held; blocks never are.
        InputError: naming the pair, if its values are not what they are said to be.
    """
    wanted = set(needs)
    check_memory(pair, wanted, memory_bytes)
    try:
        return _gather(pair, wanted)
    except VolumeError:  # names the image
        raise
    except InputError as error:
        raise InputError(f"{pair.name}: {error}") from error


def _gather(pair: Pair, wanted: set[Need]) -> Evidence:
    found = _by_block(pair, wanted)
    if "instances" in wanted and not pair.meaning.ids_are_given:
        found = replace(found, instances=_instances(pair))
    if wanted & BY_SECTION:
        for box in pair.section_boxes():
            _add_section(pair, box, wanted, found)
    return found


def check_memory(pair: Pair, needs: Iterable[Need], memory_bytes: int = MEMORY_BYTES) -> None:
    """Refuse what would not fit.

    Raises:
        MemoryBudgetError: with both numbers.
    """
    wanted = set(needs)
    whole, section = prod(pair.shape) * _INSTANCE_BYTES, prod(pair.shape[-2:]) * _SECTION_BYTES
    if "instances" in wanted and not pair.meaning.ids_are_given and whole > memory_bytes:
        raise MemoryBudgetError(
            f"Instances of {pair.prediction.url} ({pair.shape} voxels) need the whole image in memory, {whole / GIB:.1f} GiB, "
            f"and {memory_bytes / GIB:.1f} GiB may be used; allow more with --memory-gib, score --by-section, or give ids for both."
        )
    if wanted & BY_SECTION and section > memory_bytes:
        raise MemoryBudgetError(
            f"Scores of whole sections need {section / GIB:.1f} GiB for one of {pair.shape[-2:]} pixels, and "
            f"{memory_bytes / GIB:.1f} GiB may be used; allow more with --memory-gib, or score a part of the image."
        )


def _by_block(pair: Pair, wanted: set[Need]) -> Evidence:
    meaning, options = pair.meaning, pair.meaning.options
    foreground, classes, instances = [], [], []
    pixels: PixelCounts | None = None
    pixels_at: PixelCounts | None = None
    has_ids = "instances" in wanted and meaning.ids_are_given
    for box in pair.blocks() if wanted & BY_BLOCK or has_ids else ():
        predicted, truth = pair.read(box)
        inside = meaning.reference_foreground(truth)
        if wanted & BY_BLOCK:
            foreground.append(Contingency.of(meaning.predicted_foreground(predicted), inside, ignore=-1))
        if "classes" in wanted and meaning.has_classes:
            classes.append(Contingency.of(predicted, truth, options.ignore))
        if has_ids:
            instances.append(Contingency.of(predicted, truth, options.ignore))
        if "pixels" in wanted:
            values = meaning.predicted_map(predicted)
            pixels = _sum(pixels, PixelCounts.of(values, inside, options.thresholds, ignore=-1))
            pixels_at = _sum(pixels_at, PixelCounts.of(values, inside, (options.threshold,), ignore=-1))
    whole = Contingency.merge(foreground)
    by_class = Contingency.merge(classes) if meaning.has_classes else whole
    return Evidence(meaning, whole, by_class, Contingency.merge(instances), pixels, pixels_at)


def _sum(total: PixelCounts | None, part: PixelCounts) -> PixelCounts:
    return part if total is None else total + part


def _instances(pair: Pair) -> Contingency:
    meaning = pair.meaning
    predicted, truth = pair.read(Box.from_shape(pair.shape))
    voxel_size = pair.prediction.voxel_size or pair.reference.voxel_size
    kept = ~meaning.is_ignored(truth)
    ids, references = meaning.predicted_instances(predicted, voxel_size), meaning.reference_instances(truth)
    return Contingency.of(ids[kept], references[kept])


def _add_section(pair: Pair, box: Box, wanted: set[Need], found: Evidence) -> None:
    meaning, options = pair.meaning, pair.meaning.options
    predicted, truth = (values.reshape(box.shape[-2:]) for values in pair.read(box))
    values, inside = meaning.predicted_map(predicted), meaning.reference_foreground(truth)
    if (inside < 0).all():
        return  # nothing of it counts
    if "components" in wanted:
        found.components.extend(pair_tables(values, inside, -1, options.thresholds, thin=False))
    if "thinned" in wanted:
        found.thinned.extend(pair_tables(values, inside, -1, options.thresholds, thin=True))
    if "warping" in wanted:
        found.warping.append(float(warp_sections(values, inside, options.threshold, -1)[0].mismatches.mean()))
    if "splits_mergers" in wanted:
        warped = [warp_sections(values, inside, level, -1)[0] for level in options.thresholds]
        found.splits_mergers.append([float(splits_and_mergers(section).mean()) for section in warped])


def pool(parts: Sequence[Evidence]) -> Evidence:
    """Counts of several images together, as if they lay side by side; instances of different images stay different.

    Sections are not pooled: their scores are means already.
    """
    tables, predictions, references = [], 0, 0
    for part in parts:
        table = part.instances
        ranks = [_shifted(table.prediction, predictions), _shifted(table.reference, references)]
        tables.append(Contingency(ranks[1], ranks[0], table.counts))
        predictions += len(table.prediction_sums[0])
        references += len(table.reference_sums[0])
    first = parts[0]
    pixels, pixels_at = first.pixels, first.pixels_at
    for part in parts[1:]:
        pixels = part.pixels and _sum(pixels, part.pixels)
        pixels_at = part.pixels_at and _sum(pixels_at, part.pixels_at)
    foreground = Contingency.merge(part.foreground for part in parts)
    classes = Contingency.merge(part.classes for part in parts)
    return Evidence(first.meaning, foreground, classes, Contingency.merge(tables), pixels, pixels_at)


def _shifted(numbers: np.ndarray, offset: int) -> np.ndarray:
    """Small numbers from ``offset + 1`` in place of ids; 0 stays."""
    _, ranks = np.unique(numbers, return_inverse=True)
    return np.where(numbers == 0, 0, ranks + offset + 1).astype(np.uint64)

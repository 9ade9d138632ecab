"""The scores by name: what each says, in words, and how it follows from what was counted. A new one is one entry here."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import nan
from typing import Literal

from unet_core.errors import InputError
from unet_core.evaluation.evidence import Evidence, Need
from unet_core.metrics.maps import Average, best_over_thresholds
from unet_core.metrics.objects import panoptic_quality_of, seg_of
from unet_core.metrics.overlap import dice_of, fcn_scores_of, iou_of
from unet_core.metrics.partitions import adapted_rand_of, rand_2012_of, v_info_of, v_rand_of, voi_of
from unet_core.metrics.warping import mean_of_sections

Values = dict[str, float]


@dataclass(frozen=True)
class Metric:
    """A score, or several that belong together.

    Args:
        needs: what must be counted for it.
        best: which values are better.
        adds_up: whether images can be pooled, besides the mean of their scores.
        definitions: of each value, by its name.
        measure: its values, by name.
        needs_foreground: whether it means nothing without reference instances.
    """

    needs: Need
    best: Literal["high", "low"]
    adds_up: bool
    definitions: dict[str, str]
    measure: Callable[[Evidence], Values]
    needs_foreground: bool = False

    def values(self, evidence: Evidence) -> Values:
        """Its values; NaN where they mean nothing."""
        empty = {"foreground": not evidence.foreground.voxels, "classes": not evidence.foreground.voxels}
        if empty.get(self.needs) or (self.needs_foreground and not (evidence.instances.reference != 0).any()):
            return dict.fromkeys(self.definitions, float("nan"))
        return self.measure(evidence)


def _adapted_rand(evidence: Evidence) -> Values:
    score = adapted_rand_of(evidence.instances)
    return {"adapted_rand_error": score.error, "adapted_rand_precision": score.precision, "adapted_rand_recall": score.recall}


def _v_rand(evidence: Evidence) -> Values:
    score = v_rand_of(evidence.instances).score
    return {"v_rand": score.f_score, "v_rand_precision": score.precision, "v_rand_recall": score.recall}


def _v_info(evidence: Evidence) -> Values:
    score = v_info_of(evidence.instances).score
    return {"v_info": score.f_score, "v_info_precision": score.precision, "v_info_recall": score.recall}


def _voi(evidence: Evidence) -> Values:
    found = voi_of(evidence.instances)
    return {"voi_split": found.split, "voi_merge": found.merge}


def _panoptic_quality(evidence: Evidence) -> Values:
    found = panoptic_quality_of(evidence.instances)
    return {"pq": found.pq, "sq": found.sq, "rq": found.rq}


def _pixel_error_max_f(evidence: Evidence) -> Values:
    assert evidence.pixels is not None
    return {"pixel_error_max_f": evidence.pixels.max_f_error}


def _pixel_error_fiji(evidence: Evidence) -> Values:
    assert evidence.pixels_at is not None
    return {"pixel_error_fiji": evidence.pixels_at.squared_difference}


def _average(evidence: Evidence, usual: Average) -> Average:
    return evidence.meaning.options.average or usual


METRICS: dict[str, Metric] = {
    "iou": Metric(
        "foreground",
        "high",
        True,
        {"iou": "foreground: TP / (TP + FP + FN)"},
        lambda evidence: {"iou": iou_of(evidence.foreground)},
    ),
    "dice": Metric(
        "foreground",
        "high",
        True,
        {"dice": "foreground: 2 TP / (2 TP + FP + FN)"},
        lambda evidence: {"dice": dice_of(evidence.foreground)},
    ),
    "pixel_accuracy": Metric(
        "classes",
        "high",
        True,
        {"pixel_accuracy": "share of voxels with the right class"},
        lambda evidence: {"pixel_accuracy": fcn_scores_of(evidence.classes).pixel_accuracy},
    ),
    "mean_accuracy": Metric(
        "classes",
        "high",
        True,
        {"mean_accuracy": "share of a class's voxels that are right, mean over the classes of the reference"},
        lambda evidence: {"mean_accuracy": fcn_scores_of(evidence.classes).mean_accuracy},
    ),
    "mean_iu": Metric(
        "classes",
        "high",
        True,
        {"mean_iu": "IoU of a class, mean over the classes of either, background among them"},
        lambda evidence: {"mean_iu": fcn_scores_of(evidence.classes).mean_iu},
    ),
    "frequency_weighted_iu": Metric(
        "classes",
        "high",
        True,
        {"frequency_weighted_iu": "IoU of a class, weighted by its voxels in the reference"},
        lambda evidence: {"frequency_weighted_iu": fcn_scores_of(evidence.classes).frequency_weighted_iu},
    ),
    "pixel_error_max_f": Metric(
        "pixels",
        "low",
        True,
        {"pixel_error_max_f": "1 - best F-score of foreground pixels over thresholds (ISBI 2012)"},
        _pixel_error_max_f,
    ),
    "pixel_error_fiji": Metric(
        "pixels",
        "low",
        True,
        {"pixel_error_fiji": "share of pixels on the wrong side of the one threshold (Fiji)"},
        _pixel_error_fiji,
    ),
    "rand_error_2012": Metric(
        "components",
        "low",
        False,
        {"rand_error_2012": "1 - best Rand F-score over thresholds, unthinned components of sections (ISBI 2012)"},
        lambda evidence: {
            "rand_error_2012": 1 - best_over_thresholds(evidence.components, rand_2012_of, _average(evidence, "micro"))
        },
    ),
    "v_rand_thinned": Metric(
        "thinned",
        "high",
        False,
        {"v_rand_thinned": "best V_rand over thresholds, borders thinned, sections (ISBI 2015)"},
        lambda evidence: {"v_rand_thinned": best_over_thresholds(evidence.thinned, v_rand_of, _average(evidence, "macro"))},
    ),
    "v_info_thinned": Metric(
        "thinned",
        "high",
        False,
        {"v_info_thinned": "best V_info over thresholds, borders thinned, sections (ISBI 2015)"},
        lambda evidence: {"v_info_thinned": best_over_thresholds(evidence.thinned, v_info_of, _average(evidence, "macro"))},
    ),
    "warping_error": Metric(
        "warping",
        "low",
        False,
        {"warping_error": "share of pixels that still differ when the reference is warped without change of topology"},
        lambda evidence: {"warping_error": mean_of_sections(evidence.warping)},
    ),
    "warping_error_splits_mergers": Metric(
        "splits_mergers",
        "low",
        False,
        {"warping_error_splits_mergers": "of these, pixels that split or merge objects, least over thresholds (ISBI 2012)"},
        lambda evidence: {
            "warping_error_splits_mergers": min(map(mean_of_sections, zip(*evidence.splits_mergers, strict=True)), default=nan)
        },
    ),
    "adapted_rand": Metric(
        "instances",
        "low",
        False,
        {
            "adapted_rand_error": "1 - F-score of pairs of voxels that belong together (as in scikit-image)",
            "adapted_rand_precision": "of the pairs kept together, those that belong together; low: merged",
            "adapted_rand_recall": "of the pairs that belong together, those kept together; low: split",
        },
        _adapted_rand,
        needs_foreground=True,
    ),
    "v_rand": Metric(
        "instances",
        "high",
        False,
        {
            "v_rand": "F-score of pairs n^2, predicted background in segments of one voxel, unthinned",
            "v_rand_precision": "its precision; low: merged",
            "v_rand_recall": "its recall; low: split",
        },
        _v_rand,
        needs_foreground=True,
    ),
    "v_info": Metric(
        "instances",
        "high",
        False,
        {
            "v_info": "harmonic mean of the shares of entropy explained, unthinned",
            "v_info_precision": "of the reference's entropy; low: merged",
            "v_info_recall": "of the prediction's entropy; low: split",
        },
        _v_info,
        needs_foreground=True,
    ),
    "voi": Metric(
        "instances",
        "low",
        False,
        {
            "voi_split": "H(prediction given reference) in bits: what is cut apart",
            "voi_merge": "H(reference given prediction) in bits: what is joined",
        },
        _voi,
        needs_foreground=True,
    ),
    "seg": Metric(
        "instances",
        "high",
        True,
        {"seg": "IoU of each reference object with what covers over half of it, else 0 (Cell Tracking Challenge)"},
        lambda evidence: {"seg": seg_of(evidence.instances).score},
    ),
    "pq": Metric(
        "instances",
        "high",
        True,
        {
            "pq": "panoptic quality SQ x RQ, objects match at IoU > 0.5",
            "sq": "mean IoU of the matched objects",
            "rq": "TP / (TP + FP / 2 + FN / 2) of objects",
        },
        _panoptic_quality,
    ),
}


def check_metrics(names: Sequence[str]) -> tuple[str, ...]:
    """The names without repetition.

    Raises:
        InputError: if one is unknown, with the nearest that is known.
    """
    for name in names:
        if name not in METRICS:
            near = difflib.get_close_matches(name, METRICS, n=1, cutoff=0.4)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise InputError(f"There is no metric '{name[:60]}'.{hint} There are {', '.join(METRICS)}.")
    if not names:
        raise InputError(f"No metric is named; there are {', '.join(METRICS)}.")
    return tuple(dict.fromkeys(names))


def definition_of(value: str) -> tuple[str, Literal["high", "low"], bool]:
    """Of one value: its definition, which is better, and whether images can be pooled."""
    metric = next(metric for metric in METRICS.values() if value in metric.definitions)
    best: Literal["high", "low"] = "low" if metric.best == "low" and not value.endswith(("precision", "recall")) else "high"
    return metric.definitions[value], best, metric.adds_up

"""Scores of a prediction against a reference; arrays in, numbers out. Knows no torch.

    overlap     iou dice fcn_scores                               classes and masks
    partitions  adapted_rand rand_2012 v_rand v_info voi          which voxels belong together
    objects     seg panoptic_quality                              one object at a time
    maps        pixel_error_max_f pixel_error_fiji rand_error_2012 v_rand_thinned v_info_thinned
    warping     warping_error warping_error_splits_mergers        topology, section by section

Those of the first three take a contingency table too (``iou_of(table)``), which adds up over blocks.
"""

from unet_core.metrics.contingency import Contingency
from unet_core.metrics.intervals import bootstrap_interval
from unet_core.metrics.maps import (
    pixel_error_fiji,
    pixel_error_max_f,
    rand_error_2012,
    v_info_thinned,
    v_rand_thinned,
)
from unet_core.metrics.objects import PanopticQuality, Seg, panoptic_quality, seg
from unet_core.metrics.overlap import FcnScores, dice, fcn_scores, iou
from unet_core.metrics.partitions import InformationScore, PairScore, Voi, adapted_rand, rand_2012, v_info, v_rand, voi
from unet_core.metrics.warping import warping_error, warping_error_splits_mergers

__all__ = [
    "Contingency",
    "FcnScores",
    "InformationScore",
    "PairScore",
    "PanopticQuality",
    "Seg",
    "Voi",
    "adapted_rand",
    "bootstrap_interval",
    "dice",
    "fcn_scores",
    "iou",
    "panoptic_quality",
    "pixel_error_fiji",
    "pixel_error_max_f",
    "rand_2012",
    "rand_error_2012",
    "seg",
    "v_info",
    "v_info_thinned",
    "v_rand",
    "v_rand_thinned",
    "voi",
    "warping_error",
    "warping_error_splits_mergers",
]

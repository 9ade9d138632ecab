"""Instances from masks and maps, in memory: arrays in, ids out. Knows no torch, no blocks and no storage."""

from unet_core.postprocess.components import connected_components, in_scan_order, remove_small
from unet_core.postprocess.watershed import (
    LEARNT_DEPTH,
    distance_to_background,
    seeds_by_distance,
    seeds_by_h_maxima,
    watershed_on_boundaries,
    watershed_on_distance,
    watershed_on_learnt_distance,
)

__all__ = [
    "LEARNT_DEPTH",
    "connected_components",
    "distance_to_background",
    "in_scan_order",
    "remove_small",
    "seeds_by_distance",
    "seeds_by_h_maxima",
    "watershed_on_boundaries",
    "watershed_on_distance",
    "watershed_on_learnt_distance",
]

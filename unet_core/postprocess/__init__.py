"""Instances from masks and maps: arrays in, ids out, in memory and in blocks. Knows no torch and no storage."""

from unet_core.postprocess.affinities import watershed_on_affinities
from unet_core.postprocess.components import connected_components, in_scan_order, remove_small
from unet_core.postprocess.watershed import (
    BOUNDARY_DEPTH,
    LEARNT_DEPTH,
    divide,
    watershed_on_boundaries,
    watershed_on_distance,
    watershed_on_learnt_distance,
)

__all__ = [
    "BOUNDARY_DEPTH",
    "LEARNT_DEPTH",
    "connected_components",
    "divide",
    "in_scan_order",
    "remove_small",
    "watershed_on_affinities",
    "watershed_on_boundaries",
    "watershed_on_distance",
    "watershed_on_learnt_distance",
]

"""Columns of the shape of objects, named and computed as by ``skimage.measure.regionprops``: lengths in micrometre. Arrays only."""

from __future__ import annotations

from math import pi, prod

import numpy as np
from numpy.typing import NDArray

from unet_core.measuring.columns import Column, Measured
from unet_core.measuring.exact import quotient
from unet_core.measuring.perimeter import WEIGHTS
from unet_core.measuring.rows import Rows

Numbers = NDArray[np.float64]

_AXES = "axis of the ellipse (ellipsoid in 3D) with the object's second moments"


def shape_columns(measured: Measured, rows: Rows) -> dict[str, Column]:
    """Of objects in 2D or 3D; in voxels, named so, where the voxel size is not known."""
    dims = len(measured.axes)
    spacing = measured.voxel_size_um or (1.0,) * dims
    unit = "um" if measured.voxel_size_um else "voxels"
    size = rows.voxels * prod(spacing)
    moments = _flat(rows, spacing) if dims == 2 else _solid(rows, spacing)
    diameter = (2 * dims * size / pi) ** (1 / dims)
    columns = {
        f"axis_major_length_{unit}": Column(moments["major"], unit, f"Longest {_AXES}."),
        f"axis_minor_length_{unit}": Column(moments["minor"], unit, f"Shortest {_AXES}."),
        f"equivalent_diameter_area_{unit}": Column(diameter, unit, "Diameter of the circle (sphere in 3D) of the object's size."),
        "extent": Column(
            rows.voxels / np.prod(rows.stop - rows.start, axis=1), "", "Part of the smallest box that the object fills."
        ),
    }
    if dims == 3:
        return columns
    turns = rows.total(rows.sums["turns"])
    # No matrix product, which may add in another order with more threads.
    steps = sum((turns[:, turn] * weight for turn, weight in enumerate(WEIGHTS)), start=np.zeros(len(turns)))
    perimeter = steps * (spacing[0] if spacing[0] == spacing[1] else np.nan)
    with np.errstate(divide="ignore"):
        circularity = np.where(perimeter > 0, 4 * pi * size / perimeter**2, np.nan)
    return columns | {
        "eccentricity": Column(moments["eccentricity"], "", "Of the ellipse with the object's second moments: 0 for a circle."),
        "orientation": Column(
            moments["orientation"], "rad", "Angle from y to the longest axis of that ellipse, counter-clockwise."
        ),
        f"perimeter_{unit}": Column(perimeter, unit, "Length of the border; none where voxels are not square."),
        "circularity": Column(circularity, "", "4 pi area / perimeter^2: 1 for a circle, noisy for objects of few voxels."),
    }


def _flat(rows: Rows, spacing: tuple[float, ...]) -> dict[str, Numbers]:
    """Axes, eccentricity and orientation of the ellipse with the same second moments."""
    (y, x), count = spacing, rows.voxels.astype(object) ** 2
    exact = rows.covariances
    along_y, across, along_x = (
        quotient(exact[pair], count) * step for pair, step in (((0, 0), y * y), ((0, 1), y * x), ((1, 1), x * x))
    )
    middle, half = (along_y + along_x) / 2, (along_y - along_x) / 2
    large = middle + np.sqrt(half * half + across * across)
    # The smaller eigenvalue by the determinant, whose difference is taken in integers: 0 for a line, and no noise.
    determinant = quotient(exact[0, 0] * exact[1, 1] - exact[0, 1] * exact[0, 1], count * count) * (y * x) ** 2
    small = np.divide(determinant, large, out=np.zeros_like(large), where=large > 0)
    ratio = np.divide(small, large, out=np.ones_like(large), where=large > 0)
    straight = np.where(across > 0, pi / 4, -pi / 4)
    orientation = np.where(half == 0, straight, 0.5 * np.arctan2(2 * across, along_y - along_x))
    return {
        "major": 4 * np.sqrt(large),
        "minor": 4 * np.sqrt(small),
        "eccentricity": np.sqrt(np.maximum(1 - ratio, 0.0)),
        "orientation": orientation,
    }


def _solid(rows: Rows, spacing: tuple[float, ...]) -> dict[str, Numbers]:
    """Longest and shortest axis of the ellipsoid with the same second moments."""
    count, exact = rows.voxels.astype(object) ** 2, rows.covariances
    covariance = np.empty((len(rows.firsts), 3, 3))
    for (a, b), values in exact.items():
        covariance[:, a, b] = covariance[:, b, a] = quotient(values, count) * (spacing[a] * spacing[b])
    values = np.maximum(np.linalg.eigvalsh(covariance), 0.0)
    # An ellipsoid of semi-axis r has variance r^2 / 5 along it.
    return {"major": 2 * np.sqrt(5 * values[:, 2]), "minor": 2 * np.sqrt(5 * values[:, 0])}

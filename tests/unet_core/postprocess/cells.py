"""Cells that touch, as a microscope shows them, with what a network would say of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from unet_core.training.object_distance import signed_distance


@dataclass(frozen=True)
class Cells:
    """Balls of unequal size, many of them flattened where they meet; ``ids`` of 0 is background."""

    ids: np.ndarray
    learnt_distance: np.ndarray
    foreground_map: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        return self.ids > 0


def touching_cells(shape: tuple[int, ...], seed: int, radius: float = 8.0, voxel_size: tuple[float, ...] | None = None) -> Cells:
    """Cells in about half of the image, with noise of the network in both maps.

    Args:
        radius: of most cells, in the unit of the voxel size.
        voxel_size: along each axis; 1 unless told.
    """
    random = np.random.default_rng(seed)
    spacing = np.array(voxel_size or (1.0,) * len(shape))
    extent = np.array(shape) * spacing
    volume = np.pi * radius**2 if len(shape) == 2 else 4 / 3 * np.pi * radius**3
    centres = random.uniform(0, extent, (round(0.9 * np.prod(extent) / volume), len(shape)))
    kept: list[np.ndarray] = []
    for centre in centres:
        if all(np.linalg.norm(centre - other) > 1.5 * radius for other in kept):
            kept.append(centre)
    places = np.stack(
        np.meshgrid(*(step * np.arange(size) for step, size in zip(spacing, shape, strict=True)), indexing="ij"), -1
    )
    distances = np.stack([np.linalg.norm(places - centre, axis=-1) / random.uniform(0.75, 1.15) for centre in kept])
    ids = np.where(distances.min(axis=0) < radius, distances.argmin(axis=0) + 1, 0)
    away, _ = signed_distance(ids, 4 * radius, tuple(spacing))
    rough = ndimage.gaussian_filter(random.normal(size=shape), 1.0)
    learnt = np.tanh(away / (radius / 2)) + 0.05 * rough / rough.std()
    foreground = np.clip(1 / (1 + np.exp(-4 * away / radius)) + 0.02 * rough / rough.std(), 0, 1)
    return Cells(ids, learnt.astype(np.float32), foreground.astype(np.float32))


def true_affinities(ids: np.ndarray, offsets: tuple[tuple[int, ...], ...]) -> np.ndarray:
    """As a training makes them of ids."""
    found = np.zeros((len(offsets), *ids.shape), dtype=np.float32)
    for number, offset in enumerate(offsets):
        far = max(map(abs, offset))
        padded = np.pad(ids, far)
        there = tuple(slice(far + step, far + step + size) for step, size in zip(offset, ids.shape, strict=True))
        found[number] = (ids == padded[there]) & (ids > 0)
    return found

"""Random deformation and colour of crops, the same for image, labels and weights where it moves them. Knows no storage.

Shapes: C channels, Y, X.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.color import hed2rgb, rgb2hed

GRID_POINTS = 3  # Ronneberger et al. 2015, section 3.1: "random displacement vectors on a coarse 3 by 3 grid"


@dataclass(frozen=True)
class Augmentation:
    """Ranges that each crop draws from.

    Args:
        deformation: std of the elastic displacements, in voxels; 10 in the paper.
        scale: smallest and largest magnification.
        rotate: turn by any angle, and mirror.
        gamma: largest exponent of the brightness curve; its inverse is the smallest.
        stain: std of the factors on haematoxylin and eosin; 0 for none. RGB only.
        colour: std of gain and offset of each channel, relative to the range of intensities.
        noise: largest std of additive noise, relative to that range.
        blur: largest sigma of a Gaussian blur, in voxels.
    """

    deformation: float = 10.0
    scale: tuple[float, float] = (0.8, 1.25)
    rotate: bool = True
    gamma: float = 1.3
    stain: float = 0.0
    colour: float = 0.05
    noise: float = 0.03
    blur: float = 1.0


def sample_positions(
    shape: tuple[int, int], centre: tuple[float, float], options: Augmentation, random: np.random.Generator
) -> NDArray[np.float32]:
    """Where each voxel of a crop comes from, (2, Y, X) in voxels of the image: rotation, mirroring, scale, elastic deformation.

    The deformation is that of Ronneberger et al. 2015, section 3.1: Gaussian displacements on a 3x3 grid over the crop,
    interpolated bicubically.
    """
    grid = np.stack(np.meshgrid(*(np.arange(size) - (size - 1) / 2 for size in shape), indexing="ij")).astype(np.float64)
    angle = random.uniform(0, 2 * np.pi) if options.rotate else 0.0
    mirror = random.choice([-1.0, 1.0]) if options.rotate else 1.0
    magnification = np.exp(random.uniform(*np.log(options.scale)))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ np.diag([mirror, 1.0])
    positions = np.tensordot(turn / magnification, grid, axes=1)
    displacements = random.normal(0.0, options.deformation, size=(2, GRID_POINTS, GRID_POINTS))
    if options.deformation:
        positions += elastic_field(displacements, shape)
    return (positions + np.asarray(centre).reshape(2, 1, 1)).astype(np.float32)


def elastic_field(displacements: NDArray[np.floating], shape: tuple[int, int]) -> NDArray[np.float64]:
    """Displacements on a coarse grid that spans the crop, interpolated bicubically to every voxel.

    Args:
        displacements: (2, rows, columns), in voxels; the first and last row lie on the crop's edges.
        shape: of the crop.

    Returns:
        Array of shape (2, *shape).
    """
    rows, columns = displacements.shape[1:]
    coordinates = np.meshgrid(np.linspace(0, rows - 1, shape[0]), np.linspace(0, columns - 1, shape[1]), indexing="ij")
    return np.stack([ndimage.map_coordinates(part, coordinates, order=3, mode="nearest") for part in displacements])


def warp(image: NDArray[Any], positions: NDArray[np.float32], order: int) -> NDArray[np.float32]:
    """``image`` (C, Y, X) read at ``positions`` (2, Y, X), mirrored outside; order 1 for intensities, 0 for labels."""
    return np.stack([ndimage.map_coordinates(channel, positions, order=order, mode="mirror") for channel in image]).astype(
        np.float32
    )


def recolour(image: NDArray[np.float32], span: float, options: Augmentation, random: np.random.Generator) -> NDArray[np.float32]:
    """Another exposure, stain, noise and focus of a crop.

    Args:
        image: (C, Y, X) in 0..span.
        span: the largest intensity.
        options: ranges.
        random: generator.
    """
    result = np.clip(image / span, 0, 1)
    if options.stain and len(result) == 3:
        stains = rgb2hed(np.moveaxis(result, 0, -1))
        stains *= random.normal(1.0, options.stain, size=3)
        result = np.moveaxis(hed2rgb(stains), -1, 0).astype(np.float32)
    result = np.clip(result, 0, 1) ** np.exp(random.uniform(-1, 1) * np.log(options.gamma))
    gains = random.normal(1.0, options.colour, size=(len(result), 1, 1))
    offsets = random.normal(0.0, options.colour, size=(len(result), 1, 1))
    result = result * gains + offsets
    if options.blur and random.random() < 0.3:
        result = ndimage.gaussian_filter(result, (0, *(random.uniform(0, options.blur),) * 2))
    result = result + random.normal(0.0, 1.0, size=result.shape) * random.uniform(0, options.noise)
    return (np.clip(result, 0, 1) * span).astype(np.float32)

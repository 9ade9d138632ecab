"""Arrays as colours: intensities to RGB, outlines over them, and the bytes of a picture file. Knows no volume."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.segmentation import find_boundaries

Rgb = NDArray[np.uint8]  # (Y, X, 3)

SHOWN_PERCENTILES = (0.5, 99.5)
_JPEG_QUALITY = 88


@dataclass(frozen=True)
class Contrast:
    """The intensities that are drawn black and white."""

    low: float
    high: float


def contrast_of(values: NDArray[Any], dtype: np.dtype[Any]) -> Contrast:
    """How an image is shown: 8-bit colour as stored, anything else from its 0.5th to its 99.5th percentile.

    Args:
        values: of shape (C, ...), such as a coarse overview.
        dtype: of the image as stored.
    """
    if dtype == np.uint8 and len(values) >= 3:
        return Contrast(0.0, 255.0)
    low, high = np.percentile(values[:3], SHOWN_PERCENTILES)
    return Contrast(float(low), float(high))


def to_rgb(values: NDArray[Any], contrast: Contrast) -> Rgb:
    """(Y, X, 3) of intensities (C, Y, X): the first three channels as colours, else the first one as gray."""
    chosen = values[:3] if len(values) >= 3 else np.repeat(values[:1], 3, axis=0)
    span = max(contrast.high - contrast.low, 1e-6)
    scaled = (chosen.astype(np.float32) - contrast.low) * (255 / span)
    return np.ascontiguousarray(np.moveaxis(np.rint(scaled.clip(0, 255)).astype(np.uint8), 0, -1))


def gray(shares: NDArray[Any]) -> Rgb:
    """(Y, X, 3) of numbers from 0 (black) to 1 (white), of shape (Y, X)."""
    return to_rgb(shares[None], Contrast(0.0, 1.0))


def dimmed(rgb: Rgb, where: NDArray[np.bool_], to: int = 0, strength: float = 0.65) -> Rgb:
    """The picture with what is marked drawn nearer to a gray (0 black, 255 white)."""
    mixed = rgb * (1 - strength) + to * strength
    return np.where(where[..., None], np.rint(mixed).astype(np.uint8), rgb)


def edges_of(objects: NDArray[Any]) -> NDArray[np.bool_]:
    """The outermost voxels of every object, of a mask or of ids (Y, X)."""
    return np.asarray(find_boundaries(objects, mode="inner"))


@dataclass(frozen=True)
class Drawing:
    """A picture and what is drawn over it, still apart.

    Args:
        rgb: of shape (Y, X, 3).
        drawn: of shape (Y, X): 0 where the picture shows, else the number of a colour, from 1 on.
        colors: ``#rrggbb``, at most 255.
    """

    rgb: Rgb
    drawn: NDArray[np.uint8]
    colors: tuple[str, ...]

    @classmethod
    def of(cls, rgb: Rgb, marks: Sequence[tuple[NDArray[np.bool_], str]]) -> Drawing:
        """Masks over a picture, each in its colour; the last one on top."""
        drawn = np.zeros(rgb.shape[:2], dtype=np.uint8)
        for number, (mask, _) in enumerate(marks, 1):
            drawn[mask] = number
        return cls(rgb, drawn, tuple(color for _, color in marks))

    def flat(self) -> Rgb:
        """Both together."""
        table = np.array([(0, 0, 0), *(components(color) for color in self.colors)], dtype=np.uint8)
        return np.where((self.drawn > 0)[..., None], table[self.drawn], self.rgb)

    def overlay_png(self) -> bytes:
        """What is drawn, on nothing: a PNG of a palette whose first colour is transparent."""
        picture = Image.fromarray(self.drawn, mode="P")
        picture.putpalette(bytes([0, 0, 0, *(value for color in self.colors for value in components(color))]))
        return _saved(picture, format="PNG", transparency=0, optimize=True)


def components(color: str) -> tuple[int, int, int]:
    """Red, green and blue of ``#rrggbb``."""
    red, green, blue = bytes.fromhex(color[1:])
    return red, green, blue


def jpeg(rgb: Rgb, quality: int = _JPEG_QUALITY) -> bytes:
    """The bytes of a JPEG; thin coloured lines keep their colour."""
    return _saved(Image.fromarray(rgb), format="JPEG", quality=quality, subsampling=0, optimize=True)


def _saved(picture: Image.Image, **options: Any) -> bytes:
    target = io.BytesIO()
    picture.save(target, **options)
    return target.getvalue()

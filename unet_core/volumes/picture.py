"""PNG and JPEG as volumes: decoded whole, so meant for images that fit in memory."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from unet_core.errors import VolumeError
from unet_core.store import local_path
from unet_core.volumes.array import ArrayVolume
from unet_core.volumes.protocol import Selection, Volume, choose_channels, rgb_channels
from unet_core.volumes.single_file import fingerprint

_PLAIN_MODES = ("L", "LA", "RGB", "RGBA", "I;16", "I;16B", "I", "F")


class _PictureVolume(ArrayVolume):
    def fingerprint(self) -> dict[str, str]:
        return fingerprint(local_path(self.url))


def open_picture(url: str, selection: Selection) -> Volume:
    """Open a PNG or JPEG as stored: gray as ``yx``, colour as ``cyx``; palettes become RGB, an alpha channel that hides nothing is left out.

    Raises:
        VolumeError: if it cannot be decoded.
    """
    if selection.level or selection.series or selection.time:
        raise VolumeError(f"{url} is a single picture; leave --level, --series and --time away.")
    values = _decode(local_path(url), url)
    if values.ndim == 3 and values.shape[-1] in (2, 4) and (values[..., -1] == np.iinfo(values.dtype).max).all():
        values = values[..., 0] if values.shape[-1] == 2 else values[..., :3]
    channels = list(choose_channels(selection.channels, 1 if values.ndim == 2 else values.shape[-1], url))
    if values.ndim == 2:
        return _PictureVolume(values, axes="yx", url=url)
    opened = _PictureVolume(np.ascontiguousarray(np.moveaxis(values, -1, 0)[channels]), axes="cyx", url=url)
    opened.layout = replace(opened.layout, channels=rgb_channels(values.shape[-1], tuple(channels)))
    return opened


def _decode(path: Path, url: str) -> NDArray[Any]:
    """The picture's samples, (Y, X) or (Y, X, S)."""
    try:
        with path.open("rb") as file:
            head = file.read(26)
        if head.startswith(b"\x89PNG") and head[24] == 16 and head[25] != 0:  # Pillow cuts 16-bit colours to 8
            colours: NDArray[Any] = imagecodecs.png_decode(path.read_bytes())
            return colours
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning), Image.open(path) as picture:
            values = np.asarray(
                picture if picture.mode in _PLAIN_MODES else picture.convert("L" if picture.mode == "1" else "RGB")
            )
    except PermissionError:
        raise VolumeError(f"permission denied: {url}.") from None
    except Image.DecompressionBombError as error:
        raise VolumeError(f"{url} is too large to be decoded whole ({error}); convert it to tiled TIFF or OME-Zarr.") from error
    except (UnidentifiedImageError, imagecodecs.PngError, OSError, SyntaxError, ValueError) as error:
        raise VolumeError(f"{url} is not a readable picture: {error}; export it again from its original.") from error
    return values.astype(np.uint16) if values.dtype == np.int32 else values  # 16-bit gray PNG in Pillow's mode I

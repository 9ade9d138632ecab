"""PNG and JPEG as volumes: decoded whole, so meant for images that fit in memory."""

from __future__ import annotations

import numpy as np
from PIL import Image, UnidentifiedImageError

from unet_core.errors import VolumeError
from unet_core.store import local_path
from unet_core.volumes.array import ArrayVolume
from unet_core.volumes.protocol import Selection, Volume, choose_channels
from unet_core.volumes.single_file import fingerprint

_PLAIN_MODES = ("L", "RGB", "RGBA", "I;16", "I;16B", "I", "F")


class _PictureVolume(ArrayVolume):
    def fingerprint(self) -> dict[str, str]:
        return fingerprint(local_path(self.url))


def open_picture(url: str, selection: Selection) -> Volume:
    """Open a PNG or JPEG: gray as ``yx``, colour as ``cyx``; palettes become RGB, an alpha channel that hides nothing is left out.

    Raises:
        VolumeError: if it cannot be decoded.
    """
    if selection.level or selection.series or selection.time:
        raise VolumeError(f"{url} is a single picture; leave --level, --series and --time away.")
    try:
        with Image.open(local_path(url)) as picture:
            values = np.asarray(
                picture if picture.mode in _PLAIN_MODES else picture.convert("L" if picture.mode == "1" else "RGB")
            )
    except PermissionError:
        raise VolumeError(f"permission denied: {url}.") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise VolumeError(f"{url} is not a readable picture: {error}.") from error
    if values.dtype == np.int32:  # 16-bit PNG in Pillow's mode I
        values = values.astype(np.uint16)
    if values.ndim == 3 and values.shape[-1] == 4 and (values[..., 3] == 255).all():
        values = values[..., :3]
    channels = list(choose_channels(selection.channels, 1 if values.ndim == 2 else values.shape[-1], url))
    if values.ndim == 2:
        return _PictureVolume(values, axes="yx", url=url)
    return _PictureVolume(np.ascontiguousarray(np.moveaxis(values, -1, 0)[channels]), axes="cyx", url=url)

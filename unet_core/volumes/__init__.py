"""Images as volumes: ``open_volume(url)`` gives one small protocol for every format.

>>> import numpy as np
>>> volume = ArrayVolume(np.arange(12).reshape(3, 4), axes="yx")
>>> volume.shape, volume.read(Box((1, 1), (3, 3)))[0].tolist()
((3, 4), [[5, 6], [9, 10]])
"""

from unet_core.geometry import Box
from unet_core.volumes.array import ArrayVolume
from unet_core.volumes.opening import FORMATS, open_volume
from unet_core.volumes.protocol import Level, Volume, check_intensity_dtype
from unet_core.volumes.reflect import read_reflected

__all__ = ["FORMATS", "ArrayVolume", "Box", "Level", "Volume", "check_intensity_dtype", "open_volume", "read_reflected"]

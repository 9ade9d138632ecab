"""What augmentation can be asked of which data, checked before the first step."""

from __future__ import annotations

from unet_core.errors import InputError
from unet_core.training.options import Augmentation
from unet_core.wording import counted


def check_augmentation(options: Augmentation, dims: int, channels: int) -> None:
    """Refuse what has no meaning for the data.

    Args:
        options: augmentation.
        dims: spatial axes of the network.
        channels: of the image.

    Raises:
        InputError: naming the option.
    """
    if options.scale[0] > options.scale[1]:
        raise InputError(f"augmentation.scale {options.scale} begins above its end; give the smaller number first.")
    if options.order == 3 and dims != 2:
        raise InputError(f"augmentation.order 3 (bicubic) is for 2D networks and this one has {dims} axes; use order 1.")
    if options.rotation_3d and dims != 3:
        raise InputError(f"augmentation.rotation_3d needs 3 axes and the network has {dims}; set it to false.")
    if options.stain and channels != 3:
        raise InputError(f"augmentation.stain is for RGB and the image has {counted(channels, 'channel')}; set it to 0.")

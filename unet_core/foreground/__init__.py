"""Which blocks of an image hold what is looked for: told by a mask, by outlines, or by the tissue of a slide, before any is read."""

from unet_core.foreground.blocks import Foreground, blocks_with_foreground

__all__ = ["Foreground", "blocks_with_foreground"]

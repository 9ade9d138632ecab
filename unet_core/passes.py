"""Which networks see a block, and how it is turned before: one pass for each model and symmetry. Knows no tensors and reads nothing.

What a pass gives for a block is, by definition, what one pass of the network over the whole turned image gives there: the image is
turned first, and what lies beyond its edges is the mirror image of the turned image. That is the result of a run on the turned image,
turned back, so an average is the mean of separate runs, and depends on no block.

A network of stride s has a grid: its pooling windows begin at multiples of s from the origin, which in a turned image is another
corner of the image. A block [a, b) of an axis of size n lies at [n - b, n - a) of the flipped axis, where n - b need not lie on that
grid; so the pass writes from the last multiple of s before it, and what it writes too much is dropped.

    turned image   0 . . . s . . . 2s . . .|. n - b            n - a
                                   |drop   |<------- block ------>|

The mirror image of the turned image is the turned mirror image, so all passes read their voxels from one read box of the image.
"""

from __future__ import annotations

from dataclasses import dataclass

from unet_core.footprint import Footprint
from unet_core.geometry import Box, Shape
from unet_core.sections import join, split
from unet_core.symmetries import Symmetry


@dataclass(frozen=True)
class Pass:
    """One model on the image under one symmetry.

    Args:
        model: number of it, in the order of the job.
        name: of the model and the symmetry, for messages.
        footprint: of the model.
        symmetry: by which the image is turned.
        in_place: for networks whose result depends on the whole box: every tile is turned where it lies, so that its voxels, and
            with them its result, depend on its position alone; it has no grid to keep.
    """

    model: int
    name: str
    footprint: Footprint
    symmetry: Symmetry
    in_place: bool

    def write_box(self, box: Box, image_shape: Shape) -> Box:
        """What the network writes of the turned image for a block or tile of the image; may begin before it."""
        turned = self.symmetry.turned_box(box, image_shape)
        if self.in_place:
            return turned
        start = tuple(first // step * step for first, step in zip(turned.start, self.footprint.stride, strict=True))
        return Box(start, turned.stop)

    def turned_read_box(self, box: Box, image_shape: Shape) -> Box:
        """What the network reads of the turned image for that."""
        return self.footprint.read_box(self.write_box(box, image_shape))

    def read_box(self, box: Box, image_shape: Shape) -> Box:
        """The same voxels in the image."""
        return self.symmetry.box_before(self.turned_read_box(box, image_shape), image_shape)


def read_box_of(passes: tuple[Pass, ...], box: Box, image_shape: Shape) -> Box:
    """The smallest box that holds what every pass reads for a block or tile of an image: it is read once for all of them.

    Of a stack that is seen section by section, the sections of the block and no others.
    """
    dims = passes[0].footprint.dims
    sections, inside = split(box, dims)
    return join(sections, around(tuple(step.read_box(inside, image_shape[-dims:]) for step in passes)))


def around(boxes: tuple[Box, ...]) -> Box:
    """The smallest box that holds some boxes."""
    return Box(
        tuple(map(min, zip(*(box.start for box in boxes), strict=True))),
        tuple(map(max, zip(*(box.stop for box in boxes), strict=True))),
    )

"""How much memory the passes over a block need: networks one after the other, the mean of them, and its readout. Runs nothing."""

from __future__ import annotations

from math import ceil, prod
from typing import Literal

from unet_core.ensemble import Ensemble
from unet_core.foreign.opaque_network import OpaqueNetwork
from unet_core.geometry import Box, Shape
from unet_core.memory import peak_bytes, strip_bytes, weight_bytes
from unet_core.operations import Trace
from unet_core.plan import ImagePlan
from unet_core.streaming import AXIS
from unet_core.strip_memory import StripMemory

READOUT = {"float32": 2, "uint8": 3}  # copies of the probabilities of one part, by what is stored of them
REPEATED = 1.15  # of a pass after others, whose freed memory lies in pieces around the means
AVERAGING = 3  # copies of one part beside the mean: logits, probabilities, and these turned back


class PassMemory:
    """Memory of the passes of an ensemble; keeps what block shapes have in common.

    Args:
        ensemble: of the run.
        image_shape: spatial.
        precision: of the networks' arithmetic.
    """

    def __init__(self, ensemble: Ensemble, image_shape: Shape, precision: Literal["float32", "tf32", "bfloat16"]) -> None:
        self.ensemble, self._image_shape = ensemble, image_shape
        self._element_bytes = 2 if precision == "bfloat16" else 4
        self._weights = [_parameters(package.traced) for package in ensemble.packages]
        self._strips: dict[int, StripMemory] = {}

    @property
    def waiting_bytes(self) -> int:
        """Of the networks, while none of them runs."""
        return weight_bytes(sum(self._weights), self._element_bytes)

    def network_bytes(self, shape: Shape, strip: int | None) -> int:
        """Of the pass that needs most on a block or tile of ``shape``, while the other networks wait."""
        box = Box.from_shape(shape)
        reads = {(step.model, step.turned_read_box(box, self._image_shape).shape) for step in self.ensemble.passes}
        most = max(self._network_bytes(model, read, strip) for model, read in reads)
        return most if len(self.ensemble.passes) == 1 else ceil(REPEATED * most)

    def _network_bytes(self, model: int, read: Shape, strip: int | None) -> int:
        traced = self.ensemble.packages[model].traced
        others = self.waiting_bytes - weight_bytes(self._weights[model], self._element_bytes)
        if strip is None or isinstance(traced, OpaqueNetwork):
            return others + peak_bytes(traced, (self.ensemble.input_channels, *read), self._element_bytes)
        if model not in self._strips:
            self._strips[model] = StripMemory(traced, AXIS, self.ensemble.input_channels)
        return others + strip_bytes(self._strips[model], read, strip, self._element_bytes)

    def readout_bytes(self, images: tuple[ImagePlan, ...], shape: Shape, strip: int | None) -> int:
        """What making values of a block or tile of ``shape`` needs, whose logits come in parts.

        Probabilities are made in float32 and before they are stored. A mean is kept for the whole block, whatever the number of passes.
        """
        part = max(_part_voxels(step.symmetry.turned_shape(shape), strip) for step in self.ensemble.passes)
        stored = [image for image in images if image.kind in ("probabilities", "head")]
        made = sum(4 * READOUT[image.dtype] * (image.channels or 1) * part for image in stored)
        if len(self.ensemble.passes) == 1:
            return made
        head = self.ensemble.description.label_head
        assert head is not None  # planning refuses a model without
        channels = len(head.channels) + sum(image.channels or 1 for image in stored if image.kind == "head")
        return made + 4 * channels * (prod(shape) + AVERAGING * part)


def _part_voxels(shape: Shape, strip: int | None) -> int:
    """Voxels of the largest part: the first and the last may be longer than a strip."""
    return prod(shape) if strip is None else prod(shape) // shape[AXIS] * min(2 * strip, shape[AXIS])


def _parameters(traced: Trace | OpaqueNetwork) -> int:
    parameters = traced.parameters() if isinstance(traced, OpaqueNetwork) else traced.graph.parameters()
    return sum(value.numel() for value in parameters)

"""Images of touching cells whose channels say what a network should say of them, and a network that says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from torch import nn

from tests.conftest import COLORS, describe
from tests.unet_core.postprocess.cells import Cells, touching_cells
from unet_core.model_package import FixedNormalisation, Head, LabelClass, save_model
from unet_core.networks import NETWORKS

HEADS = (Head(kind="classes", channels=(0, 1)), Head(name="distance", kind="distance", channels=(2,), scale=4.0))
CLASSES = (LabelClass(value=0, name="background", color=COLORS[0]), LabelClass(value=1, name="cell", color=COLORS[1]))


class Repeating(nn.Module):
    """From a map of foreground and one of distance the logits of two classes, and the distance."""

    def __init__(self, in_channels: int = 2, classes: int = 3, dims: int = 2) -> None:
        super().__init__()
        self.head = (nn.Conv2d if dims == 2 else nn.Conv3d)(in_channels, classes, 1)
        weights = torch.zeros(3, *self.head.weight.shape[1:])
        weights[1, 0], weights[2, 1] = 8.0, 1.0
        with torch.no_grad():
            self.head.weight.copy_(weights[:classes])
            self.head.bias.copy_(torch.tensor([0.0, -4.0, 0.0])[:classes])

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(image)
        return logits


def register() -> None:
    """Make the network known to this process."""
    NETWORKS["repeating"] = "tests.unet_core.cell_images:Repeating"


def save_repeating_model(folder: Path, dims: int, heads: tuple[Head, ...] = HEADS) -> Path:
    """A package of the network; with fewer heads than it has channels, of its classes alone."""
    register()
    arguments: dict[str, Any] = {"in_channels": 2, "classes": 3 if len(heads) > 1 else 2, "dims": dims}
    stated = describe(network="repeating", **arguments).model_copy(
        update={"heads": heads, "classes": CLASSES, "normalisation": FixedNormalisation(offset=(0.0, 0.0), scale=(1.0, 1.0))}
    )
    save_model(folder, Repeating(**arguments).eval(), stated)
    return folder


def save_cells(folder: Path, shape: tuple[int, ...], seed: int = 0, voxel_size: tuple[float, ...] | None = None) -> Cells:
    """Cells of ``touching_cells``, as an image of both maps."""
    cells = touching_cells(shape, seed, 8.0 * min(voxel_size or (1.0,)), voxel_size)
    save_maps(folder, np.stack([cells.foreground_map, cells.learnt_distance]))
    return cells


def save_maps(folder: Path, maps: np.ndarray) -> None:
    """Two maps as the channels of an image."""
    axes = ["c", *"zyx"[1 - maps.ndim :]]
    zarr.create_array(folder, data=maps, chunks=(1, *((size + 1) // 2 for size in maps.shape[1:])), dimension_names=axes)

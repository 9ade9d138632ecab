"""Images of touching cells whose channels are a map of foreground and affinities, and a network that says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from torch import nn

from tests.conftest import describe
from tests.unet_core.cell_images import CLASSES
from tests.unet_core.postprocess.cells import touching_cells, true_affinities
from unet_core.model_package import FixedNormalisation, Head, save_model
from unet_core.networks import NETWORKS

OFFSETS = {
    2: ((0, 1), (-1, 0), (0, 3), (4, -4), (-5, 1)),
    3: ((0, 0, 1), (0, -1, 0), (1, 0, 0), (0, 3, 0), (-2, 0, 2), (0, 0, -5)),
}


class Saying(nn.Module):
    """From maps of probability the logits of two classes, the second of which is the first map, and of affinities, the other maps."""

    def __init__(self, in_channels: int = 6, classes: int = 7, dims: int = 2) -> None:
        super().__init__()
        self.head = (nn.Conv2d if dims == 2 else nn.Conv3d)(in_channels, classes, 1)
        weights = torch.zeros(classes, in_channels, *self.head.weight.shape[2:])
        for channel in range(in_channels):
            weights[channel + 1, channel] = 12.0
        with torch.no_grad():
            self.head.weight.copy_(weights)
            self.head.bias.copy_(torch.tensor([0.0] + [-6.0] * in_channels))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(image)
        return logits


def register() -> None:
    """Make the network known to this process."""
    NETWORKS["saying"] = "tests.unet_core.affinity_images:Saying"


def save_saying_model(folder: Path, dims: int, offsets: tuple[tuple[int, ...], ...] | None) -> Path:
    """A package of the network; without offsets, one that does not state those of its affinities."""
    register()
    count = len(OFFSETS[dims])
    arguments: dict[str, Any] = {"in_channels": count + 1, "classes": count + 2, "dims": dims}
    heads = (
        Head(kind="classes", channels=(0, 1)),
        Head(name="edges", kind="affinities", channels=tuple(range(2, count + 2)), offsets=offsets),
    )
    normalisation = FixedNormalisation(offset=(0.0,) * (count + 1), scale=(1.0,) * (count + 1))
    stated = describe(network="saying", **arguments).model_copy(
        update={"heads": heads, "classes": CLASSES, "normalisation": normalisation}
    )
    save_model(folder, Saying(**arguments).eval(), stated)
    return folder


def save_cells(folder: Path, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """The ids of cells, of which an image of the maps is written: their mask, and affinities with noise."""
    cells = touching_cells(shape, seed)
    affinities = true_affinities(cells.ids, OFFSETS[len(shape)])
    noise = np.random.default_rng(seed).normal(size=affinities.shape)
    save_maps(folder, np.concatenate([cells.mask[None], np.clip(0.7 * affinities + 0.15 + 0.2 * noise, 0, 1)]))
    return cells.ids


def save_maps(folder: Path, maps: np.ndarray) -> None:
    axes = ["c", *"zyx"[1 - maps.ndim :]]
    chunks = (1, *((size + 1) // 2 for size in maps.shape[1:]))
    zarr.create_array(folder, data=maps.astype(np.float32), chunks=chunks, dimension_names=axes)

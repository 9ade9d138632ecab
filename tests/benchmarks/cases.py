"""What is segmented: an image, a network and its weights in one folder, which every contender opens alike. Knows no contender."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from torch import nn

from unet_core import networks
from unet_core.cost import operations
from unet_core.geometry import Box
from unet_core.model_package import ModelPackage, load_model
from unet_core.segment import open_result

CHANNELS_LAST: dict[int, Any] = {2: torch.channels_last, 3: torch.channels_last_3d}


@dataclass(frozen=True)
class Case:
    """An image and a network.

    Args:
        shape: of the image, in voxels.
        network: key of the table of networks.
        arguments: of its constructor, beside channels, classes and dims.
        kind: ``comparison`` (all contenders), ``widths`` or ``scaling`` (the pipeline alone).
    """

    shape: tuple[int, ...]
    network: str
    arguments: dict[str, int] = field(default_factory=dict)
    kind: str = "comparison"

    @property
    def dims(self) -> int:
        return len(self.shape)

    @property
    def voxels(self) -> int:
        return prod(self.shape)

    def facts(self) -> dict[str, Any]:
        """Of the case, as JSON gives them back."""
        facts: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return facts


def _unet(side: int, base: int, kind: str = "comparison") -> Case:
    return Case((side, side), "unet", {"base": base, "levels": 5}, kind)


def _unet3d(side: int, base: int) -> Case:
    return Case((side, side, side), "unet3d", {"base": base, "levels": 4})


CASES: dict[str, Case] = {
    "2d": _unet(2048, 16),
    "3d": _unet3d(128, 8),
    "2d base 32": _unet(1024, 32, "widths"),
    "2d base 64": _unet(1024, 64, "widths"),
    "2d large": _unet(4096, 16),
    "2d large base 32": _unet(4096, 32),
    "2d large base 64": _unet(2048, 64, "widths"),
    "3d large": _unet3d(256, 8),
    "area 1x": _unet(1024, 16, "scaling"),
    "area 4x": _unet(2048, 16, "scaling"),
    "area 16x": _unet(4096, 16, "scaling"),
    "tiny": Case((300, 200), "unet", {"base": 4, "levels": 3}),
}
USUAL = ("2d", "3d", "2d base 32", "2d base 64")
FULL = ("2d large", "2d large base 32", "2d large base 64", "3d large", "area 1x", "area 4x", "area 16x")


class Work:
    """The folder of a case: ``image`` (Zarr), ``model`` (package), ``case.json``; a contender writes ``output``.

    ``reference.npy`` holds the labels that others are compared with, once there are some.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        facts = json.loads((folder / "case.json").read_text())
        self.case = Case(**facts | {"shape": tuple(facts["shape"])})
        self.package: ModelPackage = load_model(folder / "model")
        self.image, self.output = str(folder / "image"), str(folder / "output")

    def normalise(self, image: NDArray[Any]) -> NDArray[np.float32]:
        stated: Any = self.package.description.normalisation
        result: NDArray[np.float32] = (image.astype(np.float32) - stated.offset[0]) / stated.scale[0]
        return result

    def padded_twin(self) -> nn.Module:
        """The network with padded convolutions and the same weights, as tools need it that blend windows."""
        stated = self.package.description.network
        twin = networks.build(stated.name, **stated.arguments | {"padding": "same"}).eval()
        twin.load_state_dict(self.package.network.state_dict())
        return twin

    def create_labels(self, chunks: tuple[int, ...]) -> Any:
        chunks = tuple(min(chunk, size) for chunk, size in zip(chunks, self.case.shape, strict=True))
        return zarr.create_array(self.output, shape=self.case.shape, chunks=chunks, dtype="uint8", overwrite=True)

    def useful_operations(self) -> int:
        """Of one legal pass of the valid network over the whole mirrored image."""
        read = self.package.footprint.read_box(Box.from_shape(self.case.shape)).shape
        return operations(self.package.traced, (1, *read))

    def compare_labels(self, is_reference: bool) -> float | None:
        """Share of the output's labels that equal the reference's; None while there is none.

        Args:
            is_reference: keep the labels as the reference if there is none.
        """
        if (Path(self.output) / ".unet").exists():
            labels = np.asarray(open_result(self.output).to_dask())
        else:
            labels = np.asarray(zarr.open_array(self.output, mode="r")[...])
        kept = self.folder / "reference.npy"
        if is_reference and not kept.exists():
            np.save(kept, labels)
        return float((np.load(kept) == labels).mean()) if kept.exists() else None

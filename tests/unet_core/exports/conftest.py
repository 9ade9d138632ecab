"""Outputs whose labels are chosen by the test: what the network would say is replaced, all else is the real pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from unet_core import worker
from unet_core.job import make_job
from unet_core.segment import run

DrawOutput = Callable[..., Path]


@pytest.fixture
def draw_output(make_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DrawOutput:
    """A function that runs a job whose classes come out as the given array, and returns the output's folder."""

    def draw(labels: NDArray[np.uint8], *, image: str | None = None, **options: Any) -> Path:
        values = np.arange(3).reshape(3, *(1,) * labels.ndim)

        def drawn(unit: worker.Unit) -> list[NDArray[Any]]:
            own = labels[unit.stage.grid.block(unit.index).slices()]
            shown = {"map": own * np.uint8(80), "labels": own, "probabilities": (own == values) * np.uint8(255)}
            return [shown[image.kind] for image in unit.worker.plan.images]

        number = len(list(tmp_path.iterdir()))
        if image is None:
            image = str(tmp_path / f"image-{number}.zarr")
            zarr.create_array(image, data=np.ones(labels.shape, np.uint8))
        fields = {"voxel_size_um": (0.5,) * labels.ndim, "block_shape": (32,) * labels.ndim} | options
        output = tmp_path / f"drawn-{number}"
        with monkeypatch.context() as patch:
            patch.setattr(worker, "predict_block", drawn)
            summary = run(make_job(image=image, output=str(output), model=str(make_model(levels=2, dims=labels.ndim)), **fields))
        assert summary.status == "complete", summary.failures
        return output

    return draw


def blobs(shape: tuple[int, ...], seed: int = 0, classes: int = 2) -> NDArray[np.uint8]:
    """Classes with holes, specks, and voxels that touch at corners only."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, classes + 1, tuple(-(-size // 3) for size in shape), dtype=np.uint8)
    for axis in range(len(shape)):
        coarse = coarse.repeat(3, axis=axis)
    fine = coarse[tuple(slice(0, size) for size in shape)]
    return np.where(random.random(shape) < 0.2, random.integers(0, classes + 1, shape, dtype=np.uint8), fine)

"""Small data sets for the tests: bright disks on noise, some of them touching, as PNG images with instance ids in TIFF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import yaml
from PIL import Image

FAST = (
    "network.arguments={base: 4, levels: 2, batch_norm: true, dropout: 0.1}",
    "crops.target=24",
    "crops.per_step=2",
    "optimiser.rate=0.01",
    "optimiser.warmup_steps=3",
    "augmentation.deformation=2",
    "steps=12",
    "validate_every=6",
    "checkpoint_every=4",
)


def write_disks(folder: Path, count: int = 5, seed: int = 0, **description: Any) -> Path:
    """Images of 61x70 and 66x57 with labels, and their ``dataset.yaml``; its path."""
    random = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "labels").mkdir(exist_ok=True)
    for number in range(count):
        shape = ((61, 70), (66, 57))[number % 2]
        labels = np.zeros(shape, np.uint16)
        y, x = np.mgrid[: shape[0], : shape[1]]
        for disk in range(1, 8):
            centre = random.uniform(0, shape[0]), random.uniform(0, shape[1])
            inside = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < random.uniform(25, 60)
            labels[inside & (labels == 0)] = disk
        image = np.clip(60 + 100 * (labels > 0) + random.normal(0, 20, shape), 0, 255).astype(np.uint8)
        Image.fromarray(image).save(folder / "images" / f"disks{number}.png")
        tifffile.imwrite(folder / "labels" / f"disks{number}.tif", labels)
    fields = {
        "schema": 1,
        "name": "disks",
        "labels": "instances",
        "classes": [{"name": "background"}, {"name": "disk"}],
        "pairs": [{"image": "images/*.png", "labels": "labels/{name}.tif"}],
        "split": {"validation": 0.2},
    }
    path = folder / "dataset.yaml"
    path.write_text(yaml.safe_dump(fields | description))
    return path

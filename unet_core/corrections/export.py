"""Crops of a result into a folder: all of them beside it first, then into it at once, so that a stopped call leaves nothing half."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_core.corrections.description import new_description, with_more
from unet_core.corrections.files import IMAGES, LABELS, CropVoxels, hash_of, write_crop
from unet_core.corrections.legend import Legend
from unet_core.corrections.records import CROPS_FILE, CropRecord, as_csv, box_text, next_number
from unet_core.corrections.sample_job import SampleJob
from unet_core.corrections.segmented import Segmented
from unet_core.errors import InputError
from unet_core.geometry import Box
from unet_core.model_description import ModelDescription
from unet_core.plan import INSTANCES_PATH
from unet_core.store import LocalStore, absolute, local_path
from unet_core.training.dataset import DATASET_FILE

_CORRECTED = "-corrected"  # what a model is called that learnt from corrections
_MOST_IDS = 65_000  # of a label image of 16 bits; the highest value means that nobody knows


@dataclass(frozen=True)
class Exported:
    """What the crops of one call have in common.

    Args:
        job: what was asked.
        segmented: the result.
        legend: of its labels.
        model: that made it; None if it is not there any more.
        source_id: of the voxels of its image.
    """

    job: SampleJob
    segmented: Segmented
    legend: Legend
    model: ModelDescription | None
    source_id: str


def image_box(segmented: Segmented, box: Box) -> Box:
    """The box with what the network sees around it, as far as there is an image."""
    near = segmented.plan.footprint
    return box.grow(near.before, near.after).intersect(Box.from_shape(segmented.shape))


def export(
    shared: Exported, boxes: Sequence[Box], scores: Sequence[float], earlier: Sequence[CropRecord], command: str
) -> list[CropRecord]:
    """Write crops into the job's folder.

    Args:
        shared: by all of them.
        boxes: to label, the first rank first.
        scores: of each; none for random picks.
        earlier: crops that are there already and stay as they are.
        command: that learns from them.

    Returns:
        What was written.

    Raises:
        InputError: if the file that lists the earlier ones cannot be added to, or the folder cannot be written.
    """
    folder = local_path(shared.job.folder).resolve()
    number = next_number(folder, earlier) if earlier else 1
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.parent / f".{folder.name}-{uuid.uuid4().hex}.part"
    part.mkdir()
    try:
        records, pairs = [], []
        for rank, box in enumerate(boxes, start=1):
            name = f"crop-{number + rank - 1:03d}"
            purpose = _purpose(rank, shared.job.validation)
            voxels = _voxels(shared, box)
            image, labels = write_crop(part, name, shared.job.form, shared.legend, voxels)
            score = f"{scores[rank - 1]:.6f}" if scores else ""
            facts = {"crop": name, "image": image, "labels": labels, "labels_sha256": hash_of(part / labels), "purpose": purpose}
            records.append(_record(shared, box, facts | {"score": score, "rank": rank}))
            pairs.append(_pair(shared, image, labels, purpose, voxels))
        _settle(folder, part, (earlier, records), (_fields(shared), pairs), command)
        return records
    except OSError as error:
        raise InputError(f"Folder {folder} cannot be written ({error.strerror}: {error.filename}); give another.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _settle(
    folder: Path,
    part: Path,
    crops: tuple[Sequence[CropRecord], Sequence[CropRecord]],
    described: tuple[dict[str, Any], list[dict[str, Any]]],
    command: str,
) -> None:
    """Put what was written in its place: a new folder as a whole, into one with crops the files before the tables that name them."""
    (earlier, records), (fields, pairs) = crops, described
    table = as_csv([*earlier, *records])
    if not earlier:
        (part / CROPS_FILE).write_text(table)
        (part / DATASET_FILE).write_text(new_description(fields, pairs, command))
        os.replace(part, folder)
        return
    text = with_more((folder / DATASET_FILE).read_text(), fields, pairs)
    for inner in (IMAGES, LABELS):
        (folder / inner).mkdir(exist_ok=True)
        for entry in (part / inner).iterdir() if (part / inner).is_dir() else ():
            os.rename(entry, folder / inner / entry.name)
    store = LocalStore(str(folder))
    store.put(CROPS_FILE, table.encode())
    store.put(DATASET_FILE, text.encode())


def _purpose(rank: int, fraction: float) -> str:
    """Every so many ranks one crop is for validation, so that both have hard and easy ones."""
    return "validation" if int(rank * fraction + 1e-9) > int((rank - 1) * fraction + 1e-9) else "train"


def _voxels(shared: Exported, box: Box) -> CropVoxels:
    segmented, plan = shared.segmented, shared.segmented.plan
    outer = image_box(segmented, box)
    lead = len(plan.spatial_axes) - len(plan.network_axes)  # 1 for one section of a stack, whose crops are 2D
    image = segmented.source.read(outer)
    inner = box.shift(tuple(-first for first in outer.start))
    size = plan.scale if plan.unit == "micrometer" and all(isfinite(step) and step > 0 for step in plan.scale) else None
    return CropVoxels(
        image=image.reshape(len(image), *outer.shape[lead:]),
        labels=_labels(shared, box).reshape(box.shape[lead:]),
        inner=Box(inner.start[lead:], inner.stop[lead:]),
        voxel_size=size[lead:] if size else None,
    )


def _labels(shared: Exported, box: Box) -> NDArray[np.integer]:
    """Class values; or ids, numbered from 1 in the crop."""
    if shared.legend.kind == "classes":
        return shared.segmented.read_labels(box)
    ids = shared.segmented.result.volume(INSTANCES_PATH).read(box)[0]
    known = np.unique(ids[ids != 0])
    if len(known) > _MOST_IDS:
        raise InputError(f"A crop at {box} has {len(known)} objects, more than {_MOST_IDS}; use a smaller --size.")
    numbers = np.zeros(ids.shape, dtype=np.uint16)
    inside = ids != 0
    numbers[inside] = np.searchsorted(known, ids[inside]) + 1
    return numbers


def _record(shared: Exported, box: Box, facts: dict[str, Any]) -> CropRecord:
    job, segmented, planned = shared.job, shared.segmented, shared.segmented.plan.input
    return CropRecord(
        **facts,
        source=segmented.image_url,
        source_id=shared.source_id,
        level=planned.level,
        series=planned.series,
        time=planned.time,
        channels=",".join(map(str, planned.channels or ())),
        box=box_text(box),
        image_box=box_text(image_box(segmented, box)),
        output=absolute(job.output),
        plan=segmented.plan.id,
        model=segmented.request.model,
        by=job.by,
        seed=str(job.seed) if job.by == "random" else "",
        other=absolute(job.other) if job.other else "",
    )


def _pair(shared: Exported, image: str, labels: str, purpose: str, voxels: CropVoxels) -> dict[str, Any]:
    """An entry of ``pairs``: only the labelled box is learnt from, or chosen by."""
    pair: dict[str, Any] = {"image": image, "labels": labels, "boxes": {purpose: box_text(voxels.inner)}}
    if voxels.voxel_size:
        pair["voxel_size_um"] = list(voxels.voxel_size)
    if shared.model and shared.model.normalisation.kind in ("image", "moments"):
        found = shared.segmented.plan.model.normalisation
        pair["normalisation"] = {"offset": list(found.offset), "scale": list(found.scale)}
    return pair


def _fields(shared: Exported) -> dict[str, Any]:
    """Keys of ``dataset.yaml`` but for the pairs."""
    plan = shared.segmented.plan
    name = plan.model.name.removesuffix(_CORRECTED)[: 100 - len(_CORRECTED)] + _CORRECTED
    source = f"corrections of what model '{plan.model.name}' ({plan.model.sha256[:12]}) said of {shared.segmented.image_url}"
    fields: dict[str, Any] = {"schema": 1, "name": name, "source": source}
    fields |= shared.legend.fields(drawn=shared.job.form == "geojson")
    if shared.model:
        fields["normalisation"] = shared.model.normalisation.model_dump(mode="json")
    return fields

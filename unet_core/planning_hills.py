"""What a watershed over blocks needs: heights that the output keeps, how far blocks look. Opens no image."""

from __future__ import annotations

from math import ceil
from typing import Any

from unet_core.errors import JobError
from unet_core.job import SegmentationJob
from unet_core.model_description import ModelDescription
from unet_core.plan import ImagePlan
from unet_core.postprocess.blockwise_watershed import AHEAD
from unet_core.postprocess.distance import FURTHEST
from unet_core.postprocess.watershed import BOUNDARY_DEPTH, LEARNT_DEPTH, REACH


def plan_hills(
    job: SegmentationJob, model: ModelDescription, images: tuple[ImagePlan, ...], spacing: tuple[float, ...]
) -> dict[str, Any]:
    """Those fields of ``InstancesPlan`` that only watersheds have.

    Raises:
        JobError: if the model or the output does not have what the watershed reads, or an option has no meaning.
    """
    method, dims = job.instances, len(spacing)
    if method != "watershed" and job.reach is not None:
        raise JobError(f"--reach is {job.reach:g}, but only --instances watershed looks for the background; leave it out.")
    if method == "components":
        if job.depth is not None:
            raise JobError(f"--depth is {job.depth:g}, but components have no hills; use --instances watershed, or leave it out.")
        return {}
    ahead = AHEAD[dims]
    found: dict[str, Any] = {"ahead": ahead, "halo": (ahead,) * dims}
    if method == "watershed":
        reach = REACH[dims] * min(spacing) if job.reach is None else job.reach
        if not 1 <= reach / min(spacing) <= FURTHEST:
            raise JobError(
                f"--reach is {reach:g}, {reach / min(spacing):g} voxels of {min(spacing):g}; give 1 to {FURTHEST:,} voxels, half the width "
                "of the widest neck at which two objects are divided."
            )
        halo = tuple(ahead + ceil(reach / step) for step in spacing)
        return found | {"depth": min(spacing) if job.depth is None else job.depth, "reach": reach, "halo": halo}
    heights, depth = _heights(job, model, images), LEARNT_DEPTH if method == "learnt-distance" else BOUNDARY_DEPTH
    return found | {"depth": depth if job.depth is None else job.depth, "heights": heights.path}


def _heights(job: SegmentationJob, model: ModelDescription, images: tuple[ImagePlan, ...]) -> ImagePlan:
    """The image that the heights are read from."""
    if job.instances == "learnt-distance":
        if not any(head.kind == "distance" for head in model.heads):
            kinds = ", ".join(head.kind for head in model.heads)
            raise JobError(
                f"--instances learnt-distance needs a distance head, model '{model.name}' has only {kinds}; use --instances watershed, or "
                "train with heads of kind classes and distance."
            )
        kept = (image for image in images if image.head is not None and image.head.kind == "distance")
    else:
        kept = (image for image in images if image.kind == "probabilities")
    found = next(kept, None)
    if found is None:
        what = "distances" if job.instances == "learnt-distance" else "probabilities"
        raise JobError(
            f"--instances {job.instances} reads the {what} of the output, which keeps none; add --probabilities uint8."
        )
    return found

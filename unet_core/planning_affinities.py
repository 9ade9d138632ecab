"""What instances from affinities need: a head that states its offsets, tiles, how far blocks look. Opens no image."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from unet_core.errors import InputError, JobError
from unet_core.geometry import Shape
from unet_core.job import SegmentationJob
from unet_core.model_description import ModelDescription
from unet_core.model_heads import Head
from unet_core.plan import ImagePlan
from unet_core.postprocess.affinities import usual_tile
from unet_core.postprocess.blockwise_mutex import reach_of
from unet_core.postprocess.mutex import check_offsets


def plan_affinities(job: SegmentationJob, model: ModelDescription, images: tuple[ImagePlan, ...], shape: Shape) -> dict[str, Any]:
    """Those fields of ``InstancesPlan`` that only instances from affinities have.

    Args:
        job: that asks for them.
        model: whose affinities they are made of.
        images: of the output.
        shape: of the output.

    Raises:
        JobError: if the model or the output does not have what they are made of, or an option has no meaning.
    """
    given = {"depth": job.depth, "reach": job.reach, "connectivity": job.connectivity if job.connectivity > 1 else None}
    for name in (name for name, value in given.items() if value is not None):
        raise JobError(
            f"--{name} is {given[name]:g}, but --instances affinities joins what the offsets of the model name; leave it out."
        )
    head = affinities_head(model.heads, f"model '{model.name}'", "--instances ")
    image = next((image for image in images if image.head is not None and image.head.name == head.name), None)
    if image is None or image.head is None or image.head.offsets is None:
        raise JobError("--instances affinities reads the affinities of the output, which keeps none; add --probabilities uint8.")
    offsets = image.head.offsets
    tile = usual_tile(shape, offsets)
    halo = tuple(size - 1 + far for size, far in zip(tile, reach_of(offsets), strict=True))
    return {"heights": image.path, "tile": tile, "halo": halo}


def affinities_head(heads: tuple[Head, ...], whose: str, option: str = "") -> Head:
    """The first head of affinities.

    Args:
        heads: of a model.
        whose: these are, for the messages.
        option: that names the method, before its value.

    Raises:
        JobError: if there is none, its offsets are not stated, or none of them is of direct neighbours; or the library is not installed.
    """
    head = next((head for head in heads if head.kind == "affinities"), None)
    if head is None:
        kinds = ", ".join(head.kind for head in heads)
        raise JobError(
            f"{option}affinities needs an affinities head, {whose} has only {kinds}; use {option}watershed, or train with heads of kind "
            "classes and affinities."
        )
    if head.offsets is None:
        raise JobError(
            f"{option}affinities needs the offsets of head '{head.name}', which the model.json of {whose} does not state; add them there "
            "(offsets, one for each of its channels), or use another method."
        )
    try:
        check_offsets(head.offsets, len(head.offsets[0]))
    except InputError as error:
        raise JobError(f"Head '{head.name}' of {whose}: {error}") from None
    if find_spec("mwatershed") is None:
        raise JobError(f"{option}affinities needs mwatershed, which is not installed; pip install 'unet-flows[affinities]'.")
    return head

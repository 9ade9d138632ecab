"""What the user asks: one image, one model, one output, and the options that decide the result. Knows no image and no network."""

from __future__ import annotations

import difflib
import os
from typing import Annotated, Any, Literal

import pydantic
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from unet_core.errors import JobError
from unet_core.geometry import Box
from unet_core.places import check_apart, check_location
from unet_core.store import is_remote, local_path
from unet_core.symmetries import SymmetrySet
from unet_core.validation import first_problem
from unet_core.wording import counted

Positive = Annotated[int, Field(ge=1)]
# In micrometre: from a hundredth of an atom to a metre, so that areas and volumes stay finite numbers.
Length = Annotated[float, Field(ge=1e-6, le=1e6, allow_inf_nan=False)]
LONGEST_NAME = 100  # letters


def _name(text: str) -> str:
    if not is_name(text):
        raise PydanticCustomError("name", "Should be 1 to {most} visible letters on one line", {"most": LONGEST_NAME})
    return text


def is_name(text: str) -> bool:
    """Whether a text can name an owner or a project: short, on one line, and to be seen."""
    return 0 < len(text) <= LONGEST_NAME and text.isprintable() and text == text.strip()


Name = Annotated[str, AfterValidator(_name)]


class SegmentationJob(BaseModel):
    """Segment one image with one model into one output; the form of the flow and the options of the command line."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str = Field(
        title="Image",
        description="Path of a slide, TIFF, PNG, JPEG, OME-Zarr, Zarr, N5 or precomputed volume; s3:// URL of SVS, TIFF and all but files.",
    )
    output: str = Field(title="Output", description="Where the OME-Zarr result goes; a new folder, or one to resume.")
    model: str = Field(
        title="Model", description="Name of a bundled model (nuclei-he, nuclei-fluorescence), or folder or URL of a model."
    )
    further_models: tuple[str, ...] = Field(
        (),
        max_length=31,
        title="Further models",
        description="Of the same heads, classes and channels: the result is the mean of the probabilities of all models.",
    )
    symmetries: SymmetrySet = Field(
        "none",
        title="Symmetries",
        description="Mean of the probabilities over the image turned in y and x: none, the 4 flips, or all 8 symmetries of the square.",
    )
    trust_model: bool = Field(
        False, title="Trust model", description="Load TorchScript, which can carry code: only if you know where it comes from."
    )
    level: int | None = Field(
        None, ge=0, title="Level", description="Resolution of a pyramid; 0 is the finest. By voxel size unless told."
    )
    series: int | None = Field(None, ge=0, title="Series", description="Which image of a file that holds several.")
    time: int | None = Field(None, ge=0, title="Time point", description="Which time point of an image that has several.")
    channels: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None,
        min_length=1,
        title="Channels",
        description="Which channels of the image the model sees, in its order; 0 is the first. All unless told.",
    )
    voxel_size_um: tuple[Length, ...] | None = Field(
        None,
        title="Voxel size (um)",
        description="Of the finest level along (z,) y, x, where the image does not say it or says it wrongly; z may be left out for a 2D "
        "model on a stack.",
    )
    roi: tuple[str, ...] = Field(
        (),
        title="Regions",
        description="Segment only the blocks that touch these boxes, e.g. '0:1024,512:2048', in voxels of the level.",
    )
    mask: str | None = Field(
        None,
        title="Mask",
        description="Image of the same extent at any resolution (not 0 is foreground), or outlines as GeoJSON: blocks without foreground are "
        "not computed, and are background.",
    )
    tissue: bool = Field(
        False,
        title="Tissue",
        description="Compute only the blocks of a bright-field slide that hold tissue, found at a low resolution.",
    )
    attach: str | None = Field(
        None,
        pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        title="Attach",
        description="Name under which the labels of the complete run are copied into the labels of the image itself, an OME-Zarr.",
    )
    block_shape: tuple[Positive, ...] | None = Field(
        None, title="Block shape (voxels)", description="Of a unit of work along (z,) y, x; by memory unless told."
    )
    approximate: bool = Field(
        False,
        title="Approximate",
        description="Run networks whose layers look at the whole box (InstanceNorm, GroupNorm, global pooling), in tiles of fixed "
        "position; the result then depends on the tiles.",
    )
    tile_shape: tuple[Positive, ...] | None = Field(
        None, title="Tile shape (voxels)", description="Of the tiles of an approximate run, along the model's axes (z,) y, x."
    )
    resample: bool = Field(
        False,
        title="Resample",
        description="Read the image at the model's voxel size, resampled, where none of its levels has it; the result then has that voxel "
        "size, and regions are in its voxels.",
    )
    strip: int | None = Field(
        None,
        ge=0,
        title="Strip (voxels)",
        description="Rows (sections in 3D) that the network is fed at a time, a multiple of its stride; 0 for whole blocks at once. Chosen "
        "unless told.",
    )
    precision: Literal["float32", "tf32", "bfloat16"] = Field(
        "float32", title="Precision", description="Of the network's arithmetic; tf32 on GPUs only."
    )
    threads: int = Field(
        1,
        ge=1,
        le=1024,
        title="Threads",
        description="CPU threads of one forward pass; part of the plan, since it changes last bits.",
    )
    device: str = Field("auto", title="Device", description="auto (a GPU if there is one), cpu, cuda, or cuda:N.")
    probabilities: Literal["none", "uint8", "float32"] = Field(
        "none", title="Probabilities", description="Keep the probabilities too; uint8 stores them with an error of at most 1/510."
    )
    ngff: Literal["0.5", "0.4"] = Field("0.5", title="OME-Zarr version", description="0.5 (Zarr v3, sharded) or 0.4 (Zarr v2).")
    instances: Literal["none", "components", "watershed", "boundary-watershed", "learnt-distance", "affinities"] = Field(
        "none",
        title="Instances",
        description="Give every object an id of its own: components are the connected voxels of one class; watersheds divide what touches, "
        "where it is narrow (watershed), where the class is improbable (boundary-watershed), or where a distance head says so "
        "(learnt-distance); affinities joins what an affinities head says belongs together. The last three need probabilities to be kept.",
    )
    depth: float | None = Field(
        None,
        gt=0,
        le=1e9,
        title="Depth",
        description="Of watersheds: how much an object rises above the way to the next, in micrometre where the voxel size is known (watershed, "
        "one voxel unless told), in probability (0.1), or in -1..1 (learnt-distance, 0.2).",
    )
    reach: float | None = Field(
        None,
        gt=0,
        le=1e9,
        title="Reach",
        description="Of watershed: up to which distance to the background it looks, in the same unit; 64 voxels in 2D and 32 in 3D unless told.",
    )
    instances_of: str | None = Field(
        None, title="Instances of", description="The region whose objects get ids, of a model with several overlapping ones."
    )
    connectivity: Annotated[int, Field(ge=1, le=3)] = Field(
        1, title="Connectivity", description="Of instances: how many axes a step to a neighbour may change."
    )
    min_voxels: Positive = Field(1, title="Smallest instance (voxels)", description="Smaller ones are left out.")
    measure: bool = Field(True, title="Measure", description="Of instances: write a table with a row for each of them.")
    missing: Literal["error", "fill"] = Field(
        "error", title="Missing chunks", description="What absent chunks of the image mean."
    )
    cast: bool = Field(False, title="Cast", description="Allow intensities that float32 does not hold exactly.")
    memory_gib: float = Field(
        4.0, gt=0, le=1e6, allow_inf_nan=False, title="Memory (GiB)", description="That one worker may use for a block."
    )
    owner: Name | None = Field(None, title="Owner", description="Whose run it is, for 'unet costs'; decides nothing.")
    project: Name | None = Field(None, title="Project", description="That the run is for, for 'unet costs'; decides nothing.")

    @property
    def models(self) -> tuple[str, ...]:
        return (self.model, *self.further_models)


def make_job(**fields: Any) -> SegmentationJob:
    """A job from plain values, with errors in one sentence.

    Raises:
        JobError: naming the option, its value and what it may be.
    """
    for name in fields:
        if name not in SegmentationJob.model_fields:
            match = difflib.get_close_matches(name, SegmentationJob.model_fields, n=1)
            raise JobError(f"unknown key '{name}'" + (f", did you mean '{match[0]}'?" if match else "."))
    try:
        job = SegmentationJob(**fields)
    except pydantic.ValidationError as error:
        raise JobError(f"Option {first_problem(error)}.") from None
    check_places(job)
    return job


def check_places(job: SegmentationJob) -> None:
    """Refuse places that cannot be, and an output that would touch the image or the model.

    Raises:
        InputError: naming the option, its value and the reason.
    """
    masks = () if job.mask is None else (job.mask,)
    places = [("image", job.image), ("output", job.output), *(("model", model) for model in job.models)]
    for option, place in (*places, *(("mask", mask) for mask in masks)):
        check_location(option, place)
    check_apart(job.output, "image", job.image)
    for mask in masks:
        check_apart(job.output, "mask", mask)
    for model in job.models:
        # What is no place is the name of a bundled model, or not found later.
        if is_remote(model) or os.path.exists(local_path(model)):
            check_apart(job.output, "model", model)


def parse_box(text: str, shape: tuple[int, ...]) -> Box:
    """The box that ``"y0:y1,x0:x1"`` names in an image of ``shape``; an empty bound means the image's own.

    Raises:
        JobError: if it is not a box, or covers nothing of the image.
    """
    parts = text.split(",")
    try:
        bounds = [part.split(":") for part in parts]
        start = tuple(int(low or 0) for low, _ in bounds)
        stop = tuple(min(int(high) if high else size, size) for (_, high), size in zip(bounds, shape, strict=True))
    except ValueError:
        example = ",".join(f"0:{size}" for size in shape)
        raise JobError(
            f"roi '{text}' is not a box of {counted(len(shape), 'axis', 'axes')}; write first:last for each axis, e.g. '{example}'."
        ) from None
    if any(not 0 <= low < high for low, high in zip(start, stop, strict=True)):
        raise JobError(f"roi '{text}' covers nothing of the image, which has {shape} voxels; use bounds inside it.")
    return Box(start, stop)

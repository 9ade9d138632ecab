"""What is asked of ``unet sample``: which result, how many places, by what, how they are exported. Opens nothing."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from unet_core.errors import InputError, JobError
from unet_core.geometry import Shape
from unet_core.places import check_apart, check_location, check_writable
from unet_core.store import is_remote, local_path
from unet_core.validation import first_problem
from unet_core.wording import counted

By = Literal["entropy", "random", "disagreement"]
DEFAULT_COUNT = 20
VALIDATION = 0.2
_USUAL_SIZE = {2: 256, 3: 64}  # voxels along each axis: a screen to look at, and a minute to correct
_MOST_CROPS = 10_000


class SampleJob(BaseModel):
    """Places of one result, to be corrected."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    output: str = Field(title="Result", description="Of unet segment.")
    folder: str = Field(title="Folder", description="Where the crops go; a new folder, or one to add to.")
    count: Annotated[int, Field(ge=1, le=_MOST_CROPS, alias="n")] = DEFAULT_COUNT
    by: By = "entropy"
    other: str | None = None
    size: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(None, max_length=3)
    form: Annotated[Literal["tiff", "zarr", "geojson"], Field(alias="format")] = "tiff"
    labels: Literal["classes", "instances"] | None = None
    seed: Annotated[int, Field(ge=0, le=1 << 62)] = 0
    exclude: tuple[str, ...] = ()
    add: bool = False
    partial: bool = False
    validation: Annotated[float, Field(ge=0, lt=1)] = VALIDATION
    image: str | None = None


def make_sample_job(**fields: Any) -> SampleJob:
    """A job from plain values, checked; nothing is opened.

    Raises:
        InputError: naming the option, its value and what it may be.
    """
    try:
        job = SampleJob(**fields)
    except pydantic.ValidationError as error:
        raise JobError(f"Option {first_problem(error)}.") from None
    if (job.other is None) == (job.by == "disagreement"):
        raise JobError(
            "--by disagreement needs another result of the same image; name it with --other."
            if job.other is None
            else f"--other is {job.other}, but places are picked by {job.by}; add --by disagreement, or leave it out."
        )
    check_location("folder", job.folder)
    if is_remote(job.folder):
        raise InputError(f"Folder {job.folder} is not on this machine, where a person could edit labels; give a local folder.")
    check_apart(job.folder, "result", job.output)
    check_writable(job.folder)
    for folder in job.exclude:
        check_location("exclude", folder)
        if is_remote(folder):
            raise InputError(f"--exclude {folder} is not on this machine; copy its crops.csv into a local folder.")
    if job.image is not None:
        check_location("image", job.image)
        check_apart(job.folder, "image", job.image)
    return job


def size_of_crops(job: SampleJob, shape: Shape, dims: int) -> Shape:
    """The box of a crop along the axes of a result; one section of a stack for a 2D model.

    Args:
        job: may name one number for all axes, or one an axis of the network.
        shape: of the result.
        dims: axes that the network sees.

    Raises:
        JobError: if it is larger than the image.
    """
    stated = job.size or (_USUAL_SIZE[dims],)
    if len(stated) not in (1, dims):
        raise JobError(f"--size has {counted(len(stated), 'number')}, the model works in {dims}D; give one, or one an axis.")
    inner = stated * dims if len(stated) == 1 else stated
    size = (1,) * (len(shape) - dims) + inner
    if any(side > extent for side, extent in zip(size, shape, strict=True)):
        fitting = ",".join(str(min(side, extent)) for side, extent in zip(inner, shape[-dims:], strict=True))
        raise JobError(f"Crops of {size} voxels are larger than the image of {shape}; use --size {fitting} or less.")
    return size


def is_empty(folder: str) -> bool:
    """Whether a folder has to be made, or has nothing in it."""
    path = local_path(folder)
    return not path.exists() or not any(path.iterdir())

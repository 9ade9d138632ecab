"""What the user asks of a conversion: source, target and options. Knows no image."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from unet_core.errors import JobError
from unet_core.job import Length
from unet_core.ome_documents import Ngff
from unet_core.places import check_apart, check_location
from unet_core.validation import first_problem

MAX_THREADS = 64
LevelMethod = Literal["mean", "mode"]


class ConversionJob(BaseModel):
    """Write one image as OME-Zarr.

    Args:
        source: path or URL of an image that is read.
        target: where the OME-Zarr goes; a new folder, or one to resume.
        series: which image of a file with several.
        level: resolution of the source that becomes the finest of the target.
        time: which time point.
        channels: which, in this order; None for all.
        voxel_size_um: of the opened level, where the source does not say it or says it wrongly.
        missing: what absent chunks of the source mean.
        ngff: version of OME-Zarr.
        levels_by: how a coarser level is made of the one before: the mean of the voxels or the most frequent value; the mean unless told.
        threads: that read, encode and write; they change no byte.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    target: str
    series: int | None = Field(None, ge=0)
    level: int = Field(0, ge=0)
    time: int | None = Field(None, ge=0)
    channels: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(None, min_length=1)
    voxel_size_um: tuple[Length, ...] | None = None
    missing: Literal["error", "fill"] = "error"
    ngff: Ngff = "0.5"
    levels_by: LevelMethod | None = None
    threads: int = Field(2, ge=1, le=MAX_THREADS)


def make_conversion(**fields: Any) -> ConversionJob:
    """A conversion from plain values.

    Raises:
        JobError: naming the option, its value and what it may be; also if the target would touch the source.
    """
    try:
        job = ConversionJob(**fields)
    except pydantic.ValidationError as error:
        raise JobError(f"Option {first_problem(error)}.") from None
    check_location("source", job.source)
    check_location("target", job.target)
    check_apart(job.target, "source", job.source)
    return job

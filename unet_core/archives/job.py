"""What the user asks of an archive: its images, and the options that all of them share. Opens no image."""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationError, field_validator

from unet_core.archives.listing import Item
from unet_core.errors import JobError
from unet_core.job import SegmentationJob, make_job
from unet_core.store import plain
from unet_core.validation import first_problem


class ArchiveJob(SegmentationJob):
    """Segment many images with one model, each into a result of its own below one output; the form of the flow."""

    image: str = Field(
        title="Images",
        description="Folder, s3:// prefix, glob, OME-Zarr plate, or list (CSV, Parquet: columns image, output, voxel_size, owner, project, "
        "level, series, time, channels, roi, mask).",
    )
    output: str = Field(title="Output", description="Folder or s3:// prefix of the results, archive.json and archive.csv.")

    @field_validator("image", "output")
    @classmethod
    def _as_path(cls, url: str) -> str:
        return plain(url)

    def job_of(self, item: Item) -> SegmentationJob:
        """The job of one image.

        Raises:
            InputError: if its options or places cannot be.
        """
        fields = self.model_dump() | {"image": item.image, "output": f"{self.output.rstrip('/')}/{item.name}"}
        fields |= {name: value for name in ("owner", "project") if (value := getattr(item, name))}
        return make_job(**fields | item.options)


def make_archive_job(**fields: Any) -> ArchiveJob:
    """From plain values, with errors in one sentence.

    Raises:
        JobError: naming the option.
    """
    try:
        return ArchiveJob(**fields)
    except ValidationError as error:
        raise JobError(f"Option {first_problem(error)}.") from None

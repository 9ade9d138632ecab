"""What an archive still has to do: images listed, finished ones told by their marks, all others opened, before anything is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from unet_core.archives.job import ArchiveJob
from unet_core.archives.listing import Item, list_images, split_glob
from unet_core.archives.rows import is_list
from unet_core.archives.summary import ImageRow, failed_row, finished_row, waiting_row
from unet_core.completion import asked_of, completed_before
from unet_core.ensemble import Ensemble, check_alike
from unet_core.errors import InputError, JobError, VolumeError
from unet_core.inputs import open_input
from unet_core.job import SegmentationJob
from unet_core.model_package import load_model
from unet_core.places import check_apart, check_location, check_writable
from unet_core.planning import resolve
from unet_core.planning_checks import check_approximate, labels_of
from unet_core.predict import check_precision, resolve_device
from unet_core.wording import counted

_READERS = 8  # images that are looked at together
_PLANNED = 3  # images that are planned to the end before any is computed, if the options suit none of the first


@dataclass(frozen=True)
class PreparedArchive:
    """An archive whose images are known.

    Args:
        job: what was asked.
        items: its images.
        jobs: of the images that are to be segmented, by their number.
        rows: one an image; complete, failed, or waiting.
        notes: what else there is to know.
    """

    job: ArchiveJob
    items: tuple[Item, ...]
    jobs: dict[int, SegmentationJob]
    rows: tuple[ImageRow, ...]
    notes: tuple[str, ...]


def prepare_archive(job: ArchiveJob, show: Callable[[int, int], None] = lambda done, total: None) -> PreparedArchive:
    """List the images, tell those that are complete, open all others, and plan one; nothing is written, no voxel read but of that one.

    The others are planned when it is their turn: planning decodes chunks and, where a model normalises by the image, reads the whole.

    Args:
        job: what was asked.
        show: told how many of how many images were looked at.

    Raises:
        InputError: if there is no image, two results of one name, a model or option that suits none, or no image that can be read.
    """
    root, pattern = split_glob(job.image)
    check_location("images", root)
    check_writable(job.output)
    if not is_list(job.image) and not pattern:  # of globs each image is compared
        check_apart(job.output, "images", root)
    ensemble = Ensemble(tuple(load_model(model, job.trust_model) for model in job.models), job.symmetries)
    check_alike(ensemble.packages)
    check_precision(job.precision, resolve_device(job.device))
    labels_of(ensemble)
    check_approximate(job, ensemble)
    listing = list_images(job.image)
    sha256 = [package.sha256 for package in ensemble.packages]

    def look(item: Item) -> tuple[ImageRow, SegmentationJob | None]:
        row = waiting_row(item, job)
        try:
            check_location("image", item.image)
            own = job.job_of(item)
            found = completed_before(own, asked_of(own, sha256))
            if found is not None:
                return finished_row(row, found), None
            open_input(own, ensemble.description, ensemble.dims)
        except Exception as error:  # readers of damaged files raise every kind; the other images go on
            return failed_row(row, error), None
        return row, own

    rows: list[ImageRow] = []
    jobs: dict[int, SegmentationJob] = {}
    with ThreadPoolExecutor(_READERS, "unet-look") as readers:
        for number, (row, own) in enumerate(readers.map(look, listing.items)):
            rows.append(row)
            if own is not None:
                jobs[number] = own
            show(number + 1, len(listing.items))
    if not any(row.state == "complete" for row in rows):  # else the options suit these at least
        _plan_one(rows, jobs, listing.items)
    if all(row.state == "failed" for row in rows):
        raise InputError(
            f"No image of {job.image} can be segmented ({counted(len(rows), 'image')}): {rows[0].image}: {rows[0].reason}"
        )
    return PreparedArchive(job, listing.items, jobs, tuple(rows), tuple(listing.notes()))


def _plan_one(rows: list[ImageRow], jobs: dict[int, SegmentationJob], items: Sequence[Item]) -> None:
    """Plan images until one can be, and refuse options that suit none of the first.

    Raises:
        InputError: that of the first, unless it is about the image, or about what a list says of it alone.
    """
    refusals: list[InputError] = []
    for number, own in list(jobs.items()):
        try:
            resolve(own)
            return
        except Exception as error:  # likewise
            rows[number] = failed_row(rows[number], error)
            del jobs[number]
            if isinstance(error, InputError) and not isinstance(error, VolumeError) and not items[number].options:
                refusals.append(error)
        if len(refusals) >= _PLANNED or (refusals and not jobs):
            raise JobError(str(refusals[0]))

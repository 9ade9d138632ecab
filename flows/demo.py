"""The demonstration: a real slide and a model that lie in the package, and a picture of the result."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from unet_core.job import SegmentationJob, make_job
from unet_core.ledger import REPORT_KEY
from unet_core.pictures.summary import draw_summary
from unet_core.report.opened import open_output

SLIDE = (
    "CMU-1-Small-Region.svs"  # Aperio, H&E, 20x; from the freely distributable OpenSlide test data (Carnegie Mellon University)
)
MODEL = "nuclei-he"


def prepare_demo(folder: Path) -> SegmentationJob:
    """The job of the demonstration, with its result under ``folder``."""
    slide = Path(str(resources.files("unet_core"))) / "bundled" / SLIDE
    return make_job(image=str(slide), output=str(folder / "nuclei.zarr"), model=MODEL, block_shape=(512, 512))


def show_demo(job: SegmentationJob, folder: Path) -> dict[str, Any]:
    """Draw the picture and lay the run's page beside it; what to tell the user."""
    picture, page = folder / "nuclei.png", folder / "report.html"
    opened = open_output(job.output)
    sheet, _ = draw_summary(opened.scene())
    sheet.save(picture)
    page.write_bytes(opened.store.get(REPORT_KEY))
    return {
        "picture": str(picture),
        "report": str(page),
        "lines": [
            f"  slide:   {SLIDE}, H&E at 20x (OpenSlide test data, Carnegie Mellon University)",
            f"  result:  {job.output} (OME-Zarr: drop it on a viewer; label image under labels/classes)",
            f"  picture: {picture}",
            f"  report:  {page}",
        ],
    }

"""The command ``unet sample``: places of a result, to be corrected and learnt from. Imports nothing heavy."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from flows.options import Flag, Whole, numbers_of
from flows.printing import print_json
from unet_core.wording import counted

if TYPE_CHECKING:
    from unet_core.corrections import SampleSummary

_SHOWN = 5  # crops that are listed; crops.csv has all


def sample(
    output: str,
    folder: str,
    *,
    n: Whole = 20,
    by: Literal["entropy", "random", "disagreement"] = "entropy",
    other: str | None = None,
    size: str | None = None,
    format_: Annotated[Literal["tiff", "zarr", "geojson"], Parameter(name="--format")] = "tiff",
    labels: Literal["classes", "instances"] | None = None,
    seed: Whole = 0,
    exclude: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    add: Flag = False,
    partial: Flag = False,
    validation: float = 0.2,
    image: str | None = None,
    json: Flag = False,
    debug: Flag = False,
) -> int:
    """Pick places of a result and export them with their labels, to be corrected and learnt from.

    Args:
        output: Result of `unet segment`.
        folder: Where the crops go: images, labels to edit, crops.csv and a dataset.yaml for `unet train`.
        n: How many crops; no two overlap.
        by: entropy: where the model is least sure (needs kept --probabilities); random: anywhere that was segmented; disagreement: where
            another result says something else.
        other: For disagreement: a result of the same image by another model.
        size: Voxels of a crop along (z,) y, x, or one number for all; 256, in 3D 64, unless told.
        format_: tiff (Fiji, napari), zarr (OME-Zarr, napari), or geojson (outlines, QuPath).
        labels: What is edited: class values, or ids of objects; ids where the model has heads that are learnt from them, unless told.
        seed: Of random places.
        exclude: Folder of earlier crops, which are not picked again; may be repeated.
        add: Add to the crops of FOLDER; what is there stays as it is.
        partial: Take what is there of a result that is not complete.
        validation: Fraction of the crops that choose the checkpoint and are not learnt from.
        image: Where the image of the result lies now, if it was moved.
        json: Print a machine-readable last line.
        debug: Show tracebacks.
    """
    from dataclasses import asdict

    from unet_core.corrections.sample_job import make_sample_job

    job = make_sample_job(
        output=output,
        folder=folder,
        n=n,
        by=by,
        other=other,
        size=numbers_of("size", size, int),
        format=format_,
        labels=labels,
        seed=seed,
        exclude=exclude,
        add=add,
        partial=partial,
        validation=validation,
        image=image,
    )
    from unet_core.corrections import sample as sample_result

    summary = sample_result(job, _note)
    _print_summary(summary)
    if json:
        print_json(asdict(summary))
    return 0


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print_summary(summary: SampleSummary) -> None:
    size = " x ".join(str(side) for side in summary.size)
    print(f"{summary.folder}: {counted(len(summary.crops), 'crop')} of {size} voxels by {summary.by}", end="")
    print(f", {summary.total} in all" if summary.total > len(summary.crops) else "")
    for crop in summary.crops[:_SHOWN]:
        score = "" if crop["score"] is None else f"{summary.by} {crop['score']:.3f}, "
        print(f"  {crop['name']}: {score}at {crop['box']}")
    if len(summary.crops) > _SHOWN:
        print(f"  ... and {len(summary.crops) - _SHOWN} more, see {summary.folder}/crops.csv")
    if summary.mean_score is not None:
        print(f"  mean of all that was segmented: {summary.by} {summary.mean_score:.3f}")
    for text in summary.notes:
        print(f"  note: {text}")
    print(f"Correct the labels in {summary.folder}, then:\n  {summary.command}")

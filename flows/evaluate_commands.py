"""The command that scores predictions: ``unet evaluate``. Heavy imports wait until it is called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from flows import settings
from flows.options import Flag, Whole, WholeOrNone, numbers_of
from flows.printing import print_json, visible

if TYPE_CHECKING:
    from flows.evaluation import EvaluationJob
    from unet_core.evaluation import ScoreTable

USUAL_METRICS = "iou,dice"
_FILE_LETTERS = 200  # of a line that goes to a file
_MOST_GIB, _MOST_THREADS = 1e6, 1024


def evaluate(
    prediction: str,
    reference: str,
    *,
    metrics: str = USUAL_METRICS,
    prediction_is: Literal["mask", "classes", "ids", "map"] | None = None,
    reference_is: Literal["mask", "classes", "ids"] | None = None,
    class_: Annotated[str | None, Parameter(name="--class")] = None,
    ignore: WholeOrNone = None,
    threshold: float = 0.5,
    thresholds: str | None = None,
    invert_prediction: Flag = False,
    invert_reference: Flag = False,
    instances: Literal["components", "watershed", "boundary-watershed", "learnt-distance", "affinities", "given"] | None = None,
    depth: float | None = None,
    connectivity: Whole = 1,
    min_voxels: Whole = 0,
    average: Literal["micro", "macro"] | None = None,
    by_section: Flag = False,
    missing: Literal["error", "fill"] | None = None,
    memory_gib: float = 8.0,
    part: Literal["train", "validation", "test"] | None = None,
    root: str | None = None,
    fold: WholeOrNone = None,
    symmetries: Literal["none", "flips", "all"] | None = None,
    device: str | None = None,
    threads: WholeOrNone = None,
    report: str | None = None,
    flow: Flag = False,
    json: Flag = False,
    debug: Flag = False,
) -> int:
    """Score a prediction against a reference, a folder against one of same names, or a model against a data set.

    Args:
        prediction: Result of `unet segment`, image (labels or probability map), folder of images, or a model.
        reference: Label image, folder of them, or (with a model) what it was trained with: dataset.yaml, or a folder of images and labels.
        metrics: Names with commas: iou dice pixel_accuracy mean_accuracy mean_iu frequency_weighted_iu pixel_error_max_f pixel_error_fiji
            rand_error_2012 v_rand_thinned v_info_thinned warping_error warping_error_splits_mergers adapted_rand v_rand v_info voi seg pq.
        prediction_is: What the prediction's numbers mean: mask (0 and anything else), classes, ids of instances, or a probability map.
        reference_is: Likewise of the reference; instances of a mask or class are its connected components.
        class_: The class that is foreground: a number, or a name of the model's (a name, with a data set); in a map with channels, its channel.
        ignore: Value of the reference whose voxels are left out.
        threshold: Foreground of a map is above it (0 to 1).
        thresholds: Of the scores that look for the best one; 0,0.1,..,0.9 unless told.
        invert_prediction: What is low, or 0, is foreground: for a map of membranes when cells are scored.
        invert_reference: What is 0 is foreground.
        instances: How instances of the prediction are made; components unless told, or given if it holds ids; learnt-distance and
            affinities need a model with such a head.
        depth: Of domes (watershed, in micrometre where the voxel size is known; learnt-distance) or valleys (boundary-watershed) that become
            instances.
        connectivity: Of components: how many axes a step may change.
        min_voxels: Smaller instances of the prediction are background.
        average: Over sections, of the Rand scores at thresholds: pairs added up (micro) or mean of scores (macro); each its own unless told.
        by_section: Score each section of a stack by itself.
        missing: What absent chunks of Zarr images mean: an error (unless told), or background.
        memory_gib: That one image or section may take.
        part: Of a data set, that the model is scored on; test unless told.
        root: Of a data set, where its relative paths start from.
        fold: Of a data set with folds.
        symmetries: That a model's predictions are averaged over; none unless told.
        device: Where a model runs: auto, cpu, cuda or cuda:N; auto unless told.
        threads: CPU threads of a model; 1 unless told.
        report: File of a page with every score, each image as a dot, and the worst cases as pictures.
        flow: Run as a Prefect flow even when no Prefect API is configured.
        json: Print a machine-readable last line.
        debug: Show tracebacks.
    """
    from flows.evaluation import EvaluationJob, HeldOut, evaluate_plainly
    from unet_core.evaluation import MeaningOptions, OpeningOptions, check_metrics
    from unet_core.metrics.maps import THRESHOLDS

    options = OpeningOptions(
        prediction_is=prediction_is,
        reference_is=reference_is,
        foreground=class_,
        meaning=MeaningOptions(
            threshold=threshold,
            thresholds=numbers_of("thresholds", thresholds, float) or THRESHOLDS,
            instances=instances,
            depth=depth,
            connectivity=connectivity,
            min_voxels=min_voxels,
            invert_prediction=invert_prediction,
            invert_reference=invert_reference,
            ignore=ignore,
            average=average,
        ),
        by_section=by_section,
        memory_bytes=_bytes_of(memory_gib),
        missing=missing or "error",
    )
    held_out = None
    if _is_data_set(prediction, reference):
        _check_threads(threads)
        told = "a data set and the model tell what their numbers mean"
        _check_unused({"prediction-is": prediction_is, "reference-is": reference_is, "ignore": ignore, "missing": missing}, told)
        held_out = HeldOut(
            part=part or "test",
            root=root,
            fold=fold,
            symmetries=symmetries or "none",
            device=device or "auto",
            threads=threads or 1,
        )
    else:
        unused = {"part": part, "root": root, "fold": fold, "symmetries": symmetries, "device": device, "threads": threads}
        _check_unused(unused, "images are scored, and it is for a model and its data set")
    names = check_metrics([name.strip() for name in metrics.split(",") if name.strip()])
    job = EvaluationJob(prediction, reference, names, options, held_out, report)
    if flow or settings.prefect_api_url() is not None:
        table, sentences = _evaluate_flow(job)
    else:
        evaluated = evaluate_plainly(job)
        table, sentences = evaluated.table, evaluated.sentences
    _print_table(table, sentences, by_section)
    if report:
        print(f"page: {report}")
    if json:
        print_json({"prediction": prediction, "reference": reference} | table.as_json() | ({"page": report} if report else {}))
    return 0


def _evaluate_flow(job: EvaluationJob) -> tuple[ScoreTable, tuple[str, ...]]:
    from flows.prefect_server import check_prefect, start_ephemeral
    from unet_core.evaluation import ScoreTable

    api_url = settings.prefect_api_url()
    if api_url is not None:
        check_prefect(api_url)
    job.check_all()
    settings.apply_defaults()
    if api_url is None:
        start_ephemeral()
    from flows.evaluate import evaluate_archive

    found = evaluate_archive(**job.as_parameters())
    return ScoreTable.from_json(found), tuple(found["meaning"])


def _check_unused(options: dict[str, object], why: str) -> None:
    """Refuse what would be left aside."""
    from unet_core.errors import InputError

    for name, value in options.items():
        if value is not None:
            raise InputError(f"--{name} is {value}, but {why}; leave it out.")


def _check_threads(threads: int | None) -> None:
    from unet_core.errors import InputError

    if threads is not None and not 1 <= threads <= _MOST_THREADS:
        raise InputError(f"--threads is {threads}; give 1 to {_MOST_THREADS}.")


def _bytes_of(memory_gib: float) -> int:
    from unet_core.errors import InputError

    if not 0 < memory_gib <= _MOST_GIB:  # NaN fails too
        raise InputError(f"--memory-gib is {memory_gib:g}; give more than 0 GiB, at most {_MOST_GIB:g}.")
    return round(memory_gib * 2**30)


def _is_data_set(prediction: str, reference: str) -> bool:
    """Whether a model is to be scored on what can be trained with."""
    from unet_core.store import is_remote, local_path
    from unet_core.training_folder import find_training

    if reference.endswith((".yaml", ".yml")):
        return True
    if is_remote(prediction) or is_remote(reference) or not local_path(reference).is_dir():
        return False
    if local_path(prediction).exists():
        return (local_path(prediction) / "model.json").is_file() or find_training(prediction) is not None
    from unet_core.model_package import bundled_models
    from unet_core.wording import near_word

    return prediction in bundled_models() or bool(near_word(prediction, bundled_models()))


def _print_table(table: ScoreTable, sentences: tuple[str, ...], by_section: bool) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _FILE_LETTERS
    for text in sentences:
        console.print(text, markup=False)
    if table.foreground is not None:
        predicted, truth = table.foreground
        console.print(f"foreground: {predicted:.2%} of the prediction, {truth:.2%} of the reference")
    if table.looks_inverted:
        console.print(
            "note: prediction and reference disagree on most voxels; if one marks what the other leaves dark, "
            "use --invert-prediction or --invert-reference"
        )
    several = len(table.names) > 1
    if several:
        images = Table(*(Column(name, overflow="fold") for name in ("image", *table.rows[0])), box=None)
        for name, row in zip(table.names, table.rows, strict=True):
            images.add_row(visible(name), *(_number(value) for value in row.values()))
        console.print(images)
        console.print()
    numbers = ("mean", "95 % interval", "images", "pooled") if several else ("value",)
    narrow = [Column(name, no_wrap=True) for name in ("score", *numbers, "best")]
    shown = Table(*narrow, Column("definition", overflow="fold"), box=None)
    for entry in table.summary:
        interval = f"{entry.interval[0]:.4f} to {entry.interval[1]:.4f}" if entry.interval else ""
        pooled = "" if entry.pooled is None else _number(entry.pooled)
        middle = (interval, str(entry.images), pooled) if several else ()
        shown.add_row(entry.name, _number(entry.mean), *middle, entry.best, entry.definition)
    console.print(shown)
    for number, value in table.class_iou.items():
        console.print(f"  IoU of class {number}: {_number(value)}")
    if by_section:
        console.print("note: sections of one stack resemble each other, so that the interval is too narrow")


def _number(value: float) -> str:
    return "-" if value != value else f"{value:.4f}" if value >= 0.001 or value == 0 else f"{value:.2e}"
